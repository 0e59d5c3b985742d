//! Every route of the table: without a key, with another team's IDs, with a wrong method, with an invalid body or
//! query; and the table compared with the OpenAPI document.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use errand::api::{Access, ROUTES, Route};
use errand_core::role::Role;
use errand_testkit::{Reply, Team, TestApp, TestOptions};
use http::Method;
use serde_json::{Value, json};

const NOBODY: &str = "0198f2a4-7c1e-7000-8000-000000000001";
const NO_SANDBOX: &str = "sb_00000000000000000000000000000000";

/// One object of each kind that a team can have.
pub(crate) struct Things {
    pub(crate) team: Team,
    ids: BTreeMap<&'static str, String>,
}

impl Things {
    pub(crate) async fn of(app: &TestApp, name: &str) -> Self {
        let team = app.team(name).await;
        let agent = app
            .playbook(
                &team,
                json!([{"approve": {"title": "Go on?"}}, {"finish": "done"}]),
            )
            .await;
        let sandbox = app.sandbox(&team).await;
        app.upload(&team.key, &sandbox, "file", "mine")
            .await
            .expect(201);
        let run = app
            .run(
                &team,
                json!({"agent_id": agent, "sandbox_id": sandbox, "message": "hello"}),
            )
            .await;
        app.settle().await;
        let request = app.get_run(&team, &run).await["pending_human_request"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let build = app
            .get(&team.key, &format!("/v1/agents/{agent}"))
            .await
            .expect(200)["build"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        app.post(
            &team.key,
            "/v1/secrets",
            json!({"name": format!("OF_{name}"), "value": "twelve characters"}),
        )
        .await
        .expect(201);
        let connection = app
            .post(&team.key, "/v1/connections", nowhere("mail"))
            .await
            .expect(201)["connection"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let key = app
            .post(&team.key, "/v1/api-keys", json!({"name": "spare"}))
            .await
            .expect(201)["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let (user, _) = app
            .person(&team, &format!("ann@{name}.example"), Role::Member)
            .await;
        let invitation = app
            .post(&team.key, "/v1/invitations", json!({}))
            .await
            .expect(201)["invitation"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        // Nothing listens there.
        let webhook = json!({"url": "http://127.0.0.1:9/hook", "enabled": false});
        let webhook = app
            .post(&team.key, "/v1/webhooks", webhook)
            .await
            .expect(201)["webhook"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = format!("/v1/webhooks/{webhook}/test");
        let delivery = app.post(&team.key, &path, json!({})).await.expect(201)["delivery"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        app.settle().await;
        let ids = BTreeMap::from([
            ("user_id", user.to_string()),
            ("invitation_id", invitation),
            ("webhook_id", webhook),
            ("delivery_id", delivery),
            ("run_id", run),
            ("request_id", request),
            ("sandbox_id", sandbox),
            ("agent_id", agent),
            ("build_id", build),
            ("key_id", key),
            ("provider", "mine".to_owned()),
            ("secret_name", format!("OF_{name}")),
            ("connection_id", connection),
        ]);
        Self { team, ids }
    }

    pub(crate) fn id(&self, name: &str) -> &str {
        &self.ids[name]
    }

    /// Everything that a reader of the team can see.
    async fn state(&self, app: &TestApp) -> Vec<Value> {
        let id = |name| self.id(name);
        let paths = [
            "/v1/runs?limit=100".to_owned(),
            format!("/v1/runs/{}", id("run_id")),
            format!("/v1/runs/{}/messages?limit=50", id("run_id")),
            "/v1/agents?limit=100".to_owned(),
            format!("/v1/agents/{}", id("agent_id")),
            format!("/v1/agents/{}/revisions?limit=100", id("agent_id")),
            format!("/v1/revisions/{}", id("build_id")),
            format!("/v1/sandboxes/{}/files", id("sandbox_id")),
            "/v1/api-keys?limit=100".to_owned(),
            "/v1/connections?limit=100".to_owned(),
            format!("/v1/connections/{}", id("connection_id")),
            "/v1/secrets?limit=100".to_owned(),
            "/v1/webhook-secret".to_owned(),
            "/v1/providers".to_owned(),
            "/v1/usage/limits".to_owned(),
            "/v1/human-requests?limit=100".to_owned(),
            "/v1/team".to_owned(),
            "/v1/members?limit=100".to_owned(),
            "/v1/invitations?limit=100".to_owned(),
            "/v1/webhooks?limit=100".to_owned(),
            format!("/v1/webhooks/{}/deliveries", id("webhook_id")),
            format!("/v1/runs/{}/deliveries", id("run_id")),
        ];
        let mut state = Vec::new();
        for path in paths {
            state.push(app.get(&self.team.key, &path).await.expect(200));
        }
        state
    }
}

/// The path with its IDs filled in; unknown ones stay.
pub(crate) fn filled(path: &str, id: impl Fn(&str) -> String) -> String {
    let part = |part: &str| {
        part.strip_prefix('{')
            .and_then(|p| p.strip_suffix('}'))
            .map_or_else(|| part.to_owned(), &id)
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn missing(name: &str) -> String {
    if name == "sandbox_id" {
        NO_SANDBOX.to_owned()
    } else {
        NOBODY.to_owned()
    }
}

/// The query that a route requires.
fn query(path: &str) -> &'static str {
    if path.ends_with("/files/content") {
        "?path=file"
    } else {
        ""
    }
}

fn says() -> Value {
    json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}})
}

/// A connection to a public address that does not answer.
fn nowhere(name: &str) -> Value {
    json!({"name": name, "transport": {"type": "http", "url": "https://mcp.invalid/mcp"}})
}

/// A valid body.
pub(crate) fn body(route: &Route, agent: &str) -> Value {
    match (route.method.as_str(), route.path) {
        ("POST", "/v1/runs") => json!({"agent_id": agent}),
        ("POST", "/v1/runs/stop" | "/v1/runs/retry") => json!({"all": true}),
        ("POST", "/v1/runs/{run_id}/messages" | "/v1/runs/{run_id}/fork") => {
            json!({"message": "hello"})
        }
        ("POST", path) if path.ends_with("/respond") => json!({"approved": true}),
        ("POST", path) if path.ends_with("/upload-urls") => json!({"path": "file"}),
        ("POST", "/v1/agents")
        | (
            "PATCH",
            "/v1/agents/{agent_id}" | "/v1/revisions/{build_id}" | "/v1/builds/{build_id}",
        ) => json!({"name": "new"}),
        ("POST", "/v1/builds" | "/v1/revisions") => {
            json!({"agent_id": agent, "name": "new", "config": says()})
        }
        ("POST", "/v1/agents/{agent_id}/revisions" | "/v1/agents/{agent_id}/builds") => {
            json!({"name": "new", "config": says()})
        }
        ("POST", path) if path.ends_with("/promote") => json!({"revision_name": "new"}),
        ("POST", "/v1/api-keys") => json!({"name": "new"}),
        ("PUT", "/v1/providers/{provider}") => json!({"kind": "openai", "api_key": "sk-new"}),
        ("PATCH", "/v1/usage/limits") => json!({"cost_usd_month": 10.0}),
        ("POST", "/v1/connections") => nowhere("more"),
        ("PATCH", "/v1/connections/{connection_id}") => json!({"trusted": true}),
        ("POST", "/v1/secrets") => json!({"name": "NEW", "value": "at least twelve"}),
        ("POST", "/v1/webhooks") => json!({"url": "http://127.0.0.1:9/new"}),
        ("PATCH", "/v1/webhooks/{webhook_id}") => json!({"enabled": true}),
        ("PATCH", "/v1/members/{user_id}") => json!({"role": "admin"}),
        ("POST", "/v1/invitations") => json!({"role": "member"}),
        _ => json!({}),
    }
}

fn is_upload(route: &Route) -> bool {
    (route.method == Method::POST && route.path.ends_with("/files"))
        || route.path.starts_with("/v1/uploads/")
}

/// Calls a route with a valid body.
async fn call(app: &TestApp, route: &Route, key: &str, path: &str, agent: &str) -> Reply {
    if is_upload(route) {
        let bearer = format!("Bearer {key}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/octet-stream"),
        ];
        return app
            .send(
                route.method.clone(),
                &format!("{path}?path=file"),
                &headers,
                Body::from("bad"),
            )
            .await;
    }
    match route.method {
        Method::GET => app.get(key, path).await,
        _ => {
            app.json(route.method.clone(), key, path, body(route, agent), &[])
                .await
        }
    }
}

pub(crate) fn generous() -> TestOptions {
    TestOptions {
        settings: vec![(
            "ERRAND_RATE_LIMIT__FAILED_AUTHENTICATIONS_PER_MINUTE",
            "100000".to_owned(),
        )],
        ..TestOptions::default()
    }
}

pub(crate) fn guarded() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.access != Access::Public)
}

fn has_ids(route: &Route) -> bool {
    route.path.contains('{')
}

#[tokio::test]
async fn without_a_key_nothing_is_revealed_or_changed() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let before = mine.state(&app).await;
    let unknown = app
        .send(Method::GET, "/v1/no-such-thing", &[], Body::empty())
        .await;
    let expected = unknown.error(401);
    for route in guarded() {
        let path = filled(route.path, |name| mine.id(name).to_owned()) + query(route.path);
        let bodies = [
            Body::from(body(route, mine.id("agent_id")).to_string()),
            Body::from("{"),
            Body::empty(),
        ];
        for body in bodies {
            let reply = app
                .send(
                    route.method.clone(),
                    &path,
                    &[("content-type", "application/json")],
                    body,
                )
                .await;
            assert_eq!(reply.error(401), expected, "{} {path}", route.method);
            assert_eq!(reply.header("content-type"), Some("application/json"));
        }
        for header in [
            "Bearer dv_00000000000000000000000000000000",
            "Bearer x",
            "Basic eDp5",
            "Bearer",
            "",
        ] {
            let reply = app
                .send(
                    route.method.clone(),
                    &path,
                    &[("authorization", header)],
                    Body::empty(),
                )
                .await;
            assert_eq!(
                reply.error(401),
                expected,
                "{} {path} {header}",
                route.method
            );
        }
    }
    for route in ROUTES
        .iter()
        .filter(|route| route.access == Access::Public && !has_ids(route))
    {
        // A browser that comes back without a sign-in gets an explanation.
        let is_callback = route.path == "/v1/sign-ins/callback";
        let reply = app.send(route.method.clone(), route.path, &[], Body::empty());
        assert_eq!(
            reply.await.status,
            if is_callback { 400 } else { 200 },
            "{}",
            route.path
        );
    }
    assert_eq!(mine.state(&app).await, before);
    app.finish().await;
}

#[tokio::test]
async fn objects_of_another_team_are_not_found() {
    let app = TestApp::start_with(generous()).await;
    let (mine, other) = (
        Things::of(&app, "acme").await,
        Things::of(&app, "other").await,
    );
    let (before, others) = (mine.state(&app).await, other.state(&app).await);
    let key = &other.team.key;
    // `PUT` with a name that the team chooses creates the object.
    let found = |route: &&Route| has_ids(route) && route.method != Method::PUT;
    for route in guarded().filter(found) {
        let theirs = filled(route.path, |name| mine.id(name).to_owned()) + query(route.path);
        let nobodys = filled(route.path, missing) + query(route.path);
        let agent = other.id("agent_id");
        let (theirs, nobodys) = (
            call(&app, route, key, &theirs, agent).await,
            call(&app, route, key, &nobodys, agent).await,
        );
        assert_eq!(
            theirs.error(404).0,
            "not_found",
            "{} {}",
            route.method,
            route.path
        );
        assert_eq!(
            (theirs.status, &theirs.bytes),
            (nobodys.status, &nobodys.bytes),
            "{} {}",
            route.method,
            route.path
        );
        for bad in [
            "x",
            "%00",
            "..%2f..",
            "0198f2a4-7c1e-7000-8000-00000000000",
            "sb_",
        ] {
            let path = filled(route.path, |_| bad.to_owned()) + query(route.path);
            let reply = call(&app, route, key, &path, agent).await;
            assert!(
                matches!(reply.status, 400 | 404),
                "{} {path}: {reply:?}",
                route.method
            );
            reply.error(reply.status);
        }
    }
    // The ID of another team in a body.
    for (path, rest) in [
        ("/v1/runs", json!({})),
        ("/v1/builds", json!({"name": "x", "config": says()})),
    ] {
        let with = |agent: &str| {
            let mut body = rest.clone();
            body["agent_id"] = json!(agent);
            body
        };
        let theirs = app.post(key, path, with(mine.id("agent_id"))).await;
        let nobodys = app.post(key, path, with(NOBODY)).await;
        assert_eq!(theirs.error(404), nobodys.error(404), "{path}");
    }
    let with = |sandbox: &str| json!({"agent_id": other.id("agent_id"), "sandbox_id": sandbox});
    let theirs = app
        .post(key, "/v1/runs", with(mine.id("sandbox_id")))
        .await
        .error(400);
    let nobodys = app.post(key, "/v1/runs", with(NO_SANDBOX)).await.error(400);
    let hidden = |(code, message): (String, String), id: &str| (code, message.replace(id, "ID"));
    assert_eq!(
        hidden(theirs, mine.id("sandbox_id")),
        hidden(nobodys, NO_SANDBOX)
    );

    assert_eq!(mine.state(&app).await, before);
    assert_eq!(other.state(&app).await, others);
    app.finish().await;
}

#[tokio::test]
async fn an_unsupported_method_is_refused_with_the_supported_ones() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let before = mine.state(&app).await;
    let mut methods: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for route in ROUTES {
        methods
            .entry(route.path)
            .or_default()
            .insert(route.method.as_str());
    }
    let bearer = format!("Bearer {}", mine.team.key);
    for (path, taken) in methods {
        let url = filled(path, |name| {
            mine.ids
                .get(name)
                .cloned()
                .unwrap_or_else(|| "token".to_owned())
        });
        for method in [
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
            Method::TRACE,
        ] {
            if taken.contains(method.as_str()) {
                continue;
            }
            let headers = [
                ("authorization", bearer.as_str()),
                ("content-type", "application/json"),
            ];
            let reply = app
                .send(method.clone(), &url, &headers, Body::from("{}"))
                .await;
            assert_eq!(reply.error(405).0, "method_not_allowed", "{method} {url}");
            let allow = reply
                .header("allow")
                .unwrap_or_else(|| panic!("{method} {url} has no allow"));
            let allowed: BTreeSet<&str> = allow
                .split(',')
                .map(str::trim)
                .filter(|m| *m != "HEAD")
                .collect();
            assert_eq!(allowed, taken, "{method} {url}");
        }
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/no-such-thing",
        "/v1/runs/",
        "/v1/agents/x/y/z",
        "/no-such-thing",
    ] {
        for method in [Method::GET, Method::POST] {
            let reply = app
                .send(
                    method.clone(),
                    path,
                    &[("authorization", bearer.as_str())],
                    Body::empty(),
                )
                .await;
            assert_eq!(reply.error(404).0, "not_found", "{method} {path}");
        }
    }
    assert_eq!(mine.state(&app).await, before);
    app.finish().await;
}

