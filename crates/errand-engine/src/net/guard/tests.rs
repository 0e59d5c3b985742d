use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is an address"))
}

fn check(guard: Guard, url: &str) -> Result<(), Blocked> {
    guard.check_url(&Url::parse(url).unwrap_or_else(|e| panic!("{url}: {e}")))
}

const STRICT: Guard = Guard {
    allow_private: false,
    setting: "webhooks.allow_private_networks",
};
const OPEN: Guard = Guard {
    allow_private: true,
    setting: "webhooks.allow_private_networks",
};

/// The first and last address of each special network. `true` marks private networks, which may be allowed.
const NETWORKS: &[(&str, &str, bool)] = &[
    ("0.0.0.0", "0.255.255.255", false),
    ("10.0.0.0", "10.255.255.255", true),
    ("100.64.0.0", "100.100.100.199", true),
    ("100.100.100.201", "100.127.255.255", true),
    ("127.0.0.0", "127.255.255.255", true),
    ("169.254.0.0", "169.254.255.255", false),
    ("169.254.169.254", "169.254.170.2", false),
    ("172.16.0.0", "172.31.255.255", true),
    ("192.0.0.0", "192.0.0.255", false),
    ("192.0.0.8", "192.0.0.192", false),
    ("192.0.2.0", "192.0.2.255", false),
    ("192.88.99.0", "192.88.99.255", false),
    ("192.168.0.0", "192.168.255.255", true),
    ("198.18.0.0", "198.19.255.255", true),
    ("198.51.100.0", "198.51.100.255", false),
    ("203.0.113.0", "203.0.113.255", false),
    ("224.0.0.0", "239.255.255.255", false),
    ("240.0.0.0", "255.255.255.254", false),
    ("255.255.255.255", "255.255.255.255", false),
    ("168.63.129.16", "168.63.129.16", false),
    ("100.100.100.200", "100.100.100.200", false),
    ("::", "::", false),
    ("::1", "::1", true),
    ("::2", "::ffff", false),
    ("::7f00:1", "::ffff:ffff", false), // IPv4-compatible
    ("::ffff:10.0.0.1", "::ffff:127.0.0.1", true),
    ("::ffff:8.8.8.8", "::ffff:1.1.1.1", true), // mapped, of a public address
    ("::ffff:169.254.169.254", "::ffff:0.0.0.0", false),
    ("::ffff:0:8.8.8.8", "::ffff:0:10.0.0.1", false), // IPv4-translated
    ("64:ff9b::8.8.8.8", "64:ff9b::10.0.0.1", true),
    ("64:ff9b::169.254.169.254", "64:ff9b::0.0.0.0", false),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", false),
    ("100::", "100::ffff:ffff:ffff:ffff", false),
    ("100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff", false),
    (
        "1fff:ffff::",
        "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        false,
    ),
    ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", false), // Teredo
    ("2001:1::1", "2001:2::ffff", false),
    ("2001:3::", "2001:4:112::", false),
    ("2001:10::", "2001:2f:ffff::", false), // ORCHID
    ("2001:30::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", false),
    (
        "2001:db8::",
        "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        false,
    ),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false), // 6to4
    ("2002:7f00:1::", "2002:a00:1::", false),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", false),
    ("4000::", "5f00::1", false),
    ("fc00::", "fcff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
    (
        "fd12:3456:789a::1",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        true,
    ),
    ("fd00:ec2::254", "fd20:ce::254", false),
    ("fd00:42::42", "fd00:42::42", false),
    ("fe00::", "fe7f:ffff::", false),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false), // site-local, deprecated
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
];

const PUBLIC: &[&str] = &[
    "1.0.0.0",
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "2000::",
    "2000:ffff::1",
    "2001:200::",
    "2001:db7:ffff::1",
    "2001:db9::",
    "2001:4860:4860::8888",
    "2003::",
    "2606:4700:4700::1111",
    "2a00:1450:4001:800::200e",
    "3ffe:ffff::1",
    "3fff:1000::",
];

#[test]
fn special_networks_are_not_global() {
    for (first, last, private) in NETWORKS {
        for text in [first, last] {
            assert!(!is_global(ip(text)), "{text}");
            assert_eq!(
                OPEN.check_ip(ip(text)).is_ok(),
                *private,
                "{text}, private networks allowed"
            );
            let refused = STRICT.check_ip(ip(text)).expect_err(text);
            assert_eq!(
                refused
                    .to_string()
                    .contains("webhooks.allow_private_networks"),
                *private,
                "{refused}"
            );
        }
    }
}

#[test]
fn neighbors_of_special_networks_are_global() {
    for text in PUBLIC {
        assert!(is_global(ip(text)), "{text}");
        assert_eq!(
            (STRICT.check_ip(ip(text)), OPEN.check_ip(ip(text))),
            (Ok(()), Ok(())),
            "{text}"
        );
    }
}

#[test]
fn local_addresses_of_the_standard_library_are_not_global() {
    for bits in (0..=u32::MAX).step_by(65_521) {
        let v4 = Ipv4Addr::from_bits(bits);
        let local =
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_documentation();
        let local = local || v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified();
        assert!(!(local && is_global(v4.into())), "{v4}");
        assert!(
            !is_global(v4.to_ipv6_mapped().into()) && !is_global(v4.to_ipv6_compatible().into()),
            "{v4}"
        );
    }
}

