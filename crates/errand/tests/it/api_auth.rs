//! Authentication and permissions: keys and roles. The refusal of a key never says why.

use std::time::Duration;

use axum::body::Body;
use errand_core::id::UserId;
use errand_core::role::Role;
use errand_testkit::{Reply, Team, TestApp};
use http::Method;
use serde_json::{Value, json};

use crate::api_runs::{NOBODY, count_runs, echo, waiting};

pub(crate) const PER_ADDRESS: &str = "ERRAND_RATE_LIMIT__FAILED_AUTHENTICATIONS_PER_MINUTE";

/// Sends a `GET` with exactly these headers.
pub(crate) async fn get_with(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Reply {
    app.send(Method::GET, path, headers, Body::empty()).await
}

/// The observable content of a refusal: everything except the request ID.
fn told(reply: &Reply) -> (u16, Vec<(String, String)>, Value) {
    let headers = reply
        .headers
        .iter()
        .filter(|(name, _)| *name != "x-request-id");
    let mut headers: Vec<_> = headers
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    (reply.status, headers, reply.json())
}

/// Creates a key through the API and returns the response.
async fn new_key(app: &TestApp, with: &str, body: Value) -> Value {
    app.post(with, "/v1/api-keys", body).await.expect(201)
}

pub(crate) fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

#[tokio::test]
async fn every_refused_key_gets_one_and_the_same_401() {
    let app = TestApp::with_settings(&[(PER_ADDRESS, "1000")]).await;
    let team = app.team("acme").await;
    let (_, disabled) = app
        .person(&team, "disabled@acme.example", Role::Member)
        .await;
    let (_, removed) = app.person(&team, "removed@acme.example", Role::Admin).await;
    for user in ["disabled@acme.example", "removed@acme.example"] {
        let user = app.store().user_by_email(user).await.unwrap().unwrap();
        if user.email.as_deref() == Some("disabled@acme.example") {
            app.store().disable_user(user.id, app.now()).await.unwrap();
        } else {
            app.store()
                .remove_member(team.id, user.id, Role::Owner)
                .await
                .unwrap();
        }
    }
    let in_a_minute = app.now().plus_ms(60_000).to_string();
    let expired = text(
        &new_key(
            &app,
            &team.key,
            json!({"name": "short", "expires_at": in_a_minute}),
        )
        .await["key"],
    );
    let revoked = new_key(&app, &team.key, json!({"name": "revoked"})).await;
    app.delete(&team.key, &format!("/v1/api-keys/{}", text(&revoked["id"])))
        .await
        .expect(204);
    app.clock().advance(Duration::from_secs(60));

    let bearer = |key: &str| format!("Bearer {key}");
    let values = [
        bearer(&expired),
        bearer(&text(&revoked["key"])),
        bearer(&disabled),
        bearer(&removed),
        bearer(&format!("dv_{}", "A".repeat(32))),
        bearer("dv_short"),
        bearer(&format!("{}x", team.key)),
        bearer(&team.key[..34]),
        bearer(&team.key.replacen("dv_", "DV_", 1)),
        bearer(&format!("dv_{}", "é".repeat(16))),
        bearer(&format!("dv_{}", "-".repeat(32))),
        bearer(&team.key[3..]),
        bearer("' OR 1=1 --"),
        bearer(""),
        "Bearer".to_owned(),
        String::new(),
        team.key.clone(),
        format!("Basic {}", team.key),
        format!("Bearer{}", team.key),
        format!("{0} {0}", bearer(&team.key)),
    ];
    let absent = told(&get_with(&app, "/v1/runs", &[]).await);
    assert_eq!(absent.0, 401);
    assert_eq!(absent.2["error"], "unauthorized");
    for value in &values {
        let reply = get_with(&app, "/v1/runs", &[("authorization", value)]).await;
        assert_eq!(told(&reply), absent, "{value}");
    }
    let twice = [
        ("authorization", bearer(&team.key)),
        ("authorization", bearer(&team.key)),
    ];
    let twice: Vec<_> = twice
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    assert_eq!(told(&get_with(&app, "/v1/runs", &twice).await), absent);
    let query = format!("/v1/runs?api_key={0}&authorization={0}", team.key);
    assert_eq!(
        told(&get_with(&app, &query, &[]).await),
        absent,
        "a key in the address counts for nothing"
    );
    app.get(&team.key, "/v1/runs").await.expect(200);
    app.finish().await;
}

#[tokio::test]
async fn a_refused_key_changes_nothing() {
    let app = TestApp::with_settings(&[(PER_ADDRESS, "1000")]).await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    let (run, request) = waiting(&app, &team).await;
    let before = app.get_run(&team, &run).await;
    let posts = [
        ("/v1/runs".to_owned(), json!({"agent_id": agent})),
        ("/v1/agents".to_owned(), json!({"name": "x"})),
        ("/v1/api-keys".to_owned(), json!({"name": "x"})),
        (format!("/v1/runs/{run}/stop"), json!({})),
        (format!("/v1/runs/{run}/messages"), json!({"message": "x"})),
        (
            format!("/v1/runs/{run}/human-requests/{request}/respond"),
            json!({"approved": true}),
        ),
    ];
    for (path, body) in posts {
        let (code, _) = app.post("dv_wrong", &path, body).await.error(401);
        assert_eq!(code, "unauthorized");
    }
    app.delete("dv_wrong", &format!("/v1/agents/{agent}"))
        .await
        .error(401);
    app.settle().await;
    assert_eq!(app.get_run(&team, &run).await, before);
    assert_eq!(count_runs(&app, &team).await, 1);
    app.get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test]
async fn an_unknown_path_without_a_key_is_401_and_with_one_404() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for path in ["/v1/nonsense", "/v1/", "/v1/runs/x/y/z"] {
        let (code, _) = get_with(&app, path, &[]).await.error(401);
        assert_eq!(code, "unauthorized", "{path}");
        let (code, _) = app.get(&team.key, path).await.error(404);
        assert_eq!(code, "not_found", "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn public_endpoints_need_no_key() {
    let app = TestApp::with_settings(&[(PER_ADDRESS, "1")]).await;
    get_with(&app, "/v1/runs", &[]).await.error(401);
    for path in [
        "/v1/documentation",
        "/v1/documentation/json",
        "/healthz",
        "/readyz",
    ] {
        for headers in [&[][..], &[("authorization", "Bearer nonsense")]] {
            let reply = get_with(&app, path, headers).await;
            assert_eq!(reply.status, 200, "{path}");
            assert!(reply.header("x-ratelimit-limit").is_none(), "{path}");
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn a_new_key_has_the_documented_form_and_is_shown_once() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = new_key(&app, &team.key, json!({"name": "deploy"})).await;
    let key = text(&made["key"]);
    assert_eq!(key.len(), 35);
    let random = key.strip_prefix("dv_").unwrap();
    assert!(random.bytes().all(|b| b.is_ascii_alphanumeric()), "{key}");
    assert!(key.starts_with(&text(&made["prefix"])) && text(&made["prefix"]).len() < 16);
    assert_eq!(made["name"], "deploy");
    assert_eq!(made["created_by"], team.owner.to_string());
    assert_eq!(made["created_at"], app.now().to_string());
    assert_eq!(
        [&made["last_used_at"], &made["expires_at"]],
        [&Value::Null; 2]
    );

    let list = app.get(&team.key, "/v1/api-keys").await;
    assert!(
        !String::from_utf8_lossy(&list.bytes).contains(&key[12..]),
        "it is not shown again"
    );
    let list = list.expect(200);
    assert_eq!(
        [&list["total"], &list["limit"], &list["offset"]],
        [&json!(2), &json!(20), &json!(0)]
    );
    let mut same = made.as_object().unwrap().clone();
    same.remove("key");
    assert!(
        list["api_keys"]
            .as_array()
            .unwrap()
            .contains(&Value::Object(same)),
        "{list:#}"
    );
    app.get(&key, "/v1/runs").await.expect(200);

    let dir = app.dir().to_owned();
    app.settle().await;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes
                .windows(random.len())
                .any(|window| window == random.as_bytes());
            assert!(
                !found,
                "{} holds the key: it is stored as a hash",
                path.display()
            );
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn a_key_with_an_invalid_parameter_is_not_created() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let past = app.now().to_string();
    let cases = [
        ("name", json!({})),
        ("name", json!({"name": ""})),
        ("name", json!({"name": 7})),
        ("name", json!({"name": "x".repeat(201)})),
        ("expires_at", json!({"name": "x", "expires_at": past})),
        ("expires_at", json!({"name": "x", "expires_at": "tomorrow"})),
        (
            "expires_at",
            json!({"name": "x", "expires_at": 1_795_426_200}),
        ),
        ("expires", json!({"name": "x", "expires": past})),
    ];
    for (name, body) in cases {
        let (code, message) = app
            .post(&team.key, "/v1/api-keys", body.clone())
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains(name), "{body}: {message}");
    }
    assert_eq!(
        app.get(&team.key, "/v1/api-keys").await.expect(200)["total"],
        1
    );
    app.finish().await;
}

#[tokio::test]
async fn a_key_works_until_its_expiry() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"name": "short", "expires_at": app.now().plus_ms(60_000).to_string()});
    let key = text(&new_key(&app, &team.key, body).await["key"]);
    app.clock().advance(Duration::from_millis(59_999));
    app.get(&key, "/v1/runs").await.expect(200);
    app.clock().advance(Duration::from_millis(1));
    app.get(&key, "/v1/runs").await.error(401);
    app.finish().await;
}

