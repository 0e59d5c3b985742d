//! The OpenAPI document is as strict as the server: both refuse the same requests.

use errand::api::Route;
use errand_testkit::{Reply, TestApp};
use http::Method;
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::coverage::{Things, body, filled, generous, guarded};

/// A validator for a schema of the document, including formats.
fn judge(document: &Value, schema: &Value) -> Validator {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    jsonschema::options()
        .should_validate_formats(true)
        .build(&whole)
        .unwrap()
}

/// A schema of the document, with references at its top resolved.
fn resolved<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    let options = schema["oneOf"].as_array().into_iter().flatten();
    // `null` or a reference: an optional object.
    let schema = options
        .chain([schema])
        .find(|schema| schema["$ref"].is_string())
        .unwrap_or(schema);
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Values that a field may refuse.
fn strange(field: &Value) -> Vec<Value> {
    let long = |more: u64| {
        json!("https://example.com/".to_owned() + &"x".repeat(usize::try_from(more).unwrap()))
    };
    let mut values = vec![
        json!("no-such-word"),
        json!(""),
        json!("   "),
        json!("!"),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e9),
        json!(true),
        json!({"no_such_field": 1}),
        json!([]),
        json!(["no-such-word"]),
        json!([1]),
        Value::Null,
    ];
    values.extend(field["maxLength"].as_u64().map(long));
    values
}

/// Bodies that the document refuses because of a single field.
fn wrong_bodies(schema: &Value, right: &Value, judge: &Validator) -> Vec<Value> {
    let mut bodies = vec![json!({}), json!({"no_such_field": 1})];
    let mut with = right.clone();
    with["no_such_field"] = json!(1);
    bodies.push(with);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        for value in strange(field) {
            let mut body = right.clone();
            body[name] = value;
            bodies.push(body);
        }
        let mut body = right.clone();
        body.as_object_mut().unwrap().remove(name);
        bodies.push(body);
    }
    bodies.retain(|body| !judge.is_valid(body));
    bodies
}

async fn sent(app: &TestApp, key: &str, route: &Route, path: &str, body: Value) -> Reply {
    app.json(route.method.clone(), key, path, body, &[]).await
}

fn json_schema<'d>(document: &'d Value, route: &Route) -> Option<&'d Value> {
    let method = route.method.as_str().to_lowercase();
    let operation = &document["paths"][route.path][method];
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    (!schema.is_null()).then_some(schema)
}

#[tokio::test]
async fn the_document_and_the_server_refuse_the_same() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let document = app.contract().document().clone();
    let (key, mut tried) = (&mine.team.key, 0);
    for route in guarded() {
        let Some(schema) = json_schema(&document, route) else {
            continue;
        };
        let judge = judge(&document, schema);
        let path = filled(route.path, |name| mine.id(name).to_owned());
        let right = body(route, mine.id("agent_id"));
        assert!(judge.is_valid(&right), "{} {path}: {right}", route.method);
        for wrong in wrong_bodies(resolved(&document, schema), &right, &judge) {
            let reply = sent(&app, key, route, &path, wrong.clone()).await;
            assert_eq!(
                reply.status, 400,
                "{} {} {wrong}: the document refuses it, the server answers {} {:?}",
                route.method, route.path, reply.status, reply.bytes
            );
            tried += 1;
        }
    }
    assert!(tried > 400, "{tried}");
    app.finish().await;
}

