//! The summary of runs in the API.

use std::time::Duration;

use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};

async fn run(app: &TestApp, team: &Team, agent: &str) -> String {
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    run
}

/// Two days: three runs of one agent on the first, one of another agent on the second.
async fn two_days(app: &TestApp, team: &Team) -> (String, String) {
    let one = app.playbook(team, json!([{"finish": "x"}])).await;
    let two = app.playbook(team, json!([{"fail": "x"}])).await;
    for _ in 0..3 {
        run(app, team, &one).await;
    }
    app.advance(Duration::from_secs(86_400)).await;
    run(app, team, &two).await;
    (one, two)
}

#[tokio::test]
async fn a_summary_says_how_runs_went() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (one, two) = two_days(&app, &team).await;
    let asks = app
        .playbook(
            &team,
            json!([{"approve": {"title": "Go on?"}}, {"finish": "x"}]),
        )
        .await;
    let waiting = run(&app, &team, &asks).await;
    let today = app.now().day();
    let summary = app.get(&team.key, "/v1/runs/summary").await.expect(200);
    let days = summary["days"].as_array().unwrap();
    assert_eq!(days.len(), 30);
    let day = |day: String, started: u64, completed: u64, failed: u64| json!({"day": day, "started": started, "completed": completed, "failed": failed, "interrupted": 0});
    assert_eq!(days[28], day(today.plus(-1).to_string(), 3, 3, 0));
    assert_eq!(days[29], day(today.to_string(), 2, 0, 1));
    assert_eq!(days[0], day(today.plus(-29).to_string(), 0, 0, 0));
    assert_eq!(
        summary["now"],
        json!({"pending": 0, "starting": 0, "running": 0, "waiting": 1})
    );
    let agents = summary["agents"].as_array().unwrap();
    let ids: Vec<_> = agents
        .iter()
        .map(|a| a["agent_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [asks.as_str(), &two, &one]);
    let rates: Vec<_> = agents.iter().map(|a| a["success_rate"].clone()).collect();
    assert_eq!(rates, [Value::Null, json!(0.0), json!(1.0)]);
    let last = app.get_run(&team, &waiting).await["run"].clone();
    assert_eq!(agents[0]["last_run"], last);
    assert_eq!(agents[2]["started"], 3);
    let path = format!("/v1/runs/summary?since={today}");
    for (query, word) in [
        ("since=x", "since"),
        ("until=2026-13-01", "until"),
        ("since=2026-11-02&until=2026-11-02", "until"),
        ("since=2000-01-01&until=2026-01-01", "since"),
        ("from=2026-11-02", "from"),
    ] {
        let path = format!("/v1/runs/summary?{query}");
        let (_, message) = app.get(&team.key, &path).await.error(400);
        assert!(message.contains(word), "{query}: {message}");
    }
    let short = app.get(&team.key, &path).await.expect(200);
    assert_eq!(short["days"].as_array().unwrap().len(), 1);
    app.finish().await;
}