#[tokio::test]
async fn a_key_made_with_a_key_ends_no_later_than_its_maker() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let at = |ms: u64| app.now().plus_ms(ms).to_string();
    let maker = new_key(
        &app,
        &team.key,
        json!({"name": "maker", "expires_at": at(60_000)}),
    )
    .await;
    assert_eq!(maker["expires_at"], at(60_000));
    let maker = text(&maker["key"]);
    for (asked, given) in [
        (json!({}), 60_000),
        (json!({"expires_at": at(90_000)}), 60_000),
        (json!({"expires_at": at(30_000)}), 30_000),
    ] {
        let mut body = asked.clone();
        body["name"] = json!("made");
        let made = new_key(&app, &maker, body).await;
        assert_eq!(made["expires_at"], at(given), "asked for {asked}");
    }
    app.finish().await;
}

#[tokio::test]
async fn deleting_a_key_revokes_it_at_once_and_is_the_teams_own() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let made = new_key(&app, &team.key, json!({"name": "x"})).await;
    let path = format!("/v1/api-keys/{}", text(&made["id"]));
    let unknown = app
        .delete(&team.key, &format!("/v1/api-keys/{NOBODY}"))
        .await
        .error(404);
    assert_eq!(
        app.delete(&other.key, &path).await.error(404),
        unknown,
        "another team's looks like none"
    );
    let key = text(&made["key"]);
    app.get(&key, "/v1/runs").await.expect(200);
    let deleted = app.delete(&team.key, &path).await;
    assert_eq!((deleted.status, deleted.bytes.len()), (204, 0));
    app.get(&key, "/v1/runs").await.error(401);
    assert_eq!(app.delete(&team.key, &path).await.error(404), unknown);

    let own = new_key(&app, &team.key, json!({"name": "own"})).await;
    let own_key = text(&own["key"]);
    app.delete(&own_key, &format!("/v1/api-keys/{}", text(&own["id"])))
        .await
        .expect(204);
    app.get(&own_key, "/v1/runs").await.error(401);
    app.finish().await;
}

