//! Usage of runs in the API, as JSON and as CSV.

use std::time::Duration;

use errand_core::role::Role;
use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};

async fn run(app: &TestApp, team: &Team, agent: &str) -> String {
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    run
}

async fn usage(app: &TestApp, key: &str, query: &str) -> Value {
    app.get(key, &format!("/v1/usage?{query}"))
        .await
        .expect(200)
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
async fn usage_is_summed_by_day_agent_model_and_key() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let (one, two) = two_days(&app, &team).await;
    let today = app.now().day();
    let by_day = usage(&app, &team.key, "").await;
    assert_eq!(by_day["since"], today.plus(-29).to_string());
    assert_eq!(by_day["until"], today.plus(1).to_string());
    let sums = |runs: u64| json!({"runs": runs, "model_calls": 0, "input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "model_seconds": 0.0});
    let line = |mut of: Value, runs: u64| {
        let sums = sums(runs);
        of.as_object_mut()
            .unwrap()
            .extend(sums.as_object().unwrap().clone());
        of
    };
    let (first, second) = (today.plus(-1).to_string(), today.to_string());
    assert_eq!(
        by_day["usage"],
        json!([
            line(json!({"day": first}), 3),
            line(json!({"day": second}), 1)
        ])
    );
    assert_eq!(by_day["sum"], sums(4));
    let by_agent = usage(&app, &team.key, "group_by=agent").await;
    let agent = |id: &str, runs| line(json!({"agent_id": id, "agent_name": "test"}), runs);
    assert_eq!(by_agent["usage"], json!([agent(&one, 3), agent(&two, 1)]));
    let by_model = usage(&app, &team.key, "group_by=model").await;
    assert_eq!(
        by_model["usage"],
        json!([line(json!({"model": "builtin/playbook"}), 4)])
    );
    let key = app.get(&team.key, "/v1/api-keys").await.expect(200)["api_keys"][0].clone();
    let by_key = usage(
        &app,
        &team.key,
        &format!("group_by=key&group_by=day&since={second}"),
    )
    .await;
    let of_key = json!({"day": second, "api_key_id": key["id"], "api_key_name": key["name"]});
    assert_eq!(by_key["usage"], json!([line(of_key, 1)]));
    let of_first = usage(&app, &team.key, &format!("since={first}&until={second}")).await;
    assert_eq!(of_first["sum"]["runs"], 3);
    let by_time = usage(
        &app,
        &team.key,
        &format!("since={first}T12:00:00Z&until={second}"),
    )
    .await;
    assert_eq!(by_time, of_first, "a time counts as its day");
    assert_eq!(usage(&app, &other.key, "").await["usage"], json!([]));
    app.finish().await;
}

#[tokio::test]
async fn usage_is_given_as_csv() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "x"}])).await;
    let name = json!({"name": "=cmd, \"x\""});
    app.patch(&team.key, &format!("/v1/agents/{agent}"), name)
        .await
        .expect(200);
    run(&app, &team, &agent).await;
    let day = app.now().day();
    let expected = format!(
        "day,agent_id,agent_name,runs,model_calls,input_tokens,cached_tokens,output_tokens,cost_usd,model_seconds\r\n\
         {day},{agent},\"'=cmd, \"\"x\"\"\",1,0,0,0,0,0,0\r\n"
    );
    let path = format!("/v1/usage?group_by=agent&group_by=day&since={day}");
    let asked = app.get(&team.key, &format!("{path}&format=csv")).await;
    let bearer = format!("Bearer {}", team.key);
    let headers = [("authorization", bearer.as_str()), ("accept", "text/csv")];
    let accepted = app
        .send(
            http::Method::GET,
            &path,
            &headers,
            axum::body::Body::empty(),
        )
        .await;
    for reply in [asked, accepted] {
        assert_eq!(reply.status, 200);
        assert_eq!(
            reply.header("content-type"),
            Some("text/csv; charset=utf-8")
        );
        let file = format!("attachment; filename=\"usage-{day}-{}.csv\"", day.plus(1));
        assert_eq!(reply.header("content-disposition"), Some(file.as_str()));
        assert_eq!(String::from_utf8(reply.bytes.to_vec()).unwrap(), expected);
    }
    let headers = [("authorization", bearer.as_str()), ("accept", "text/csv")];
    let json = app
        .send(
            http::Method::GET,
            &format!("{path}&format=json"),
            &headers,
            axum::body::Body::empty(),
        )
        .await;
    assert_eq!(json.expect(200)["sum"]["runs"], 1);
    app.finish().await;
}

#[tokio::test]
async fn what_does_not_fit_is_named() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    for (query, word) in [
        ("group_by=team", "group_by"),
        ("since=yesterday", "since"),
        ("until=2026-13-01", "until"),
        ("since=2026-11-02&until=2026-11-02", "until"),
        ("since=2000-01-01&until=2026-01-01", "since"),
        ("format=xml", "format"),
        ("groupby=day", "group_by"),
    ] {
        let (_, message) = app
            .get(&team.key, &format!("/v1/usage?{query}"))
            .await
            .error(400);
        assert!(message.contains(word), "{query}: {message}");
    }
    usage(&app, &member, "group_by=agent").await;
    app.get(&member, "/v1/usage?group_by=key").await.error(403);
    app.finish().await;
}
