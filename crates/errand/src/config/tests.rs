//! Rules for all settings. Tests of the individual types of values are in their modules.

use std::time::Duration;

use super::*;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Each setting with a value that is not its default, in TOML and as the text of a variable.
const SAMPLES: [(&str, &str, &str); 48] = [
    ("server.listen", "'127.0.0.1:0'", "127.0.0.1:0"),
    ("server.data_dir", "'/srv/errand'", "/srv/errand"),
    (
        "server.public_url",
        "'https://errand.example.com'",
        "https://errand.example.com",
    ),
    (
        "server.trusted_proxies",
        "['10.0.0.0/8', '::1']",
        "10.0.0.0/8,::1/128",
    ),
    ("server.shutdown_grace_s", "3", "3"),
    ("server.idle_timeout", "'5s'", "5s"),
    ("server.unread_timeout", "'7s'", "7s"),
    ("server.tls.cert", "'cert.pem'", "cert.pem"),
    ("server.tls.key", "'key.pem'", "key.pem"),
    ("log.level", "'debug'", "debug"),
    ("log.format", "'json'", "json"),
    ("api.unknown_fields", "'ignore'", "ignore"),
    (
        "api.allowed_origins",
        "['https://app.example.com']",
        "https://app.example.com",
    ),
    ("api.event_streams_per_key", "6", "6"),
    ("rate_limit.requests_per_minute", "7", "7"),
    ("rate_limit.failed_authentications_per_minute", "8", "8"),
    ("engine.max_concurrent_runs", "9", "9"),
    ("engine.step_seconds_max", "90", "90"),
    ("webhooks.allow_private_networks", "true", "true"),
    ("webhooks.timeout_s", "4", "4"),
    ("webhooks.max_concurrent_deliveries", "5", "5"),
    ("connections.allow_private_networks", "true", "true"),
    ("connections.call_timeout", "'30s'", "30s"),
    ("connections.idle_close", "'1m'", "1m"),
    ("fetch_url.allow_private_networks", "true", "true"),
    ("models.attempts", "3", "3"),
    ("models.concurrency", "7", "7"),
    ("models.idle_timeout", "'10s'", "10s"),
    ("models.allow_private_networks", "true", "true"),
    ("models.vision", "['local/llava']", "local/llava"),
    ("sandbox.ttl", "'12h'", "12h"),
    ("sandbox.root", "'root'", "root"),
    ("sandbox.memory_bytes_max", "'64MiB'", "64MiB"),
    ("sandbox.processes_max", "32", "32"),
    ("sandbox.cpu_percent_max", "150", "150"),
    ("sandbox.disk_bytes_max", "'1GiB'", "1GiB"),
    ("sandbox.team_disk_bytes_max", "'20GiB'", "20GiB"),
    ("sandbox.files_max", "1000", "1000"),
    ("sandbox.file_bytes_max", "'1GiB'", "1GiB"),
    ("sandbox.uid_base", "100000", "100000"),
    ("sandbox.uid_count", "10", "10"),
    ("uploads.direct_bytes_max", "'2MiB'", "2MiB"),
    ("uploads.url_bytes_max", "1024", "1KiB"),
    ("uploads.url_ttl", "'90s'", "90s"),
    ("uploads.concurrent_per_key", "3", "3"),
    ("uploads.concurrent_per_url", "2", "2"),
    ("uploads.concurrent_max", "11", "11"),
    ("metrics.listen", "'127.0.0.1:0'", "127.0.0.1:0"),
];

fn samples() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    SAMPLES.into_iter()
}

fn env(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn file(text: &str) -> SettingsFile {
    SettingsFile {
        path: PathBuf::from("errand.toml"),
        text: text.to_owned(),
    }
}

fn from_env(variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    load(&Flags::default(), &env(variables), None)
}

fn from_file(text: &str) -> Result<Config, ConfigErrors> {
    load(&Flags::default(), &BTreeMap::new(), Some(&file(text)))
}

/// The problems in their printed form.
fn lines(result: Result<Config, ConfigErrors>) -> Vec<String> {
    result
        .unwrap_err()
        .to_string()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn line<'c>(config: &'c Config, name: &str) -> &'c SettingLine {
    table(config).iter().find(|line| line.name == name).unwrap()
}

