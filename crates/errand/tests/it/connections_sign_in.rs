//! Signing in to a connection's server, with a client that registers itself or a known one; refreshing tokens, and
//! their end.

use std::sync::{Arc, Mutex};

use errand_core::role::Role;
use errand_testkit::{Team, TestApp};
use http::Method;
use serde_json::{Value, json};
use url::Url;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::connections::options;
use crate::web::{Browser, between, form};

/// State of the authorization server, and its received requests.
#[derive(Default)]
struct Known {
    /// Number of issued token pairs. Only the last refresh token is valid.
    given: u32,
    /// All tokens are invalid, and none can be refreshed.
    withdrawn: bool,
    /// Access tokens up to this one are invalid but can be refreshed.
    revoked: u32,
    /// Lifetime of the first access token in seconds.
    first_expires_in: u32,
    registered: u32,
    refreshed: u32,
    /// The client secret in the last token request.
    secret: Option<String>,
    /// Number of executed tool calls.
    called: u32,
}

impl Known {
    fn access(&self) -> String {
        format!("the-access-token-{}", self.given)
    }

    fn refresh(&self) -> String {
        format!("the-refresh-token-{}", self.given)
    }

    fn tokens(&mut self, body: &[u8]) -> ResponseTemplate {
        let form: std::collections::HashMap<String, String> =
            url::form_urlencoded::parse(body).into_owned().collect();
        self.secret = form.get("client_secret").cloned();
        let refused =
            || ResponseTemplate::new(400).set_body_json(json!({"error": "invalid_grant"}));
        let mut expires_in = 3600;
        match form.get("grant_type").map(String::as_str) {
            Some("authorization_code") if form.contains_key("code_verifier") => {
                self.withdrawn = false;
                expires_in = self.first_expires_in;
            }
            // Each refresh token can be used once.
            Some("refresh_token") if !self.withdrawn && form["refresh_token"] == self.refresh() => {
                self.refreshed += 1;
            }
            _ => return refused(),
        }
        self.given += 1;
        ResponseTemplate::new(200).set_body_json(json!({
            "access_token": self.access(), "token_type": "bearer", "expires_in": expires_in,
            "refresh_token": self.refresh()}))
    }

    /// The protected resource: an MCP server that requires the access token.
    fn serve(&mut self, request: &Request) -> ResponseTemplate {
        let given = request.headers.get("authorization");
        let holds = |number: &u32| {
            given.is_some_and(|given| *given == format!("Bearer the-access-token-{number}"))
        };
        let known = (self.revoked + 1..=self.given).any(|number| holds(&number));
        if self.withdrawn || !known {
            return ResponseTemplate::new(401).insert_header("www-authenticate", "Bearer");
        }
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            return ResponseTemplate::new(405);
        };
        let tool = |name: &str, reads: bool| json!({"name": name, "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": reads, "destructiveHint": false}});
        let result = match body["method"].as_str() {
            Some("initialize") => {
                json!({"protocolVersion": body["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}})
            }
            Some("tools/list") => json!({"tools": [tool("look", true), tool("change", false)]}),
            Some("tools/call") => {
                self.called += 1;
                json!({"content": [{"type": "text", "text": "seen"}]})
            }
            _ => return ResponseTemplate::new(202),
        };
        ResponseTemplate::new(200)
            .set_body_json(json!({"jsonrpc": "2.0", "id": body["id"], "result": result}))
    }
}

/// An authorization server and a protected resource, as in OAuth 2.1.
pub(crate) struct Protected {
    pub(crate) server: MockServer,
    known: Arc<Mutex<Known>>,
}

impl Protected {
    pub(crate) async fn start(registers: bool) -> Self {
        let server = MockServer::start().await;
        let known = Arc::new(Mutex::new(Known {
            first_expires_in: 3600,
            ..Known::default()
        }));
        let url = server.uri();
        let resource = json!({"resource": format!("{url}/mcp"), "authorization_servers": [url]});
        let mut metadata = json!({
            "issuer": url, "authorization_endpoint": format!("{url}/authorize"), "token_endpoint": format!("{url}/token"),
            "response_types_supported": ["code"], "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"], "token_endpoint_auth_methods_supported": ["none"]});
        if registers {
            metadata["registration_endpoint"] = json!(format!("{url}/register"));
        } else {
            metadata["token_endpoint_auth_methods_supported"] = json!(["client_secret_post"]);
        }
        for (at, body) in [
            ("/.well-known/oauth-protected-resource", &resource),
            ("/.well-known/oauth-protected-resource/mcp", &resource),
            ("/.well-known/oauth-authorization-server", &metadata),
        ] {
            Mock::given(path(at))
                .respond_with(ResponseTemplate::new(200).set_body_json(body))
                .mount(&server)
                .await;
        }
        let state = Arc::clone(&known);
        Mock::given(method("POST"))
            .and(path("/register"))
            .respond_with(move |request: &Request| {
                state.lock().unwrap().registered += 1;
                let mut body: Value = serde_json::from_slice(&request.body).unwrap();
                body["client_id"] = json!("client-1");
                ResponseTemplate::new(201).set_body_json(body)
            })
            .mount(&server)
            .await;
        let state = Arc::clone(&known);
        Mock::given(path("/token"))
            .respond_with(move |request: &Request| state.lock().unwrap().tokens(&request.body))
            .mount(&server)
            .await;
        let state = Arc::clone(&known);
        Mock::given(path("/mcp"))
            .respond_with(move |request: &Request| state.lock().unwrap().serve(request))
            .mount(&server)
            .await;
        Self { server, known }
    }

    fn transport(&self) -> Value {
        json!({"type": "http", "url": format!("{}/mcp", self.server.uri())})
    }
}

