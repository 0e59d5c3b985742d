//! Restrictions of connections: to tools that an admin has seen, to the destination of an approved call, and to the
//! driver that uses the session. Also what a program is told, and what it cannot delay.

use std::path::{Path, PathBuf};
use std::time::Duration;

use errand_core::role::Role;
use errand_testkit::{Team, TestApp, TestOptions};
use serde_json::{Value, json};

use crate::connections::{Mailbox, all_of, connect, options, respond, root, stdio};

async fn agent(app: &TestApp, team: &Team, connection: &str, steps: Value) -> String {
    let data = json!({"connections": [connection], "tools": all_of(app, team, connection).await, "playbook": {"steps": steps}});
    app.agent(team, json!({"version": "v2", "data": data}))
        .await
}

async fn results(app: &TestApp, team: &Team, run: &str) -> Vec<Value> {
    let messages = app.messages(team, run).await.into_iter();
    messages
        .map(|message| message["tool_result"].clone())
        .filter(|result| !result.is_null())
        .collect()
}

/// A program that records its requests and can stop reading; see `deaf.mjs`.
struct Noting {
    dir: tempfile::TempDir,
}

impl Noting {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn declared(&self, name: &str) -> String {
        let program = root().join("crates/errand/tests/mcp/deaf.mjs");
        format!(
            "[connections.stdio.{name}]\ncommand = \"node\"\nargs = [{program:?}]\nisolation = \"none\"\nenv = {{LOG = {:?}}}\n",
            self.log()
        )
    }