#[tokio::test]
async fn a_field_that_is_null_counts_as_absent() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let document = app.contract().document().clone();
    let (key, mut tried) = (&mine.team.key, 0);
    for route in guarded() {
        // A request can be answered only once. The kind of a provider can be omitted for well-known providers.
        if route.path.ends_with("/respond") || route.path.starts_with("/v1/providers/") {
            continue;
        }
        let Some(schema) = json_schema(&document, route) else {
            continue;
        };
        let judge = judge(&document, schema);
        let path = filled(route.path, |name| mine.id(name).to_owned());
        let right = body(route, mine.id("agent_id"));
        let fields = resolved(&document, schema)["properties"].as_object();
        for name in fields.into_iter().flatten().map(|(name, _)| name) {
            // A fork of a run that has ended requires a message.
            if route.path.ends_with("/fork") && name == "message" {
                continue;
            }
            let mut body = right.clone();
            body[name] = Value::Null;
            if judge.is_valid(&body) {
                let reply = sent(&app, key, route, &path, body).await;
                let answer = String::from_utf8_lossy(&reply.bytes);
                assert_ne!(
                    reply.status, 400,
                    "{} {path} {name}: {answer}",
                    route.method
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 40, "{tried}");
    app.finish().await;
}

/// Requests that the server refuses in any state; the document must refuse them too.
fn refused_by_the_server() -> Vec<(&'static str, &'static str, Value)> {
    let mut all = refused_runs_and_builds();
    all.extend(refused_configs());
    all.extend(refused_elsewhere());
    all
}

fn refused_runs_and_builds() -> Vec<(&'static str, &'static str, Value)> {
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}});
    vec![
        ("POST", "/v1/runs", json!({"agent_id": "x"})),
        (
            "POST",
            "/v1/runs",
            json!({"agent_id": NOBODY, "message": ""}),
        ),
        (
            "POST",
            "/v1/runs",
            json!({"agent_id": NOBODY, "sandbox_id": ""}),
        ),
        (
            "POST",
            "/v1/runs",
            json!({"agent_id": NOBODY, "webhook_url": ""}),
        ),
        (
            "POST",
            "/v1/runs",
            json!({"agent_id": NOBODY, "webhook_url": "ftp://example.com"}),
        ),
        (
            "POST",
            "/v1/runs",
            json!({"agent_id": NOBODY, "webhok_url": "https://example.com"}),
        ),
        (
            "POST",
            "/v1/runs",
            json!({"agent_id": NOBODY, "untrusted": true}),
        ),
        ("POST", "/v1/runs/stop", json!({"status": ["failed"]})),
        ("POST", "/v1/runs/stop", json!({})),
        ("POST", "/v1/runs/stop", json!({"status": null})),
        ("POST", "/v1/runs/stop", json!({"all": false})),
        ("POST", "/v1/runs/retry", json!({"status": ["running"]})),
        ("POST", "/v1/runs/retry", json!({"all": true, "limit": 0})),
        ("POST", "/v1/agents", json!({"name": "  "})),
        (
            "POST",
            "/v1/agents",
            json!({"name": "a", "build": {"name": "b", "config": {}}}),
        ),
        (
            "POST",
            "/v1/builds",
            json!({"agent_id": NOBODY, "name": "b", "config": {}}),
        ),
        (
            "POST",
            "/v1/builds",
            json!({"agent_id": NOBODY, "name": "b"}),
        ),
        (
            "POST",
            "/v1/builds",
            json!({"agent_id": NOBODY, "name": "b", "config": null}),
        ),
        (
            "POST",
            "/v1/builds",
            json!({"agent_id": NOBODY, "name": "b", "config": {"version": "v2", "data": {}}}),
        ),
        (
            "PATCH",
            "/v1/revisions/{build_id}",
            json!({"name": "a", "revision_name": "b"}),
        ),
        (
            "PATCH",
            "/v1/revisions/{build_id}",
            json!({"description": null, "revision_description": "b"}),
        ),
        (
            "POST",
            "/v1/builds",
            json!({"agent_id": NOBODY, "name": "b", "config": {"version": "v1", "data": {}}}),
        ),
        (
            "POST",
            "/v1/builds",
            json!({"agent_id": NOBODY, "name": "b", "config": config, "source_build_id": NOBODY}),
        ),
    ]
}

/// Bodies that create a build whose configuration has this `data`.
fn refused_configs() -> Vec<(&'static str, &'static str, Value)> {
    let wrong = [
        json!({"limits": {"steps": 0}}),
        json!({"limits": {"children": -1}}),
        json!({"limits": {"cost_usd": 0}}),
        json!({"limits": []}),
        json!({"human_requests": {"on_expire": "approve"}}),
        json!({"human_in_the_loop": "yes"}),
        json!({"tools": {"read_file": 1}}),
        json!({"connections": ["mail"]}),
        json!({"assignments": "all"}),
        json!({"playbook": 5}),
    ];
    let builds = wrong.map(|wrong| {
        let mut data = json!({"playbook": {"steps": [{"finish": "x"}]}});
        data.as_object_mut()
            .unwrap()
            .extend(wrong.as_object().unwrap().clone());
        let config = json!({"version": "v2", "data": data});
        let body = json!({"agent_id": NOBODY, "name": "b", "config": config});
        ("POST", "/v1/builds", body)
    });
    builds.into()
}