/// TLS needs both of its settings; all others are independent.
fn partner(name: &str) -> Option<&'static str> {
    match name {
        "server.tls.cert" => Some("server.tls.key"),
        "server.tls.key" => Some("server.tls.cert"),
        _ => None,
    }
}

#[test]
fn nothing_set_gives_the_defaults() {
    let config = from_env(&[]).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8700");
    assert_eq!(config.server.data_dir, PathBuf::from("./errand-data"));
    assert_eq!(config.server.public_url, None);
    assert_eq!(config.server.tls, None);
    assert_eq!(config.server.shutdown_grace_s, 10);
    assert_eq!(
        config.log,
        LogConfig {
            level: LogLevel::Info,
            format: LogFormat::Text
        }
    );
    assert_eq!(config.api.unknown_fields, UnknownFields::Refuse);
    assert_eq!(config.rate_limit.requests_per_minute, 300);
    assert_eq!(config.rate_limit.failed_authentications_per_minute, 20);
    assert!(!config.webhooks.allow_private_networks);
    assert_eq!(config.sandbox.ttl, Duration::from_secs(30 * 86_400));
    assert_eq!(config.uploads.direct_bytes_max, 10 * 1024 * 1024);
    assert_eq!(config.uploads.url_bytes_max, 5 * 1024 * 1024 * 1024);
    assert_eq!(config.uploads.url_ttl, Duration::from_secs(3_600));
    assert!(config.master_key.is_none());
    assert!(warnings(&config).is_empty());
    for line in table(&config) {
        assert_eq!(
            (&line.value, &line.origin),
            (&line.default, &Origin::Default),
            "{}",
            line.name
        );
    }
    assert_eq!(table(&Config::default()), table(&config));
    assert_eq!(format!("{:?}", Config::default()), format!("{config:?}"));
}

#[test]
fn every_setting_is_described() {
    let config = Config::default();
    for line in table(&config) {
        assert!(
            line.doc.ends_with('.') && line.doc.matches(". ").count() == 0,
            "{}: {:?}",
            line.name,
            line.doc
        );
        assert!(
            !line.doc.starts_with(' ') && !line.doc.contains("  "),
            "{}: {:?}",
            line.name,
            line.doc
        );
        assert!(!line.allowed.is_empty(), "{}", line.name);
    }
    let mut names: Vec<&str> = table(&config).iter().map(|line| line.name).collect();
    assert_eq!(
        names.len(),
        samples().count() + 1,
        "each setting needs a sample in this test"
    );
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), table(&config).len());
}

#[test]
fn every_setting_can_be_set_by_file_and_by_environment() {
    for (name, in_toml, in_variable) in samples() {
        let with_partner = |make: &dyn Fn(&str) -> String| {
            format!(
                "{}\n{}",
                make(name),
                partner(name).map(make).unwrap_or_default()
            )
        };
        let config = from_file(&with_partner(&|name| format!("{name} = {in_toml}"))).unwrap();
        let shown = line(&config, name);
        assert_eq!(shown.value.as_deref(), Some(in_variable), "{name}");
        assert_eq!(
            shown.origin,
            Origin::File("errand.toml".to_owned()),
            "{name}"
        );
        assert_ne!(shown.value, shown.default, "{name}");

        let mut variables = vec![(shown.env.as_str(), in_variable)];
        let other = partner(name).map(sources::variable);
        variables.extend(other.as_deref().map(|other| (other, in_variable)));
        let config = from_env(&variables).unwrap();
        let shown = line(&config, name);
        assert_eq!(shown.value.as_deref(), Some(in_variable), "{name}");
        assert_eq!(
            shown.origin,
            Origin::Environment(shown.env.clone()),
            "{name}"
        );
    }
}

#[test]
fn what_the_table_shows_can_be_given_back() {
    let text: String = samples()
        .map(|(name, value, _)| format!("{name} = {value}\n"))
        .collect();
    let config = from_file(&text).unwrap();
    let given: BTreeMap<String, String> = table(&config)
        .iter()
        .filter(|line| line.name != "master_key")
        .map(|line| (line.env.clone(), line.value.clone().unwrap()))
        .collect();
    let again = load(&Flags::default(), &given, None).unwrap();
    assert_eq!(format!("{config:?}"), format!("{again:?}"));
}

