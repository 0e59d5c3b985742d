//! The team, its members and invitations in the API.

use std::time::Duration;

use errand_core::role::Role;
use errand_store::Joining;
use errand_testkit::{Team, TestApp};
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const NOBODY: &str = "0198f2a4-7c1e-7000-8000-000000000001";

async fn roles(app: &TestApp, team: &Team) -> Vec<(String, String)> {
    let page = app
        .get(&team.key, "/v1/members?limit=100")
        .await
        .expect(200);
    let members = page["members"].as_array().unwrap();
    assert_eq!(page["total"], members.len());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    members
        .iter()
        .map(|m| (text(&m["email"]), text(&m["role"])))
        .collect()
}

#[tokio::test]
async fn a_team_and_its_people_are_read() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.clock().advance(Duration::from_secs(1));
    let (ann, key) = app.person(&team, "ann@acme.example", Role::Member).await;
    let of_team = app.get(&team.key, "/v1/team").await.expect(200);
    assert_eq!(of_team["team"]["id"], team.id.to_string());
    assert_eq!(of_team["team"]["name"], "acme");
    let owner = json!({
        "id": team.owner.to_string(), "email": "owner@acme.example", "role": "owner", "disabled": false, "api_keys": 1,
        "joined_at": of_team["team"]["created_at"]
    });
    assert_eq!(of_team["member"], owner);
    let member = json!({
        "id": ann.to_string(), "email": "ann@acme.example", "role": "member", "disabled": false, "api_keys": 1,
        "joined_at": app.now().to_string()
    });
    assert_eq!(
        app.get(&key, "/v1/team").await.expect(200)["member"],
        member
    );
    let expected = json!({"members": [owner, member], "total": 2, "limit": 20, "offset": 0});
    for reader in [&team.key, &key] {
        assert_eq!(app.get(reader, "/v1/members").await.expect(200), expected);
    }
    // Before a removal, the member's keys are listed.
    let path = format!("/v1/members/{ann}");
    let one = app.get(&team.key, &path).await.expect(200);
    assert_eq!(one["member"], member);
    let keys = app.get(&team.key, "/v1/api-keys").await.expect(200);
    assert_eq!(one["api_keys"], json!([keys["api_keys"][0]]));
    assert_eq!(app.get(&key, &path).await.expect(200), one, "one's own");
    app.get(&key, &format!("/v1/members/{}", team.owner))
        .await
        .error(403);
    app.get(&key, &format!("/v1/members/{NOBODY}"))
        .await
        .error(404);
    app.finish().await;
}

#[tokio::test]
async fn permitted_roles_change_roles_and_remove_members() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let other = app.team("other").await;
    let (ann, member) = app.person(&team, "ann@acme.example", Role::Member).await;
    let (bob, admin) = app.person(&team, "bob@acme.example", Role::Admin).await;
    let before = roles(&app, &team).await;
    let path = |user: &dyn std::fmt::Display| format!("/v1/members/{user}");
    for (key, method, of, body, status) in [
        (
            &member,
            Method::PATCH,
            path(&bob),
            json!({"role": "member"}),
            403,
        ),
        (&member, Method::DELETE, path(&bob), json!({}), 403),
        (
            &admin,
            Method::PATCH,
            path(&ann),
            json!({"role": "owner"}),
            403,
        ),
        (
            &admin,
            Method::PATCH,
            path(&team.owner),
            json!({"role": "member"}),
            403,
        ),
        (&admin, Method::DELETE, path(&team.owner), json!({}), 403),
        (
            &admin,
            Method::PATCH,
            path(&ann),
            json!({"role": "boss"}),
            400,
        ),
        (&admin, Method::PATCH, path(&ann), json!({}), 400),
        (
            &team.key,
            Method::PATCH,
            path(&team.owner),
            json!({"role": "admin"}),
            400,
        ),
        (&team.key, Method::DELETE, path(&team.owner), json!({}), 400),
        (
            &admin,
            Method::PATCH,
            path(&other.owner),
            json!({"role": "member"}),
            404,
        ),
        (&admin, Method::DELETE, path(&other.owner), json!({}), 404),
    ] {
        let reply = app.json(method.clone(), key, &of, body.clone(), &[]).await;
        assert_eq!(reply.status, status, "{method} {of} {body}");
        reply.error(status);
    }
    assert_eq!(roles(&app, &team).await, before);

    let changed = app
        .patch(&admin, &path(&ann), json!({"role": "admin"}))
        .await
        .expect(200);
    assert_eq!(changed["member"]["role"], "admin");
    app.get(&member, "/v1/api-keys").await.expect(200);
    app.patch(&team.key, &path(&bob), json!({"role": "owner"}))
        .await
        .expect(200);
    app.delete(&admin, &path(&team.owner)).await.expect(204);
    app.get(&team.key, "/v1/runs").await.error(401);
    app.delete(&member, &path(&ann)).await.expect(204);
    app.get(&member, "/v1/runs").await.error(401);
    let left = app.get(&admin, "/v1/members").await.expect(200);
    assert_eq!(
        (&left["total"], &left["members"][0]["email"]),
        (&json!(1), &json!("bob@acme.example"))
    );
    assert_eq!(
        app.get(&admin, "/v1/api-keys").await.expect(200)["total"],
        1
    );
    app.finish().await;
}

