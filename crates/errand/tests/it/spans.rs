//! Spans: what a subscriber learns of a request, a drive, a turn, a tool call, a delivery attempt and a store operation,
//! and what it does not learn.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use errand_testkit::{TestApp, WebhookSink};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, Registry};

#[derive(Clone, Debug, Default)]
struct Seen {
    name: &'static str,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Keeps the spans of errand.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, Vec<Seen>>>>);

impl Spans {
    fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap().values().flatten().cloned().collect()
    }

    fn named(&self, name: &str) -> Vec<BTreeMap<&'static str, String>> {
        let all = self.all().into_iter().filter(|span| span.name == name);
        all.map(|span| span.fields).collect()
    }
}

impl<S: Subscriber> Layer<S> for Spans {
    fn enabled(&self, of: &Metadata<'_>, _: Context<'_, S>) -> bool {
        of.target().starts_with("errand") && *of.level() <= Level::DEBUG
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut seen = Seen {
            name: attributes.metadata().name(),
            ..Seen::default()
        };
        attributes.record(&mut seen);
        // An id is used again once its span has ended.
        let mut spans = self.0.lock().unwrap();
        spans.entry(id.into_u64()).or_default().push(seen);
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, _: Context<'_, S>) {
        let mut spans = self.0.lock().unwrap();
        let of_id = spans.get_mut(&id.into_u64());
        record.record(of_id.unwrap().last_mut().unwrap());
    }
}

#[tokio::test]
async fn each_part_of_a_run_has_a_span_without_contents() {
    let spans = Spans::default();
    // With a single subscriber, tracing asks the thread that reaches a call site first whether anybody wants it. That may
    // be the thread of another test, which has no subscriber. With two, all of them are asked.
    let _second = Dispatch::new(Registry::default());
    let _guard = tracing::subscriber::set_default(Registry::default().with(spans.clone()));
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    let steps = json!([
        {"tool": "write_file", "with": {"path": "hush1.txt", "content": "hush2"}},
        {"tool": "read_file", "with": {"path": "hush3.txt"}, "on_error": "continue"},
        {"finish": "hush4"},
    ]);
    let agent = app.playbook(&team, steps).await;
    let body = json!({"agent_id": agent, "message": "hush5", "webhook_url": sink.url()});
    let run = app.run(&team, body).await;
    app.settle().await;

    let drives = spans.named("run.drive");
    assert!(!drives.is_empty());
    for drive in &drives {
        assert_eq!(drive["run.id"], run);
        assert_eq!(drive["team.id"], team.id.to_string());
    }
    let turns = spans.named("run.turn");
    assert!(!turns.is_empty());
    for turn in &turns {
        assert_eq!(turn["run.id"], run);
        assert_eq!(turn["model"], "builtin/playbook");
        assert_eq!(turn["tokens.in"], "0");
    }
    let calls = spans.named("run.tool_call");
    let calls = calls.iter().map(|call| {
        assert_eq!(call["run.id"], run);
        (call["tool"].as_str(), call.get("error").map(String::as_str))
    });
    let expected = [
        ("\"write_file\"", None),
        ("\"read_file\"", Some("\"not_found\"")),
    ];
    let mut calls: Vec<_> = calls.collect();
    calls.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(calls, expected);
    let attempts = spans.named("webhook.attempt");
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0]["status"], "200");
    assert_eq!(attempts[0]["attempt"], "1");
    assert!(attempts[0].contains_key("delivery.id") && attempts[0].contains_key("duration_ms"));
    let writes = spans.named("store.write");
    for operation in ["start_run", "claim", "commit_step", "record_attempt"] {
        let of = format!("{operation:?}");
        assert!(
            writes.iter().any(|write| write["store.op"] == of),
            "{operation}: {writes:?}"
        );
    }
    assert!(!spans.named("store.read").is_empty());

    let all = format!("{:?}", spans.all());
    for hidden in ["hush", sink.url(), &team.key] {
        assert!(!all.contains(hidden), "{hidden}: {all}");
    }
}
