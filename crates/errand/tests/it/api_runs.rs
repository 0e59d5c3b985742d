//! Runs over HTTP: start, get, list, stop, retry, with valid and invalid input. Refused requests change nothing.

use std::time::Duration;

use errand_core::time::Timestamp;
use errand_testkit::{Gate, Held, Team, TestApp, TestOptions, WebhookSink};
use serde_json::{Value, json};

/// An ID that does not exist.
pub(crate) const NOBODY: &str = "01999999-0000-7000-8000-000000000000";

/// Everything that a team sees of a run, to compare before and after a refused request.
pub(crate) async fn seen(app: &TestApp, team: &Team, run: &str) -> Value {
    json!([app.get_run(team, run).await, app.messages(team, run).await])
}

/// Number of runs of a team.
pub(crate) async fn count_runs(app: &TestApp, team: &Team) -> u64 {
    let list = app.get(&team.key, "/v1/runs").await.expect(200);
    list["total"].as_u64().unwrap()
}

/// An agent that ends immediately with the text of the newest message.
pub(crate) async fn echo(app: &TestApp, team: &Team) -> String {
    let steps = json!([{"finish": "heard {{ message }}"}]);
    app.playbook(team, steps).await
}

/// A run that waits for an approval, and the ID of the request.
pub(crate) async fn waiting(app: &TestApp, team: &Team) -> (String, String) {
    let steps = json!([{"approve": {"title": "Pay?", "description": "Now"}, "as": "ok"}, {"finish": "{{ ok.approved }}"}]);
    let agent = app.playbook(team, steps).await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(team, &run).await;
    let request = got["pending_human_request"]["id"].as_str().unwrap();
    (run, request.to_owned())
}

pub(crate) fn one_place() -> TestOptions {
    let settings = vec![("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "1".to_owned())];
    TestOptions {
        settings,
        ..TestOptions::default()
    }
}

/// A run in each of the seven states, in an app with one slot. The starting run holds the slot until the gate opens.
pub(crate) async fn in_every_state(
    app: &TestApp,
    team: &Team,
) -> (Vec<(&'static str, String)>, Gate) {
    let start = async |steps: Value| {
        let agent = app.playbook(team, steps).await;
        let run = app.run(team, json!({"agent_id": agent})).await;
        app.settle().await;
        run
    };
    let completed = start(json!([{"finish": "done"}])).await;
    let failed = start(json!([{"fail": "on purpose"}])).await;
    let waiting = start(json!([{"approve": {"title": "Pay?"}}])).await;
    let running = start(json!([{"say": "first"}, {"wait": "1h"}])).await;
    let interrupted = start(json!([{"say": "first"}, {"wait": "1h"}])).await;
    let stop = format!("/v1/runs/{interrupted}/stop");
    app.post(&team.key, &stop, json!({})).await.expect(200);

    let held = app.thinking_run(team).held().await;
    let Held {
        run: starting,
        gate,
        body,
        ..
    } = held;
    let pending = app.run(team, body).await;

    let runs = vec![
        ("completed", completed),
        ("failed", failed),
        ("waiting", waiting),
        ("running", running),
        ("interrupted", interrupted),
        ("starting", starting),
        ("pending", pending),
    ];
    for (status, run) in &runs {
        assert_eq!(app.status(team, run).await, *status);
    }
    (runs, gate)
}

/// Lets all held runs end.
pub(crate) async fn release(app: TestApp, gate: &Gate) {
    for _ in 0..8 {
        gate.open();
    }
    app.settle().await;
    app.finish().await;
}

pub(crate) fn assert_time(value: &Value) {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no time"));
    let parsed: Timestamp = text.parse().unwrap();
    assert_eq!(parsed.to_string(), text, "UTC with milliseconds");
    assert_eq!(text.len(), "2026-11-23T09:30:00.123Z".len(), "{text}");
}

#[tokio::test]
async fn a_start_answers_at_once_with_the_documented_run() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    let body = json!({"agent_id": agent, "message": "One line\nand another"});
    let reply = app.post(&team.key, "/v1/runs", body).await;
    let started = reply.expect(201);
    assert_eq!(started.as_object().unwrap().len(), 1, "{started}");
    let run = &started["run"];
    assert_eq!(run["agent_id"], agent);
    assert_eq!(run["status"], "pending");
    assert_eq!(run["source"], "api");
    assert_eq!(run["human_in_the_loop_enabled"], true);
    assert_eq!(run["title"], "One line");
    for name in ["sandbox_id", "started_at", "completed_at", "error"] {
        assert_eq!(
            run.get(name),
            Some(&Value::Null),
            "{name} is there, and null"
        );
    }
    assert_time(&run["created_at"]);
    assert_time(&run["updated_at"]);
    assert_eq!(
        run["id"].as_str().unwrap().as_bytes()[14],
        b'7',
        "a UUID of version 7"
    );

    app.settle().await;
    let id = run["id"].as_str().unwrap();
    let got = app.get_run(&team, id).await;
    assert_eq!(
        got.as_object().unwrap().len(),
        2,
        "run and pending_human_request: {got}"
    );
    assert_eq!(got["pending_human_request"], Value::Null);
    assert_eq!(got["run"]["build_id"], run["build_id"]);
    assert_time(&got["run"]["started_at"]);
    assert_time(&got["run"]["completed_at"]);
    app.finish().await;
}

#[tokio::test]
async fn runs_show_that_their_build_asks_no_one() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let config = json!({"version": "v2", "data": {"human_in_the_loop": false, "playbook": {"steps": [{"finish": "x"}]}}});
    let agent = app.agent(&team, config).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["human_in_the_loop_enabled"], false);
    app.finish().await;
}

