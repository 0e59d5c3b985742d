//! Secrets: set, used, masked, and never returned.

use std::io::Write;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use errand_core::role::Role;
use errand_testkit::providers::{Answer, ProviderServer};
use errand_testkit::{TestApp, TestOptions, WebhookSink};
use http::Method;
use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::models::{EACH, config};

const VALUE: &str = "s3cr/et+välue \"42\"";

fn options() -> TestOptions {
    TestOptions {
        settings: vec![(
            "ERRAND_FETCH_URL__ALLOW_PRIVATE_NETWORKS",
            "true".to_owned(),
        )],
        ..TestOptions::default()
    }
}

/// A build that fetches pages.
fn fetches(steps: Value) -> Value {
    json!({"version": "v2", "data": {"tools": {"fetch_url": "allow"}, "playbook": {"steps": steps}}})
}

#[tokio::test]
async fn admins_set_list_and_delete_secrets() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    let (_, admin) = app.person(&team, "a@acme.example", Role::Admin).await;
    let set = json!({"name": "TOKEN", "value": VALUE});
    app.post(&member, "/v1/secrets", set.clone())
        .await
        .error(403);
    app.get(&member, "/v1/secrets").await.error(403);
    let made = app
        .post(&admin, "/v1/secrets", set.clone())
        .await
        .expect(201);
    assert_eq!(made["secret"]["name"], "TOKEN");
    let listed = app.get(&admin, "/v1/secrets").await.expect(200);
    assert_eq!(
        (&listed["total"], &listed["secrets"][0]),
        (&json!(1), &made["secret"])
    );
    assert!(!listed.to_string().contains("42"));
    // Setting it again changes its value; a repetition with the same idempotency key changes nothing.
    let again = json!({"name": "TOKEN", "value": "another value"});
    let key = [("idempotency-key", "k")];
    let first = app
        .json(Method::POST, &admin, "/v1/secrets", again.clone(), &key)
        .await;
    let replay = app
        .json(Method::POST, &admin, "/v1/secrets", again, &key)
        .await;
    assert_eq!(first.bytes, replay.bytes);
    app.json(Method::POST, &admin, "/v1/secrets", set, &key)
        .await
        .error(409);
    app.delete(&member, "/v1/secrets/TOKEN").await.error(403);
    assert_eq!(app.delete(&admin, "/v1/secrets/TOKEN").await.status, 204);
    app.delete(&admin, "/v1/secrets/TOKEN").await.error(404);
    app.finish().await;
}

#[tokio::test]
async fn invalid_secrets_are_refused_and_not_repeated() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (body, word) in [
        (json!({"name": "A-B", "value": VALUE}), "name"),
        (json!({"name": "A", "value": "only-eleven"}), "value"),
        (
            json!({"name": "A", "value": 123_456_789_012_345_u64}),
            "value",
        ),
        (json!({"name": "A", "value": "x".repeat(20_000)}), "value"),
        (json!({"name": "A"}), "value"),
    ] {
        let (_, message) = app.post(&team.key, "/v1/secrets", body).await.error(400);
        assert!(
            message.contains(word)
                && !message.contains("only-eleven")
                && !message.contains("12345"),
            "{message}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_build_with_a_misplaced_secret_mark_is_refused() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.post(
        &team.key,
        "/v1/secrets",
        json!({"name": "TOKEN", "value": VALUE}),
    )
    .await
    .expect(201);
    let build = |data: Value| json!({"name": "x", "build": {"name": "x", "config": {"version": "v2", "data": data}}});
    let mark = "{{ secret.TOKEN }}";
    let fetch = |with: Value| json!({"tools": {"fetch_url": "allow"}, "playbook": {"steps": [{"tool": "fetch_url", "with": with}]}});
    for (data, place) in [
        (
            json!({"models": "builtin/x", "input": format!("Use {mark}.")}),
            "data.input",
        ),
        (
            json!({"playbook": {"steps": [{"say": mark}]}}),
            "steps[0].say",
        ),
        (
            json!({"playbook": {"steps": [{"set": {"x": mark}}]}}),
            "steps[0].set",
        ),
        (
            json!({"playbook": {"steps": [{"for_each": [1], "steps": [{"tool": "write_file", "with": {"path": "a", "content": mark}}]}]}}),
            "steps[0].steps[0].with.content",
        ),
        (
            json!({"playbook": {"steps": [{"approve": {"title": "{{ 'x' ~ secret.TOKEN }}"}}]}}),
            "approve.title",
        ),
        (fetch(json!({"url": "{{ secret }}"})), "with.url"),
        (
            fetch(json!({"url": "http://a", "headers": {"{{ secret.TOKEN }}": "x"}})),
            "with.headers",
        ),
        (
            fetch(json!({"url": "{{ secret.NONE }}"})),
            "the secret NONE does not exist",
        ),
    ] {
        let (_, message) = app
            .post(&team.key, "/v1/agents", build(data.clone()))
            .await
            .error(400);
        assert!(message.contains(place), "{data}: {message}");
    }
    app.post(
        &team.key,
        "/v1/agents",
        build(fetch(
            json!({"url": "http://a.test", "headers": {"authorization": format!("Bearer {mark}")}}),
        )),
    )
    .await
    .expect(201);
    app.finish().await;
}