/// Calls every route of the table with this key. Returns each route, whether it needs more than a member's permissions,
/// and the status.
#[expect(clippy::too_many_lines, reason = "one table, a call on each row")]
async fn calls(app: &TestApp, team: &Team, key: &str) -> Vec<(&'static str, bool, u16)> {
    let agent = echo(app, team).await;
    let (run, request) = waiting(app, team).await;
    let disposable = echo(app, team).await;
    let build = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200)["build"]["id"]
        .clone();
    let sandbox = app
        .post(&team.key, "/v1/sandboxes", json!({}))
        .await
        .expect(201)["sandbox_id"]
        .clone();
    let doomed = new_key(app, &team.key, json!({"name": "doomed"})).await;
    let (build, sandbox, doomed) = (text(&build), text(&sandbox), text(&doomed["id"]));
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}});
    let table = [
        (
            "list runs",
            false,
            Method::GET,
            "/v1/runs".to_owned(),
            json!({}),
        ),
        (
            "start a run",
            false,
            Method::POST,
            "/v1/runs".to_owned(),
            json!({"agent_id": agent}),
        ),
        (
            "get a run",
            false,
            Method::GET,
            format!("/v1/runs/{run}"),
            json!({}),
        ),
        (
            "list messages",
            false,
            Method::GET,
            format!("/v1/runs/{run}/messages"),
            json!({}),
        ),
        (
            "answer",
            false,
            Method::POST,
            format!("/v1/runs/{run}/human-requests/{request}/respond"),
            json!({"approved": true}),
        ),
        (
            "post a message",
            false,
            Method::POST,
            format!("/v1/runs/{run}/messages"),
            json!({"message": "x"}),
        ),
        (
            "stop",
            false,
            Method::POST,
            format!("/v1/runs/{run}/stop"),
            json!({}),
        ),
        (
            "make a sandbox",
            false,
            Method::POST,
            "/v1/sandboxes".to_owned(),
            json!({}),
        ),
        (
            "list files",
            false,
            Method::GET,
            format!("/v1/sandboxes/{sandbox}/files"),
            json!({}),
        ),
        (
            "get an upload URL",
            false,
            Method::POST,
            format!("/v1/sandboxes/{sandbox}/upload-urls"),
            json!({"path": "a"}),
        ),
        (
            "delete a sandbox",
            false,
            Method::DELETE,
            format!("/v1/sandboxes/{sandbox}"),
            json!({}),
        ),
        (
            "list agents",
            false,
            Method::GET,
            "/v1/agents".to_owned(),
            json!({}),
        ),
        (
            "make an agent",
            false,
            Method::POST,
            "/v1/agents".to_owned(),
            json!({"name": "x"}),
        ),
        (
            "get an agent",
            false,
            Method::GET,
            format!("/v1/agents/{agent}"),
            json!({}),
        ),
        (
            "rename an agent",
            false,
            Method::PATCH,
            format!("/v1/agents/{agent}"),
            json!({"name": "y"}),
        ),
        (
            "make a build",
            false,
            Method::POST,
            format!("/v1/agents/{agent}/revisions"),
            json!({"name": "x", "config": config}),
        ),
        (
            "change a build",
            false,
            Method::PATCH,
            format!("/v1/revisions/{build}"),
            json!({"name": "y"}),
        ),
        (
            "delete an agent",
            false,
            Method::DELETE,
            format!("/v1/agents/{disposable}"),
            json!({}),
        ),
        (
            "list keys",
            true,
            Method::GET,
            "/v1/api-keys".to_owned(),
            json!({}),
        ),
        (
            "make a key",
            true,
            Method::POST,
            "/v1/api-keys".to_owned(),
            json!({"name": "x"}),
        ),
        (
            "delete a key",
            true,
            Method::DELETE,
            format!("/v1/api-keys/{doomed}"),
            json!({}),
        ),
        (
            "see the webhook secret",
            true,
            Method::GET,
            "/v1/webhook-secret".to_owned(),
            json!({}),
        ),
    ];
    let mut done = Vec::new();
    for (name, needs_admin, method, path, body) in table {
        let reply = app.json(method, key, &path, body, &[]).await;
        if reply.status == 403 {
            assert_eq!(reply.error(403).0, "forbidden");
        }
        done.push((name, needs_admin, reply.status));
    }
    app.settle().await;
    done
}

