//! Authors: actions with an API key name the key, even after it was deleted.

use errand_core::role::Role;
use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};

/// An agent that asks, and the ID of the request of its waiting run.
async fn asking(app: &TestApp, team: &Team) -> (String, String) {
    let steps = json!([{"approve": {"title": "Pay?"}}, {"finish": "done"}]);
    let agent = app.playbook(team, steps).await;
    let run = app
        .run(team, json!({"agent_id": agent, "message": "hello"}))
        .await;
    app.settle().await;
    let view = app.get_run(team, &run).await;
    let request = view["pending_human_request"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    (run, request)
}

fn is_key(author: &Value, team: &Team) {
    assert_eq!(
        (&author["kind"], &author["name"]),
        (&json!("api_key"), &json!("test")),
        "{author}"
    );
    assert_eq!(author["created_by"], team.owner.to_string());
    assert!(author["id"].is_string());
}

#[tokio::test]
async fn actions_with_a_key_name_the_key() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, request) = asking(&app, &team).await;
    let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
    let answered = app
        .post(&team.key, &path, json!({"approved": true}))
        .await
        .expect(200);
    is_key(&answered["human_request"]["author"], &team);
    assert_eq!(
        answered["human_request"]["responded_by"],
        team.owner.to_string()
    );
    // The refusal of a second answer says who answered first.
    let (_, message) = app
        .post(&team.key, &path, json!({"approved": true}))
        .await
        .error(400);
    assert!(message.contains("the API key \"test\""), "{message}");
    app.settle().await;
    let messages = app.messages(&team, &run).await;
    is_key(&messages[0]["author"], &team);
    let response = messages
        .iter()
        .find(|m| m["type"] == "human_response")
        .unwrap();
    is_key(&response["author"], &team);
    assert!(
        messages
            .iter()
            .all(|m| m["role"] == "user" || m.get("author").is_none())
    );
    is_key(&app.get_run(&team, &run).await["run"]["author"], &team);

    // A deleted key is still named.
    let (_, other) = app.person(&team, "ann@example.com", Role::Owner).await;
    let keys = app.get(&other, "/v1/api-keys").await.expect(200);
    let key = keys["api_keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["created_by"] == team.owner.to_string())
        .unwrap();
    let path = format!("/v1/api-keys/{}", key["id"].as_str().unwrap());
    app.delete(&other, &path).await.expect(204);
    let seen = Team { key: other, ..team };
    is_key(&app.get_run(&seen, &run).await["run"]["author"], &seen);
    let listed = app.get(&seen.key, "/v1/runs").await.expect(200);
    assert_eq!(listed["data"][0]["user_id"], seen.owner.to_string());
    app.finish().await;
}

#[tokio::test]
async fn events_and_deliveries_have_the_author() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = asking(&app, &team).await;
    app.stop_run(&team, &run).await;
    app.settle().await;
    let stream = app.get(&team.key, &format!("/v1/runs/{run}/events")).await;
    let text = String::from_utf8(stream.bytes.to_vec()).unwrap();
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let mut seen = 0;
    for event in &events {
        let own = ["run", "message", "human_request"]
            .iter()
            .find_map(|name| event.get(name))
            .unwrap_or(event);
        if own
            .get("author")
            .is_some_and(|author| author["kind"] == "api_key")
        {
            is_key(&own["author"], &team);
            seen += 1;
        }
    }
    assert!(seen >= 3, "{text}");
    app.finish().await;
}