/// Collects the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A server that returns what it received in every possible way.
async fn echo() -> MockServer {
    let server = MockServer::start().await;
    let given = |request: &Request| {
        let header = request.headers.get("authorization");
        header.map_or_else(String::new, |h| {
            String::from_utf8_lossy(h.as_bytes())
                .trim_start_matches("Bearer ")
                .to_owned()
        })
    };
    let all = move |request: &Request| {
        let value = given(request);
        let url: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
        format!(
            "plain {value} json {} base64 {} basic {} url {url} query {}",
            json!({ "v": value }),
            STANDARD.encode(&value),
            STANDARD.encode(format!("user:{value}")),
            request.url,
        )
    };
    Mock::given(path("/ok"))
        .respond_with(move |r: &Request| ResponseTemplate::new(200).set_body_string(all(r)))
        .mount(&server)
        .await;
    Mock::given(path("/bad"))
        .respond_with(move |r: &Request| {
            ResponseTemplate::new(403).set_body_raw(all(r), "text/html")
        })
        .mount(&server)
        .await;
    Mock::given(path("/json"))
        .respond_with(move |r: &Request| {
            ResponseTemplate::new(200).set_body_json(json!({ all(r): [all(r)] }))
        })
        .mount(&server)
        .await;
    Mock::given(path("/away"))
        .respond_with(move |r: &Request| {
            let url: String = url::form_urlencoded::byte_serialize(given(r).as_bytes()).collect();
            ResponseTemplate::new(302).insert_header("location", format!("/ok?said={url}"))
        })
        .mount(&server)
        .await;
    server
}

/// Encodings of the value that are searched wherever it could leak.
fn forms() -> Vec<String> {
    let quoted = json!(VALUE).to_string();
    let url: String = url::form_urlencoded::byte_serialize(VALUE.as_bytes()).collect();
    let core = STANDARD.encode(VALUE);
    vec![
        VALUE.to_owned(),
        quoted[1..quoted.len() - 1].to_owned(),
        url,
        core[..core.len() - 4].to_owned(),
        STANDARD.encode(format!("user:{VALUE}"))[8..24].to_owned(),
    ]
}

fn assert_clean(what: &str, text: &str) {
    for form in forms() {
        assert!(!text.contains(&form), "{what} holds {form}: {text}");
    }
}

