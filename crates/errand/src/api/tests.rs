//! Tests of the rules for all requests, with a real store and without an engine.

mod events;
mod files;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Html;
use bytes::Bytes;
use errand_core::id::IdGen;
use errand_core::time::Timestamp;
use errand_engine::EngineContext;
use errand_engine::clock::Clock;
use errand_engine::connect::Connections;
use errand_engine::model::Models;
use errand_engine::net::{Bounds, Guard};
use errand_engine::sandboxes::Sandboxes;
use errand_store::seal::MasterKey;
use errand_store::{Bootstrap, Idempotent, NewApiKey, OpenOptions, Store};
use futures::StreamExt as _;
use http::{Request, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::*;
use crate::config::Config;
use crate::http::pages::Pages;
use crate::secret_key::ApiKeySecret;
use crate::state::AppSettings;

/// Pages without the layout of the web interface.
const PLAIN_PAGES: Pages = Pages {
    error: |status, message| (status, Html(message.to_owned())).into_response(),
    signed_in: || Html("signed in").into_response(),
    confirm_sign_in: |_| Html("confirm").into_response(),
};

struct Fixture {
    _dir: tempfile::TempDir,
    app: AppState,
    router: Router,
    key: String,
}

struct Reply {
    status: u16,
    headers: http::HeaderMap,
    bytes: Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap()
    }

    fn error(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{:?}", self.bytes);
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json");
        assert!(self.headers.contains_key("x-request-id"));
        let body = self.json();
        assert_eq!(body["error"], code, "{body}");
        body["message"].as_str().unwrap().to_owned()
    }
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(set: impl FnOnce(&mut AppSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_millis(1_795_426_200_000);
        let ids = Arc::new(IdGen::new([1; 32]));
        let store = Store::open(OpenOptions {
            dir: dir.path().to_owned(),
            boot: ids.boot(now),
            respond_base: "http://errand.example".to_owned(),
            master_key: MasterKey::from_bytes([3; 32]),
            readers: 2,
            cache_kib: 1024,
        })
        .unwrap();
        let secret = crate::secret_key::webhook_secret().unwrap();
        let made = store
            .bootstrap(Bootstrap {
                team: ids.team(now),
                owner: ids.user(now),
                secret,
                now,
            })
            .await
            .unwrap();
        let key = ApiKeySecret::generate().unwrap();
        let new = NewApiKey {
            id: ids.api_key(now),
            team: made.team,
            created_by: made.owner,
            name: "test".to_owned(),
            prefix: key.prefix().to_owned(),
            hash: key.hash(),
            expires_at: None,
            not_after: None,
            now,
        };
        store
            .create_api_key(new, Idempotent::not_recorded())
            .await
            .unwrap();
        let mut settings = AppSettings::of(&Config::default(), "http://errand.example");
        set(&mut settings);
        let clock = Clock::manual(now);
        let post = Guard::webhooks(false).client(Bounds::WEBHOOK);
        let context = EngineContext {
            connections: Connections::none(store.clone(), clock.clone()),
            store,
            ids,
            clock,
            sandboxes: Sandboxes::beneath(dir.path()),
            parsers: errand_engine::parse::Parsers::new(None),
            models: Models::default(),
            deltas: errand_engine::deltas::Deltas::default(),
            tools: errand_engine::tool::Tools::builtin(),
            post: Arc::new(post.unwrap()),
            draining: CancellationToken::new(),
        };
        let app = AppState::new(context, [9; 32], settings, PLAIN_PAGES);
        let boom = Router::new().route(
            "/boom",
            get(async || -> &'static str { panic!("on purpose") }),
        );
        let router = router(app.clone()).merge(layered(boom, &app.layers));
        Self {
            _dir: dir,
            app,
            router,
            key: key.expose().to_owned(),
        }
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        Reply {
            status,
            headers,
            bytes,
        }
    }

    /// Sends a request with the key. A non-null body is sent as JSON.
    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.key));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() {
            Body::empty()
        } else {
            request = request.header("content-type", "application/json");
            Body::from(body.to_string())
        };
        self.send(request.body(body).unwrap()).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], Value::Null).await
    }

    async fn sandbox(&self) -> String {
        let made = self.call("POST", "/v1/sandboxes", &[], Value::Null).await;
        assert_eq!(made.status, 201);
        made.json()["sandbox_id"].as_str().unwrap().to_owned()
    }

    async fn agent(&self) -> String {
        let config = json!({"version": "v2", "data": {"models": "builtin/playbook", "playbook": {"steps": [{"say": "Done."}]}}});
        let made = self
            .call(
                "POST",
                "/v1/agents",
                &[],
                json!({"name": "a", "build": {"name": "b", "config": config}}),
            )
            .await;
        assert_eq!(made.status, 201, "{:?}", made.bytes);
        made.json()["agent"]["id"].as_str().unwrap().to_owned()
    }
}

