//! Decides which addresses this server may call on behalf of a team.
//!
//! # Guarantees
//!
//! - A guarded request reaches only public Internet addresses and, if the operator allows it, private networks. It
//!   never reaches link-local addresses, a cloud's metadata service, or a form that hides another address.
//! - The check applies to the address that is connected to: literal IP addresses in the URL ([`Guard::check_url`]) and
//!   names after their resolution ([`Guard::resolver`]).
//!
//! # Non-goals
//!
//! Addresses from the operator (they are not guarded), and public addresses that forward to internal ones (a custom
//! NAT64 prefix, hairpin NAT). Only a firewall knows about those.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use errand_core::error_chain::is_exhausted;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// The rule for one kind of request. Cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    allow_private: bool,
    setting: &'static str,
}

/// The reason why an address must not be called. The messages are shown to the team that gave the address: they contain
/// the host as it was given, never what it resolved to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// Neither `http` nor `https`.
    #[error("the address begins with `{scheme}:`; only http and https can be called")]
    Scheme { scheme: String },
    #[error("the address has no host")]
    NoHost,
    /// The host is an IP address in a forbidden network.
    #[error("{host} is {network}, which this server may not call{}", hint(*.setting))]
    Address {
        /// The address in canonical form.
        host: String,
        /// A description of the network, such as `a loopback address`.
        network: &'static str,
        /// The setting with which the operator can allow it. `None` if it is never allowed.
        setting: Option<&'static str>,
    },
    /// A name that always refers to the local machine.
    #[error("{host} is this machine, which this server may not call{}", hint(Some(.setting)))]
    LocalName {
        host: String,
        /// The setting with which the operator can allow it.
        setting: &'static str,
    },
    /// A name that resolves only to forbidden addresses.
    #[error("{host} does not resolve to an address that this server may call (none is public){}", hint(*.setting))]
    Resolved {
        host: String,
        /// The setting with which the operator can allow it. `None` if it is never allowed.
        setting: Option<&'static str>,
    },
}

fn hint(setting: Option<&str>) -> String {
    setting.map_or_else(String::new, |s| {
        format!("; the operator can allow private networks with `{s} = true`")
    })
}

impl Guard {
    /// A guard for one kind of request. `setting`: the name of the operator's setting for `allow_private`, for
    /// messages.
    pub fn new(allow_private: bool, setting: &'static str) -> Self {
        Self {
            allow_private,
            setting,
        }
    }

    /// The guard for webhooks. `allow_private`: the value of `webhooks.allow_private_networks`.
    pub fn webhooks(allow_private: bool) -> Self {
        Self::new(allow_private, "webhooks.allow_private_networks")
    }

    /// Checks an address as far as possible without resolving its name. Call it when the address is set, and again
    /// before each request, because literal IP addresses bypass the resolver.
    ///
    /// Parsing with `url` has already normalized each literal form (decimal, octal, hexadecimal, full-width digits) to
    /// the address. A user name and password are accepted: they do not affect the destination, and receivers behind
    /// basic authentication need them.
    ///
    /// # Errors
    /// Any [`Blocked`] except [`Blocked::Resolved`].
    pub fn check_url(&self, url: &Url) -> Result<(), Blocked> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Blocked::Scheme {
                scheme: url.scheme().to_owned(),
            });
        }
        match url.host() {
            None => Err(Blocked::NoHost),
            Some(Host::Domain(name)) if !self.allow_private && is_local_name(name) => {
                Err(Blocked::LocalName {
                    host: name.to_owned(),
                    setting: self.setting,
                })
            }
            Some(Host::Domain(_)) => Ok(()),
            Some(Host::Ipv4(ip)) => self.check_ip(ip.into()),
            Some(Host::Ipv6(ip)) => self.check_ip(ip.into()),
        }
    }

    fn check_ip(&self, ip: IpAddr) -> Result<(), Blocked> {
        let (network, setting) = match class(ip) {
            Class::Public => return Ok(()),
            Class::Private(_) if self.allow_private => return Ok(()),
            Class::Private(network) => (network, Some(self.setting)),
            Class::Never(network) => (network, None),
        };
        Err(Blocked::Address {
            host: ip.to_string(),
            network,
            setting,
        })
    }

    /// Filters the addresses to which a name resolved, and keeps their order.
    ///
    /// # Errors
    /// [`Blocked::Resolved`] if no address is permitted.
    pub fn keep_permitted(
        &self,
        host: &str,
        addresses: Vec<SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Blocked> {
        let (permitted, refused): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .partition(|address| self.check_ip(address.ip()).is_ok());
        if permitted.is_empty() {
            let could_be_allowed = refused
                .iter()
                .any(|address| matches!(class(address.ip()), Class::Private(_)));
            let setting = (could_be_allowed && !self.allow_private).then_some(self.setting);
            return Err(Blocked::Resolved {
                host: host.to_owned(),
                setting,
            });
        }
        Ok(permitted)
    }

    /// A resolver for `reqwest` that uses the system's resolver and returns only permitted addresses. Its error is a
    /// [`Blocked`] or an [`io::Error`].
    pub fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(GuardedResolver {
            guard: *self,
            lookup: Lookup::System,
        })
    }

    #[cfg(test)]
    pub(super) fn resolver_of(
        &self,
        host: &'static str,
        addresses: Vec<IpAddr>,
    ) -> Arc<dyn Resolve> {
        Arc::new(GuardedResolver {
            guard: *self,
            lookup: Lookup::Fixed { host, addresses },
        })
    }
}