#[test]
fn every_misspelling_is_caught_and_the_setting_named() {
    let config = Config::default();
    for setting in table(&config) {
        let name = setting.name;
        for cut in 0..name.len() {
            let misspelt = format!("{}{}", &name[..cut], &name[cut + 1..]);
            // A cut at the edge of a section (`.listen`) is not valid TOML.
            if misspelt.starts_with('.') || misspelt.ends_with('.') || misspelt.contains("..") {
                continue;
            }
            let expected =
                format!("errand.toml: {misspelt}: is not a setting; did you mean {name}?");
            assert_eq!(lines(from_file(&format!("{misspelt} = 1"))), [expected]);
        }
        let (prefix, rest) = setting.env.split_at("ERRAND_".len());
        for cut in 0..rest.len() {
            let misspelt = format!("{prefix}{}{}", &rest[..cut], &rest[cut + 1..]);
            let expected = format!(
                "{misspelt}: is not a setting; did you mean {}?",
                setting.env
            );
            assert_eq!(lines(from_env(&[(&misspelt, "1")])), [expected]);
        }
    }
}

#[test]
fn a_later_source_wins_and_is_named() {
    let text = "[server]\nlisten = '127.0.0.1:1'\ndata_dir = 'file'\nshutdown_grace_s = 1";
    let variables = env(&[
        ("ERRAND_SERVER__LISTEN", "127.0.0.1:2"),
        ("ERRAND_SERVER__DATA_DIR", "variable"),
    ]);
    let flags = Flags {
        listen: Some("127.0.0.1:3".to_owned()),
        ..Flags::default()
    };
    let config = load(&flags, &variables, Some(&file(text))).unwrap();
    assert_eq!(config.server.listen.port(), 3);
    assert_eq!(config.server.data_dir, PathBuf::from("variable"));
    assert_eq!(config.server.shutdown_grace_s, 1);
    let origins = [
        "server.listen",
        "server.data_dir",
        "server.shutdown_grace_s",
        "log.level",
    ]
    .map(|name| line(&config, name).origin.to_string());
    assert_eq!(
        origins,
        [
            "--listen",
            "ERRAND_SERVER__DATA_DIR",
            "errand.toml",
            "default"
        ]
    );
}