    fn noted(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

async fn app(servers: &[(&str, &Noting)]) -> TestApp {
    let declared = servers.iter().map(|(name, server)| server.declared(name));
    TestApp::start_with(TestOptions {
        settings: vec![("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "1".to_owned())],
        file: Some(declared.collect()),
        ..TestOptions::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unprobed_connection_offers_nothing_and_says_so() {
    let mailbox = Mailbox::new();
    let app = TestApp::start_with(options(Some(&mailbox))).await;
    let team = app.team("acme").await;
    let made = app
        .post(
            &team.key,
            "/v1/connections",
            json!({"name": "mail", "transport": stdio("mailbox")}),
        )
        .await
        .expect(201);
    let id = made["connection"]["id"].as_str().unwrap().to_owned();
    let steps = json!([{"tool": "mail__list_messages", "on_error": "continue"}]);
    let agent = agent(&app, &team, &id, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let results = results(&app, &team, &run).await;
    let error = results[0]["error"].as_str().unwrap();
    assert!(
        error.starts_with("not_run: the connection mail was not probed")
            && error.contains("/probe"),
        "{error}"
    );
    let path = format!("/v1/connections/{id}");
    let got = app.get(&team.key, &path).await.expect(200);
    assert!(got["connection"]["tools"].is_null(), "{got}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_void_once_the_connection_leads_elsewhere() {
    let (one, other) = (Noting::new(), Noting::new());
    let app = app(&[("one", &one), ("other", &other)]).await;
    let team = app.team("acme").await;
    let id = connect(&app, &team, "x", stdio("one")).await;
    let path = format!("/v1/connections/{id}");
    let ask = json!({"floors": {"*": "ask"}});
    app.patch(&team.key, &path, ask).await.expect(200);
    let agent = agent(
        &app,
        &team,
        &id,
        json!([{"tool": "x__keep", "with": {"a": 1}}]),
    )
    .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
    app.patch(&team.key, &path, json!({"transport": stdio("other")}))
        .await
        .expect(200);
    app.post(&team.key, &format!("{path}/probe"), json!({}))
        .await
        .expect(200);
    respond(&app, &team, &run, json!({"approved": true})).await;
    let anew = app.get_run(&team, &run).await["pending_human_request"].clone();
    assert_ne!(anew["id"], pending["id"]);
    assert_eq!(anew["tool_call"], pending["tool_call"]);
    let why = anew["description"].as_str().unwrap();
    assert!(why.contains("has changed since"), "{why}");
    assert!(one.noted().is_empty() && other.noted().is_empty());
    respond(&app, &team, &run, json!({"approved": true})).await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_eq!((one.noted().len(), other.noted().len()), (0, 1));
    // The data sent with a call lets a server recognize a repetition.
    let meta = &other.noted()[0]["params"]["_meta"];
    let call = pending["tool_call"]["id"].as_str().unwrap();
    assert_eq!(meta["errand/idempotency-key"], format!("{run}:{call}"));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_of_deny_holds_for_a_call_that_waits_for_its_approval() {
    let server = Noting::new();
    let app = app(&[("one", &server)]).await;
    let team = app.team("acme").await;
    let id = connect(&app, &team, "x", stdio("one")).await;
    let floor = async |policy: &str| {
        let floors = json!({"floors": {"x__keep": policy}});
        let path = format!("/v1/connections/{id}");
        app.patch(&team.key, &path, floors).await.expect(200);
    };
    floor("ask").await;
    let steps = json!([{"tool": "x__keep", "on_error": "continue"}]);
    let agent = agent(&app, &team, &id, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    floor("deny").await;
    respond(&app, &team, &run, json!({"approved": true})).await;
    let results = results(&app, &team, &run).await;
    let error = results[0]["error"].as_str().unwrap();
    assert!(error.starts_with("denied: "), "{error}");
    assert!(server.noted().is_empty());
    app.finish().await;
}

#[tokio::test]
async fn possible_keys_are_shown_only_to_connection_managers() {
    let app = app(&[]).await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    let secret = json!({"name": "TOKEN", "value": "correct horse battery"});
    app.post(&team.key, "/v1/secrets", secret).await;
    let headers =
        json!({"x-plain": "in-plain-sight", "authorization": "Bearer {{ secret.TOKEN }}"});
    let url = "https://mcp.example.com/mcp?key=in-plain-sight";
    let body =
        json!({"name": "mail", "transport": {"type": "http", "url": url, "headers": headers}});
    let made = app.post(&team.key, "/v1/connections", body).await;
    let path = format!(
        "/v1/connections/{}",
        made.expect(201)["connection"]["id"].as_str().unwrap()
    );
    for path in [path.as_str(), "/v1/connections"] {
        let all = app.get(&team.key, path).await.expect(200).to_string();
        assert!(all.matches("in-plain-sight").count() == 2, "{all}");
        let less = app.get(&member, path).await.expect(200).to_string();
        assert!(!less.contains("in-plain-sight"), "{less}");
        assert!(less.contains("{{ secret.TOKEN }}") && less.contains("mcp.example.com"));
    }
    app.finish().await;
}

async fn until_there(path: &Path) {
    let there = async {
        while !path.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), there)
        .await
        .expect("the program stops reading");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_read_delays_only_its_call() {
    let server = Noting::new();
    let app = app(&[("one", &server)]).await;
    let team = app.team("acme").await;
    let id = connect(&app, &team, "x", stdio("one")).await;
    std::fs::write(server.log().with_extension("deaf"), "").unwrap();
    let large = "x".repeat(300_000);
    let steps = json!([{"tool": "x__keep", "with": {"text": large}}]);
    let agent = agent(&app, &team, &id, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    until_there(&server.log().with_extension("stopped")).await;
    app.stop_run(&team, &run).await;
    // All runs share one slot, which is freed although the call cannot even be canceled.
    let plain = app.playbook(&team, json!([{"finish": "done"}])).await;
    let next = app.run(&team, json!({"agent_id": plain})).await;
    app.settle().await;
    assert_eq!(app.status(&team, &next).await, "completed");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_teams_may_no_longer_set_is_not_set() {
    let mailbox = Mailbox::new();
    let with = options(Some(&mailbox));
    let mut app = TestApp::start_with(with.clone()).await;
    let team = app.team("acme").await;
    let transport = json!({"type": "stdio", "command": "mailbox", "env": {"MAILBOX_LIES": "1"}});
    let id = connect(&app, &team, "mail", transport).await;
    let probe = format!("/v1/connections/{id}/probe");
    app.set_file(with.file.unwrap().replace("MAILBOX_LIES", "OTHER"));
    app.stop_and_start().await;
    let probed = app.post(&team.key, &probe, json!({})).await.expect(200);
    let error = probed["error"].as_str().unwrap();
    assert!(error.contains("a team may not set MAILBOX_LIES"), "{error}");
    app.finish().await;
}
