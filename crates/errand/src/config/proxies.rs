//! Determines the client's address behind proxies.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The proxies whose `x-forwarded-for` header is trusted; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub(super) fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    pub(super) fn networks(&self) -> &[IpNet] {
        &self.0
    }

    /// Whether `peer` is a trusted proxy. An IPv4-mapped IPv6 address counts as the IPv4 address.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        let plain = peer.to_canonical();
        self.0
            .iter()
            .any(|network| network.contains(&plain) || network.contains(&peer))
    }

    /// The address of the client: `peer`, unless that is a trusted proxy; then the last address in `forwarded_for` (all
    /// `x-forwarded-for` headers in order, joined by commas) that is not a trusted proxy.
    ///
    /// Everything before that address, or before an invalid entry, may have been written by the client and is ignored.
    #[must_use]
    pub fn client(&self, peer: IpAddr, forwarded_for: &str) -> IpAddr {
        let mut client = peer.to_canonical();
        for hop in forwarded_for.rsplit(',') {
            if !self.contains(client) {
                break;
            }
            let Some(address) = hop_address(hop.trim()) else {
                break;
            };
            client = address.to_canonical();
        }
        client
    }
}

/// Some proxies add a port, or brackets.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = hop
        .strip_prefix('[')
        .and_then(|hop| hop.strip_suffix(']'))
        .unwrap_or(hop);
    bare.parse()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// Parses an address, or a network in CIDR notation.
pub(super) fn parse_network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>()
        .ok()
        .or_else(address)
        .map(|network| network.trunc())
        .ok_or_else(|| {
            format!("{text:?} is neither an address nor a network such as 10.0.0.0/8 or fd00::/8")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(networks: &[&str]) -> TrustedProxies {
        TrustedProxies::new(
            networks
                .iter()
                .map(|text| parse_network(text).unwrap())
                .collect(),
        )
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_networks() {
        let proxies = proxies(&["127.0.0.1", "10.1.2.3/8", "fd00::/8"]);
        for trusted in ["127.0.0.1", "10.255.0.1", "::ffff:10.0.0.1", "fd12::1"] {
            assert!(proxies.contains(ip(trusted)), "{trusted}");
        }
        for stranger in ["127.0.0.2", "11.0.0.1", "::1", "fe80::1", "::ffff:11.0.0.1"] {
            assert!(!proxies.contains(ip(stranger)), "{stranger}");
        }
        assert!(!TrustedProxies::default().contains(ip("127.0.0.1")));
        assert!(parse_network("10.0.0.0/33").is_err());
        assert!(parse_network("proxy.example").is_err());
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy() {
        let proxies = proxies(&["10.0.0.0/8"]);
        let client = |peer, header| proxies.client(ip(peer), header).to_string();
        // The header of an untrusted peer is ignored.
        assert_eq!(client("203.0.113.9", "198.51.100.1"), "203.0.113.9");
        assert_eq!(client("10.0.0.1", "198.51.100.1"), "198.51.100.1");
        // The client's own entries come first.
        assert_eq!(
            client("10.0.0.1", "1.2.3.4, 198.51.100.1, 10.0.0.2"),
            "198.51.100.1"
        );
        assert_eq!(client("10.0.0.1", ""), "10.0.0.1");
        assert_eq!(client("10.0.0.1", "1.2.3.4, unknown, 10.0.0.2"), "10.0.0.2");
        assert_eq!(client("10.0.0.1", "10.0.0.3,10.0.0.2"), "10.0.0.3");
        assert_eq!(
            client("::ffff:10.0.0.1", "198.51.100.1:4711"),
            "198.51.100.1"
        );
        assert_eq!(client("10.0.0.1", "[2001:db8::1]:443"), "2001:db8::1");
        assert_eq!(client("10.0.0.1", "[2001:db8::1]"), "2001:db8::1");
    }
}
