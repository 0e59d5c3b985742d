//! Fuzzing of a build's config: any text is accepted or rejected, with a readable place, quickly, and on a stack of a
//! quarter of the size that the server's threads have. `scripts/fuzz` runs more cases.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::limits::CONFIG_BYTES_MAX;

/// Far above the time for the largest config, and far below that of anything quadratic.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Maximum size of an error, in bytes: it goes into the response.
const ERROR_MAX: usize = 4 * 1024;

/// Parses a request's bytes as the API does. Returns whether the config is accepted.
fn taken(text: String) -> bool {
    // Longer requests are rejected earlier.
    if text.len() > CONFIG_BYTES_MAX {
        return false;
    }
    let began = Instant::now();
    let thread = std::thread::Builder::new().stack_size(512 * 1024);
    let parsed = thread.spawn(move || {
        let Ok(config) = serde_json::from_str::<Value>(&text) else {
            return false;
        };
        // A stored config is parsed again later.
        drop(serde_json::from_str::<Value>(&config.to_string()).unwrap());
        drop(ignored(&config, "build."));
        match BuildConfig::parse(&config) {
            Ok(build) => {
                drop(warnings(&build, &["a"], "build."));
                std::hint::black_box(build.names("a__b"));
                true
            }
            Err(bad) => {
                assert!(
                    bad.to_string().len() <= ERROR_MAX,
                    "{} bytes",
                    bad.to_string().len()
                );
                false
            }
        }
    });
    let taken = parsed.unwrap().join().unwrap();
    assert!(began.elapsed() < TIME_MAX, "{:?}", began.elapsed());
    taken
}

fn of(data: &Value) -> bool {
    taken(json!({"version": "v2", "data": data}).to_string())
}

/// Names and values that occur in settings.
const WORDS: [&str; 22] = [
    "builtin/playbook",
    "openai/gpt-x",
    "claude-x[1m]",
    "allow",
    "ask",
    "off",
    "default",
    "system",
    "text",
    "12h",
    "deny",
    "example.com",
    "*.example.org:8443",
    "0198f2a4-7c1e-7000-8000-000000000001",
    "{{ secret.TOKEN }}",
    "{{secret[\"T\"]}}",
    "{{ a.b|map('string')|list }}",
    "{% for x in a %}{{ x }}{% endfor %}",
    "{{ [a, [a]] }}",
    "{{",
    "a__b",
    "\u{0}\u{202e}é",
];
/// Keys that occur in settings.
const KEYS: [&str; 34] = [
    "models",
    "agent",
    "model",
    "input",
    "role",
    "content",
    "type",
    "tools",
    "read_file",
    "a__b",
    "a__*",
    "run_assignment",
    "limits",
    "steps",
    "tokens",
    "cost_usd",
    "seconds",
    "children",
    "human_requests",
    "expires_in",
    "on_expire",
    "connections",
    "secrets",
    "assignments",
    "fetch_url",
    "allow",
    "playbook",
    "with",
    "tool",
    "set",
    "say",
    "for_each",
    "if",
    "as",
];

fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(WORDS.to_vec());
    prop_oneof![
        4 => known.clone().prop_map(str::to_owned),
        1 => (known, 1..200usize).prop_map(|(word, times)| word.repeat(times)),
        1 => "[ -~]{0,8}",
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned),
        1 => word(),
    ]
}

fn leaf() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        Just(json!(0)),
        Just(json!(5.0)),
        Just(json!(-1)),
        Just(json!(1e300)),
        Just(json!(u64::MAX)),
    ];
    prop_oneof![
        4 => word().prop_map(Value::from),
        1 => number,
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

/// Any value: wide, deep, or with one of its parts repeated many times.
fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(6, 120, 12, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..12);
        let fields = prop::collection::vec((key(), inner.clone()), 0..12);
        prop_oneof![
            3 => items.prop_map(Value::from),
            4 => fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
            1 => (inner.clone(), 1..12usize).prop_map(|(item, times)| Value::from(vec![item; times])),
            1 => (inner, key(), 1..110usize).prop_map(|(inner, key, depth)| {
                (0..depth).fold(inner, |inner, _| Value::Object(Map::from_iter([(key.clone(), inner)])))
            }),
        ]
    })
}

/// Steps, most of which are valid.
fn step() -> impl Strategy<Value = Value> {
    let simple = prop_oneof![
        word().prop_map(|text| json!({"say": text})),
        word().prop_map(|text| json!({"finish": text})),
        word().prop_map(|text| json!({"wait": text})),
        (word(), word()).prop_map(
            |(title, text)| json!({"approve": {"title": title, "description": text}, "as": "x"})
        ),
        (value(), word()).prop_map(
            |(with, condition)| json!({"tool": "read_file", "with": with, "if": condition})
        ),
        (key(), value()).prop_map(|(name, value)| json!({"set": {name: value}})),
        value(),
    ];
    simple.prop_recursive(12, 40, 4, |inner| {
        let steps = prop::collection::vec(inner, 1..4);
        (value(), steps).prop_map(|(list, steps)| json!({"for_each": list, "steps": steps}))
    })
}