#[tokio::test]
async fn a_start_takes_every_documented_field() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (all, human) = (WebhookSink::start().await, WebhookSink::start().await);
    let created = app
        .post(&team.key, "/v1/sandboxes", json!({}))
        .await
        .expect(201);
    let steps = json!([{"approve": {"title": "Pay?"}}, {"finish": "{{ message }}"}]);
    let agent = app.playbook(&team, steps).await;
    let body = json!({
        "agent_id": agent, "sandbox_id": created["sandbox_id"], "webhook_url": all.url(),
        "human_request_webhook_url": human.url(), "message": "hello"
    });
    let run = app.run(&team, body).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["sandbox_id"], created["sandbox_id"]);
    app.answer(&team, &run, json!({"approved": true})).await;
    app.settle().await;
    let messages = app.messages(&team, &run).await;
    assert_eq!(messages[0]["text_content"], "hello");
    assert_eq!(messages.last().unwrap()["text_content"], "hello");
    all.until(2).await;
    assert_eq!(all.events(), ["human_request", "run_completed"]);
    assert_eq!(human.events(), ["human_request"], "this one gets no other");
    app.finish().await;
}

#[tokio::test]
async fn a_run_takes_the_latest_build_at_the_time_it_starts() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app
        .playbook(&team, json!([{"wait": "1h"}, {"finish": "first"}]))
        .await;
    let old = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "second"}]}}});
    let path = format!("/v1/agents/{agent}/revisions");
    let build = app
        .post(
            &team.key,
            &path,
            json!({"name": "second", "config": config}),
        )
        .await
        .expect(201);
    let new = app.run(&team, json!({"agent_id": agent})).await;
    app.advance(Duration::from_secs(3600)).await;
    assert_eq!(
        app.get_run(&team, &new).await["run"]["build_id"],
        build["build"]["id"]
    );
    for (run, text) in [(old, "first"), (new, "second")] {
        let messages = app.messages(&team, &run).await;
        assert_eq!(messages.last().unwrap()["text_content"], text);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_start_with_an_invalid_parameter_names_it() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    let bare = app
        .post(&team.key, "/v1/agents", json!({"name": "bare"}))
        .await
        .expect(201);
    let bare = bare["agent"]["id"].clone();
    let cases = [
        ("agent_id", json!({})),
        ("agent_id", json!({"message": "hello"})),
        ("agent_id", json!({"agent_id": null})),
        ("agent_id", json!({"agent_id": 7})),
        ("agent_id", json!({"agent_id": "the-agent"})),
        ("build", json!({"agent_id": bare})),
        (
            "sandbox_id",
            json!({"agent_id": agent, "sandbox_id": "unknown"}),
        ),
        ("sandbox_id", json!({"agent_id": agent, "sandbox_id": 7})),
        (
            "webhook_url",
            json!({"agent_id": agent, "webhook_url": "ftp://example.com/x"}),
        ),
        (
            "webhook_url",
            json!({"agent_id": agent, "webhook_url": "file:///etc/passwd"}),
        ),
        (
            "webhook_url",
            json!({"agent_id": agent, "webhook_url": "example.com/hook"}),
        ),
        ("webhook_url", json!({"agent_id": agent, "webhook_url": ""})),
        ("webhook_url", json!({"agent_id": agent, "webhook_url": 7})),
        (
            "human_request_webhook_url",
            json!({"agent_id": agent, "human_request_webhook_url": "ftp://example.com/x"}),
        ),
        ("message", json!({"agent_id": agent, "message": 7})),
        ("message", json!({"agent_id": agent, "message": ["hello"]})),
    ];
    for (name, body) in cases {
        let (code, message) = app
            .post(&team.key, "/v1/runs", body.clone())
            .await
            .error(400);
        assert_eq!(code, "bad_request", "{body}");
        assert!(
            message.contains(name),
            "{body} is refused with {message:?}, without {name}"
        );
    }
    assert_eq!(count_runs(&app, &team).await, 0);
    app.finish().await;
}

