//! Local programs as servers, with the default isolation.

use std::path::Path;

use errand_testkit::{Team, TestApp, TestOptions};
use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::connections::{all_of, connect, everything, stdio};

/// A server that inspects variables, files and the network.
const SPY: &str = include_str!("../mcp/spy.mjs");

/// A directory that everyone can read.
fn readable() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), mode).unwrap();
    dir
}

async fn start(file: String, isolates: bool) -> (TestApp, Team) {
    let app = TestApp::start_with(TestOptions {
        file: Some(file),
        helper: isolates.then(|| env!("CARGO_BIN_EXE_errand").into()),
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    (app, team)
}

fn declared(name: &str, args: &[&str], sees: &Path) -> String {
    format!(
        "[connections.stdio.{name}]\ncommand = \"node\"\nargs = {args:?}\nread_only = [{sees:?}]\nenv = {{TOLD = \"by the operator\"}}\n"
    )
}

/// The results of the calls in these steps, in order.
async fn results(app: &TestApp, team: &Team, connection: &str, steps: Value) -> Vec<Value> {
    let mut tools = all_of(app, team, connection).await;
    // The tool takes an address, so it asks by default once the run has read private content.
    if steps.to_string().contains("spy__get") {
        tools["spy__get"] = json!("allow");
    }
    let data = json!({"connections": [connection], "tools": tools, "playbook": {"steps": steps}});
    let agent = app
        .agent(team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(team, &run).await;
    assert_eq!(got["run"]["status"], "completed", "{got}");
    let messages = app.messages(team, &run).await;
    let results = messages.iter().filter(|m| m["type"] == "tool_result");
    results
        .map(|m| m["tool_result"]["result"].clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_server_sees_only_the_network() {
    let page = MockServer::start().await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(204))
        .mount(&page)
        .await;
    let dir = readable();
    let spy = dir.path().join("spy.mjs");
    std::fs::write(&spy, SPY).unwrap();
    let file = declared("spy", &[spy.to_str().unwrap()], dir.path());
    let (app, team) = start(file, true).await;
    let id = connect(&app, &team, "spy", stdio("spy")).await;
    let (data, home) = (app.dir().to_str().unwrap().to_owned(), "/root");
    let steps = json!([
        {"tool": "spy__environment"},
        {"tool": "spy__list", "with": {"path": data}},
        {"tool": "spy__list", "with": {"path": home}},
        {"tool": "spy__list", "with": {"path": dir.path().to_str().unwrap()}},
        {"tool": "spy__write", "with": {"path": spy.to_str().unwrap()}},
        {"tool": "spy__get", "with": {"url": page.uri()}},
        {"tool": "spy__processes"}]);
    let got = results(&app, &team, &id, steps).await;
    let names: Vec<&str> = got[0]["names"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap())
        .collect();
    for name in &names {
        let plain = [
            "PATH", "HOME", "LANG", "TERM", "TMPDIR", "USER", "PWD", "SHLVL", "_", "TOLD",
        ];
        assert!(plain.contains(name), "{names:?}");
    }
    assert!(names.contains(&"TOLD"));
    assert!(
        got[1]["error"].is_string(),
        "the data directory: {}",
        got[1]
    );
    let at_home = got[2]["names"].as_array();
    assert!(at_home.is_none_or(Vec::is_empty), "{}", got[2]);
    assert_eq!(got[3]["names"], json!(["spy.mjs"]));
    assert!(got[4]["error"].is_string(), "it writes: {}", got[4]);
    assert_eq!(got[5]["status"], 204);
    // Only itself and the processes that isolate it.
    assert!(got[6]["count"].as_u64().unwrap() <= 4, "{}", got[6]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_s_own_server_works_in_isolation() {
    let server = everything();
    let modules = server.ancestors().find(|at| at.ends_with("node_modules"));
    let dir = readable();
    let copied = std::process::Command::new("cp")
        .args(["-rL", modules.unwrap().to_str().unwrap()])
        .arg(dir.path())
        .status();
    assert!(copied.unwrap().success());
    let at = dir
        .path()
        .join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let file = declared("all", &[at.to_str().unwrap(), "stdio"], dir.path());
    let (app, team) = start(file, true).await;
    let id = connect(&app, &team, "all", stdio("all")).await;
    let steps = json!([{"tool": "all__echo", "with": {"message": "hi"}}]);
    let got = results(&app, &team, &id, steps).await;
    assert_eq!(got[0], "Echo: hi");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_isolation_a_program_is_not_started() {
    let dir = readable();
    let spy = dir.path().join("spy.mjs");
    std::fs::write(&spy, SPY).unwrap();
    let file = declared("spy", &[spy.to_str().unwrap()], dir.path());
    let (app, team) = start(file, false).await;
    let body = json!({"name": "spy", "transport": stdio("spy")});
    let made = app
        .post(&team.key, "/v1/connections", body)
        .await
        .expect(201);
    let id = made["connection"]["id"].as_str().unwrap();
    let probed = app
        .post(&team.key, &format!("/v1/connections/{id}/probe"), json!({}))
        .await
        .expect(200);
    let error = probed["error"].as_str().unwrap();
    assert!(
        error.contains("cannot be isolated here, and was not started: "),
        "{error}"
    );
    app.finish().await;
}