/// The description of a route's body in the document.
fn request_body<'d>(document: &'d Value, route: &Route) -> &'d Value {
    &document["paths"][route.path][route.method.as_str().to_lowercase()]["requestBody"]
}

/// Whether a route reads JSON, according to the document.
fn reads_json(document: &Value, route: &Route) -> bool {
    !request_body(document, route)["content"]["application/json"].is_null()
}

#[tokio::test]
async fn an_invalid_body_is_refused_and_changes_nothing() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let before = mine.state(&app).await;
    let bearer = format!("Bearer {}", mine.team.key);
    let broken: [&[u8]; 9] = [
        b"{",
        b"",
        b"[]",
        b"\"x\"",
        b"null",
        b"{\"a\": 1,}",
        b"\xff\xfe",
        b"{\"no_such_field_at_all\": 1}",
        b"{} {}",
    ];
    let mut seen = 0;
    for route in guarded().filter(|route| reads_json(app.contract().document(), route)) {
        seen += 1;
        let path = filled(route.path, |name| mine.id(name).to_owned());
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let is_required = request_body(app.contract().document(), route)["required"] == true;
        assert_eq!(
            is_required,
            !route.path.ends_with("/promote"),
            "{path}: what takes a body or none is known here"
        );
        for body in broken {
            let reply = app
                .send(route.method.clone(), &path, &headers, Body::from(body))
                .await;
            if !is_required && !body.starts_with(b"{") {
                // A body that is not an object counts as empty. The build is already live, so promoting it changes
                // nothing.
                reply.expect(200);
                continue;
            }
            assert_eq!(
                reply.error(400).0,
                "bad_request",
                "{} {path} {}",
                route.method,
                String::from_utf8_lossy(body)
            );
        }
        let mut fits = body(route, mine.id("agent_id"));
        fits["no_such_field_at_all"] = json!(1);
        let (_, message) = app
            .json(route.method.clone(), &mine.team.key, &path, fits, &[])
            .await
            .error(400);
        assert!(
            message.contains("no_such_field_at_all"),
            "{} {path}: {message}",
            route.method
        );
        let text = [
            ("authorization", bearer.as_str()),
            ("content-type", "text/plain"),
        ];
        let fits = body(route, mine.id("agent_id")).to_string();
        let reply = app
            .send(route.method.clone(), &path, &text, Body::from(fits))
            .await;
        assert_eq!(
            reply.error(415).0,
            "unsupported_media_type",
            "{} {path}",
            route.method
        );
        let large = format!("{{\"x\": \"{}\"}}", "x".repeat(4 * 1024 * 1024));
        let reply = app
            .send(route.method.clone(), &path, &headers, Body::from(large))
            .await;
        assert_eq!(
            reply.error(413).0,
            "payload_too_large",
            "{} {path}",
            route.method
        );
    }
    assert_eq!(
        seen,
        guarded()
            .filter(|route| body(route, "") != json!({}))
            .count(),
        "what reads JSON says so"
    );
    assert_eq!(mine.state(&app).await, before);
    app.finish().await;
}