#[tokio::test]
async fn unknown_deleted_and_foreign_agents_get_the_same_404() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let theirs = echo(&app, &other).await;
    let deleted = echo(&app, &team).await;
    app.delete(&team.key, &format!("/v1/agents/{deleted}"))
        .await
        .expect(204);
    let mut answers = Vec::new();
    for agent in [NOBODY, &theirs, &deleted] {
        let (code, message) = app
            .post(&team.key, "/v1/runs", json!({"agent_id": agent}))
            .await
            .error(404);
        assert_eq!(code, "not_found");
        answers.push(message);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
    assert_eq!(
        count_runs(&app, &team).await + count_runs(&app, &other).await,
        0
    );
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_that_has_expired_or_is_anothers_is_400() {
    let settings = vec![("ERRAND_SANDBOX__TTL", "1h".to_owned())];
    let app = TestApp::start_with(TestOptions {
        settings,
        ..TestOptions::default()
    })
    .await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let agent = echo(&app, &team).await;
    let theirs = app
        .post(&other.key, "/v1/sandboxes", json!({}))
        .await
        .expect(201)["sandbox_id"]
        .clone();
    let mine = app
        .post(&team.key, "/v1/sandboxes", json!({}))
        .await
        .expect(201)["sandbox_id"]
        .clone();
    let start = async |sandbox: &Value| {
        let body = json!({"agent_id": agent, "sandbox_id": sandbox});
        app.post(&team.key, "/v1/runs", body).await
    };
    let unknown = start(&json!("unknown")).await.error(400);
    assert_eq!(
        start(&theirs).await.error(400),
        unknown,
        "another team's looks like none"
    );
    app.advance(Duration::from_secs(3600)).await;
    let (_, message) = start(&mine).await.error(400);
    assert!(message.contains("sandbox_id"), "{message}");
    assert_eq!(count_runs(&app, &team).await, 0);
    app.finish().await;
}

#[tokio::test]
async fn a_private_webhook_address_is_400_unless_allowed() {
    let settings = vec![(
        "ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS",
        "false".to_owned(),
    )];
    let app = TestApp::start_with(TestOptions {
        settings,
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    // No event is created, so nothing is sent.
    let agent = app.playbook(&team, json!([{"wait": "3d"}])).await;
    let hosts = [
        "127.0.0.1",
        "127.0.0.1:8080",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[fd00::1]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "2130706433",
        "0x7f.1",
        "user@10.0.0.1",
    ];
    for name in ["webhook_url", "human_request_webhook_url"] {
        for host in hosts {
            let body = json!({"agent_id": agent, name: format!("http://{host}/hook")});
            let (code, message) = app.post(&team.key, "/v1/runs", body).await.error(400);
            assert_eq!(code, "bad_request", "{host}");
            assert!(message.contains(name), "{host}: {message}");
        }
    }
    assert_eq!(count_runs(&app, &team).await, 0);
    for host in ["hooks.example.com", "93.184.215.14"] {
        let body = json!({"agent_id": agent, "webhook_url": format!("https://{host}/hook")});
        app.run(&team, body).await;
    }
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_in_use_refuses_a_start_and_lets_a_message_wait() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app
        .post(&team.key, "/v1/sandboxes", json!({}))
        .await
        .expect(201)["sandbox_id"]
        .clone();
    let plain = echo(&app, &team).await;
    let asking = app
        .playbook(&team, json!([{"approve": {"title": "Pay?"}}]))
        .await;
    let first = app
        .run(&team, json!({"agent_id": plain, "sandbox_id": sandbox}))
        .await;
    app.settle().await;
    let second = app
        .run(&team, json!({"agent_id": asking, "sandbox_id": sandbox}))
        .await;
    app.settle().await;

    let body = json!({"agent_id": plain, "sandbox_id": sandbox});
    let (code, message) = app
        .post(&team.key, "/v1/runs", body.clone())
        .await
        .error(409);
    assert_eq!(code, "conflict");
    assert!(message.contains(&second), "says which run: {message}");
    assert_eq!(count_runs(&app, &team).await, 2);

    app.message(&team, &first, "again").await;
    app.settle().await;
    let got = app.get_run(&team, &first).await;
    assert_eq!(got["run"]["status"], "pending");
    assert_eq!(got["run"]["waiting_on"]["kind"], "sandbox");

    app.stop_run(&team, &second).await;
    app.settle().await;
    assert_eq!(app.status(&team, &first).await, "completed");
    let messages = app.messages(&team, &first).await;
    assert_eq!(messages.last().unwrap()["text_content"], "heard again");
    app.post(&team.key, "/v1/runs", body).await.expect(201);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn unknown_and_foreign_runs_get_the_same_404() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let (run, request) = waiting(&app, &team).await;
    let before = seen(&app, &team, &run).await;
    let paths = async |id: &str| {
        let mut answers = Vec::new();
        for rest in ["", "/messages", "/events"] {
            answers.push(
                app.get(&other.key, &format!("/v1/runs/{id}{rest}"))
                    .await
                    .error(404),
            );
        }
        let respond = format!("/human-requests/{request}/respond");
        let posts = [
            ("/messages", json!({"message": "hello"})),
            ("/stop", json!({})),
            ("/retry", json!({})),
            (respond.as_str(), json!({"approved": true})),
        ];
        for (rest, body) in posts {
            answers.push(
                app.post(&other.key, &format!("/v1/runs/{id}{rest}"), body)
                    .await
                    .error(404),
            );
        }
        answers
    };
    assert_eq!(paths(&run).await, paths(NOBODY).await);
    app.settle().await;
    assert_eq!(seen(&app, &team, &run).await, before);
    assert_eq!(count_runs(&app, &other).await, 0);
    app.finish().await;
}

#[tokio::test]
async fn the_list_is_paged_sorted_and_the_teams_own() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let agent = echo(&app, &team).await;
    let mut runs = Vec::new();
    for _ in 0..21 {
        runs.push(app.run(&team, json!({"agent_id": agent})).await);
        app.advance(Duration::from_secs(1)).await;
    }
    runs.reverse();
    let list = async |query: &str| {
        let reply = app
            .get(&team.key, &format!("/v1/runs{query}"))
            .await
            .expect(200);
        let ids: Vec<String> = reply["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, reply)
    };
    let (ids, reply) = list("").await;
    assert_eq!(ids, runs[..20], "twenty, newest first");
    assert_eq!(
        [&reply["total"], &reply["limit"], &reply["offset"]],
        [&json!(21), &json!(20), &json!(0)]
    );
    let mut as_listed = app.get_run(&team, &runs[0]).await["run"].clone();
    as_listed["agent_name"] = json!("test");
    as_listed["run_number"] = json!(21);
    as_listed["user_id"] = as_listed["author"]["created_by"].clone();
    assert!(as_listed["user_id"].is_string());
    assert_eq!(
        reply["runs"][0], as_listed,
        "as GET gives it, and what rows add"
    );
    let (ids, reply) = list("?limit=100&sort_order=asc").await;
    assert!(ids.iter().eq(runs.iter().rev()));
    assert_eq!(reply["limit"], 100);
    assert_eq!(
        list("?limit=5&offset=18&sort_order=desc").await.0,
        runs[18..]
    );
    assert_eq!(list("?limit=1&offset=21").await.0, Vec::<String>::new());
    assert_eq!(count_runs(&app, &other).await, 0);
    app.finish().await;
}

#[tokio::test]
async fn the_list_has_every_documented_filter() {
    let app = TestApp::start_with(one_place()).await;
    let team = app.team("acme").await;
    let (runs, gate) = in_every_state(&app, &team).await;
    let list = async |query: &str| {
        let reply = app
            .get(&team.key, &format!("/v1/runs?{query}"))
            .await
            .expect(200);
        let mut ids: Vec<String> = reply["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(reply["total"], ids.len());
        ids.sort();
        ids
    };
    for (status, run) in &runs {
        assert_eq!(
            list(&format!("status={status}")).await,
            std::slice::from_ref(run)
        );
    }
    let mut two = vec![runs[1].1.clone(), runs[2].1.clone()];
    two.sort();
    assert_eq!(list("status=failed&status=waiting").await, two);
    let agent = app.get_run(&team, &runs[1].1).await["run"]["agent_id"].clone();
    assert_eq!(
        list(&format!("agent_id={}", agent.as_str().unwrap())).await,
        [runs[1].1.clone()]
    );
    assert!(list(&format!("agent_id={NOBODY}")).await.is_empty());
    assert_eq!(list("source=api").await.len(), 7);
    assert!(list("source=web").await.is_empty());
    assert!(
        list(&format!(
            "status=completed&agent_id={}",
            agent.as_str().unwrap()
        ))
        .await
        .is_empty(),
        "all of them hold"
    );

    app.clock().advance(Duration::from_millis(1));
    let now = app.now();
    let late = app.run(&team, json!({"agent_id": agent})).await;
    assert_eq!(
        list(&format!("since={now}")).await,
        [late],
        "from this moment on"
    );
    assert!(list(&format!("since={}", now.plus_ms(1))).await.is_empty());
    assert_eq!(
        list("since=2026-11-23T10:30:00%2B01:00").await.len(),
        8,
        "another zone is the same moment"
    );
    release(app, &gate).await;
}

#[tokio::test]
async fn a_list_with_an_invalid_parameter_names_it() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    let runs = [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.5",
        "offset=-1",
        "offset=x",
        "status=done",
        "status=",
        "agent_id=x",
        "since=yesterday",
        "since=2026-11-23",
        "sort_order=up",
        "sort_order=",
    ];
    let messages = ["limit=0", "limit=51", "limit=x", "offset=-1", "offset=x"];
    let runs = runs.map(|query| ("/v1/runs".to_owned(), query));
    let messages = messages.map(|query| (format!("/v1/runs/{run}/messages"), query));
    for (path, query) in runs.into_iter().chain(messages) {
        let (code, message) = app
            .get(&team.key, &format!("{path}?{query}"))
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        let name = query.split('=').next().unwrap();
        assert!(
            message.contains(name),
            "{query} is refused with {message:?}"
        );
    }
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_stop_interrupts_active_runs_only() {
    let app = TestApp::start_with(one_place()).await;
    let team = app.team("acme").await;
    let (runs, gate) = in_every_state(&app, &team).await;
    for (status, run) in &runs {
        let before = seen(&app, &team, run).await;
        app.clock().advance(Duration::from_secs(1));
        let stopped = app
            .post(&team.key, &format!("/v1/runs/{run}/stop"), json!({}))
            .await
            .expect(200);
        assert_eq!(stopped["success"], true);
        if matches!(*status, "completed" | "failed" | "interrupted") {
            assert_eq!(
                seen(&app, &team, run).await,
                before,
                "a run that was {status}"
            );
            continue;
        }
        let got = app.get_run(&team, run).await;
        assert_eq!(
            got["run"]["status"], "interrupted",
            "a run that was {status}"
        );
        assert_eq!(got["run"]["completed_at"], app.now().to_string());
        assert_eq!(got["run"]["waiting_on"], Value::Null);
        assert_eq!(got["pending_human_request"], Value::Null);
        let after = seen(&app, &team, run).await;
        app.stop_run(&team, run).await;
        assert_eq!(
            seen(&app, &team, run).await,
            after,
            "a second stop changes nothing"
        );
    }
    let waiting = app.messages(&team, &runs[2].1).await;
    assert_eq!(
        waiting.last().unwrap()["human_response"]["response"],
        Value::Null
    );
    for _ in 0..8 {
        gate.open();
    }
    app.settle().await;
    for (status, run) in &runs[2..] {
        assert_eq!(
            app.status(&team, run).await,
            "interrupted",
            "it stays so: {status}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_retry_is_for_failed_runs_alone() {
    let app = TestApp::start_with(one_place()).await;
    let team = app.team("acme").await;
    let (runs, gate) = in_every_state(&app, &team).await;
    for (status, run) in &runs {
        let before = seen(&app, &team, run).await;
        let reply = app
            .post(&team.key, &format!("/v1/runs/{run}/retry"), json!({}))
            .await;
        if *status == "failed" {
            let retried = reply.expect(200)["run"].clone();
            assert_eq!(retried["status"], "pending");
            assert_eq!(
                [&retried["error"], &retried["completed_at"]],
                [&Value::Null; 2]
            );
            assert_eq!(retried, app.get_run(&team, run).await["run"]);
        } else {
            let (code, message) = reply.error(400);
            assert_eq!(code, "bad_request");
            assert!(message.contains(status), "says what the run is: {message}");
            assert_eq!(seen(&app, &team, run).await, before);
        }
    }
    release(app, &gate).await;
}
