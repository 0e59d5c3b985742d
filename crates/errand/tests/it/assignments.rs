//! `run_assignment`: a run that waits for another run.

use errand_testkit::{Team, TestApp, WebhookSink};
use serde_json::{Value, json};

async fn named(app: &TestApp, team: &Team, name: &str, data: Value) -> String {
    let config = json!({"version": "v2", "data": data});
    let body = json!({"name": name, "build": {"name": "first", "config": config}});
    let made = app.post(&team.key, "/v1/agents", body).await.expect(201);
    made["agent"]["id"].as_str().unwrap().to_owned()
}

/// An assignment that starts another one, by ID, and reports its result.
fn starts(other: &str) -> Value {
    starts_named(other, &[other])
}

/// Like [`starts`], with any text, for a build that permits these.
fn starts_named(other: &str, allowed: &[&str]) -> Value {
    json!({"tools": {"run_assignment": "allow", "run_command": "guard"}, "assignments": allowed, "playbook": {"steps": [
        {"tool": "run_assignment", "with": {"assignment": other, "message": "{{ message }}"}, "as": "got", "on_error": "continue"},
        {"finish": "{{ got }}"}]}})
}

async fn children(app: &TestApp, team: &Team, agent: &str) -> Vec<Value> {
    let path = format!("/v1/runs?agent_id={agent}");
    let listed = app.get(&team.key, &path).await.expect(200);
    listed["runs"].as_array().unwrap().clone()
}

async fn said(app: &TestApp, team: &Team, run: &str) -> String {
    let messages = app.messages(team, run).await;
    messages.last().unwrap()["text_content"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn a_run_waits_for_its_child_and_uses_its_last_message() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    let steps = json!([
        {"say": "I have: {{ message }}"},
        {"approve": {"title": "Go on?"}, "as": "asked"},
        {"finish": "{{ message }} is {{ asked.approved }}"}]);
    let child = named(&app, &team, "Second", json!({"playbook": {"steps": steps}})).await;
    let parent = named(&app, &team, "First", starts_named("Second", &[&child])).await;
    let body = json!({"agent_id": parent, "message": "this", "webhook_url": sink.url()});
    let run = app.run(&team, body).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["waiting_on"]["kind"], "child_run", "{got}");
    let below = children(&app, &team, &child).await;
    assert_eq!(below.len(), 1);
    assert_eq!(got["run"]["waiting_on"]["who"], below[0]["id"]);
    // Its request appears at the parent, in the parent's webhook, and can be answered there, also after a crash.
    sink.until(1).await;
    assert_eq!(sink.received()[0].json()["run_id"], below[0]["id"]);
    app.crash().await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    let request = &got["pending_human_request"];
    assert_eq!(request["title"], "Go on?", "{got}");
    app.answer(&team, &run, json!({"approved": true})).await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    let text = said(&app, &team, &run).await;
    assert!(
        text.contains("this is true") && text.contains("completed"),
        "{text}"
    );
    assert_eq!(children(&app, &team, &child).await.len(), 1);
    app.finish().await;
}

#[tokio::test]
async fn stopping_a_run_stops_what_it_waits_for() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let asks = json!({"playbook": {"steps": [{"approve": {"title": "Go on?"}}]}});
    let third = named(&app, &team, "Third", asks).await;
    let second = named(&app, &team, "Second", starts_named("Third", &[&third])).await;
    let first = named(&app, &team, "First", starts_named("Second", &[&second])).await;
    let run = app
        .run(&team, json!({"agent_id": first, "message": "x"}))
        .await;
    app.settle().await;
    // Two levels below: the request of the lowest run appears at the top.
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["pending_human_request"]["title"], "Go on?");
    app.stop_run(&team, &run).await;
    app.settle().await;
    for agent in [&second, &third] {
        assert_eq!(
            children(&app, &team, agent).await[0]["status"],
            "interrupted"
        );
    }
    // Stopping a child gives its caller an error.
    let run = app
        .run(&team, json!({"agent_id": second, "message": "x"}))
        .await;
    app.settle().await;
    let below = children(&app, &team, &third).await[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    app.stop_run(&team, &below).await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert!(said(&app, &team, &run).await.contains("child_stopped"));
    let findings = app
        .store()
        .audit(errand_store::AuditScope::All, app.now())
        .await
        .unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    app.finish().await;
}