#[tokio::test]
async fn a_secret_reaches_only_its_server() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // With a single subscriber, the first thread that reaches a log statement decides for all threads whether it is
    // enabled.
    let _other = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);
    let (app, sink, server) = (
        TestApp::start_with(options()).await,
        WebhookSink::start().await,
        echo().await,
    );
    let team = app.team("acme").await;
    app.post(
        &team.key,
        "/v1/secrets",
        json!({"name": "TOKEN", "value": VALUE}),
    )
    .await
    .expect(201);
    let url = server.uri();
    let ask = |path: &str, name: &str| {
        json!({"tool": "fetch_url", "on_error": "continue", "as": name, "with": {
            "url": format!("{url}/{path}?key={{{{ secret.TOKEN }}}}"),
            "headers": {"authorization": "Bearer {{ secret.TOKEN }}"}}})
    };
    let steps = json!([
        ask("ok", "one"), {"say": "{{ one.text }}"},
        ask("bad", "two"), {"say": "{{ two }}"},
        ask("json", "three"), {"say": "{{ three }}"},
        ask("away", "four"), {"say": "{{ four }}"},
        {"approve": {"title": "Go on?", "description": "{{ one.text }}"}},
        {"fail": "{{ one.text }}"},
    ]);
    let agent = app.agent(&team, fetches(steps)).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "webhook_url": sink.url()}))
        .await;
    // A call with headers needs an approval, and names what was read before.
    for before in 0..5 {
        app.settle().await;
        let got = app.get_run(&team, &run).await;
        assert_clean("the run", &got.to_string());
        let request = &got["pending_human_request"];
        if request["title"] != "Go on?" {
            let sources = request["reason"]["sources"].to_string();
            assert_eq!(sources.contains(&url), before > 0, "{sources}");
            assert!(
                request["tool_call"]
                    .to_string()
                    .contains("{{ secret.TOKEN }}")
            );
        }
        app.answer(&team, &run, json!({"approved": true})).await;
    }
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "failed", "{got}");
    sink.until(5).await;
    // The server received it each time, in header and query.
    let asked = server.received_requests().await.unwrap();
    let with: Vec<_> = asked
        .iter()
        .filter(|r| r.headers["authorization"].as_bytes() == format!("Bearer {VALUE}").as_bytes())
        .collect();
    assert_eq!(with.len(), 5);
    // In a query, a plus has another meaning.
    let (plain, in_query) = (VALUE, VALUE.replace('+', " "));
    let holds = |value: &str| value == plain || value == in_query;
    assert!(
        with.iter()
            .all(|r| r.url.query_pairs().any(|(_, value)| holds(&value)))
    );
    // Every possible leak: messages, run and error, events, webhooks, all files on disk, the log.
    let messages = app.messages(&team, &run).await;
    let said = json!(messages).to_string();
    assert!(said.matches("{{ secret.TOKEN }}").count() > 20, "{said}");
    assert_clean("the messages", &said);
    assert_clean("the run", &got.to_string());
    let events = app.get(&team.key, &format!("/v1/runs/{run}/events")).await;
    assert_clean("the events", &String::from_utf8_lossy(&events.bytes));
    for received in sink.received() {
        assert_clean("a webhook", &String::from_utf8_lossy(&received.body));
    }
    let dir = app.dir().to_owned();
    app.finish().await;
    for file in ["errand.db", "errand.db-wal"] {
        if let Ok(bytes) = std::fs::read(dir.join(file)) {
            assert_clean(file, &String::from_utf8_lossy(&bytes));
        }
    }
    let log = log.0.lock().unwrap().clone();
    // The most detailed log level of the client library, which logs what it sends, is never enabled.
    let ours: String = String::from_utf8_lossy(&log)
        .lines()
        .filter(|line| line.contains(" errand"))
        .collect();
    assert!(!ours.is_empty());
    assert_clean("the log", &ours);
}