/// Names that every resolver maps to the local machine. They are refused when the address is set rather than at its
/// first use.
fn is_local_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    matches!(
        name,
        "localhost" | "localhost.localdomain" | "ip6-localhost" | "ip6-loopback"
    ) || name.ends_with(".localhost")
}

struct GuardedResolver {
    guard: Guard,
    lookup: Lookup,
}

#[derive(Clone)]
enum Lookup {
    System,
    #[cfg(test)]
    Fixed {
        host: &'static str,
        addresses: Vec<IpAddr>,
    },
}

impl Lookup {
    async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        match self {
            // Port 0: the caller replaces it with the URL's port.
            Self::System => match tokio::net::lookup_host((name, 0)).await {
                Ok(addresses) => Ok(addresses.collect()),
                // If the system's resolver cannot open its files, it reports that the name does not exist. Detect the
                // real cause.
                Err(error) => Err(exhaustion().unwrap_or(error)),
            },
            #[cfg(test)]
            Self::Fixed { host, addresses } if name == *host => {
                Ok(addresses.iter().map(|ip| SocketAddr::new(*ip, 0)).collect())
            }
            #[cfg(test)]
            Self::Fixed { .. } => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// The error for exhausted file descriptors, if none is free.
fn exhaustion() -> Option<io::Error> {
    let error = std::fs::File::open("/").err()?;
    is_exhausted(&error).then_some(error)
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, lookup) = (self.guard, self.lookup.clone());
        Box::pin(async move {
            let addresses = lookup.addresses(name.as_str()).await?;
            if addresses.is_empty() {
                return Err(Box::new(io::Error::from(io::ErrorKind::NotFound))
                    as Box<dyn StdError + Send + Sync>);
            }
            let permitted = guard.keep_permitted(name.as_str(), addresses)?;
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is a public Internet address of one host, according to IANA's special-purpose registries.
///
/// It is stricter than the registries: addresses that stand for another address (IPv4-mapped, NAT64, 6to4, Teredo),
/// anycast addresses of protocols, and a cloud's own services at public addresses do not count as global.
pub fn is_global(ip: IpAddr) -> bool {
    matches!(class(ip), Class::Public)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Public,
    /// Called only if the operator allows private networks. The text describes the network in messages.
    Private(&'static str),
    /// Never called: a team has no reason to use a service there.
    Never(&'static str),
}

const PRIVATE: &str = "an address of a private network";
const LOOPBACK: &str = "a loopback address";
const CLOUD: &str = "an address of a cloud provider's own services (metadata, credentials)";
const LINK_LOCAL: &str = "a link-local address (where clouds keep their metadata service)";
const PROTOCOLS: &str = "an address reserved for protocols";
const DOCUMENTATION: &str = "an address reserved for documentation";
const MULTICAST: &str = "a multicast address";
const RESERVED: &str = "a reserved address";
const TUNNEL: &str = "a tunnel address, which stands for another address";

/// Network, prefix length, class. The first match counts; an address without a match is public.
const V4: &[(Ipv4Addr, u32, Class)] = &[
    // Azure's and Alibaba's. The latter is within the shared address space.
    (Ipv4Addr::new(168, 63, 129, 16), 32, Class::Never(CLOUD)),
    (Ipv4Addr::new(100, 100, 100, 200), 32, Class::Never(CLOUD)),
    // Linux treats 0.0.0.0 as localhost.
    (
        Ipv4Addr::new(0, 0, 0, 0),
        8,
        Class::Never("an address of \"this network\""),
    ),
    (Ipv4Addr::new(10, 0, 0, 0), 8, Class::Private(PRIVATE)),
    (
        Ipv4Addr::new(100, 64, 0, 0),
        10,
        Class::Private("an address of a provider's shared space (CGNAT)"),
    ),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Class::Private(LOOPBACK)),
    (Ipv4Addr::new(169, 254, 0, 0), 16, Class::Never(LINK_LOCAL)),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Class::Private(PRIVATE)),
    // Oracle's metadata service is here, too (192.0.0.192).
    (Ipv4Addr::new(192, 0, 0, 0), 24, Class::Never(PROTOCOLS)),
    (Ipv4Addr::new(192, 0, 2, 0), 24, Class::Never(DOCUMENTATION)),
    (Ipv4Addr::new(192, 88, 99, 0), 24, Class::Never(TUNNEL)),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Class::Private(PRIVATE)),
    (
        Ipv4Addr::new(198, 18, 0, 0),
        15,
        Class::Private("an address for benchmarks"),
    ),
    (
        Ipv4Addr::new(198, 51, 100, 0),
        24,
        Class::Never(DOCUMENTATION),
    ),
    (
        Ipv4Addr::new(203, 0, 113, 0),
        24,
        Class::Never(DOCUMENTATION),
    ),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Class::Never(MULTICAST)),
    (
        Ipv4Addr::new(255, 255, 255, 255),
        32,
        Class::Never("the broadcast address"),
    ),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Class::Never(RESERVED)),
];

/// As [`V4`]; what none matches is reserved, since IANA has given out 2000::/3 alone.
const V6: &[(Ipv6Addr, u32, Class)] = &[
    (Ipv6Addr::LOCALHOST, 128, Class::Private(LOOPBACK)),
    (
        Ipv6Addr::UNSPECIFIED,
        128,
        Class::Never("the unspecified address"),
    ),
    // Amazon's, Google's and Scaleway's metadata services, within the private space.
    (v6(0xfd00, 0xec2), 32, Class::Never(CLOUD)),
    (
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
        128,
        Class::Never(CLOUD),
    ),
    (
        Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
        128,
        Class::Never(CLOUD),
    ),
    (v6(0xfc00, 0), 7, Class::Private(PRIVATE)),
    (v6(0xfe80, 0), 10, Class::Never(LINK_LOCAL)),
    (v6(0xff00, 0), 8, Class::Never(MULTICAST)),
    (v6(0x2001, 0), 32, Class::Never(TUNNEL)),
    (v6(0x2001, 0), 23, Class::Never(PROTOCOLS)),
    (v6(0x2001, 0xdb8), 32, Class::Never(DOCUMENTATION)),
    (v6(0x2002, 0), 16, Class::Never(TUNNEL)),
    (v6(0x3fff, 0), 20, Class::Never(DOCUMENTATION)),
    (v6(0x2000, 0), 3, Class::Public),
];

/// An IPv6 address of its first two groups.
const fn v6(first: u16, second: u16) -> Ipv6Addr {
    Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0)
}