#[tokio::test]
async fn assignments_start_named_ones_up_to_three_deep() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let other = app.team("other").await;
    let says = json!({"playbook": {"steps": [{"finish": "hello"}]}});
    let theirs = named(&app, &other, "Theirs", says.clone()).await;
    let own = named(&app, &team, "Round", says.clone()).await;
    named(&app, &team, "Unlisted", says).await;
    // It starts itself.
    let build =
        json!({"name": "x", "config": {"version": "v2", "data": starts_named("Round", &[&own])}});
    let path = format!("/v1/agents/{own}/revisions");
    app.post(&team.key, &path, build).await.expect(201);
    let run = app
        .run(&team, json!({"agent_id": own, "message": "x"}))
        .await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_eq!(children(&app, &team, &own).await.len(), 4);
    assert!(said(&app, &team, &run).await.contains("3 deep at most"));
    let absent = |mut data: Value| {
        data.as_object_mut().unwrap().remove("assignments");
        data
    };
    for data in [
        starts_named("Theirs", &[&own]),
        starts_named("nobody", &[&own]),
        starts_named("Unlisted", &[&own]),
        // If none is listed, none is permitted, in either form.
        starts_named("Unlisted", &[]),
        absent(starts("Unlisted")),
        absent(starts(&theirs)),
    ] {
        let agent = named(&app, &team, "Asks", data).await;
        let run = app
            .run(&team, json!({"agent_id": agent, "message": "x"}))
            .await;
        app.settle().await;
        let text = said(&app, &team, &run).await;
        assert!(text.contains("may start no assignment"), "{text}");
    }
    // Another team's assignment, and one that does not exist, are refused with the build.
    for id in [theirs.as_str(), "01997e5e-7c00-7000-8000-000000000001"] {
        let config = json!({"version": "v2", "data": starts(id)});
        let body = json!({"name": "x", "build": {"name": "x", "config": config}});
        let (_, message) = app.post(&team.key, "/v1/agents", body).await.error(400);
        assert!(
            message.contains("build.config.data.assignments[0]") && !message.contains("Theirs"),
            "{message}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn reads_of_a_child_taint_its_caller() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let reads = json!([
        {"tool": "write_file", "with": {"path": "mail.txt", "content": "pay me"}},
        {"tool": "read_file", "with": {"path": "mail.txt"}, "as": "mail"},
        {"finish": "{{ mail }}"}]);
    let reads_id = named(&app, &team, "Reads", json!({"playbook": {"steps": reads}})).await;
    let says_id = named(
        &app,
        &team,
        "Says",
        json!({"playbook": {"steps": [{"finish": "hello"}]}}),
    )
    .await;
    for (other, status, begun) in [(&says_id, "completed", 1), (&reads_id, "waiting", 1)] {
        let mut data = starts(other);
        data["playbook"]["steps"][1] = json!({"tool": "run_command", "with": {"eur": 1}});
        let agent = named(&app, &team, "Pays", data).await;
        let run = app
            .run(&team, json!({"agent_id": agent, "message": "x"}))
            .await;
        app.settle().await;
        let got = app.get_run(&team, &run).await;
        assert_eq!(
            (&got["run"]["status"], app.payment.begun()),
            (&json!(status), begun),
            "{got}"
        );
        if status == "waiting" {
            let source = &got["pending_human_request"]["reason"]["sources"][0];
            let below = &children(&app, &team, &reads_id).await[0]["id"];
            assert_eq!(
                (&source["tool"], &source["item"]),
                (&json!("run_assignment"), below),
                "{got}"
            );
        }
    }
    app.finish().await;
}

async fn result_of_the_call(app: &TestApp, team: &Team, run: &str) -> String {
    let messages = app.messages(team, run).await;
    let mut results = messages.iter().filter_map(|m| m.get("tool_result"));
    results.next_back().unwrap().to_string()
}

#[tokio::test]
async fn a_stop_does_not_claim_that_a_child_never_ran() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let pays = json!({"tools": {"run_command": "allow"}, "playbook": {"steps": [
        {"tool": "run_command", "with": {"eur": 1}}, {"approve": {"title": "Go on?"}}]}});
    let child = named(&app, &team, "Pays", pays).await;
    let parent = named(&app, &team, "First", starts(&child)).await;
    let run = app
        .run(&team, json!({"agent_id": parent, "message": "x"}))
        .await;
    app.settle().await;
    let below = children(&app, &team, &child).await[0]["id"].clone();
    app.stop_run(&team, &run).await;
    app.settle().await;
    let told = result_of_the_call(&app, &team, &run).await;
    assert!(
        told.contains("outcome_unknown") && told.contains(below.as_str().unwrap()),
        "{told}"
    );
    assert_eq!(app.payment.begun(), 1);
    app.finish().await;
}