#[tokio::test]
async fn a_secret_that_is_gone_or_not_the_builds_begins_no_call() {
    let (app, server) = (TestApp::start_with(options()).await, echo().await);
    let team = app.team("acme").await;
    app.post(
        &team.key,
        "/v1/secrets",
        json!({"name": "TOKEN", "value": VALUE}),
    )
    .await
    .expect(201);
    let url = format!("{}/ok?x={{{{ secret.TOKEN }}}}", server.uri());
    let agent = app
        .agent(
            &team,
            fetches(json!([{"tool": "fetch_url", "with": {"url": url}}])),
        )
        .await;
    app.delete(&team.key, "/v1/secrets/TOKEN").await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    let error = got["run"]["error"]["message"].as_str().unwrap();
    assert!(error.contains("there is no secret TOKEN"), "{error}");
    // A message contains the mark, but the build does not name the secret, so the message cannot send it.
    app.post(
        &team.key,
        "/v1/secrets",
        json!({"name": "TOKEN", "value": VALUE}),
    )
    .await
    .expect(201);
    let agent = app
        .agent(
            &team,
            fetches(json!([{"tool": "fetch_url", "with": {"url": "{{ message }}"}}])),
        )
        .await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": url}))
        .await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    let error = got["run"]["error"]["message"].as_str().unwrap();
    assert!(error.contains("may not use the secret TOKEN"), "{error}");
    assert!(server.received_requests().await.unwrap().is_empty());
    app.finish().await;
}

#[tokio::test]
async fn the_master_key_is_replaced_under_a_running_server() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.post(
        &team.key,
        "/v1/secrets",
        json!({"name": "TOKEN", "value": VALUE}),
    )
    .await
    .expect(201);
    let before = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    let next = errand_store::seal::MasterKey::from_bytes([0x22; 32]);
    app.store().rotate_master_key(Some(next)).await.unwrap();
    let after = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    assert_eq!(before, after);
    assert_eq!(
        app.store().open_secrets(team.id).await.unwrap(),
        [("TOKEN".to_owned(), VALUE.to_owned())]
    );
    let mut app = app;
    app.set("ERRAND_MASTER_KEY", &"22".repeat(32));
    app.stop_and_start().await;
    let again = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    assert_eq!(before, again);
    app.finish().await;
}

#[tokio::test]
async fn a_secret_never_reaches_a_model() {
    let (provider, server) = (ProviderServer::start().await, echo().await);
    let mut options = options();
    options.settings.extend(provider.settings());
    let app = TestApp::start_with(options).await;
    let team = app.team("acme").await;
    let body = json!({"name": "TOKEN", "value": VALUE});
    app.post(&team.key, "/v1/secrets", body).await.expect(201);
    for (model, _) in EACH {
        let before = server.received_requests().await.unwrap().len();
        let call = |path: &str| {
            let url = format!("{}/{path}?key={{{{ secret.TOKEN }}}}", server.uri());
            let headers = json!({"authorization": "Bearer {{ secret.TOKEN }}"});
            Answer::call("fetch_url", json!({"url": url, "headers": headers}))
        };
        let script = vec![call("ok"), call("json"), Answer::text("Done.")];
        provider.script(model.split_once('/').unwrap().1, script);
        let data = json!({"tools": {"fetch_url": "allow"}, "secrets": ["TOKEN"]});
        let agent = app.agent(&team, config(model, data)).await;
        let body = json!({"agent_id": agent, "message": "Go."});
        let run = app.run(&team, body).await;
        app.settle().await;
        // Each call needs an approval, because it sends headers.
        for _ in 0..2 {
            crate::connections::respond(&app, &team, &run, json!({"approved": true})).await;
        }
        assert_eq!(app.status(&team, &run).await, "completed", "{model}");
        let received = server.received_requests().await.unwrap();
        let had = format!("Bearer {VALUE}");
        let with = |r: &&wiremock::Request| r.headers["authorization"].as_bytes() == had.as_bytes();
        assert_eq!(received[before..].iter().filter(with).count(), 2, "{model}");
        let asked = provider.last();
        assert_clean(model, &asked.body.to_string());
        let results = asked.tool_results();
        assert!(
            results.iter().all(|r| r.contains("{{ secret.TOKEN }}")),
            "{results:?}"
        );
    }
    app.finish().await;
}
