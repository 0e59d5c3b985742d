//! Rate limits over HTTP: per key, and for failed authentications per address.

use std::time::Duration;

use axum::body::Body;
use errand_core::role::Role;
use errand_testkit::{Reply, TestApp};
use http::Method;
use serde_json::json;

use crate::api_auth::{PER_ADDRESS, get_with, text};
use crate::api_runs::NOBODY;

const PER_KEY: &str = "ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE";

/// The limit, the remaining requests, and the time of the reset.
fn limit(reply: &Reply) -> [i64; 3] {
    ["limit", "remaining", "reset"].map(|name| {
        let name = format!("x-ratelimit-{name}");
        let value = reply
            .header(&name)
            .unwrap_or_else(|| panic!("a response with {name}: {reply:?}"));
        value.parse().unwrap()
    })
}

#[tokio::test]
async fn every_authenticated_response_has_the_rate_limit() {
    let app = TestApp::with_settings(&[(PER_KEY, "300")]).await;
    let team = app.team("acme").await;
    let reset = app.now().as_seconds() + 60;
    let agent = app
        .post(&team.key, "/v1/agents", json!({"name": "x"}))
        .await;
    assert_eq!(
        limit(&agent),
        [300, 299, reset],
        "the window begins with the key's first request"
    );
    app.clock().advance(Duration::from_millis(1500));
    let id = text(&agent.expect(201)["agent"]["id"]);
    let (_, member) = app.person(&team, "member@acme.example", Role::Member).await;
    let replies = [
        app.get(&team.key, "/v1/runs").await,
        app.post(&team.key, "/v1/runs", json!({})).await,
        app.get(&team.key, &format!("/v1/runs/{NOBODY}")).await,
        app.get(&team.key, "/v1/nonsense").await,
        app.patch(&team.key, "/v1/runs", json!({})).await,
        app.send(
            Method::POST,
            "/v1/runs",
            &[
                ("authorization", &format!("Bearer {}", team.key)),
                ("content-type", "text/plain"),
            ],
            Body::from("x"),
        )
        .await,
        app.delete(&team.key, &format!("/v1/agents/{id}")).await,
    ];
    assert_eq!(
        replies.each_ref().map(|r| r.status),
        [200, 400, 404, 404, 405, 415, 204]
    );
    for (n, reply) in (1..).zip(&replies) {
        assert_eq!(
            limit(reply),
            [300, 299 - n, reset],
            "refused ones count too: {}",
            reply.status
        );
    }
    let forbidden = app.get(&member, "/v1/api-keys").await;
    assert_eq!(
        (forbidden.status, limit(&forbidden)),
        (403, [300, 299, reset + 2]),
        "rounded up, and this key's own"
    );
    app.finish().await;
}

#[tokio::test]
async fn past_the_rate_limit_comes_429_until_the_window_resets() {
    let app = TestApp::with_settings(&[(PER_KEY, "3")]).await;
    let team = app.team("acme").await;
    let second = app.key(team.id, team.owner).await;
    let body = json!({"name": "x"});
    for n in [2, 1, 0] {
        let reply = app.post(&team.key, "/v1/agents", body.clone()).await;
        assert_eq!((reply.status, limit(&reply)[1]), (201, n));
        app.clock().advance(Duration::from_secs(10));
    }
    app.clock().advance(Duration::from_millis(500));
    let refused = app.post(&team.key, "/v1/agents", body.clone()).await;
    let (code, _) = refused.error(429);
    assert_eq!(code, "rate_limited");
    assert_eq!(
        refused.header("retry-after"),
        Some("30"),
        "in seconds, rounded up"
    );
    assert_eq!(limit(&refused)[..2], [3, 0]);
    app.clock().advance(Duration::from_millis(29_499));
    assert_eq!(
        app.get(&team.key, "/v1/runs").await.header("retry-after"),
        Some("1")
    );
    let own = app.get(&second, "/v1/agents").await;
    assert_eq!(
        own.expect(200)["total"],
        3,
        "what was refused is not done; another key is not held up"
    );
    app.clock().advance(Duration::from_millis(1));
    let next = app.get(&team.key, "/v1/runs").await;
    assert_eq!((next.status, limit(&next)[1]), (200, 2), "a new window");
    app.finish().await;
}

#[tokio::test]
async fn only_failed_authentications_are_limited_by_address() {
    let app = TestApp::with_settings(&[(PER_ADDRESS, "3")]).await;
    let team = app.team("acme").await;
    for key in ["dv_wrong", "nonsense", ""] {
        app.get(key, "/v1/runs").await.error(401);
    }
    let refused = get_with(&app, "/v1/nonsense", &[]).await;
    assert_eq!(refused.error(429).0, "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("60"));
    app.get(&team.key, "/v1/runs").await.expect(200);
    // No proxy is trusted, so claims of the client change nothing.
    let elsewhere = [("x-forwarded-for", "192.0.2.7")];
    get_with(&app, "/v1/runs", &elsewhere).await.error(429);
    app.clock().advance(Duration::from_secs(60));
    get_with(&app, "/v1/runs", &[]).await.error(401);
    app.finish().await;
}

#[tokio::test]
async fn a_trusted_proxy_says_which_address_failed() {
    let app = TestApp::with_settings(&[
        (PER_ADDRESS, "1"),
        ("ERRAND_SERVER__TRUSTED_PROXIES", "127.0.0.1"),
    ])
    .await;
    let from = async |address: &str| {
        get_with(&app, "/v1/runs", &[("x-forwarded-for", address)])
            .await
            .status
    };
    assert_eq!(from("192.0.2.7").await, 401);
    assert_eq!(from("192.0.2.7").await, 429);
    assert_eq!(from("192.0.2.8").await, 401);
    assert_eq!(
        from("198.51.100.1, 192.0.2.8").await,
        429,
        "what stands before was written by a stranger"
    );
    app.finish().await;
}
