//! `/healthz` and `/readyz`, and the responses while the server stops.

use axum::body::Body;
use errand_testkit::TestApp;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

async fn ask(router: &axum::Router, path: &str, key: Option<&str>) -> (StatusCode, Value) {
    let mut request = Request::builder().method(Method::GET).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = router
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert!(response.headers().contains_key("x-request-id"), "{path}");
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn a_working_server_is_ready_without_a_key() {
    let app = TestApp::start().await;
    let router = app.app().router();
    for path in ["/healthz", "/readyz"] {
        for key in [None, Some("dv_nobody's")] {
            assert_eq!(ask(&router, path, key).await.0, StatusCode::OK, "{path}");
        }
    }
    // Also over the network.
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            http.get(format!("{}{path}", app.url()))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_server_that_stops_is_alive_and_not_ready() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let router = app.app().router();
    assert_eq!(
        ask(&router, "/v1/agents", Some(&team.key)).await.0,
        StatusCode::OK
    );
    app.finish().await;
    assert_eq!(ask(&router, "/healthz", None).await.0, StatusCode::OK);
    for (path, key) in [
        ("/readyz", None),
        ("/v1/agents", Some(team.key.as_str())),
        ("/v1/runs", Some(&team.key)),
    ] {
        let (status, body) = ask(&router, path, key).await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::SERVICE_UNAVAILABLE, &Value::from("unavailable")),
            "{path}"
        );
        assert!(body["message"].is_string());
    }
}

#[tokio::test]
async fn a_server_that_starts_is_alive_and_not_ready() {
    for (path, status) in [("/healthz", 200), ("/readyz", 503), ("/v1/runs", 503)] {
        let response = errand::api::starting(path);
        assert_eq!(response.status().as_u16(), status, "{path}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        assert!(
            status == 200 || body["error"] == "unavailable",
            "{path}: {body}"
        );
    }
}
