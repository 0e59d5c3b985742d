//! The client's address, and the limit on failed authentications from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::ConnectInfo;
use errand_core::time::Timestamp;
use http::header::HeaderMap;

use super::error::ApiError;
use super::limiter::Limiter;
use crate::config::TrustedProxies;

/// Counts failed authentications, with API keys and passwords, by the client's address.
pub(crate) struct FailedAuthentications {
    by_address: Limiter<IpAddr>,
    proxies: TrustedProxies,
}

impl FailedAuthentications {
    pub(crate) fn new(per_minute: u32, proxies: TrustedProxies) -> Self {
        Self {
            by_address: Limiter::new(per_minute),
            proxies,
        }
    }

    /// Counts a failed authentication. Returns `refusal`, or 429 if the address has failed too often.
    pub(crate) fn refuse(
        &self,
        headers: &HeaderMap,
        peer: IpAddr,
        now: Timestamp,
        refusal: ApiError,
    ) -> ApiError {
        let verdict = self
            .by_address
            .count(self.address_behind(headers, peer), now);
        if verdict.allowed {
            return refusal;
        }
        let message = format!(
            "too many failed authentications from this address: wait {} s",
            verdict.retry_after_s
        );
        ApiError::rate_limited(message, verdict.retry_after_s)
    }

    /// The number of failed authentications of an address in this window, and whether another one is permitted.
    pub(crate) fn so_far(&self, headers: &HeaderMap, peer: IpAddr, now: Timestamp) -> (u32, bool) {
        let address = self.address_behind(headers, peer);
        self.by_address.so_far(&address, now)
    }

    /// The client's address (behind trusted proxies), reduced to the part by which attempts are counted.
    pub(crate) fn address_behind(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        limited_address(self.proxies.client(peer, &forwarded_for(headers)))
    }
}

/// The address at the other end of the connection. A call within the process has none.
pub(crate) fn address_of(info: Option<&ConnectInfo<SocketAddr>>) -> IpAddr {
    info.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |info| info.0.ip())
}

fn forwarded_for(headers: &HeaderMap) -> String {
    let values = headers.get_all("x-forwarded-for").iter();
    values
        .filter_map(|value| value.to_str().ok())
        .collect::<Vec<_>>()
        .join(",")
}

/// A client with one IPv6 address usually controls its whole /64 network, so the network is counted.
fn limited_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(
            address.to_bits() & !u128::from(u64::MAX),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_in_a_64_count_as_one() {
        let limited = |text: &str| limited_address(text.parse().unwrap());
        assert_eq!(limited("2001:db8::1"), limited("2001:db8::ffff:1"));
        assert_ne!(limited("2001:db8::1"), limited("2001:db8:0:1::1"));
        assert_ne!(limited("192.0.2.1"), limited("192.0.2.2"));
        assert_eq!(limited("::ffff:192.0.2.1"), limited("192.0.2.1"));
    }
}
