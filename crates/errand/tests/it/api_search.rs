//! Searching for runs by title, ID and time, and for open requests.

use std::time::Duration;

use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};

async fn titles(app: &TestApp, team: &Team, query: &str) -> Vec<String> {
    let page = app
        .get(&team.key, &format!("/v1/runs?limit=100&{query}"))
        .await
        .expect(200);
    let runs = page["runs"].as_array().unwrap();
    assert_eq!(page["total"], runs.len(), "{query}");
    let title = |run: &Value| run["title"].as_str().unwrap_or("-").to_owned();
    runs.iter().map(title).collect()
}

async fn start(app: &TestApp, team: &Team, agent: &str, message: Option<&str>) -> String {
    let mut body = json!({"agent_id": agent});
    if let Some(message) = message {
        body["message"] = json!(message);
    }
    let run = app.run(team, body).await;
    app.settle().await;
    app.clock().advance(Duration::from_secs(60));
    run
}

#[tokio::test]
async fn runs_are_found_by_a_part_of_their_title_or_id() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let ends = app.playbook(&team, json!([{"finish": "x"}])).await;
    let fails = app.playbook(&team, json!([{"fail": "x"}])).await;
    let theirs = app.playbook(&other, json!([{"finish": "x"}])).await;
    let mut ids = Vec::new();
    for message in [
        "Pay invoice 17\nin EUR",
        "Pay 100% of it",
        "snake_case!",
        "snakes",
    ] {
        ids.push(start(&app, &team, &ends, Some(message)).await);
    }
    ids.push(start(&app, &team, &fails, Some("pay late")).await);
    ids.push(start(&app, &team, &ends, None).await);
    start(&app, &other, &theirs, Some("Pay them")).await;

    assert_eq!(
        titles(&app, &team, "q=PAY").await,
        ["pay late", "Pay 100% of it", "Pay invoice 17"]
    );
    assert_eq!(
        titles(&app, &team, "q=pay&sort_order=asc&status=completed").await,
        ["Pay invoice 17", "Pay 100% of it"]
    );
    assert_eq!(
        titles(&app, &team, &format!("q=pay&agent_id={fails}")).await,
        ["pay late"]
    );
    assert_eq!(
        titles(&app, &team, "q=pay&status=failed&status=completed").await,
        ["pay late", "Pay 100% of it", "Pay invoice 17"]
    );
    // Characters with a meaning in SQL are matched literally.
    assert_eq!(titles(&app, &team, "q=100%25").await, ["Pay 100% of it"]);
    assert_eq!(titles(&app, &team, "q=snake_").await, ["snake_case!"]);
    assert_eq!(titles(&app, &team, "q=case!").await, ["snake_case!"]);
    assert_eq!(titles(&app, &team, "q=%25").await, ["Pay 100% of it"]);
    assert_eq!(
        titles(&app, &team, "q=in+EUR").await,
        [""; 0],
        "the title is the first line"
    );
    assert_eq!(titles(&app, &team, "q=nothing").await, [""; 0]);
    for (id, title) in [(&ids[0], "Pay invoice 17"), (&ids[5], "-")] {
        let end = &id[id.len() - 8..];
        for part in [id.as_str(), end, &end.to_uppercase(), &id[20..]] {
            assert_eq!(
                titles(&app, &team, &format!("q={part}")).await,
                [title],
                "{part}"
            );
        }
    }
    let page = app
        .get(&team.key, "/v1/runs?q=pay&limit=1&offset=1")
        .await
        .expect(200);
    assert_eq!(page["total"], 3);
    assert_eq!(page["runs"][0]["title"], "Pay 100% of it");
    for bad in ["q=", "q=+", &format!("q={}", "x".repeat(201)), "q=a&q=b"] {
        let (_, message) = app
            .get(&team.key, &format!("/v1/runs?{bad}"))
            .await
            .error(400);
        assert!(message.starts_with("q: "), "{bad}: {message}");
    }
    app.finish().await;
}

#[tokio::test]
async fn runs_are_found_between_two_moments() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "x"}])).await;
    let mut moments = Vec::new();
    for name in ["one", "two", "three"] {
        moments.push(app.now().to_string());
        start(&app, &team, &agent, Some(name)).await;
    }
    assert_eq!(
        titles(&app, &team, &format!("until={}", moments[2])).await,
        ["two", "one"]
    );
    assert_eq!(
        titles(
            &app,
            &team,
            &format!("since={}&until={}", moments[1], moments[2])
        )
        .await,
        ["two"]
    );
    assert_eq!(
        titles(
            &app,
            &team,
            &format!("q=o&since={}&until={}", moments[1], moments[2])
        )
        .await,
        ["two"]
    );
    assert_eq!(
        titles(
            &app,
            &team,
            &format!("status=completed&until={}", moments[1])
        )
        .await,
        ["one"]
    );
    app.get(&team.key, "/v1/runs?until=tomorrow")
        .await
        .error(400);
    app.finish().await;
}

#[tokio::test]
async fn open_requests_are_listed_until_they_are_answered() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let steps = json!([{"approve": {"title": "Pay?"}}, {"finish": "x"}]);
    let agent = app.playbook(&team, steps.clone()).await;
    let theirs = app.playbook(&other, steps).await;
    let first = start(&app, &team, &agent, Some("one")).await;
    let second = start(&app, &team, &agent, None).await;
    start(&app, &other, &theirs, Some("theirs")).await;
    let listed = app.get(&team.key, "/v1/human-requests").await.expect(200);
    let of = async |run: &str, title: Value| {
        let request = app.get_run(&team, run).await["pending_human_request"].clone();
        json!({"run_id": run, "run_title": title, "agent_id": agent, "agent_name": "test", "human_request": request})
    };
    let (one, two) = (
        of(&first, json!("one")).await,
        of(&second, Value::Null).await,
    );
    assert_eq!(
        listed,
        json!({"human_requests": [one, two], "total": 2, "limit": 20, "offset": 0})
    );
    let page = app
        .get(&team.key, "/v1/human-requests?limit=1&offset=1")
        .await
        .expect(200);
    assert_eq!(
        (&page["human_requests"], &page["total"]),
        (&json!([two]), &json!(2))
    );
    app.answer(&team, &first, json!({"approved": true})).await;
    app.stop_run(&team, &second).await;
    let listed = app.get(&team.key, "/v1/human-requests").await.expect(200);
    assert_eq!(
        (&listed["human_requests"], &listed["total"]),
        (&json!([]), &json!(0))
    );
    app.finish().await;
}
