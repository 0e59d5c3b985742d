//! The documentation: a page for people and an OpenAPI document, both public, both covering every endpoint.

use axum::body::Body;
use errand_testkit::{Reply, TestApp};
use http::Method;
use serde_json::Value;

/// Every endpoint of the contract, with the names of its path parameters.
const ENDPOINTS: [(&str, &str); 34] = [
    ("post", "/v1/runs"),
    ("get", "/v1/runs"),
    ("get", "/v1/runs/{run_id}"),
    ("get", "/v1/runs/{run_id}/messages"),
    ("post", "/v1/runs/{run_id}/messages"),
    (
        "post",
        "/v1/runs/{run_id}/human-requests/{request_id}/respond",
    ),
    ("post", "/v1/runs/{run_id}/stop"),
    ("post", "/v1/runs/{run_id}/retry"),
    ("get", "/v1/runs/{run_id}/events"),
    ("post", "/v1/sandboxes"),
    ("get", "/v1/sandboxes/{sandbox_id}/files"),
    ("post", "/v1/sandboxes/{sandbox_id}/files"),
    ("post", "/v1/sandboxes/{sandbox_id}/upload-urls"),
    ("get", "/v1/sandboxes/{sandbox_id}/files/content"),
    ("delete", "/v1/sandboxes/{sandbox_id}"),
    ("get", "/v1/agents"),
    ("post", "/v1/agents"),
    ("get", "/v1/agents/{agent_id}"),
    ("patch", "/v1/agents/{agent_id}"),
    ("delete", "/v1/agents/{agent_id}"),
    ("get", "/v1/agents/{agent_id}/revisions"),
    ("get", "/v1/agents/{agent_id}/builds"),
    ("post", "/v1/agents/{agent_id}/revisions"),
    ("post", "/v1/builds"),
    ("get", "/v1/revisions/{build_id}"),
    ("patch", "/v1/revisions/{build_id}"),
    ("get", "/v1/api-keys"),
    ("post", "/v1/api-keys"),
    ("delete", "/v1/api-keys/{key_id}"),
    ("get", "/v1/webhook-secret"),
    ("get", "/v1/documentation"),
    ("get", "/v1/documentation/json"),
    ("get", "/healthz"),
    ("get", "/readyz"),
];

async fn without_a_key(app: &TestApp, path: &str, accept: &str) -> Reply {
    app.send(Method::GET, path, &[("accept", accept)], Body::empty())
        .await
}

#[tokio::test]
async fn the_document_describes_every_endpoint() {
    let app = TestApp::start().await;
    let reply = without_a_key(&app, "/v1/documentation/json", "*/*").await;
    assert!(
        reply
            .header("content-type")
            .unwrap()
            .starts_with("application/json")
    );
    let document = reply.expect(200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    for (method, path) in ENDPOINTS {
        let operation = &document["paths"][path][method];
        assert!(operation.is_object(), "{method} {path} is not described");
        assert!(
            operation["summary"].is_string() || operation["description"].is_string(),
            "{method} {path} says nothing"
        );
        let parameters = operation["parameters"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for name in path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        {
            let described = parameters
                .iter()
                .any(|p| p["name"] == name && p["in"] == "path" && p["required"] == true);
            assert!(described, "{method} {path}: {name} is not described");
        }
        let responses = operation["responses"].as_object().unwrap();
        assert!(
            responses.keys().any(|status| status.starts_with('2')),
            "{method} {path} has no answer"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn the_document_says_what_needs_a_key_and_how_an_error_looks() {
    let app = TestApp::start().await;
    let document = app.contract().document().clone();
    let schemes = document["components"]["securitySchemes"]
        .as_object()
        .unwrap();
    assert!(
        schemes
            .values()
            .any(|s| s["type"] == "http" && s["scheme"] == "bearer"),
        "{schemes:?}"
    );
    let is_empty = |value: &Value| {
        value.as_array().is_none_or(|list| {
            list.iter()
                .all(|s| s.as_object().is_some_and(serde_json::Map::is_empty))
        })
    };
    for (method, path) in ENDPOINTS {
        let operation = &document["paths"][path][method];
        let public = path.starts_with("/v1/documentation") || !path.starts_with("/v1/");
        let security = if operation["security"].is_null() {
            &document["security"]
        } else {
            &operation["security"]
        };
        assert_eq!(is_empty(security), public, "{method} {path}: {security}");
        if !public {
            let responses = &operation["responses"];
            assert!(
                !responses["401"].is_null() || !responses["default"].is_null(),
                "{method} {path} does not describe a refusal"
            );
        }
    }
    // Every reference can be resolved.
    let mut left = vec![&document];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    assert!(
                        document
                            .pointer(reference.trim_start_matches('#'))
                            .is_some(),
                        "{reference} leads nowhere"
                    );
                }
                left.extend(fields.values());
            }
            Value::Array(list) => left.extend(list),
            _ => {}
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn the_page_is_for_people_and_needs_no_key() {
    let app = TestApp::start().await;
    let reply = without_a_key(&app, "/v1/documentation", "text/html").await;
    assert_eq!(reply.status, 200);
    assert!(
        reply
            .header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    let page = String::from_utf8(reply.bytes.to_vec()).unwrap();
    for (method, path) in ENDPOINTS {
        assert!(page.contains(path), "{method} {path} is not on the page");
    }
    assert!(
        page.contains("/v1/documentation/json"),
        "the page leads to the document"
    );
    // The page loads only files of this server, so it can be read offline.
    for attribute in ["src=\"", "href=\""] {
        for target in page
            .split(attribute)
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
        {
            let loads = attribute.starts_with("src") || target.ends_with(".css");
            assert!(
                !loads || !target.contains("//"),
                "{target} is loaded from elsewhere"
            );
            if loads && target.starts_with('/') {
                assert_eq!(
                    without_a_key(&app, target, "*/*").await.status,
                    200,
                    "{target}"
                );
            }
        }
    }
    app.finish().await;
}