fn without_key(method: &str, path: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(Body::empty())
        .unwrap()
}

fn example(path: &str) -> String {
    let id = "0198f2a4-7c1e-7000-8000-000000000001";
    path.replace("{sandbox_id}", &format!("sb_{}", "0".repeat(32)))
        .replace("{token}", "x.y")
        .replace("{run_id}", id)
        .replace("{request_id}", id)
        .replace("{agent_id}", id)
        .replace("{build_id}", id)
        .replace("{key_id}", id)
}

#[tokio::test]
async fn every_route_requires_a_key_and_answers_404_for_missing_ids() {
    let f = Fixture::with(|settings| settings.failed_auth_per_minute = 1_000).await;
    for route in ROUTES {
        let path = example(route.path);
        let open = f.send(without_key(route.method.as_str(), &path)).await;
        match route.access {
            Access::Public if route.path.contains("{token}") => {
                drop(open.error(401, "unauthorized"))
            }
            // The callback has no parameters.
            Access::Public if route.path.contains("/sign-ins/") => {
                drop(open.error(400, "bad_request"))
            }
            Access::Public => assert_eq!(open.status, 200, "{path}"),
            Access::Needs(_) => {
                open.error(401, "unauthorized");
                assert!(!open.headers.contains_key("x-ratelimit-limit"));
            }
        }
        if matches!(route.access, Access::Needs(_)) {
            let wrong = f.call("TRACE", &path, &[], Value::Null).await;
            wrong.error(405, "method_not_allowed");
            assert!(
                wrong.headers["allow"]
                    .to_str()
                    .unwrap()
                    .contains(route.method.as_str()),
                "{path}"
            );
            let unknown = f
                .call(
                    route.method.as_str(),
                    &format!("{path}?surprise=1"),
                    &[],
                    json!({}),
                )
                .await;
            assert!(
                unknown.error(400, "bad_request").contains("surprise"),
                "{path}"
            );
            assert!(unknown.headers.contains_key("x-ratelimit-remaining"));
        }
        if matches!(route.access, Access::Needs(_))
            && path != route.path
            && route.method == Method::GET
        {
            let query = if path.ends_with("/content") {
                "?path=x"
            } else {
                ""
            };
            f.call("GET", &format!("{path}{query}"), &[], Value::Null)
                .await
                .error(404, "not_found");
        }
    }
}

#[tokio::test]
async fn all_errors_have_the_same_body() {
    let f = Fixture::new().await;
    f.send(without_key("GET", "/v1/nothing"))
        .await
        .error(401, "unauthorized");
    f.send(without_key("GET", "/v1"))
        .await
        .error(401, "unauthorized");
    f.get("/v1/nothing").await.error(404, "not_found");
    f.get("/v1/runs/not-an-id").await.error(400, "bad_request");
    f.get("/v1/runs/%FF").await.error(404, "not_found");
    f.send(without_key("GET", "/nothing"))
        .await
        .error(404, "not_found");
    f.call("POST", "/v1/documentation", &[], Value::Null)
        .await
        .error(405, "method_not_allowed");
    let page = f
        .send(
            Request::get("/nothing")
                .header("accept", "text/html")
                .body(Body::empty())
                .unwrap(),
        )
        .await;
    assert_eq!(
        (
            page.status,
            page.headers[header::CONTENT_TYPE].to_str().unwrap()
        ),
        (404, "text/html; charset=utf-8")
    );
    let boom = f
        .send(
            Request::get("/boom")
                .header("x-request-id", "my-1")
                .body(Body::empty())
                .unwrap(),
        )
        .await;
    let message = boom.error(500, "internal");
    assert!(
        message.contains("my-1") && !message.contains("on purpose"),
        "{message}"
    );
    assert_eq!(boom.headers["x-request-id"], "my-1");
}