#[test]
fn all_problems_are_told_at_once_each_with_its_origin() {
    let text = "workers = 4\n[engine]\nmax_concurrent_runs = 0\n[webhooks]\nallow_private_networks = 'yes'";
    let variables = env(&[
        ("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "10001"),
        ("ERRAND_API__UNKNOWN_FIELDS", "maybe"),
        ("ERRAND_SANDBOX__TTL", "30"),
        ("ERRAND_UPLOADS__URL_TTL", "8d"),
        ("ERRAND_UPLOADS__DIRECT_BYTES_MAX", "10MB"),
        ("ERRAND_WEBHOOK__TIMEOUT_S", "1"),
        (
            "ERRAND_SERVER__TRUSTED_PROXIES",
            "10.0.0.0/8,here,10.0.0.0/99",
        ),
    ]);
    let flags = Flags {
        listen: Some("8700".to_owned()),
        data_dir: Some(String::new()),
        ..Flags::default()
    };
    let problems = lines(load(&flags, &variables, Some(&file(text))));
    assert_eq!(
        problems,
        [
            "--listen: \"8700\" is not an address and a port, such as 127.0.0.1:8700 or [::]:8700",
            "--data-dir: \"\" is not a path",
            "ERRAND_SERVER__TRUSTED_PROXIES: \"here\" is neither an address nor a network such as 10.0.0.0/8 or \
             fd00::/8; \"10.0.0.0/99\" is neither an address nor a network such as 10.0.0.0/8 or fd00::/8",
            "ERRAND_API__UNKNOWN_FIELDS: \"maybe\" is not one of refuse | ignore",
            "errand.toml: engine.max_concurrent_runs: 0 is not in 1..=10000",
            "ERRAND_ENGINE__MAX_CONCURRENT_RUNS: 10001 is not in 1..=10000",
            "errand.toml: webhooks.allow_private_networks: has the type string, but must be true or false \
             (without quotes)",
            "ERRAND_SANDBOX__TTL: \"30\" is not a duration; write a whole number and a unit (ms, s, m, h, d), such as 30s \
             or 12h",
            "ERRAND_UPLOADS__DIRECT_BYTES_MAX: \"10MB\" is not a size; write bytes, or a number with KiB, MiB, GiB or \
             TiB",
            "ERRAND_UPLOADS__URL_TTL: 8d is not in 1s..=7d",
            "ERRAND_WEBHOOK__TIMEOUT_S: is not a setting; did you mean ERRAND_WEBHOOKS__TIMEOUT_S?",
            "errand.toml: workers: is not a setting; `errand config` lists all settings",
        ]
    );
}

#[test]
fn numbers_outside_their_range_are_refused() {
    for (text, message) in [
        ("-1", "-1 is not in 1..=300"),
        ("301", "301 is not in 1..=300"),
        ("4294967297", "4294967297 is not in 1..=300"),
        ("15s", "\"15s\" is not a whole number in 1..=300"),
        ("", "\"\" is not a whole number in 1..=300"),
        ("1.5", "\"1.5\" is not a whole number in 1..=300"),
    ] {
        assert_eq!(
            lines(from_env(&[("ERRAND_WEBHOOKS__TIMEOUT_S", text)])),
            [format!("ERRAND_WEBHOOKS__TIMEOUT_S: {message}")]
        );
    }
    assert_eq!(
        from_env(&[("ERRAND_WEBHOOKS__TIMEOUT_S", " 300 ")])
            .unwrap()
            .webhooks
            .timeout_s,
        300
    );
}

#[test]
fn sizes_are_plain_or_with_a_unit() {
    let size = |text: &str| {
        from_env(&[("ERRAND_UPLOADS__URL_BYTES_MAX", text)]).map(|c| c.uploads.url_bytes_max)
    };
    for (text, bytes) in [
        ("1", 1),
        ("1500", 1_500),
        ("3KiB", 3 << 10),
        ("2 MiB", 2 << 20),
        ("1TiB", 1 << 40),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for text in [
        "0",
        "6TiB",
        "99999999999999TiB",
        "1GB",
        "MiB",
        "-1",
        "1.5MiB",
        "",
    ] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn a_setting_of_another_section_is_found() {
    for (text, nearest) in [
        ("max_concurrent_runs = 1", "engine.max_concurrent_runs"),
        (
            "server.max_concurrent_runs = 1",
            "engine.max_concurrent_runs",
        ),
        (
            "engine.allow_private_networks = true",
            "models.allow_private_networks",
        ),
        ("sandbox.url_ttl = '1h'", "uploads.url_ttl"),
    ] {
        let problem = lines(from_file(text)).join("");
        assert!(
            problem.ends_with(&format!("did you mean {nearest}?")),
            "{problem}"
        );
    }
}

#[test]
fn a_removed_setting_is_named_as_such() {
    let removed = "was removed, because the server uses a fixed value; delete it";
    assert_eq!(
        lines(from_file(
            "[store]\ncache_kib = 2048\n[sandbox]\nwaiting_shells_max = 1"
        )),
        [
            format!("errand.toml: sandbox.waiting_shells_max: {removed}"),
            format!("errand.toml: store.cache_kib: {removed}"),
        ]
    );
    assert_eq!(
        lines(from_env(&[("ERRAND_STORE__READ_CONNECTIONS", "4")])),
        [format!("ERRAND_STORE__READ_CONNECTIONS: {removed}")]
    );
}

#[test]
fn the_shape_of_the_file_is_checked() {
    assert_eq!(
        lines(from_file("server = 3")),
        ["errand.toml: server: is a section; write [server] with its settings below it"]
    );
    assert_eq!(
        lines(from_file("[server.listen]\nport = 1")),
        ["errand.toml: server.listen.port: is not a setting; did you mean server.listen?"]
    );
    assert_eq!(
        lines(from_file("[server.listen]")),
        ["errand.toml: server.listen: has the type table, but must be a quoted string"]
    );
    assert_eq!(
        lines(from_file("[engin]")),
        ["errand.toml: engin: is not a setting; `errand config` lists all settings"]
    );
    assert_eq!(lines(from_file("'server.listen' = 'x'")).len(), 1);
    assert!(from_file("[server]\n[server.tls]\n[engine]").is_ok());
    assert_eq!(lines(from_file("[[server]]\nlisten = 'x'")).len(), 1);
    assert_eq!(
        lines(from_file("server.trusted_proxies = [1]")),
        ["errand.toml: server.trusted_proxies: must be a list of quoted strings"]
    );
    assert!(from_file("server.trusted_proxies = '10.0.0.1'").is_ok());
}

#[test]
fn a_file_that_is_no_toml_does_not_hide_other_problems_nor_show_its_text() {
    let file = file("[engine]\nmax_concurrent_runs = 1\nsecret = hunter2 hunter3\n");
    let problems = lines(load(
        &Flags::default(),
        &env(&[("ERRAND_LOG__LEVEL", "loud")]),
        Some(&file),
    ));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].starts_with("errand.toml: line 3: "),
        "{problems:?}"
    );
    assert!(!problems[0].contains("hunter"), "{problems:?}");
    assert_eq!(
        problems[1],
        "ERRAND_LOG__LEVEL: \"loud\" is not one of error | warn | info | debug | trace"
    );
}

#[test]
fn tls_needs_both_of_its_settings() {
    let config = from_file("[server.tls]\ncert = 'a'\nkey = 'b'").unwrap();
    assert_eq!(
        config.server.tls,
        Some(TlsConfig {
            cert: "a".into(),
            key: "b".into()
        })
    );
    assert_eq!(
        lines(from_file("[server.tls]\ncert = 'a'")),
        ["errand.toml: server.tls.cert: is set without server.tls.key; set both or neither"]
    );
    assert_eq!(
        lines(from_env(&[("ERRAND_SERVER__TLS__KEY", "b")])),
        ["ERRAND_SERVER__TLS__KEY: is set without server.tls.cert; set both or neither"]
    );
    // One from the file, the other from the environment.
    let mixed = load(
        &Flags::default(),
        &env(&[("ERRAND_SERVER__TLS__KEY", "b")]),
        Some(&file("server.tls.cert = 'a'")),
    );
    assert!(mixed.unwrap().server.tls.is_some());
    // An invalid value is reported once, and not again as a missing one.
    assert_eq!(
        lines(from_file("[server.tls]\ncert = 'a'\nkey = 1")).len(),
        1
    );
    // An empty variable counts as not set, because compose files set such variables.
    assert_eq!(
        from_env(&[("ERRAND_SERVER__TLS__KEY", "")])
            .unwrap()
            .server
            .tls,
        None
    );
}

#[test]
fn the_master_key_comes_from_its_variable_alone_and_is_never_shown() {
    let hex = (0..32)
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    for text in [KEY, KEY.trim_end_matches('='), &hex, &hex.to_uppercase()] {
        let config = from_env(&[("ERRAND_MASTER_KEY", text)]).unwrap();
        let key = config.master_key.clone().unwrap();
        assert!(key.expose().iter().copied().eq(0..32));
        let shown = line(&config, "master_key");
        assert_eq!(
            (shown.value.as_deref(), shown.default.as_deref()),
            (Some("(set)"), Some("(not set)"))
        );
        assert_eq!(shown.env, "ERRAND_MASTER_KEY");
        assert!(!format!("{config:?} {:?}", table(&config)).contains(text));
    }
    let short = "c2hvcnQ=";
    let problems = lines(from_env(&[("ERRAND_MASTER_KEY", short)]));
    assert_eq!(
        problems,
        ["ERRAND_MASTER_KEY: is not 32 bytes, written as 64 hexadecimal digits or in base64"]
    );
    assert_eq!(
        lines(from_file(&format!("master_key = '{KEY}'"))),
        ["errand.toml: master_key: is a secret and can only be set with ERRAND_MASTER_KEY"]
    );
    assert!(
        from_env(&[("ERRAND_MASTER_KEY", "")])
            .unwrap()
            .master_key
            .is_none()
    );
}

#[test]
fn a_secret_cannot_be_printed_or_serialized() {
    // Each line compiles only if the trait is missing; otherwise there would be two candidates.
    trait Lacks<Marker> {
        fn lacks() {}
    }
    struct Debugs;
    struct Displays;
    struct Serializes;
    impl<T> Lacks<()> for T {}
    impl<T: fmt::Debug> Lacks<Debugs> for T {}
    impl<T: fmt::Display> Lacks<Displays> for T {}
    impl<T: serde::Serialize> Lacks<Serializes> for T {}
    <Secret<String> as Lacks<_>>::lacks();
}

#[test]
fn variables_of_other_purposes_are_left_alone() {
    let config = from_env(&[
        ("ERRAND_API_KEY", "x"),
        ("ERRAND_URL", "http://127.0.0.1:8700"),
        ("ERRAND_CONFIG", "other.toml"),
        ("ERRAND_SEED", "1"),
        ("ERRAND_SERVICE_HOST", "10.0.0.1"),
        ("ERRAND_PORT_8700_TCP_ADDR", "10.0.0.1"),
        ("PATH", "/bin"),
        ("MY__OTHER", "x"),
    ])
    .unwrap();
    assert!(warnings(&config).is_empty());
    assert_eq!(
        lines(from_env(&[("ERRAND_server__listen", "x")])),
        ["ERRAND_server__listen: is not a setting; did you mean ERRAND_SERVER__LISTEN?"]
    );
    let config = from_env(&[("ERRAND_LISTEN", "0.0.0.0:1")]).unwrap();
    assert_eq!(config.server.listen.port(), 8700);
    assert_eq!(
        warnings(&config),
        [
            "ERRAND_LISTEN is not read; the variable of metrics.listen is ERRAND_METRICS__LISTEN, \
            the variable of server.listen is ERRAND_SERVER__LISTEN."
        ]
    );
}

#[test]
fn it_warns_of_an_open_listener_without_tls() {
    let count = |variables: &[(&str, &str)]| warnings(&from_env(variables).unwrap()).len();
    let open = ("ERRAND_SERVER__LISTEN", "0.0.0.0:8700");
    let https = ("ERRAND_SERVER__PUBLIC_URL", "https://errand.example.com");
    let http = ("ERRAND_SERVER__PUBLIC_URL", "http://errand.example.com");
    let tls = [
        ("ERRAND_SERVER__TLS__CERT", "a"),
        ("ERRAND_SERVER__TLS__KEY", "b"),
    ];
    // Without TLS, and without an address that clients can use.
    assert_eq!(count(&[open]), 2);
    assert_eq!(count(&[open, http]), 1);
    assert_eq!(count(&[("ERRAND_SERVER__LISTEN", "[::]:8700")]), 2);
    assert_eq!(count(&[open, https]), 0);
    assert_eq!(count(&[open, tls[0], tls[1]]), 1);
    assert_eq!(count(&[open, tls[0], tls[1], https]), 0);
    for loopback in [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
        "localhost:1",
    ] {
        assert_eq!(
            count(&[("ERRAND_SERVER__LISTEN", loopback)]),
            0,
            "{loopback}"
        );
    }
    assert_eq!(count(&[tls[0], tls[1], http]), 1);
    assert_eq!(count(&[("ERRAND_SERVER__TRUSTED_PROXIES", "0.0.0.0/0")]), 1);
}

#[test]
fn origins_are_as_browsers_write_them() {
    let of = |text: &str| from_env(&[("ERRAND_API__ALLOWED_ORIGINS", text)]);
    let config = of("https://App.example.com, http://localhost:5173/, *").unwrap();
    assert_eq!(
        config.api.allowed_origins,
        ["https://app.example.com", "http://localhost:5173", "*"]
    );
    for bad in [
        "app.example.com",
        "https://app.example.com/path",
        "ftp://example.com",
        "null",
    ] {
        let wrong = lines(of(bad));
        assert!(
            wrong.len() == 1 && wrong[0].starts_with("ERRAND_API__ALLOWED_ORIGINS: "),
            "{wrong:?}"
        );
    }
}

#[test]
fn the_base_url_is_the_public_one_or_where_the_server_listens() {
    let server = |variables: &[(&str, &str)]| from_env(variables).unwrap().server;
    let bound = "127.0.0.1:4711".parse().unwrap();
    assert_eq!(server(&[]).base_url(bound), "http://127.0.0.1:4711");
    assert_eq!(
        server(&[]).base_url("0.0.0.0:80".parse().unwrap()),
        "http://127.0.0.1:80"
    );
    assert_eq!(
        server(&[]).base_url("[::]:80".parse().unwrap()),
        "http://[::1]:80"
    );
    let tls = [
        ("ERRAND_SERVER__TLS__CERT", "a"),
        ("ERRAND_SERVER__TLS__KEY", "b"),
    ];
    assert_eq!(server(&tls).base_url(bound), "https://127.0.0.1:4711");
    let public = [("ERRAND_SERVER__PUBLIC_URL", "https://errand.example.com/")];
    assert_eq!(
        server(&public).base_url(bound),
        "https://errand.example.com"
    );
}

#[test]
fn the_table_as_json() {
    let config = from_env(&[("ERRAND_SANDBOX__TTL", "48h"), ("ERRAND_MASTER_KEY", KEY)]).unwrap();
    let json = serde_json::to_value(table(&config)).unwrap();
    let by_name = |name: &str| {
        json.as_array()
            .unwrap()
            .iter()
            .find(|line| line["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        by_name("sandbox.ttl"),
        serde_json::json!({
            "name": "sandbox.ttl", "env": "ERRAND_SANDBOX__TTL", "value": "2d", "origin": "ERRAND_SANDBOX__TTL",
            "default": "30d", "unit": "duration (ms, s, m, h, d)", "allowed": "1m..=3650d",
            "doc": "How long a sandbox and its files are kept after the last upload or run."
        })
    );
    assert_eq!(
        by_name("server.public_url")["value"],
        serde_json::Value::Null
    );
    assert_eq!(by_name("server.public_url")["origin"], "default");
    assert!(!json.to_string().contains(KEY));
}

#[test]
fn a_named_file_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    let flags = Flags {
        config: Some(path.clone()),
        ..Flags::default()
    };
    let by_variable = env(&[("ERRAND_CONFIG", path.to_str().unwrap())]);

    let missing = read_file(&flags, &BTreeMap::new()).unwrap_err().to_string();
    assert!(
        missing.starts_with("--config: the settings file ") && missing.contains("my.toml"),
        "{missing}"
    );
    let missing = read_file(&Flags::default(), &by_variable)
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("ERRAND_CONFIG: the settings file "),
        "{missing}"
    );

    std::fs::write(&path, "log.level = 'warn'").unwrap();
    for file in [
        read_file(&flags, &BTreeMap::new()),
        read_file(&Flags::default(), &by_variable),
    ] {
        let config = load(&Flags::default(), &BTreeMap::new(), file.unwrap().as_ref()).unwrap();
        assert_eq!(config.log.level, LogLevel::Warn);
        assert_eq!(
            line(&config, "log.level").origin,
            Origin::File(path.display().to_string())
        );
    }
    // The working directory of the tests has no errand.toml, which is not an error.
    assert_eq!(read_file(&Flags::default(), &BTreeMap::new()), Ok(None));
    // A directory cannot be read as a file.
    let flags = Flags {
        config: Some(dir.path().to_owned()),
        ..Flags::default()
    };
    assert!(read_file(&flags, &BTreeMap::new()).is_err());
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_refused() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    let broken = || OsString::from_vec(vec![b'/', 0xff]);
    let ours = environment([("ERRAND_URL".into(), "x".into()), ("PATH".into(), broken())]).unwrap();
    assert_eq!(ours, env(&[("ERRAND_URL", "x")]));
    let error = environment([("ERRAND_SERVER__DATA_DIR".into(), broken())]).unwrap_err();
    assert_eq!(error.to_string(), "ERRAND_SERVER__DATA_DIR: is not UTF-8");
}

#[test]
fn metrics_are_off_and_beyond_the_loopback_with_a_warning() {
    assert_eq!(from_env(&[]).unwrap().metrics.listen, None);
    let of = |text: &str| from_env(&[("ERRAND_METRICS__LISTEN", text)]).unwrap();
    let near = of("localhost:8701");
    assert_eq!(near.metrics.listen.unwrap().to_string(), "127.0.0.1:8701");
    assert!(warnings(&near).is_empty());
    let far = warnings(&of("0.0.0.0:8701"));
    assert!(
        far.len() == 1 && far[0].contains("metrics.listen"),
        "{far:?}"
    );
    let wrong = lines(from_env(&[("ERRAND_METRICS__LISTEN", "8701")]));
    assert!(
        wrong.len() == 1 && wrong[0].starts_with("ERRAND_METRICS__LISTEN: "),
        "{wrong:?}"
    );
}