/// A connection of a team, and its sign-in.
struct Kept<'a> {
    app: &'a TestApp,
    team: &'a Team,
    id: String,
}

impl<'a> Kept<'a> {
    async fn new(app: &'a TestApp, team: &'a Team, transport: Value) -> Self {
        let body = json!({"name": "kept", "transport": transport});
        let made = app.post(&team.key, "/v1/connections", body).await;
        let id = made.expect(201)["connection"]["id"].clone();
        let id = id.as_str().unwrap().to_owned();
        Self { app, team, id }
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/connections/{}{rest}", self.id)
    }

    async fn probe(&self) -> Value {
        let path = self.path("/probe");
        let probed = self.app.post(&self.team.key, &path, json!({})).await;
        probed.expect(200)
    }

    /// Starts a sign-in and returns the URL that the person visits.
    async fn begin(&self) -> Url {
        let path = self.path("/authorize");
        let begun = self.app.post(&self.team.key, &path, json!({})).await;
        let begun = begun.expect(200);
        Url::parse(begun["authorization_url"].as_str().unwrap()).unwrap()
    }

    /// The browser returns from the authorization server.
    async fn come_back(&self, from: &Url, state: &str) -> errand_testkit::Reply {
        let callback = Url::parse(&pair(from, "redirect_uri")).unwrap();
        let back = format!("{}?code=c&state={state}", callback.path());
        let body = axum::body::Body::empty();
        let asked = self.app.send(Method::GET, &back, &[], body).await;
        let page = String::from_utf8_lossy(&asked.bytes).into_owned();
        let Some(action) = between(&page, "<form method=\"post\" action=\"", "\"") else {
            return asked;
        };
        for said in ["acme", "owner@acme.example", "kept", "/mcp"] {
            assert!(page.contains(said), "{said}: {page}");
        }
        // The person confirms.
        let fields = form(&[("code", "c"), ("state", state)]);
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let sent = self.app.send(Method::POST, action, &headers, fields.into());
        sent.await
    }

    async fn sign_in(&self) {
        let at = self.begin().await;
        let back = self.come_back(&at, &pair(&at, "state")).await;
        let said = String::from_utf8_lossy(&back.bytes).into_owned();
        assert_eq!(back.status, 200, "{said}");
        assert_eq!(self.probe().await["error"], Value::Null);
    }