#[tokio::test]
async fn invalid_bodies_are_refused() {
    let f = Fixture::new().await;
    let post = async |kind: &str, body: String| {
        let request = Request::post("/v1/agents")
            .header("authorization", format!("Bearer {}", f.key))
            .header("content-type", kind);
        f.send(request.body(Body::from(body)).unwrap()).await
    };
    post("text/plain", "{}".to_owned())
        .await
        .error(415, "unsupported_media_type");
    post("application/json", "{".to_owned())
        .await
        .error(400, "bad_request");
    assert!(
        post("application/json", r#"{"nam": "x"}"#.to_owned())
            .await
            .error(400, "bad_request")
            .contains("name")
    );
    post("application/json", " ".repeat(4 * 1024 * 1024 + 1))
        .await
        .error(413, "payload_too_large");
    let message = f
        .call(
            "POST",
            "/v1/agents",
            &[],
            json!({"name": "a", "build": {"name": "b", "config": {"version": "v1"}}}),
        )
        .await
        .error(400, "bad_request");
    assert!(message.starts_with("build.config.version"), "{message}");
}

#[tokio::test]
async fn requests_are_limited_by_key_and_failures_by_address() {
    let f = Fixture::with(|settings| {
        (
            settings.requests_per_minute,
            settings.failed_auth_per_minute,
        ) = (3, 2)
    })
    .await;
    for remaining in ["2", "1", "0"] {
        let reply = f.get("/v1/nothing").await;
        assert_eq!(reply.headers["x-ratelimit-limit"], "3");
        assert_eq!(reply.headers["x-ratelimit-remaining"], remaining);
        assert_eq!(reply.headers["x-ratelimit-reset"], "1795426260");
    }
    let over = f.get("/v1/agents").await;
    over.error(429, "rate_limited");
    assert_eq!(over.headers["retry-after"], "60");
    assert_eq!(over.headers["x-ratelimit-remaining"], "0");
    for status in [401, 401, 429] {
        assert_eq!(
            f.send(without_key("GET", "/v1/agents")).await.status,
            status
        );
    }
    f.app.clock.advance(Duration::from_secs(60));
    assert_eq!(f.get("/v1/agents").await.status, 200);
    assert_eq!(f.send(without_key("GET", "/v1/agents")).await.status, 401);
    let keys = f.get("/v1/api-keys").await.json();
    assert_eq!(
        keys["api_keys"][0]["last_used_at"],
        "2026-11-23T09:31:00.000Z"
    );
}

#[tokio::test]
async fn a_repeated_key_and_body_replay_the_response() {
    let f = Fixture::new().await;
    let key = [("idempotency-key", "k1")];
    let first = f
        .call("POST", "/v1/agents", &key, json!({"name": "a"}))
        .await;
    let again = f
        .call("POST", "/v1/agents", &key, json!({"name": "a"}))
        .await;
    assert_eq!((first.status, &first.bytes), (again.status, &again.bytes));
    assert!(!first.headers.contains_key("idempotency-replayed"));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    f.call("POST", "/v1/agents", &key, json!({"name": "b"}))
        .await
        .error(409, "conflict");
    f.call(
        "POST",
        "/v1/agents",
        &[("idempotency-key", "")],
        json!({"name": "b"}),
    )
    .await
    .error(400, "bad_request");
    assert_eq!(f.get("/v1/agents").await.json()["total"], 1);

    let made = f
        .call(
            "POST",
            "/v1/api-keys",
            &[("idempotency-key", "k2")],
            json!({"name": "n"}),
        )
        .await
        .json();
    let replay = f
        .call(
            "POST",
            "/v1/api-keys",
            &[("idempotency-key", "k2")],
            json!({"name": "n"}),
        )
        .await
        .json();
    assert_eq!(made["key"].as_str().unwrap().len(), 35);
    assert_eq!(
        (&replay["key"], &replay["shown_once"], &replay["id"]),
        (&Value::Null, &json!(true), &made["id"])
    );

    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    let gone = f
        .call("DELETE", &path, &[("idempotency-key", "k3")], Value::Null)
        .await;
    let again = f
        .call("DELETE", &path, &[("idempotency-key", "k3")], Value::Null)
        .await;
    assert_eq!(
        (gone.status, again.status, again.bytes.len()),
        (204, 204, 0)
    );
    f.call("DELETE", &path, &[], Value::Null)
        .await
        .error(404, "not_found");
}

#[tokio::test]
async fn runs_are_started_listed_and_stopped() {
    let f = Fixture::new().await;
    let agent = f.agent().await;
    let key = [("idempotency-key", "r")];
    let started = f
        .call(
            "POST",
            "/v1/runs",
            &key,
            json!({"agent_id": agent, "message": "Hello"}),
        )
        .await;
    assert_eq!(started.status, 201, "{:?}", started.bytes);
    let run = started.json()["run"]["id"].as_str().unwrap().to_owned();
    let replay = f
        .call(
            "POST",
            "/v1/runs",
            &key,
            json!({"agent_id": agent, "message": "Hello"}),
        )
        .await;
    assert_eq!(replay.bytes, started.bytes);
    let view = f.get(&format!("/v1/runs/{run}")).await.json();
    assert_eq!(
        (&view["run"]["status"], &view["pending_human_request"]),
        (&json!("pending"), &Value::Null)
    );
    let messages = f
        .get(&format!("/v1/runs/{run}/messages?limit=50"))
        .await
        .json();
    assert_eq!(
        (&messages["total"], &messages["messages"][0]["text_content"]),
        (&json!(1), &json!("Hello"))
    );
    assert!(
        f.get(&format!("/v1/runs/{run}/messages?limit=51"))
            .await
            .error(400, "bad_request")
            .contains("from 1 to 50")
    );
    let list =
        async |query: &str| f.get(&format!("/v1/runs?{query}")).await.json()["total"].clone();
    assert_eq!(
        list("status=pending&status=running&source=api&sort_order=asc").await,
        1
    );
    assert_eq!(list(&format!("status=failed&agent_id={agent}")).await, 0);
    assert_eq!(list("since=2026-11-23T09:30:00Z").await, 1);
    for bad in [
        "status=x",
        "sort_order=up",
        "since=x",
        "agent_id=1",
        "source=x",
    ] {
        f.get(&format!("/v1/runs?{bad}"))
            .await
            .error(400, "bad_request");
    }
    let stopped = f
        .call("POST", &format!("/v1/runs/{run}/stop"), &[], Value::Null)
        .await;
    assert_eq!(stopped.json(), json!({"success": true}));
    let again = f
        .call("POST", &format!("/v1/runs/{run}/stop"), &[], json!([1]))
        .await
        .json();
    assert!(again["message"].is_string());
    f.call("POST", &format!("/v1/runs/{run}/retry"), &[], Value::Null)
        .await
        .error(400, "bad_request");
}

#[tokio::test]
async fn invalid_start_requests_are_refused() {
    let f = Fixture::new().await;
    let agent = f.agent().await;
    let refused = async |more: Value, name: &str| {
        let mut body = json!({"agent_id": agent});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let message = f
            .call("POST", "/v1/runs", &[], body)
            .await
            .error(400, "bad_request");
        assert!(message.contains(name), "{message}");
    };
    refused(json!({"webhook_url": "ftp://x.example"}), "webhook_url").await;
    refused(json!({"webhook_url": "http://127.0.0.1/"}), "webhook_url").await;
    refused(
        json!({"human_request_webhook_url": "x"}),
        "human_request_webhook_url",
    )
    .await;
    refused(json!({"sandbox_id": "x"}), "sandbox_id").await;
    refused(json!({"message": ""}), "message").await;
    refused(json!({"agent_id": "x"}), "agent_id").await;
    let unknown = json!({"agent_id": "0198f2a4-7c1e-7000-8000-000000000001"});
    f.call("POST", "/v1/runs", &[], unknown)
        .await
        .error(404, "not_found");
    let bare = f
        .call("POST", "/v1/agents", &[], json!({"name": "bare"}))
        .await
        .json();
    assert_eq!(bare["build"], Value::Null);
    f.call(
        "POST",
        "/v1/runs",
        &[],
        json!({"agent_id": bare["agent"]["id"]}),
    )
    .await
    .error(400, "bad_request");
    let elsewhere =
        json!({"name": "b", "config": {"version": "v2", "data": {"models": "nowhere/x"}}});
    let path = format!("/v1/agents/{agent}/builds");
    assert_eq!(
        f.call("POST", &path, &[], elsewhere).await.json()["build"]["number"],
        2
    );
    refused(json!({}), "agent_id").await;
    assert_eq!(f.get("/v1/runs").await.json()["total"], 0);
}

#[tokio::test]
async fn a_starting_server_answers() {
    assert_eq!(starting("/healthz").status(), 200);
    assert_eq!(starting("/readyz").status(), 503);
    assert_eq!(starting("/v1/runs").status(), 503);
}