#[test]
fn every_literal_form_of_an_address_is_recognized() {
    let forms = [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
        "http://127\u{3002}0\u{3002}0\u{3002}1/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "https://someone:secret@10.0.0.1:8443/hook?x=1",
        "https://example.com@10.0.0.1/",
    ];
    for form in forms {
        assert!(
            matches!(
                check(STRICT, form),
                Err(Blocked::Address {
                    setting: Some(_),
                    ..
                })
            ),
            "{form}"
        );
        assert_eq!(check(OPEN, form), Ok(()), "{form}");
    }
    for form in [
        "http://0/",
        "http://0.0.0.0:80/",
        "http://[::]/",
        "http://169.254.169.254/latest",
        "http://0xa9fea9fe/",
    ] {
        assert!(
            matches!(
                check(STRICT, form),
                Err(Blocked::Address { setting: None, .. })
            ),
            "{form}"
        );
        assert!(
            matches!(
                check(OPEN, form),
                Err(Blocked::Address { setting: None, .. })
            ),
            "{form}"
        );
    }
}

#[test]
fn names_of_this_machine_are_refused() {
    for host in [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "a.b.localhost.",
        "ip6-localhost",
    ] {
        let url = format!("http://{host}:8080/");
        assert!(
            matches!(check(STRICT, &url), Err(Blocked::LocalName { .. })),
            "{host}"
        );
        assert_eq!(check(OPEN, &url), Ok(()), "{host}");
    }
}

#[test]
fn public_addresses_and_names_pass() {
    for url in [
        "https://example.com/hook?token=x",
        "http://user:secret@example.com:8080/",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]/",
        "https://localhost.example.com/",
        "https://notlocalhost/",
    ] {
        assert_eq!(check(STRICT, url), Ok(()), "{url}");
    }
}

#[test]
fn only_http_is_called() {
    for url in [
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "data:,x",
        "unix:/run/x",
        "ws://a/",
    ] {
        assert!(
            matches!(check(OPEN, url), Err(Blocked::Scheme { .. })),
            "{url}"
        );
    }
}

#[test]
fn messages_say_how_to_allow_an_address() {
    let text = |result: Result<(), Blocked>| result.unwrap_err().to_string();
    assert_eq!(
        text(check(STRICT, "http://10.1.2.3/")),
        "10.1.2.3 is an address of a private network, which this server may not call; the operator can allow private \
         networks with `webhooks.allow_private_networks = true`"
    );
    assert_eq!(
        text(check(OPEN, "http://169.254.169.254/")),
        "169.254.169.254 is a link-local address (where clouds keep their metadata service), which this server may not \
         call"
    );
    assert_eq!(
        text(check(STRICT, "ftp://x/")),
        "the address begins with `ftp:`; only http and https can be called"
    );
}

#[test]
fn only_permitted_addresses_of_a_name_are_kept() {
    let addresses = |list: &[&str]| -> Vec<SocketAddr> {
        list.iter()
            .map(|text| SocketAddr::new(ip(text), 0))
            .collect()
    };
    let mixed = addresses(&[
        "10.0.0.1",
        "8.8.8.8",
        "::1",
        "169.254.169.254",
        "2606:4700:4700::1111",
    ]);
    assert_eq!(
        STRICT.keep_permitted("h", mixed.clone()).unwrap(),
        addresses(&["8.8.8.8", "2606:4700:4700::1111"])
    );
    assert_eq!(
        OPEN.keep_permitted("h", mixed).unwrap(),
        addresses(&["10.0.0.1", "8.8.8.8", "::1", "2606:4700:4700::1111"])
    );

    let refused = STRICT
        .keep_permitted("db.internal", addresses(&["10.0.0.1", "169.254.169.254"]))
        .unwrap_err();
    assert_eq!(
        refused,
        Blocked::Resolved {
            host: "db.internal".into(),
            setting: Some(STRICT.setting)
        }
    );
    assert!(
        !refused.to_string().contains("10.0.0.1"),
        "what a name resolves to stays inside: {refused}"
    );
    for guard in [STRICT, OPEN] {
        let refused = guard
            .keep_permitted("meta", addresses(&["169.254.169.254"]))
            .unwrap_err();
        assert_eq!(
            refused,
            Blocked::Resolved {
                host: "meta".into(),
                setting: None
            }
        );
    }
}

#[tokio::test]
async fn the_system_resolver_is_filtered() {
    let name = || "localhost".parse::<Name>().unwrap();
    let refused = STRICT.resolver().resolve(name()).await.err().unwrap();
    assert!(
        matches!(
            refused.downcast_ref(),
            Some(Blocked::Resolved {
                setting: Some(_),
                ..
            })
        ),
        "{refused}"
    );

    let given: Vec<SocketAddr> = OPEN.resolver().resolve(name()).await.unwrap().collect();
    assert!(
        !given.is_empty() && given.iter().all(|address| address.ip().is_loopback()),
        "{given:?}"
    );
}