    /// Starts a run of these steps.
    async fn start(&self, steps: Value) -> String {
        let tools = json!({"kept__look": "allow", "kept__change": "allow"});
        let data = json!({"connections": [self.id], "tools": tools, "playbook": {"steps": steps}});
        let config = json!({"version": "v2", "data": data});
        let agent = self.app.agent(self.team, config).await;
        self.app.run(self.team, json!({"agent_id": agent})).await
    }

    /// The results of a completed run's calls.
    async fn results(&self, run: &str) -> Vec<Value> {
        let got = self.app.get_run(self.team, run).await;
        assert_eq!(got["run"]["status"], "completed", "{got}");
        let messages = self.app.messages(self.team, run).await;
        let results = messages.iter().filter(|m| m["type"] == "tool_result");
        results.map(|m| m["tool_result"].clone()).collect()
    }
}

fn pair(url: &Url, name: &str) -> String {
    let mut pairs = url.query_pairs();
    let found = pairs.find(|(known, _)| known == name);
    found
        .map(|(_, value)| value.into_owned())
        .unwrap_or_else(|| panic!("{name}: {url}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_signs_in_and_its_tokens_are_encrypted() {
    let server = Protected::start(true).await;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    let kept = Kept::new(&app, &team, server.transport()).await;
    let error = kept.probe().await["error"].as_str().unwrap().to_owned();
    assert!(error.contains("/authorize"), "{error}");
    app.post(&member, &kept.path("/authorize"), json!({}))
        .await
        .error(403);
    let url = kept.begin().await;
    assert_eq!(
        (url.path(), pair(&url, "client_id").as_str()),
        ("/authorize", "client-1")
    );
    assert_eq!(pair(&url, "code_challenge_method"), "S256");
    // The browser returns. A wrong state, or a second use, is refused.
    let state = pair(&url, "state");
    let reply = kept.come_back(&url, &state).await;
    let said = String::from_utf8_lossy(&reply.bytes).into_owned();
    assert_eq!(reply.status, 200, "{said}");
    kept.come_back(&url, &state).await.error(404);
    let other = kept.begin().await;
    assert_eq!(pair(&other, "redirect_uri"), pair(&url, "redirect_uri"));
    assert!(pair(&url, "redirect_uri").ends_with("/v1/sign-ins/callback"));
    kept.come_back(&other, "wrong").await.error(404);

    let probed = kept.probe().await;
    assert_eq!(probed["error"], Value::Null, "{probed}");
    assert_eq!(probed["connection"]["tools"][0]["name"], "kept__look");
    let issuer = probed["connection"]["sign_in"]["issuer"].as_str().unwrap();
    assert_eq!(issuer.trim_end_matches('/'), server.server.uri());
    assert!(!probed.to_string().contains("the-access-token"));
    let dir = app.dir().to_owned();
    app.finish().await;
    for file in ["errand.db", "errand.db-wal"] {
        if let Ok(bytes) = std::fs::read(dir.join(file)) {
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains("the-access-token") && !text.contains("the-refresh-token"));
        }
    }
}

/// The redirect URI and the state of a sign-in.
fn back(url: &Url) -> String {
    let callback = Url::parse(&pair(url, "redirect_uri")).unwrap();
    format!("{}?code=c&state={}", callback.path(), pair(url, "state"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_completes_for_its_starter_or_a_confirmer() {
    let server = Protected::start(true).await;
    let app = TestApp::start_with(options(None)).await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "ben@acme.example", Role::Admin).await;
    let ben = Browser::of(&app, "ben@acme.example").await;
    let kept = Kept::new(&app, &team, server.transport()).await;
    let is_signed_in = async || {
        let got = app.get(&team.key, &kept.path("")).await.expect(200);
        !got["connection"]["sign_in"].is_null()
    };
    // Started over the API: the browser of the person who was sent there does not complete it without a confirmation,
    // nor from another site.
    let url = kept.begin().await;
    let page = ben.get(&back(&url)).await.ok();
    assert!(page.contains("owner@acme.example"), "{page}");
    assert!(!is_signed_in().await);
    let action = between(&page, "<form method=\"post\" action=\"", "\"").unwrap();
    let fields = form(&[("code", "c"), ("state", &pair(&url, "state"))]);
    let headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("sec-fetch-site", "cross-site"),
    ];
    let sent = app.send(Method::POST, action, &headers, fields.into());
    assert_eq!(sent.await.status, 403);
    assert!(!is_signed_in().await);
    // Started in the web interface: nobody else can complete it, with or without a confirmation.
    let begun = |page: &str| {
        let link = between(page, "id=\"sign-in\" href=\"", "\"").unwrap();
        Url::parse(&link.replace("&amp;", "&")).unwrap()
    };
    let sign_in = format!("/connections/{}/sign-in", kept.id);
    let url = begun(&owner.post(&sign_in, &[]).await.ok());
    let refused = ben.get(&back(&url)).await.refused(403);
    assert!(refused.contains("started by another person"), "{refused}");
    let callback = Url::parse(&pair(&url, "redirect_uri")).unwrap();
    let confirm = callback.path().trim_start_matches("/v1").to_owned();
    let fields = [("code", "c"), ("state", &*pair(&url, "state"))];
    ben.post(&confirm, &fields).await.refused(404);
    assert!(!is_signed_in().await);
    let page = owner.get(&back(&url)).await.ok();
    assert!(page.contains("Signed in") && is_signed_in().await);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_never_sent_to_a_changed_server() {
    let (one, other) = (Protected::start(true).await, Protected::start(true).await);
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let kept = Kept::new(&app, &team, one.transport()).await;
    let url = kept.begin().await;
    app.patch(
        &team.key,
        &kept.path(""),
        json!({"transport": other.transport()}),
    )
    .await
    .expect(200);
    let state = pair(&url, "state");
    assert_eq!(kept.come_back(&url, &state).await.status, 400);
    let got = app.get(&team.key, &kept.path("")).await.expect(200);
    assert_eq!(got["connection"]["sign_in"], Value::Null);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_tokens_are_refreshed_and_the_call_continues() {
    let server = Protected::start(true).await;
    server.known.lock().unwrap().first_expires_in = 0;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let kept = Kept::new(&app, &team, server.transport()).await;
    // Expired when issued: the first use refreshes it.
    kept.sign_in().await;
    assert!(server.known.lock().unwrap().refreshed > 0);
    let look = json!([{"tool": "kept__look"}, {"tool": "kept__change"}]);
    let run = kept.start(look.clone()).await;
    app.settle().await;
    let results = kept.results(&run).await;
    assert!(results.iter().all(|r| r["result"] == "seen"), "{results:?}");
    // The server revokes the token early: two concurrent runs that notice it use the refresh token once.
    let before = {
        let mut known = server.known.lock().unwrap();
        known.revoked = known.given;
        known.refreshed
    };
    let (one, two) = (kept.start(look.clone()).await, kept.start(look).await);
    app.settle().await;
    for run in [one, two] {
        let results = kept.results(&run).await;
        assert!(results.iter().all(|r| r["result"] == "seen"), "{results:?}");
    }
    let known = |of: &dyn Fn(&Known) -> u32| of(&server.known.lock().unwrap());
    assert!(known(&|k| k.refreshed) > before);
    assert_eq!(known(&|k| k.called), 6, "each call was carried out once");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_tokens_ask_for_a_new_sign_in() {
    let server = Protected::start(true).await;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let kept = Kept::new(&app, &team, server.transport()).await;
    kept.sign_in().await;
    let steps = json!([
        {"tool": "kept__look"},
        {"approve": {"title": "Go on?"}},
        {"tool": "kept__change", "on_error": "continue"}]);
    let run = kept.start(steps.clone()).await;
    app.settle().await;
    // During a session, the server's refusal does not leave the call in doubt.
    server.known.lock().unwrap().withdrawn = true;
    crate::connections::respond(&app, &team, &run, json!({"approved": true})).await;
    let results = kept.results(&run).await;
    assert_eq!(results[0]["result"], "seen");
    let error = results[1]["error"].as_str().unwrap();
    assert!(
        error.starts_with("unavailable: ") && error.contains("sign in again"),
        "{error}"
    );
    // At the start of a session, and in a probe.
    let error = kept.probe().await["error"].as_str().unwrap().to_owned();
    assert!(error.contains("sign in again"), "{error}");
    let fails = kept.start(json!([{"tool": "kept__change"}])).await;
    app.settle().await;
    let got = app.get_run(&team, &fails).await;
    assert_eq!(got["run"]["status"], "failed", "{got}");
    let message = got["run"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("sign in again"), "{message}");
    assert_eq!(server.known.lock().unwrap().called, 1);
    // After signing in again, it works.
    kept.sign_in().await;
    let path = format!("/v1/runs/{fails}/retry");
    app.post(&team.key, &path, json!({})).await.expect(200);
    app.settle().await;
    assert_eq!(app.status(&team, &fails).await, "completed");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_out_takes_effect_immediately() {
    let server = Protected::start(true).await;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    let kept = Kept::new(&app, &team, server.transport()).await;
    kept.sign_in().await;
    let steps = json!([
        {"tool": "kept__look"},
        {"approve": {"title": "Go on?"}},
        {"tool": "kept__look", "on_error": "continue"}]);
    let run = kept.start(steps).await;
    app.settle().await;
    let path = kept.path("/sign-in");
    app.delete(&member, &path).await.error(403);
    assert_eq!(app.delete(&team.key, &path).await.status, 204);
    assert_eq!(app.delete(&team.key, &path).await.status, 204);
    let got = app.get(&team.key, &kept.path("")).await.expect(200);
    assert_eq!(got["connection"]["sign_in"], Value::Null);
    assert!(
        got["connection"]["tools"].is_array(),
        "what it offers is known"
    );
    // A later call has no session any more, either.
    crate::connections::respond(&app, &team, &run, json!({"approved": true})).await;
    let results = kept.results(&run).await;
    let error = results[1]["error"].as_str().unwrap();
    assert!(error.contains("sign in again"), "{error}");
    assert_eq!(server.known.lock().unwrap().called, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_known_there_signs_in_with_its_secret() {
    let server = Protected::start(false).await;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let secret = "a-secret-of-the-client";
    let body = json!({"name": "CLIENT", "value": secret});
    app.post(&team.key, "/v1/secrets", body).await.expect(201);
    let mut transport = server.transport();
    for (client, word) in [
        (json!({"client_id": ""}), "client_id"),
        (
            json!({"client_id": "known", "client_secret": secret}),
            "{{ secret.NAME }}",
        ),
        (
            json!({"client_id": "known", "client_secret": "x{{ secret.CLIENT }}"}),
            "{{ secret.NAME }}",
        ),
        (
            json!({"client_id": "known", "client_secret": "{{ secret.NONE }}"}),
            "the secret NONE does not exist",
        ),
    ] {
        transport["oauth_client"] = client;
        let body = json!({"name": "kept", "transport": transport});
        let (_, message) = app
            .post(&team.key, "/v1/connections", body)
            .await
            .error(400);
        assert!(
            message.contains(word) && !message.contains(secret),
            "{message}"
        );
    }
    transport["oauth_client"] =
        json!({"client_id": "known", "client_secret": "{{ secret.CLIENT }}"});
    server.known.lock().unwrap().first_expires_in = 0;
    let kept = Kept::new(&app, &team, transport.clone()).await;
    let url = kept.begin().await;
    assert_eq!(pair(&url, "client_id"), "known");
    let back = kept.come_back(&url, &pair(&url, "state")).await;
    assert_eq!(back.status, 200);
    let known = |of: &dyn Fn(&Known) -> bool| of(&server.known.lock().unwrap());
    assert!(known(
        &|k| k.registered == 0 && k.secret.as_deref() == Some(secret)
    ));
    // So it refreshes.
    server.known.lock().unwrap().secret = None;
    let probed = kept.probe().await;
    assert_eq!(probed["error"], Value::Null, "{probed}");
    assert!(known(
        &|k| k.refreshed > 0 && k.secret.as_deref() == Some(secret)
    ));
    let shown = &probed["connection"]["transport"]["oauth_client"];
    assert_eq!(*shown, transport["oauth_client"]);
    assert!(!probed.to_string().contains(secret));
    app.finish().await;
}
