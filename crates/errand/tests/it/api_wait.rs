//! `GET /v1/runs/{run_id}?wait_s=`: a response that waits for the run to end or to ask.

use std::sync::Arc;
use std::time::Duration;

use errand_core::turn::Move;
use errand_testkit::{Held, Reply, TestApp};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Requests a run and waits, in a separate task. The request watches the run when this returns.
async fn asking(
    app: &Arc<TestApp>,
    key: &str,
    run: &str,
    wait_s: u32,
) -> JoinHandle<(Reply, Value)> {
    let (asker, key) = (Arc::clone(app), key.to_owned());
    let path = format!("/v1/runs/{run}?wait_s={wait_s}");
    let task = tokio::spawn(async move {
        let reply = asker.get(&key, &path).await;
        let body = reply.json();
        (reply, body)
    });
    watched(app, 1).await;
    task
}

/// Waits until this many runs are watched.
async fn watched(app: &TestApp, runs: usize) {
    let reached = async {
        while app.store().bell().watched() != runs {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached)
        .await
        .unwrap_or_else(|_| panic!("{} runs are watched", app.store().bell().watched()));
}

async fn finish(app: Arc<TestApp>) {
    watched(&app, 0).await;
    let app = Arc::into_inner(app).expect("nobody asks any more");
    app.finish().await;
}

#[tokio::test]
async fn a_run_that_has_ended_or_asks_is_answered_at_once() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"approve": {"title": "Pay?"}}, {"finish": "done"}]);
    let agent = app.playbook(&team, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    // The clock does not advance, so a response that waited for it would never arrive.
    let path = format!("/v1/runs/{run}?wait_s=60");
    let got = app.get(&team.key, &path).await.expect(200);
    assert_eq!(got["run"]["status"], "waiting");
    assert_eq!(got["pending_human_request"]["title"], "Pay?");
    app.stop_run(&team, &run).await;
    let got = app.get(&team.key, &path).await.expect(200);
    assert_eq!(got["run"]["status"], "interrupted");
    assert_eq!(got, app.get_run(&team, &run).await);
    app.finish().await;
}

#[tokio::test]
async fn the_answer_comes_when_the_run_ends() {
    let app = Arc::new(TestApp::start().await);
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    let asked = asking(&app, &team.key, &run, 60).await;
    let second = asking(&app, &team.key, &run, 60).await;
    gate.open();
    for asked in [asked, second] {
        let (reply, body) = asked.await.unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(body["run"]["status"], "completed");
        assert_eq!(reply.header("x-ratelimit-limit"), Some("100000"));
    }
    finish(app).await;
}

#[tokio::test]
async fn a_waiting_call_returns_when_the_run_asks() {
    let app = Arc::new(TestApp::start().await);
    let team = app.team("acme").await;
    let say = || {
        vec![Move::Say {
            text: "still at it".to_owned(),
        }]
    };
    let ask = vec![Move::Call {
        id: None,
        name: "request_approval".to_owned(),
        arguments: json!({"title": "Pay?"}).as_object().unwrap().clone(),
    }];
    let turns = vec![say(), say(), ask];
    let Held { run, gate, .. } = app.thinking_run(&team).turns(turns).held().await;
    let asked = asking(&app, &team.key, &run, 60).await;
    for _ in 0..2 {
        gate.open();
        gate.arrival().await;
        assert!(!asked.is_finished(), "a step is no rest");
    }
    gate.open();
    let (_, body) = asked.await.unwrap();
    assert_eq!(body["run"]["status"], "waiting", "{body:#}");
    assert_eq!(body["pending_human_request"]["title"], "Pay?");
    finish(app).await;
}

#[tokio::test]
async fn a_waiting_call_times_out_with_the_current_run() {
    let app = Arc::new(TestApp::start().await);
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    let asked = asking(&app, &team.key, &run, 30).await;
    app.clock().advance(Duration::from_secs(29));
    tokio::task::yield_now().await;
    assert!(!asked.is_finished());
    app.clock().advance(Duration::from_secs(1));
    let (reply, body) = asked.await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(body["run"]["status"], "starting");
    // Without the parameter, and with 0, the response does not wait.
    for query in ["", "?wait_s=0"] {
        let got = app
            .get(&team.key, &format!("/v1/runs/{run}{query}"))
            .await
            .expect(200);
        assert_eq!(got, body);
    }
    gate.open();
    app.settle().await;
    finish(app).await;
}

#[tokio::test]
async fn wait_refuses_bad_values_and_other_teams_runs() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    for bad in ["61", "-1", "1.5", "x", "", "1&wait_s=1"] {
        let (code, message) = app
            .get(&team.key, &format!("/v1/runs/{run}?wait_s={bad}"))
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        assert!(message.starts_with("wait_s: "), "{bad}: {message}");
    }
    let (_, message) = app
        .get(&team.key, &format!("/v1/runs/{run}?wait=1"))
        .await
        .error(400);
    assert!(message.contains("did you mean \"wait_s\"?"), "{message}");
    let theirs = app
        .get(&other.key, &format!("/v1/runs/{run}?wait_s=60"))
        .await;
    assert_eq!(theirs.error(404).0, "not_found");
    assert_eq!(app.store().bell().watched(), 0);
    gate.open();
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    let address = app.url().trim_start_matches("http://").to_owned();
    let mut client = TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "GET /v1/runs/{run}?wait_s=60 HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\r\n",
        team.key
    );
    client.write_all(request.as_bytes()).await.unwrap();
    watched(&app, 1).await;
    drop(client);
    watched(&app, 0).await;
    gate.open();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_server_that_stops_answers_at_once() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    let router = app.app().router();
    let request = http::Request::get(format!("/v1/runs/{run}?wait_s=60"))
        .header("authorization", format!("Bearer {}", team.key))
        .extension(axum::extract::ConnectInfo(std::net::SocketAddr::from((
            [127, 0, 0, 1],
            40_000,
        ))))
        .body(axum::body::Body::empty())
        .unwrap();
    let asked = tokio::spawn(tower::ServiceExt::oneshot(router, request));
    watched(&app, 1).await;
    // The run cannot end before the server, so only the shutdown can cause the response.
    let stopped = tokio::spawn(app.finish());
    let reply = asked.await.unwrap().unwrap();
    assert_eq!(reply.status(), 200);
    gate.open();
    stopped.await.unwrap();
}
