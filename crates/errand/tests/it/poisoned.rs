//! A run that keeps crashing the server is driven alone, then parked, and no other run is lost with it.

use std::time::Duration;

use crate::process::within;
use crate::signals::{asking_models_at, asks_a_model, silent};
use errand_testkit::{Held, Team, TestApp};
use serde_json::{Value, json};

/// Starts runs that ask nothing and complete.
async fn others(app: &TestApp, team: &Team, count: usize) -> Vec<String> {
    let steps = json!([{"say": "a"}, {"wait": "1s"}, {"say": "b"}, {"finish": "x"}]);
    let agent = app.playbook(team, steps).await;
    let mut runs = Vec::new();
    for _ in 0..count {
        runs.push(app.run(team, json!({"agent_id": agent})).await);
    }
    runs
}

#[tokio::test]
async fn beside_a_run_that_ends_the_server_all_others_complete() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    // The test ends the server while the run waits for its model.
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    let others = others(&app, &team, 63).await;
    // The start counts as the first loss.
    for death in 1..=4 {
        if death > 1 {
            gate.arrival().await;
        }
        app.crash().await;
    }
    app.advance(Duration::from_secs(2)).await;
    app.settle().await;
    let parked = app.get_run(&team, &run).await;
    assert_eq!(parked["run"]["status"], "failed", "{parked}");
    assert_eq!(parked["run"]["error"]["code"], "poisoned", "{parked}");
    for other in &others {
        assert_eq!(app.status(&team, other).await, "completed");
    }

    let retry = format!("/v1/runs/{run}/retry");
    let (_, message) = app.post(&team.key, &retry, json!({})).await.error(400);
    assert!(message.contains("operator"), "{message}");
    let many = app
        .post(&team.key, "/v1/runs/retry", json!({"all": true}))
        .await
        .expect(200);
    assert_eq!(many["changed"], 0, "{many}");
    assert_eq!(app.store().poisoned_runs().await.unwrap().1, 1);

    gate.open_for_good();
    let id = run.parse().unwrap();
    app.store().retry_by_operator(id, app.now()).await.unwrap();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_eq!(app.store().poisoned_runs().await.unwrap().1, 0);
    app.finish().await;
}

#[tokio::test]
async fn a_suspect_run_is_driven_alone_until_its_first_step() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).started().await;
    for _ in 0..2 {
        gate.arrival().await;
        app.crash().await;
    }
    gate.arrival().await;
    let other = others(&app, &team, 1).await.remove(0);
    // It waits for the suspect run, but at most half a minute.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(app.status(&team, &other).await, "pending");
    let done = async {
        while app.status(&team, &other).await != "completed" {
            app.clock().advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done)
        .await
        .unwrap();
    gate.open_for_good();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn an_orderly_stop_and_a_committed_step_end_the_count() {
    let mut app = TestApp::with_settings(&[("ERRAND_SERVER__SHUTDOWN_GRACE_S", "0")]).await;
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).started().await;
    for _ in 0..5 {
        gate.arrival().await;
        app.crash().await;
        gate.arrival().await;
        app.stop_and_start().await;
    }
    gate.open_for_good();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn thirty_deaths_under_load_park_no_run() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"for_each": "{{ range(60) }}", "steps": [
        {"tool": "write_file", "with": {"path": "f", "content": "n {{ index }}"}}]}, {"finish": "x"}]);
    let agent = app.playbook(&team, steps).await;
    let mut runs: Vec<String> = Vec::new();
    for _ in 0..30 {
        for _ in 0..4 {
            runs.push(app.run(&team, json!({"agent_id": agent})).await);
        }
        app.crash().await;
    }
    app.settle().await;
    let mut failed: Vec<Value> = Vec::new();
    for run in &runs {
        let run = app.get_run(&team, run).await;
        if run["run"]["status"] != "completed" {
            failed.push(run);
        }
    }
    assert_eq!(failed, Vec::<Value>::new());
    app.finish().await;
}

#[tokio::test]
async fn beside_a_run_that_kills_the_program_all_others_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (url, mut asked) = silent().await;
    let mut server = asking_models_at(&url, dir.path(), &[]).await;
    let run = asks_a_model(&server).await;
    let mut held = within("a model that is asked", asked.recv()).await.unwrap();
    let steps = json!([{"say": "a"}, {"wait": "1s"}, {"say": "b"}, {"finish": "x"}]);
    let agent = server.agent(steps).await;
    let mut others = Vec::new();
    for _ in 0..63 {
        others.push(server.run(json!({"agent_id": agent})).await);
    }
    // The program dies whenever the run is at its model.
    let mut deaths = 0;
    let parked = loop {
        server.child.kill().await.unwrap();
        deaths += 1;
        assert!(deaths <= 4, "{}", server.log());
        drop(held);
        server = asking_models_at(&url, dir.path(), &[]).await;
        let has_ended = |run: &Value| !run["completed_at"].is_null();
        tokio::select! {
            again = asked.recv() => held = again.unwrap(),
            ended = server.until_run(&run, has_ended) => break ended,
        }
    };
    assert_eq!(deaths, 4);
    assert_eq!(parked["status"], "failed", "{parked:#}");
    assert_eq!(parked["error"]["code"], "poisoned", "{parked:#}");
    for other in &others {
        let ended = server
            .until_run(other, |run| !run["completed_at"].is_null())
            .await;
        assert_eq!(ended["status"], "completed", "{ended:#}");
    }
    assert_eq!(server.stop().await, Some(0));
}
