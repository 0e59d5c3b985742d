//! API keys in the API: shown once; they end by expiry, by deletion, and with their creator.

use std::time::Duration;

use errand_core::role::Role;
use errand_testkit::{Team, TestApp};
use http::Method;
use serde_json::{Value, json};

async fn make(app: &TestApp, key: &str, body: Value) -> Value {
    app.post(key, "/v1/api-keys", body).await.expect(201)
}

async fn status_with(app: &TestApp, key: &str) -> u16 {
    app.get(key, "/v1/agents").await.status
}

async fn listed(app: &TestApp, team: &Team) -> Vec<Value> {
    let body = app
        .get(&team.key, "/v1/api-keys?limit=100")
        .await
        .expect(200);
    assert_eq!(
        body["total"].as_u64().unwrap() as usize,
        body["api_keys"].as_array().unwrap().len()
    );
    body["api_keys"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_key_is_shown_once() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = make(&app, &team.key, json!({"name": "ci"})).await;
    let key = made["key"].as_str().unwrap();
    assert_eq!(key.len(), 35);
    assert!(
        key.starts_with("dv_") && key[3..].bytes().all(|b| b.is_ascii_alphanumeric()),
        "the form of a key"
    );
    let prefix = made["prefix"].as_str().unwrap();
    assert!(
        key.starts_with(prefix) && prefix.len() > 3 && prefix.len() <= 12,
        "{prefix}"
    );
    let mut expected = made.clone();
    expected.as_object_mut().unwrap().remove("key");
    let fields: Vec<_> = expected
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let mut sorted = fields.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [
            "created_at",
            "created_by",
            "expires_at",
            "id",
            "last_used_at",
            "name",
            "prefix"
        ]
    );
    assert_eq!(expected["name"], "ci");
    assert_eq!(expected["created_by"], team.owner.to_string());
    assert_eq!(expected["created_at"], app.now().to_string());
    assert_eq!(
        (&expected["expires_at"], &expected["last_used_at"]),
        (&Value::Null, &Value::Null)
    );

    let body = app.get(&team.key, "/v1/api-keys").await.expect(200);
    assert_eq!(
        (&body["total"], &body["limit"], &body["offset"]),
        (&json!(2), &json!(20), &json!(0))
    );
    let one = body["api_keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|k| k["id"] == made["id"])
        .unwrap()
        .clone();
    assert_eq!(one, expected, "the list has all but the key itself");
    assert!(!body.to_string().contains(key));

    assert_eq!(status_with(&app, key).await, 200);
    let used = listed(&app, &team)
        .await
        .into_iter()
        .find(|k| k["id"] == made["id"])
        .unwrap();
    assert_eq!(used["last_used_at"], app.now().to_string());
    app.finish().await;
}

#[tokio::test]
async fn invalid_input_creates_no_key() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let cases = [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "x".repeat(201)}), "name"),
        (json!({"name": 1}), "name"),
        (json!({"name": "x", "expires_at": "tomorrow"}), "expires_at"),
        (json!({"name": "x", "expires_at": 5}), "expires_at"),
        (
            json!({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}),
            "expires_at",
        ),
        (
            json!({"name": "x", "expire_at": "2030-01-01T00:00:00Z"}),
            "expires_at",
        ),
        (json!({"name": "x", "role": "owner"}), "role"),
    ];
    for (body, named) in cases {
        let (code, message) = app
            .post(&team.key, "/v1/api-keys", body.clone())
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains(named), "{body}: {message}");
    }
    assert_eq!(listed(&app, &team).await.len(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_key_ends_when_it_says_and_none_outlives_its_maker() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let end = app.now().plus_ms(3_600_000);
    let made = make(
        &app,
        &team.key,
        json!({"name": "hour", "expires_at": end.to_string()}),
    )
    .await;
    assert_eq!(made["expires_at"], end.to_string());
    let key = made["key"].as_str().unwrap();
    let later = app.now().plus_ms(7_200_000).to_string();
    for body in [
        json!({"name": "child"}),
        json!({"name": "child", "expires_at": later}),
    ] {
        let reply = app.post(key, "/v1/api-keys", body).await;
        // Either the call is refused, or the key ends with its creator.
        match reply.status {
            201 => assert_eq!(reply.json()["expires_at"], end.to_string()),
            _ => assert_eq!(reply.error(400).0, "bad_request"),
        }
    }
    let sooner = app.now().plus_ms(60_000).to_string();
    let child = make(&app, key, json!({"name": "child", "expires_at": sooner})).await;
    assert_eq!(child["expires_at"], sooner);
    app.advance(Duration::from_secs(3599)).await;
    assert_eq!(status_with(&app, key).await, 200);
    assert_eq!(status_with(&app, child["key"].as_str().unwrap()).await, 401);
    app.advance(Duration::from_secs(1)).await;
    let ended = app.get(key, "/v1/agents").await;
    let never = app
        .get("dv_00000000000000000000000000000000", "/v1/agents")
        .await;
    assert_eq!(
        ended.error(401),
        never.error(401),
        "a refusal never says why"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_deleted_key_ends_at_once() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let made = make(&app, &team.key, json!({"name": "ci"})).await;
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let path = format!("/v1/api-keys/{id}");
    assert_eq!(
        app.delete(&other.key, &path).await.error(404).0,
        "not_found"
    );
    assert_eq!(status_with(&app, key).await, 200);

    // An open stream ends with its key.
    let agent = app
        .playbook(&team, json!([{"approve": {"title": "Go on?"}}]))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut stream = http
        .get(format!("{}/v1/runs/{run}/events", app.url()))
        .bearer_auth(key)
        .send()
        .await
        .unwrap();
    assert_eq!(stream.status(), 200);
    assert!(stream.chunk().await.unwrap().is_some());

    let deleted = app.delete(&team.key, &path).await;
    assert_eq!((deleted.status, deleted.bytes.len()), (204, 0));
    assert_eq!(status_with(&app, key).await, 401);
    let ends = async { while stream.chunk().await.is_ok_and(|chunk| chunk.is_some()) {} };
    tokio::time::timeout(Duration::from_secs(60), ends)
        .await
        .expect("the stream of a deleted key ends");

    assert_eq!(app.delete(&team.key, &path).await.error(404).0, "not_found");
    assert_eq!(
        app.delete(
            &team.key,
            "/v1/api-keys/0198f2a4-7c1e-7000-8000-000000000001"
        )
        .await
        .error(404)
        .0,
        "not_found"
    );
    assert_eq!(listed(&app, &team).await.len(), 1);
    app.finish().await;
}

#[tokio::test]
async fn only_admins_and_owners_configure_keys() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (user, member) = app.person(&team, "member@acme.example", Role::Member).await;
    let (_, admin) = app.person(&team, "admin@acme.example", Role::Admin).await;
    let made = make(&app, &admin, json!({"name": "by the admin"})).await;
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    let before = listed(&app, &team).await.len();
    let replies = [
        app.get(&member, "/v1/api-keys").await,
        app.post(&member, "/v1/api-keys", json!({"name": "mine"}))
            .await,
        app.post(&member, "/v1/api-keys", json!({"nonsense": 1}))
            .await,
        app.delete(&member, &path).await,
        app.get(&member, "/v1/webhook-secret").await,
    ];
    for reply in replies {
        assert_eq!(reply.error(403).0, "forbidden");
    }
    assert_eq!(listed(&app, &team).await.len(), before);
    assert_eq!(
        status_with(&app, &member).await,
        200,
        "the rest is open to members"
    );

    // The key has the creator's current role.
    app.store()
        .set_role(team.id, user, Role::Admin, Role::Owner)
        .await
        .unwrap();
    let key = make(&app, &member, json!({"name": "as admin"})).await["key"]
        .as_str()
        .unwrap()
        .to_owned();
    app.store()
        .set_role(team.id, user, Role::Member, Role::Owner)
        .await
        .unwrap();
    assert_eq!(
        app.get(&key, "/v1/api-keys").await.error(403).0,
        "forbidden"
    );
    app.store()
        .remove_member(team.id, user, Role::Owner)
        .await
        .unwrap();
    assert_eq!(status_with(&app, &key).await, 401);
    assert_eq!(status_with(&app, &member).await, 401);
    assert_eq!(status_with(&app, &admin).await, 200);
    app.finish().await;
}

#[tokio::test]
async fn a_disabled_person_has_no_keys() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (user, key) = app.person(&team, "admin@acme.example", Role::Admin).await;
    assert_eq!(status_with(&app, &key).await, 200);
    app.store().disable_user(user, app.now()).await.unwrap();
    assert_eq!(
        app.get(&key, "/v1/agents").await.error(401).0,
        "unauthorized"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_replay_does_not_show_the_key_again() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let headers = [("idempotency-key", "make-key")];
    let first = app
        .json(
            Method::POST,
            &team.key,
            "/v1/api-keys",
            json!({"name": "ci"}),
            &headers,
        )
        .await
        .expect(201);
    let again = app
        .json(
            Method::POST,
            &team.key,
            "/v1/api-keys",
            json!({"name": "ci"}),
            &headers,
        )
        .await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let again = again.expect(201);
    assert_eq!(
        (&again["key"], &again["shown_once"]),
        (&Value::Null, &json!(true))
    );
    assert_eq!(again["id"], first["id"]);
    assert_eq!(listed(&app, &team).await.len(), 2);
    app.finish().await;
}