fn refused_elsewhere() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "POST",
            "/v1/webhooks",
            json!({"url": "https://example.com", "events": ["no_such"]}),
        ),
        (
            "POST",
            "/v1/webhooks",
            json!({"url": "https://example.com", "events": []}),
        ),
        ("POST", "/v1/webhooks", json!({"url": ""})),
        ("PATCH", "/v1/webhooks/{webhook_id}", json!({})),
        (
            "PATCH",
            "/v1/webhooks/{webhook_id}",
            json!({"url": null, "enabled": null}),
        ),
        (
            "POST",
            "/v1/secrets",
            json!({"name": "1A", "value": "twelve characters"}),
        ),
        (
            "POST",
            "/v1/secrets",
            json!({"name": "A".repeat(65), "value": "twelve characters"}),
        ),
        ("PATCH", "/v1/usage/limits", json!({"cost_usd_month": 0})),
        (
            "PUT",
            "/v1/providers/{provider}",
            json!({"kind": "no_such"}),
        ),
        (
            "POST",
            "/v1/api-keys",
            json!({"name": "a", "expires_at": "tomorrow"}),
        ),
        ("POST", "/v1/invitations", json!({"role": "guest"})),
        ("POST", "/v1/invitations", json!({"expires_at": "tomorrow"})),
        (
            "POST",
            "/v1/runs/{run_id}/fork",
            json!({"after_message": "1"}),
        ),
        ("POST", "/v1/runs/{run_id}/fork", json!({"build": "1"})),
        (
            "POST",
            "/v1/runs/{run_id}/human-requests/{request_id}/respond",
            json!({"approved": true, "answers": {}}),
        ),
        (
            "POST",
            "/v1/runs/{run_id}/human-requests/{request_id}/respond",
            json!({}),
        ),
        (
            "POST",
            "/v1/runs/{run_id}/human-requests/{request_id}/respond",
            json!({"answers": {}, "reason": "x"}),
        ),
    ]
}

const NOBODY: &str = "0198f2a4-7c1e-7000-8000-000000000001";

#[tokio::test]
async fn the_document_refuses_what_the_server_refuses() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let document = app.contract().document().clone();
    for (method, template, wrong) in refused_by_the_server() {
        let path = filled(template, |name| mine.id(name).to_owned());
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let reply = app
            .json(method.clone(), &mine.team.key, &path, wrong.clone(), &[])
            .await;
        assert_eq!(
            reply.status, 400,
            "{method} {path} {wrong}: {:?}",
            reply.bytes
        );
        let operation = &document["paths"][template][method.as_str().to_lowercase()];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert!(
            !judge(&document, schema).is_valid(&wrong),
            "{method} {template} {wrong}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn parameters_are_refused_as_the_document_says() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let document = app.contract().document().clone();
    let mut tried = 0;
    for route in guarded().filter(|route| route.method == Method::GET) {
        let operation = &document["paths"][route.path]["get"];
        let path = filled(route.path, |name| mine.id(name).to_owned());
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            if parameter["in"] != "query" {
                continue;
            }
            let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            let one = if schema["items"].is_object() {
                &schema["items"]
            } else {
                schema
            };
            let judge = judge(&document, one);
            for text in [
                "no-such-word",
                "",
                "-1",
                "0",
                "1000000",
                "1.5",
                "true",
                "%00",
            ] {
                let decoded = if text == "%00" { "\0" } else { text };
                // A parameter is text, so it is valid if any reading of it is.
                let readings = [Some(json!(decoded)), serde_json::from_str(decoded).ok()];
                if readings.iter().flatten().any(|value| judge.is_valid(value)) {
                    continue;
                }
                let rest = if name == "path" || !route.path.ends_with("/content") {
                    ""
                } else {
                    "&path=file"
                };
                let url = format!("{path}?{name}={text}{rest}");
                let reply = app.get(&mine.team.key, &url).await;
                assert_eq!(reply.status, 400, "{url}: the document refuses it");
                tried += 1;
            }
        }
    }
    assert!(tried > 80, "{tried}");
    app.finish().await;
}