#[tokio::test]
async fn the_call_is_one_step_and_its_child_is_counted() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let says = json!({"playbook": {"steps": [{"finish": "hello"}]}});
    let child = named(&app, &team, "Says", says).await;
    let mut data = starts(&child);
    // Just enough for the turn and the call, whose result is still used.
    data["limits"] = json!({"steps": 2});
    data["human_in_the_loop"] = json!(false);
    let parent = named(&app, &team, "First", data).await;
    let run = app
        .run(&team, json!({"agent_id": parent, "message": "x"}))
        .await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    let told = result_of_the_call(&app, &team, &run).await;
    assert!(told.contains("hello"), "{told}");
    assert_eq!(got["run"]["usage"]["tool_calls"], 1, "{got}");
    let sums = app.get(&team.key, "/v1/runs/summary").await.expect(200);
    let mut agents = sums["agents"].as_array().unwrap().iter();
    let of = agents.find(|of| of["agent_id"] == *child).unwrap();
    assert_eq!(
        (&of["started"], &of["completed"]),
        (&json!(1), &json!(1)),
        "{of}"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_run_without_people_starts_no_run_that_asks() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let asks = json!({"playbook": {"steps": [{"approve": {"title": "Go on?"}}]}});
    let asking = named(&app, &team, "Asks", asks).await;
    let pays = json!({"tools": {"run_command": "ask"}, "playbook": {"steps": [
        {"tool": "run_command", "with": {"eur": 1}, "as": "paid", "on_error": "continue"}, {"finish": "{{ paid }}"}]}});
    let paying = named(&app, &team, "Pays", pays).await;
    for (other, word) in [(&asking, "not_run"), (&paying, "denied")] {
        let mut data = starts(other);
        data["human_in_the_loop"] = json!(false);
        let parent = named(&app, &team, "First", data).await;
        let run = app
            .run(&team, json!({"agent_id": parent, "message": "x"}))
            .await;
        app.settle().await;
        let got = app.get_run(&team, &run).await;
        assert_eq!(got["run"]["status"], "completed", "{got}");
        let text = said(&app, &team, &run).await;
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(children(&app, &team, &asking).await.len(), 0);
    let child = &children(&app, &team, &paying).await[0];
    assert_eq!(child["human_in_the_loop_enabled"], false, "{child}");
    assert_eq!(app.payment.begun(), 0);
    app.finish().await;
}

#[tokio::test]
async fn a_caller_with_a_result_does_not_stop_its_child() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let asks = json!({"playbook": {"steps": [{"say": "hello"}, {"finish": "done"}]}});
    let child = named(&app, &team, "Says", asks).await;
    let mut data = starts(&child);
    data["playbook"]["steps"][1] = json!({"wait": "1h"});
    let parent = named(&app, &team, "First", data).await;
    let run = app
        .run(&team, json!({"agent_id": parent, "message": "x"}))
        .await;
    app.settle().await;
    let below = children(&app, &team, &child).await[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    // A person resumes it, and the clock does not advance: it is queued when its caller ends.
    let path = format!("/v1/runs/{below}/messages");
    let reply = app
        .post(&team.key, &path, json!({"message": "More."}))
        .await;
    reply.expect(201);
    app.stop_run(&team, &run).await;
    app.settle().await;
    assert_eq!(app.status(&team, &below).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_waiting_call_returns_when_a_child_asks() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let asks = json!({"playbook": {"steps": [
        {"wait": "30s"}, {"approve": {"title": "Go on?"}}, {"finish": "done"}]}});
    let asking = named(&app, &team, "Asks", asks).await;
    let parent = named(&app, &team, "First", starts(&asking)).await;
    let run = app
        .run(&team, json!({"agent_id": parent, "message": "x"}))
        .await;
    app.settle().await;
    let path = format!("/v1/runs/{run}?wait_s=60");
    let (got, ()) = tokio::join!(app.get(&team.key, &path), async {
        app.advance(std::time::Duration::from_secs(30)).await;
        app.settle().await;
    });
    let got = got.expect(200);
    let id = got["pending_human_request"]["id"].as_str().unwrap();
    let path = format!("/v1/runs/{run}/human-requests/{id}/respond");
    app.post(&team.key, &path, json!({"approved": true}))
        .await
        .expect(200);
    app.settle().await;
    // The run below has ended, and so has this one.
    let (_, message) = app
        .post(&team.key, &path, json!({"approved": false}))
        .await
        .error(400);
    let who = "it was approved with the API key \"test\" of owner@acme.example at ";
    assert!(message.contains(who), "{message}");
    app.finish().await;
}

#[tokio::test]
async fn an_assignment_without_a_usable_model_is_not_started() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let model = |name: &str| json!({"models": {"agent": {"model": name}}});
    let mut costly = model("mine/m");
    costly["limits"] = json!({"cost_usd": 1.0});
    let own = json!({"kind": "openai_compatible", "base_url": "https://models.example.com/v1"});
    let put = app.json(http::Method::PUT, &team.key, "/v1/providers/mine", own, &[]);
    put.await.expect(200);
    for (name, data, word) in [
        ("No key", model("openai/gpt-test"), "OPENAI_API_KEY"),
        (
            "No provider",
            model("nowhere/m"),
            "[models.providers.nowhere]",
        ),
        ("No price", costly, "[models.prices"),
    ] {
        let child = named(&app, &team, name, data).await;
        let parent = named(&app, &team, "First", starts(&child)).await;
        let body = json!({"agent_id": parent, "message": "this"});
        let run = app.run(&team, body).await;
        app.settle().await;
        assert_eq!(app.status(&team, &run).await, "completed");
        let text = said(&app, &team, &run).await;
        assert!(text.contains("not_run: ") && text.contains(word), "{text}");
        assert!(children(&app, &team, &child).await.is_empty(), "{name}");
    }
    app.finish().await;
}