fn class(ip: IpAddr) -> Class {
    match ip {
        IpAddr::V4(ip) => class_v4(ip),
        IpAddr::V6(ip) => class_v6(ip),
    }
}

fn class_v4(ip: Ipv4Addr) -> Class {
    let within =
        |net: Ipv4Addr, length: u32| (ip.to_bits() ^ net.to_bits()).leading_zeros() >= length;
    V4.iter()
        .find(|(net, length, _)| within(*net, *length))
        .map_or(Class::Public, |(_, _, class)| *class)
}

fn class_v6(ip: Ipv6Addr) -> Class {
    if let Some(inner) = embedded_v4(ip) {
        // No worse than the address it stands for, and no better than private: a service has its address in plain form.
        return match class_v4(inner) {
            Class::Public => Class::Private("an IPv4 address in the form of an IPv6 one"),
            other => other,
        };
    }
    let within =
        |net: Ipv6Addr, length: u32| (ip.to_bits() ^ net.to_bits()).leading_zeros() >= length;
    V6.iter()
        .find(|(net, length, _)| within(*net, *length))
        .map_or(Class::Never(RESERVED), |(_, _, class)| *class)
}

/// The IPv4 address within an IPv4-mapped (`::ffff:0:0/96`) or NAT64 (`64:ff9b::/96`) one.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
