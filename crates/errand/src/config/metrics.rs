//! `[metrics]`: where figures are shown.

use std::net::SocketAddr;

use super::kinds::{Setting, optional};
use super::reader::section;
use super::server::parse_address;

section! {
    /// Where figures are shown.
    pub struct MetricsConfig["metrics"] {
        /// The address and port at which GET /metrics gives figures for Prometheus; without it there are none.
        listen: Option<SocketAddr> = listen(),
    }
}

impl MetricsConfig {
    pub(super) fn warnings(&self) -> Vec<String> {
        self.listen
            .filter(|listen| !listen.ip().to_canonical().is_loopback())
            .map(|listen| {
                format!(
                    "metrics.listen is {listen}, beyond the loopback: whoever reaches it reads the figures, without a key \
                     and without TLS. Listen on 127.0.0.1, or let only the collector through."
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
