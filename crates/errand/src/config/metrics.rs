//! `[metrics]`: the endpoint for metrics.

use std::net::SocketAddr;

use super::kinds::{Setting, optional};
use super::reader::section;
use super::server::parse_address;

section! {
    /// The endpoint for metrics.
    pub struct MetricsConfig["metrics"] {
        /// Address and port at which GET /metrics serves metrics for Prometheus; without it, there is no such endpoint.
        listen: Option<SocketAddr> = listen(),
    }
}

impl MetricsConfig {
    pub(super) fn warnings(&self) -> Vec<String> {
        self.listen
            .filter(|listen| !listen.ip().to_canonical().is_loopback())
            .map(|listen| {
                format!(
                    "metrics.listen is {listen}, not a loopback address: anyone who can reach it can read the metrics, without a key \
                     and without TLS. Listen on 127.0.0.1, or let only the collector connect."
                )
            })
            .into_iter()
            .collect()
    }
}

fn listen() -> Setting<Option<SocketAddr>> {
    optional(
        "address:port",
        |text| parse_address(text, 8701),
        |value| value.as_ref().map(ToString::to_string),
    )
}
