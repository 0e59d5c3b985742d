//! The list of runs with the parameters of clients of the hosted product.

use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};

async fn list(app: &TestApp, team: &Team, query: &str) -> Value {
    app.get(&team.key, &format!("/v1/runs?{query}"))
        .await
        .expect(200)
}

async fn total(app: &TestApp, team: &Team, query: &str) -> u64 {
    list(app, team, query).await["total"].as_u64().unwrap()
}

#[tokio::test]
async fn rows_have_the_agents_name_a_number_and_a_user() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"finish": "done"}]);
    let (one, two) = (
        app.playbook(&team, steps.clone()).await,
        app.playbook(&team, steps).await,
    );
    app.patch(
        &team.key,
        &format!("/v1/agents/{two}"),
        json!({"name": "Second"}),
    )
    .await
    .expect(200);
    let mut runs = Vec::new();
    for agent in [&one, &two, &one, &one, &two] {
        runs.push(app.run(&team, json!({"agent_id": agent})).await);
        app.settle().await;
    }
    let all = list(&app, &team, "sort_by=created_at&sort_order=asc").await;
    assert_eq!(all["data"], all["runs"]);
    let numbers: Vec<u64> = all["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["run_number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 1, 2, 3, 2]);
    assert_eq!(all["data"][1]["agent_name"], "Second");
    assert_eq!(all["data"][0]["user_id"], team.owner.to_string());
    let page = list(&app, &team, "limit=2&offset=1").await;
    assert_eq!(
        (
            &page["data"][0]["run_number"],
            &page["data"][1]["run_number"]
        ),
        (&json!(3), &json!(2))
    );
    assert_eq!(page["data"][0]["id"], runs[3].as_str());
    app.finish().await;
}

#[tokio::test]
async fn parameters_of_the_hosted_product_match_what_they_can() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let done = app.playbook(&team, json!([{"finish": "done"}])).await;
    let asks = app
        .playbook(&team, json!([{"approve": {"title": "Pay?"}}]))
        .await;
    let fails = app.playbook(&team, json!([{"fail": "no"}])).await;
    for agent in [&done, &asks, &fails] {
        app.run(&team, json!({"agent_id": agent, "message": "Pay the rent"}))
            .await;
    }
    app.settle().await;
    let stopped = app.run(&team, json!({"agent_id": asks})).await;
    app.stop_run(&team, &stopped).await;
    app.settle().await;
    let nobody = "0198f2a4-7c1e-7000-8000-000000000001";
    let owner = format!("user_id={}", team.owner);
    let another = format!("user_id={nobody}");
    let queue = format!("case_queue_id={nobody}");
    for (query, count) in [
        ("status=stopped", 1),
        ("status=needs_attention", 1),
        ("status=not_started", 0),
        ("status=stopped&status=interrupted&status=completed", 2),
        ("search=the+rent", 3),
        ("q=the+rent", 3),
        ("q=the+rent&search=the+rent", 3),
        ("has_issues=true", 1),
        ("has_issues=false", 3),
        ("has_issues=true&status=completed", 0),
        ("issue_severity=high", 0),
        ("digest_id=1", 0),
        (queue.as_str(), 0),
        (owner.as_str(), 4),
        (another.as_str(), 0),
        ("source=api&sort_by=created_at", 4),
    ] {
        assert_eq!(total(&app, &team, query).await, count, "{query}");
    }
    assert_eq!(
        total(&app, &team, &format!("{owner}&q=rent&status=completed")).await,
        1
    );
    for (query, named) in [
        ("q=a&search=b", "search"),
        ("q=%00", "q"),
        ("search=x%00rent", "search"),
        ("sort_by=title", "sort_by"),
        ("user_id=me", "user_id"),
        ("case_queue_id=1", "case_queue_id"),
        ("has_issues=perhaps", "has_issues"),
        ("status=paused", "status"),
    ] {
        let (_, message) = app
            .get(&team.key, &format!("/v1/runs?{query}"))
            .await
            .error(400);
        assert!(message.starts_with(named), "{query}: {message}");
    }
    let other = app.team("other").await;
    assert_eq!(total(&app, &other, &owner).await, 0);
    app.finish().await;
}
