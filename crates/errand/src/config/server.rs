//! `[server]`: where the server listens, how it is reached, and where it stores its data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::kinds::{Setting, Shape, duration, list, optional, optional_path, path, whole};
use super::proxies::{TrustedProxies, parse_network};
use super::reader::{Reader, section};

/// Range of the timeouts for silent clients.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_hours(1);

section! {
    /// Where the server listens, how it is reached, and where it stores its data.
    pub struct ServerConfig["server"] {
        /// Address and port to listen on; port 0 selects a free port.
        listen: SocketAddr = listen(),
        /// Directory with all data of the server; a relative path is relative to the working directory.
        data_dir: PathBuf = path("./errand-data"),
        /// URL at which clients reach the server, if it differs from the address it listens on.
        public_url: Option<PublicUrl> = public_url(),
        /// Proxies whose x-forwarded-for header is trusted.
        trusted_proxies: TrustedProxies = trusted_proxies(),
        /// How long running steps can take to end after the server is told to stop.
        shutdown_grace_s: u32 = whole(10, 0..=3_600).unit("seconds"),
        /// How long a client can send nothing: before a request, within its head, and within its body.
        idle_timeout: Duration = duration(Duration::from_secs(30), TIMEOUT_MIN..=TIMEOUT_MAX),
        /// How long a client can read nothing of a response before its connection is closed.
        unread_timeout: Duration = duration(Duration::from_secs(60), TIMEOUT_MIN..=TIMEOUT_MAX),
    }
    with {
        /// Certificate and key, if the server itself terminates TLS.
        tls: Option<TlsConfig> = TlsConfig::read,
    }
}

/// Files for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificate chain (PEM).
    pub cert: PathBuf,
    /// Private key (PEM).
    pub key: PathBuf,
}

impl TlsConfig {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (cert, key) = ("server.tls.cert", "server.tls.key");
        let cert_file = reader.take(
            cert,
            "File with the certificate chain (PEM); requires server.tls.key.",
            optional_path(),
        );
        let key_file = reader.take(
            key,
            "File with the private key (PEM); requires server.tls.cert.",
            optional_path(),
        );
        reader
            .both((cert, cert_file), (key, key_file))
            .map(|(cert, key)| Self { cert, key })
    }
}

impl ServerConfig {
    /// The URL at which clients reach the server, without a trailing slash: `server.public_url`, otherwise the address
    /// it listens on. `bound` is the actual address, because `listen` may ask for a free port. No client can connect to
    /// an unspecified address (`0.0.0.0`, `[::]`), so the loopback address takes its place.
    #[must_use]
    pub fn base_url(&self, bound: SocketAddr) -> String {
        if let Some(public) = &self.public_url {
            return public.as_str().to_owned();
        }
        let ip = match bound.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(ip, bound.port()))
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let https = self.public_url.as_ref().is_some_and(PublicUrl::is_https);
        if !self.listen.ip().to_canonical().is_loopback() && self.tls.is_none() && !https {
            warnings.push(format!(
                "server.listen is {}, not a loopback address, without TLS: keys and files cross the network unencrypted. \
                 Set server.tls, or put a TLS proxy in front of the server and set server.public_url to its \
                 https URL.",
                self.listen
            ));
        }
        if !self.listen.ip().to_canonical().is_loopback() && self.public_url.is_none() {
            warnings.push(format!(
                "server.listen is {}, not a loopback address, and server.public_url is not set: the URLs in webhooks \
                 (respond_url), in the documentation and on pages begin with {}, which clients may not be able to reach. Set \
                 server.public_url to the URL that clients use.",
                self.listen,
                self.base_url(self.listen)
            ));
        }
        if self.tls.is_some() && self.public_url.is_some() && !https {
            warnings.push(
                "server.public_url begins with http:, but the server uses TLS: links in its responses will not work."
                    .to_owned(),
            );
        }
        for network in self
            .trusted_proxies
            .networks()
            .iter()
            .filter(|network| network.prefix_len() == 0)
        {
            warnings.push(format!(
                "server.trusted_proxies contains {network}: every client can claim any address as its own."
            ));
        }
        warnings
    }
}

/// The public URL of the server: `http` or `https`, a host, an optional port, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String, bool);

impl PublicUrl {
    /// The URL without a trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether clients reach the server over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.1
    }

    /// Does not quote a URL with more parts, because it may contain a password.
    fn parse(text: &str) -> Result<Self, String> {
        let form = "write https://errand.example.com, optionally with a port";
        let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); {form}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!(
                "the scheme {:?} is neither http nor https; {form}",
                url.scheme()
            ));
        }
        let more = !url.username().is_empty() || url.password().is_some() || url.path() != "/";
        if more || url.query().is_some() || url.fragment().is_some() {
            return Err(format!(
                "must consist of scheme, host and optional port (the server uses the root of its host); {form}"
            ));
        }
        Ok(Self(
            url.origin().ascii_serialization(),
            url.scheme() == "https",
        ))
    }
}

fn public_url() -> Setting<Option<PublicUrl>> {
    optional(
        "a URL (http or https, host, port)",
        PublicUrl::parse,
        |value| value.as_ref().map(|url| url.as_str().to_owned()),
    )
}

fn listen() -> Setting<SocketAddr> {
    let parse = |text: &str| parse_address(text, 8700);
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 8700));
    Setting::new(default, Shape::Text, "address:port", parse, |value| {
        Some(value.to_string())
    })
}

/// Parses an address and a port. `example`: a port for the message.
pub(super) fn parse_address(text: &str, example: u16) -> Result<SocketAddr, String> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => port
            .parse()
            .ok()
            .map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().ok(),
    };
    address.ok_or_else(|| {
        format!(
            "{text:?} is not an address and a port, such as 127.0.0.1:{example} or [::]:{example}"
        )
    })
}

fn trusted_proxies() -> Setting<TrustedProxies> {
    let networks = list(
        "addresses or networks (CIDR), separated by commas",
        parse_network,
    );
    let parse = move |text: &str| (networks.parse)(text).map(TrustedProxies::new);
    let show = |proxies: &TrustedProxies| {
        let texts: Vec<String> = proxies.networks().iter().map(ToString::to_string).collect();
        (!texts.is_empty()).then(|| texts.join(","))
    };
    Setting::new(
        TrustedProxies::default(),
        networks.shape,
        networks.allowed,
        parse,
        show,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_urls() {
        for (text, shown, https) in [
            (
                "https://errand.example.com",
                "https://errand.example.com",
                true,
            ),
            (
                "https://errand.example.com:443/",
                "https://errand.example.com",
                true,
            ),
            ("http://10.0.0.1:8700/", "http://10.0.0.1:8700", false),
            (
                "HTTPS://Errand.Example.com",
                "https://errand.example.com",
                true,
            ),
        ] {
            let url = PublicUrl::parse(text).unwrap();
            assert_eq!((url.as_str(), url.is_https()), (shown, https), "{text}");
        }
        for text in [
            "errand.example.com",
            "ftp://errand.example.com",
            "https://errand.example.com/errand",
            "https://errand.example.com/?a=b",
            "https://errand.example.com/#a",
            "https://",
            "/errand",
        ] {
            assert!(PublicUrl::parse(text).is_err(), "{text}");
        }
        let message = PublicUrl::parse("https://ann:hunter2@errand.example.com").unwrap_err();
        assert!(!message.contains("hunter2"), "{message}");
    }
}