fn data() -> impl Strategy<Value = Value> {
    let settings = prop::collection::vec((prop::sample::select(KEYS.to_vec()), value()), 0..5);
    let steps = prop::option::of(prop::collection::vec(step(), 1..6));
    (settings, steps).prop_map(|(settings, steps)| {
        let mut data = Map::new();
        data.extend(
            settings
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value)),
        );
        if let Some(steps) = steps {
            data.insert("playbook".to_owned(), json!({"steps": steps}));
        }
        Value::Object(data)
    })
}

proptest! {
    #[test]
    fn any_config_is_accepted_or_rejected_quickly(data in data()) {
        of(&data);
    }

    #[test]
    fn nearly_valid_json_is_accepted_or_rejected(
        pieces in prop::collection::vec((prop::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "\"", "\\", "\\u0000", "\\ud800", "1", "-", "e9", ".5", "null", "true", " ", "\n",
            "{\"version\":\"v2\",\"data\":", "\"playbook\":{\"steps\":[", "{\"say\":\"a\"}", "{\"set\":{\"a\":", "\"tools\":{",
        ]), 1..400usize), 0..12)
    ) {
        taken(pieces.iter().map(|(piece, times)| piece.repeat(*times)).collect());
    }
}

/// A config of the maximum size that repeats one piece as often as it fits.
fn full_of(before: &str, piece: &str, after: &str) -> String {
    let room = CONFIG_BYTES_MAX - before.len() - after.len();
    let pieces = vec![piece; room / (piece.len() + 1)].join(",");
    format!("{before}{pieces}{after}")
}

#[test]
fn the_largest_configs_are_accepted_or_rejected_quickly() {
    let long = "k".repeat(CONFIG_BYTES_MAX / 2);
    let step = |with: &str| {
        format!(
            "{{\"version\":\"v2\",\"data\":{{\"tools\":{{\"read_file\":\"allow\"}},\"playbook\":{{\"steps\":[{{\"tool\":\"read_file\",\"with\":{with}"
        )
    };
    let end = "}]}}}";
    let lists = [
        // A key of half the size above a list of the other half: the place of each item contains the key.
        full_of(&step(&format!("{{\"{long}\":[")), "1", &format!("]}}{end}")),
        full_of(
            &step(&format!("{{\"{long}\":[")),
            "\"{{a}}\"",
            &format!("]}}{end}"),
        ),
        full_of(&step("{\"a\":["), "\"{{ a }}\"", &format!("]}}{end}")),
        full_of(&step("{\"a\":["), "[{}]", &format!("]}}{end}")),
        full_of(
            &format!("{{\"version\":\"v2\",\"data\":{{\"models\":\"openai/x\",\"{long}\":["),
            "1",
            "]}}",
        ),
        full_of(
            &format!(
                "{{\"version\":\"v2\",\"data\":{{\"models\":\"openai/x\",\"input\":[{{\"{long}\":["
            ),
            "\"\"",
            "]}]}}",
        ),
        full_of(
            "{\"version\":\"v2\",\"data\":{\"models\":\"openai/x\",\"secrets\":[",
            "\"A\"",
            "]}}",
        ),
        full_of(
            "{\"version\":\"v2\",\"data\":{\"playbook\":{\"steps\":[",
            "{\"say\":\"{{a}}\"}",
            "]}}}",
        ),
    ];
    for text in lists {
        taken(text);
    }
    // A key that is nearly as long as the config, where only known keys are accepted.
    let unknown = "k".repeat(CONFIG_BYTES_MAX - 100);
    for data in [
        json!({"playbook": {"steps": [{"say": "a", unknown.as_str(): 1}]}}),
        json!({"playbook": {unknown.as_str(): 1}}),
        json!({"models": "openai/x", "tools": {unknown.as_str(): "allow"}}),
        json!({"models": unknown}),
        json!({"models": "openai/x", "limits": {"seconds": unknown}}),
        json!({"models": "openai/x", "input": [{"role": unknown, "content": ""}]}),
    ] {
        of(&data);
    }
    let deep = (0..58).fold(json!("{{ a }}"), |inner, _| json!({"k": [inner]}));
    for data in [
        json!({"playbook": {"steps": [{"set": {"a": deep}}]}}),
        json!({"models": "openai/x", "anything": deep}),
    ] {
        of(&data);
    }
}

#[test]
fn a_config_of_each_kind_is_accepted() {
    for data in [
        json!({"models": "openai/gpt-x", "tools": {"read_file": "allow"}, "limits": {"steps": 5.0}}),
        json!({"playbook": {"steps": [{"for_each": "{{ [1] }}", "steps": [{"set": {"a": "{{ item }}"}}]}, {"finish": "x"}]}}),
    ] {
        assert!(of(&data), "{data}");
    }
}