#[tokio::test]
async fn an_unknown_parameter_is_named_and_changes_nothing() {
    let app = TestApp::start_with(generous()).await;
    let mine = Things::of(&app, "acme").await;
    let before = mine.state(&app).await;
    for route in guarded() {
        let known = query(route.path);
        let separator = if known.is_empty() { "?" } else { "&" };
        let path = filled(route.path, |name| mine.id(name).to_owned()) + known;
        let reply = if is_upload(route) {
            app.upload(
                &mine.team.key,
                mine.id("sandbox_id"),
                "file&no_such_parameter=1",
                "bad",
            )
            .await
        } else {
            call(
                &app,
                route,
                &mine.team.key,
                &format!("{path}{separator}no_such_parameter=1"),
                mine.id("agent_id"),
            )
            .await
        };
        let (code, message) = reply.error(400);
        assert_eq!(code, "bad_request");
        assert!(
            message.contains("no_such_parameter"),
            "{} {path}: {message}",
            route.method
        );
    }
    assert_eq!(mine.state(&app).await, before);
    app.finish().await;
}

#[tokio::test]
async fn a_call_that_takes_no_body_takes_any() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"fail": "no"}])).await;
    let bearer = format!("Bearer {}", team.key);
    for (kind, body) in [
        ("application/json", "{}"),
        ("application/json", "{broken"),
        ("text/plain", "x"),
        ("", ""),
    ] {
        let run = app.run(&team, json!({"agent_id": agent})).await;
        app.settle().await;
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let headers = if kind.is_empty() {
            &headers[..1]
        } else {
            &headers[..]
        };
        for (path, status) in [
            (format!("/v1/runs/{run}/retry"), 200),
            (format!("/v1/runs/{run}/stop"), 200),
            ("/v1/sandboxes".to_owned(), 201),
        ] {
            let reply = app
                .send(Method::POST, &path, headers, Body::from(body))
                .await;
            assert_eq!(reply.status, status, "{path} {kind} {body}");
            app.settle().await;
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn the_table_and_the_document_describe_the_same() {
    let app = TestApp::start().await;
    let paths = app.contract().document()["paths"].as_object().unwrap();
    let mut described = BTreeSet::new();
    for (path, item) in paths {
        for method in ["get", "post", "put", "patch", "delete", "head", "options"] {
            if !item[method].is_null() {
                described.insert((method.to_uppercase(), path.clone()));
            }
        }
    }
    let routes: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| (route.method.to_string(), route.path.to_owned()))
        .collect();
    assert_eq!(
        routes.len(),
        ROUTES.len(),
        "a route stands in the table twice"
    );
    assert_eq!(described, routes);
    for route in ROUTES {
        let operation = &paths[route.path][route.method.as_str().to_lowercase()];
        let parameters = operation["parameters"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let described: BTreeSet<_> = parameters
            .iter()
            .filter(|p| p["in"] == "query")
            .filter_map(|p| p["name"].as_str())
            .collect();
        let known: BTreeSet<_> = route.query.iter().copied().collect();
        assert_eq!(described, known, "{} {}", route.method, route.path);
    }
    app.finish().await;
}