fn token_hash(url: &str) -> [u8; 32] {
    let token = url.rsplit('/').next().unwrap();
    assert_eq!(token.len(), 32);
    Sha256::digest(token.as_bytes()).into()
}

#[tokio::test]
async fn an_invitation_is_shown_once_listed_and_revoked() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "ann@acme.example", Role::Member).await;
    let (_, admin) = app.person(&team, "bob@acme.example", Role::Admin).await;
    let headers = [("idempotency-key", "one")];
    let body = json!({"role": "admin", "email": "Cay@acme.example"});
    let invite = || {
        app.json(
            Method::POST,
            &team.key,
            "/v1/invitations",
            body.clone(),
            &headers,
        )
    };
    let made = invite().await.expect(201);
    let url = made["url"].as_str().unwrap();
    assert!(url.starts_with(&format!("{}/join/", app.url())), "{url}");
    let expected = json!({
        "id": made["invitation"]["id"], "role": "admin", "email": "cay@acme.example", "created_by": team.owner.to_string(),
        "created_at": app.now().to_string(), "expires_at": app.now().plus_ms(7 * 86_400_000).to_string()
    });
    assert_eq!(made["invitation"], expected);
    assert_eq!(
        invite().await.expect(201),
        json!({"invitation": expected, "url": null, "shown_once": true})
    );
    let listed = app.get(&admin, "/v1/invitations").await.expect(200);
    assert_eq!(
        listed,
        json!({"invitations": [expected], "total": 1, "limit": 20, "offset": 0})
    );
    let (found, _) = app
        .store()
        .invited(token_hash(url), app.now())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.name, "acme");

    for (key, body, status) in [
        (&member, json!({}), 403),
        (&admin, json!({"role": "owner"}), 403),
        (&admin, json!({"role": "boss"}), 400),
        (&admin, json!({"email": "nobody"}), 400),
        (&admin, json!({"email": "ann@acme.example"}), 409),
        (&admin, json!({"expires_at": app.now().to_string()}), 400),
        (
            &admin,
            json!({"expires_at": app.now().plus_ms(31 * 86_400_000).to_string()}),
            400,
        ),
        (&admin, json!({"expires_in": "1d"}), 400),
    ] {
        app.post(key, "/v1/invitations", body.clone())
            .await
            .error(status);
    }
    app.get(&member, "/v1/invitations").await.error(403);
    let path = format!(
        "/v1/invitations/{}",
        made["invitation"]["id"].as_str().unwrap()
    );
    app.delete(&member, &path).await.error(403);
    assert_eq!(app.get(&admin, "/v1/invitations").await.expect(200), listed);
    app.delete(&admin, &path).await.expect(204);
    app.delete(&admin, &path).await.error(404);
    assert!(
        app.store()
            .invited(token_hash(url), app.now())
            .await
            .unwrap()
            .is_none()
    );
    app.finish().await;
}

#[tokio::test]
async fn a_user_who_joins_by_a_link_gets_its_role() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let other = app.team("other").await;
    let link = async |body: Value| {
        let made = app
            .post(&team.key, "/v1/invitations", body)
            .await
            .expect(201);
        token_hash(made["url"].as_str().unwrap())
    };
    let token = link(json!({})).await;
    app.store()
        .join(token, Joining::User(other.owner), app.now())
        .await
        .unwrap();
    assert!(
        app.store()
            .join(token, Joining::User(other.owner), app.now())
            .await
            .is_err()
    );
    let owner = ("owner@acme.example".to_owned(), "owner".to_owned());
    let joined = ("owner@other.example".to_owned(), "member".to_owned());
    assert_eq!(roles(&app, &team).await, [owner, joined]);
    // The key of the other team stays valid for that team.
    assert_eq!(
        app.get(&other.key, "/v1/team").await.expect(200)["team"]["name"],
        "other"
    );
    let token = link(json!({"role": "owner"})).await;
    app.advance(Duration::from_secs(7 * 86_400)).await;
    assert!(
        app.store()
            .invited(token, app.now())
            .await
            .unwrap()
            .is_none()
    );
    app.finish().await;
}