#[tokio::test]
async fn each_role_may_do_what_the_table_says() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for role in [Role::Member, Role::Admin, Role::Owner] {
        let (_, key) = app
            .person(&team, &format!("an-{}@acme.example", role.as_str()), role)
            .await;
        for (name, needs_admin, status) in calls(&app, &team, &key).await {
            let allowed = role != Role::Member || !needs_admin;
            let fits = if allowed {
                matches!(status, 200..=204)
            } else {
                status == 403
            };
            assert!(fits, "{}: {name} answered {status}", role.as_str());
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn a_role_cannot_exceed_its_permissions() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "member@acme.example", Role::Member).await;
    let before = app.get(&team.key, "/v1/api-keys").await.expect(200)["total"].clone();
    app.post(&member, "/v1/api-keys", json!({"name": "x"}))
        .await
        .error(403);
    let keys = app.get(&team.key, "/v1/api-keys").await.expect(200);
    assert_eq!(keys["total"], before);
    for key in keys["api_keys"].as_array().unwrap() {
        app.delete(&member, &format!("/v1/api-keys/{}", text(&key["id"])))
            .await
            .error(403);
    }
    app.get(&team.key, "/v1/runs").await.expect(200);
    app.finish().await;
}

#[tokio::test]
async fn a_key_has_the_rights_that_its_creator_has_now() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (user, key): (UserId, String) = app.person(&team, "ann@acme.example", Role::Admin).await;
    app.get(&key, "/v1/api-keys").await.expect(200);
    app.store()
        .set_role(team.id, user, Role::Member, Role::Owner)
        .await
        .unwrap();
    app.get(&key, "/v1/api-keys").await.error(403);
    app.get(&key, "/v1/runs").await.expect(200);
    app.store()
        .set_role(team.id, user, Role::Owner, Role::Owner)
        .await
        .unwrap();
    app.get(&key, "/v1/api-keys").await.expect(200);
    app.store()
        .remove_member(team.id, user, Role::Owner)
        .await
        .unwrap();
    app.get(&key, "/v1/runs").await.error(401);
    app.store()
        .add_member(team.id, user, Role::Member, Role::Owner, app.now())
        .await
        .unwrap();
    // The old keys were deleted with the membership.
    app.get(&key, "/v1/runs").await.error(401);
    let key = app.key(team.id, user).await;
    app.get(&key, "/v1/runs").await.expect(200);
    app.store().disable_user(user, app.now()).await.unwrap();
    app.get(&key, "/v1/runs").await.error(401);
    app.finish().await;
}

#[tokio::test]
async fn last_used_at_is_kept_to_the_minute() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = new_key(&app, &team.key, json!({"name": "x"})).await;
    let (id, key) = (text(&made["id"]), text(&made["key"]));
    let last_used = async || {
        app.settle().await;
        let list = app.get(&team.key, "/v1/api-keys").await.expect(200);
        let of = list["api_keys"]
            .as_array()
            .unwrap()
            .iter()
            .find(|k| k["id"] == id)
            .unwrap()
            .clone();
        of["last_used_at"].clone()
    };
    assert_eq!(last_used().await, Value::Null);
    app.clock().advance(Duration::from_secs(10));
    let first = app.now();
    app.get(&key, "/v1/runs").await.expect(200);
    assert_eq!(last_used().await, first.to_string());
    app.clock().advance(Duration::from_secs(60));
    assert_eq!(
        last_used().await,
        first.to_string(),
        "it was not used since"
    );
    // A refused request also counts as a use.
    app.get(&key, &format!("/v1/runs/{NOBODY}"))
        .await
        .error(404);
    assert_eq!(last_used().await, app.now().to_string());
    app.finish().await;
}
