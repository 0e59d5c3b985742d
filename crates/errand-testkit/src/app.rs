//! [`TestApp`]: the whole program in one process, on a temporary directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use errand::app::{App, Ingredients};
use errand::config::{self, Config, Flags};
use errand_core::id::{IdGen, TeamId, UserId};
use errand_core::role::Role;
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_engine::model::Models;
use errand_engine::tool::Tools;
use errand_store::{Idempotent, NewApiKey, NewTeam, NewUser, Store, Trial};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::contract::Contract;
use crate::script::ScriptedModel;
use crate::tools::OutsideTool;

/// The start of every manual clock: 2026-11-23T09:30:00Z.
const BEGIN_MS: i64 = 1_795_426_200_000;

/// Maximum attempts to start while the directory seems to be in use.
const STARTS_MAX: u32 = 100;

/// Options for an app.
#[derive(Clone, Default)]
pub struct TestOptions {
    /// Settings as environment variables, such as `ERRAND_ENGINE__MAX_CONCURRENT_RUNS`.
    pub settings: Vec<(&'static str, String)>,
    /// Content of the settings file.
    pub file: Option<String>,
    /// Use the system clock instead of a manual one.
    pub system_clock: bool,
    /// The `errand` binary that isolates commands of `run_command`. `None`: `run_command` is [`OutsideTool::payment`].
    pub helper: Option<PathBuf>,
    /// Faults to inject into the store.
    pub trial: Trial,
}

/// The program under test.
pub struct TestApp {
    app: Option<App>,
    router: Router,
    dir: Arc<TempDir>,
    clock: Clock,
    options: TestOptions,
    ids: Arc<IdGen>,
    starts: u8,
    contract: Arc<Contract>,
    /// The model behind `script/NAME`.
    pub model: ScriptedModel,
    /// The tool that replaces `run_command`.
    pub payment: OutsideTool,
}

/// A complete HTTP response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: bytes::Bytes,
}

impl Reply {
    /// The body as JSON; null if it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// Asserts the status and returns the body as JSON.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
        self.json()
    }

    /// Asserts the status and returns the error's code and message.
    pub fn error(&self, status: u16) -> (String, String) {
        let body = self.expect(status);
        let text = |name: &str| {
            body[name]
                .as_str()
                .unwrap_or_else(|| panic!("an error has {name}: {body}"))
                .to_owned()
        };
        (text("error"), text("message"))
    }

    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// A team, its owner and the owner's API key.
#[derive(Clone, Debug)]
pub struct Team {
    pub id: TeamId,
    pub owner: UserId,
    pub key: String,
}

/// A data directory with one team, left by an orderly shutdown. Starting apps from copies of it saves the setup.
pub struct Prepared {
    dir: Arc<TempDir>,
    contract: Arc<Contract>,
    pub team: Team,
}

impl Prepared {
    pub async fn new() -> Self {
        let app = TestApp::start().await;
        let team = app.team("acme").await;
        let (dir, contract) = (Arc::clone(&app.dir), Arc::clone(&app.contract));
        app.finish().await;
        let prepared = Self {
            dir,
            contract,
            team,
        };
        until_released(prepared.dir.path()).await;
        prepared
    }
}

impl TestApp {
    /// Starts with a manual clock; webhooks to private networks are allowed.
    pub async fn start() -> Self {
        Self::start_with(TestOptions::default()).await
    }

    /// Starts with these settings, as environment variables.
    pub async fn with_settings(settings: &[(&'static str, &str)]) -> Self {
        let settings = settings.iter();
        let settings = settings.map(|(name, value)| (*name, (*value).to_owned()));
        Self::start_with(TestOptions {
            settings: settings.collect(),
            ..TestOptions::default()
        })
        .await
    }

    pub async fn start_with(options: TestOptions) -> Self {
        let begin = Timestamp::from_millis(BEGIN_MS);
        let clock = if options.system_clock {
            Clock::System
        } else {
            Clock::manual(begin)
        };
        let dir = Arc::new(TempDir::new().unwrap());
        let (model, payment) = (ScriptedModel::default(), OutsideTool::payment());
        let ids = Arc::new(IdGen::new([99; 32]));
        let app = launch(dir.path(), &clock, &options, 1, (&model, &payment)).await;
        let router = app.router();
        let document = call(
            &router,
            Method::GET,
            "/v1/documentation/json",
            &[],
            Body::empty(),
        )
        .await;
        let contract = Arc::new(Contract::new(document.expect(200)));
        Self {
            app: Some(app),
            router,
            dir,
            clock,
            options,
            ids,
            starts: 1,
            contract,
            model,
            payment,
        }
    }

    /// Starts on a copy of a prepared directory, with another seed for ids than the preparation had.
    pub async fn start_from(prepared: &Prepared, options: TestOptions) -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        for entry in std::fs::read_dir(prepared.dir.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
            }
        }
        let clock = Clock::manual(Timestamp::from_millis(BEGIN_MS));
        let mut app = Self {
            app: None,
            router: Router::new(),
            dir,
            clock,
            options,
            ids: Arc::new(IdGen::new([98; 32])),
            starts: 1,
            contract: Arc::clone(&prepared.contract),
            model: ScriptedModel::default(),
            payment: OutsideTool::payment(),
        };
        app.come_back().await.expect("an app that starts");
        app
    }

    /// Ends like a crash, and starts again on the same directory.
    pub async fn crash(&mut self) {
        self.die().await;
        self.come_back().await.expect("an app that starts");
    }

    /// Ends like a crash. When this returns, nothing of the app is left in this process.
    pub async fn die(&mut self) {
        if let Some(app) = self.app.take() {
            app.crash();
        }
        self.router = Router::new();
        until_released(self.dir.path()).await;
    }

    /// Starts again on the same directory. Can be repeated after an error.
    ///
    /// # Errors
    /// The reason why the app did not start.
    pub async fn come_back(&mut self) -> Result<(), String> {
        self.starts += 1;
        let mut tries = 0;
        let app = loop {
            let (dir, starts) = (self.dir.path(), self.starts);
            let parts = (&self.model, &self.payment);
            let app = try_launch(dir, &self.clock, &self.options, starts, parts).await;
            tries += 1;
            match app {
                // A process that another test forks inherits this process's open files until it calls `exec`, so for a
                // moment the lock seems to be held although no one uses the directory.
                Err(why) if why.contains("in use by another") && tries < STARTS_MAX => {
                    until_released(dir).await;
                }
                app => break app,
            }
        };
        match app {
            Ok(app) => {
                self.router = app.router();
                self.app = Some(app);
                Ok(())
            }
            Err(why) => {
                until_released(self.dir.path()).await;
                Err(why)
            }
        }
    }

    /// Waits until the app cannot continue, and returns the reason.
    pub async fn ended(&mut self) -> String {
        self.app.as_mut().expect("an app that runs").ended().await
    }

    /// Shuts down in order. Clones of its store may outlive the app.
    pub async fn stop(&mut self) {
        self.router = Router::new();
        if let Some(app) = self.app.take() {
            app.shut_down().await;
        }
    }

    /// Stops in order, and starts again on the same directory.
    pub async fn stop_and_start(&mut self) {
        self.stop().await;
        until_released(self.dir.path()).await;
        self.come_back().await.expect("an app that starts");
    }

    #[must_use]
    pub fn app(&self) -> &App {
        self.app.as_ref().expect("an app that runs")
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        self.app().store()
    }

    /// The URL that the app listens on.
    #[must_use]
    pub fn url(&self) -> &str {
        self.app().url()
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Moves the clock, and waits until everything that became due is done.
    pub async fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.settle().await;
    }

    /// The OpenAPI document of the app, which checks responses.
    #[must_use]
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Creates a team with an owner and an API key.
    pub async fn team(&self, name: &str) -> Team {
        let now = self.now();
        let (id, owner) = (self.ids.team(now), self.ids.user(now));
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw0123456789A=".to_owned();
        let store = self.store();
        store
            .create_user(NewUser {
                id: owner,
                email: format!("owner@{name}.example"),
                now,
            })
            .await
            .unwrap();
        store
            .create_team(NewTeam {
                id,
                name: name.to_owned(),
                owner,
                secret,
                now,
            })
            .await
            .unwrap();
        let key = self.key(id, owner).await;
        Team { id, owner, key }
    }

    /// Adds a person to a team, and returns the user and an API key.
    pub async fn person(&self, team: &Team, email: &str, role: Role) -> (UserId, String) {
        let now = self.now();
        let user = self.ids.user(now);
        self.store()
            .create_user(NewUser {
                id: user,
                email: email.to_owned(),
                now,
            })
            .await
            .unwrap();
        self.store()
            .add_member(team.id, user, role, Role::Owner, now)
            .await
            .unwrap();
        (user, self.key(team.id, user).await)
    }

    /// Creates an API key for a person.
    pub async fn key(&self, team: TeamId, user: UserId) -> String {
        let now = self.now();
        let id = self.ids.api_key(now);
        let random = self.ids.message(now).as_uuid().simple().to_string();
        let key = format!("dv_{random}");
        let new = NewApiKey {
            id,
            team,
            created_by: user,
            name: "test".to_owned(),
            prefix: key.chars().take(8).collect(),
            hash: sha256(key.as_bytes()),
            expires_at: None,
            not_after: None,
            now,
        };
        self.store()
            .create_api_key(new, Idempotent::not_recorded())
            .await
            .unwrap();
        key
    }

    /// Sends a GET. Like all calls here, the response is checked against the OpenAPI document.
    pub async fn get(&self, key: &str, path: &str) -> Reply {
        self.send(
            Method::GET,
            path,
            &[("authorization", &format!("Bearer {key}"))],
            Body::empty(),
        )
        .await
    }

    /// Sends a POST with JSON.
    pub async fn post(&self, key: &str, path: &str, body: Value) -> Reply {
        self.json(Method::POST, key, path, body, &[]).await
    }

    /// Sends JSON with additional headers.
    pub async fn json(
        &self,
        method: Method,
        key: &str,
        path: &str,
        body: Value,
        headers: &[(&str, &str)],
    ) -> Reply {
        let bearer = format!("Bearer {key}");
        let mut all = vec![
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        all.extend_from_slice(headers);
        self.send(method, path, &all, Body::from(body.to_string()))
            .await
    }

    /// Sends any request, and checks the response against the OpenAPI document.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Reply {
        let reply = call(&self.router, method.clone(), path, headers, body).await;
        let is_json = reply
            .header("content-type")
            .is_some_and(|t| t.starts_with("application/json"));
        let json = is_json.then(|| reply.json());
        if path.starts_with("/v1/") && !path.starts_with("/v1/documentation") {
            self.contract
                .check(method.as_str(), path, reply.status, json.as_ref());
        }
        reply
    }

    /// Sends a PATCH with JSON.
    pub async fn patch(&self, key: &str, path: &str, body: Value) -> Reply {
        self.json(Method::PATCH, key, path, body, &[]).await
    }

    /// Sends a DELETE.
    pub async fn delete(&self, key: &str, path: &str) -> Reply {
        self.send(
            Method::DELETE,
            path,
            &[("authorization", &format!("Bearer {key}"))],
            Body::empty(),
        )
        .await
    }

    /// Creates a sandbox and returns its id.
    pub async fn sandbox(&self, team: &Team) -> String {
        let reply = self
            .post(&team.key, "/v1/sandboxes", json!({}))
            .await
            .expect(201);
        reply["sandbox_id"].as_str().unwrap().to_owned()
    }

    /// Uploads a raw body directly. `path`: percent-encoded for the query.
    pub async fn upload(
        &self,
        key: &str,
        sandbox: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> Reply {
        let bearer = format!("Bearer {key}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/octet-stream"),
        ];
        self.send(
            Method::POST,
            &format!("/v1/sandboxes/{sandbox}/files?path={path}"),
            &headers,
            body.into(),
        )
        .await
    }

    /// The directory of a sandbox's files. It is created with the first file.
    #[must_use]
    pub fn sandbox_dir(&self, sandbox: &str) -> std::path::PathBuf {
        self.dir().join("sandboxes").join(sandbox)
    }

    /// Changes a setting from the next start on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.options.settings.retain(|(known, _)| *known != name);
        self.options.settings.push((name, value.to_owned()));
    }

    /// Changes the settings file from the next start on.
    pub fn set_file(&mut self, file: String) {
        self.options.file = Some(file);
    }

    /// Changes the binary that isolates commands from the next start on.
    pub fn set_helper(&mut self, helper: Option<PathBuf>) {
        self.options.helper = helper;
    }

    /// Creates an agent with a build and returns the agent's id.
    pub async fn agent(&self, team: &Team, config: Value) -> String {
        let body = json!({"name": "test", "build": {"name": "first", "config": config}});
        let reply = self.post(&team.key, "/v1/agents", body).await.expect(201);
        reply["agent"]["id"].as_str().unwrap().to_owned()
    }

    /// Creates an agent that follows a playbook and returns its id.
    pub async fn playbook(&self, team: &Team, steps: Value) -> String {
        self.agent(
            team,
            json!({"version": "v2", "data": {"playbook": {"steps": steps}}}),
        )
        .await
    }

    /// Starts a run and returns its id.
    pub async fn run(&self, team: &Team, body: Value) -> String {
        let reply = self.post(&team.key, "/v1/runs", body).await.expect(201);
        reply["run"]["id"].as_str().unwrap().to_owned()
    }

    /// Stops a run.
    pub async fn stop_run(&self, team: &Team, run: &str) {
        let path = format!("/v1/runs/{run}/stop");
        self.post(&team.key, &path, json!({})).await.expect(200);
    }

    /// Sends a message to a run.
    pub async fn message(&self, team: &Team, run: &str, text: &str) {
        let path = format!("/v1/runs/{run}/messages");
        let body = json!({"message": text});
        self.post(&team.key, &path, body).await.expect(201);
    }

    /// Answers the pending request of a run. `answer`: the body, such as `{"approved": true}`.
    pub async fn answer(&self, team: &Team, run: &str, answer: Value) {
        let got = self.get_run(team, run).await;
        let request = got["pending_human_request"]["id"].as_str();
        let request = request.unwrap_or_else(|| panic!("no request is pending: {got}"));
        let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
        self.post(&team.key, &path, answer).await.expect(200);
    }

    /// A run as `GET` returns it: `{run, pending_human_request}`.
    pub async fn get_run(&self, team: &Team, run: &str) -> Value {
        self.get(&team.key, &format!("/v1/runs/{run}"))
            .await
            .expect(200)
    }

    pub async fn status(&self, team: &Team, run: &str) -> String {
        self.get_run(team, run).await["run"]["status"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// All messages of a run, up to 500.
    pub async fn messages(&self, team: &Team, run: &str) -> Vec<Value> {
        let mut all = Vec::new();
        for page in 0..10 {
            let path = format!("/v1/runs/{run}/messages?limit=50&offset={}", page * 50);
            let reply = self.get(&team.key, &path).await.expect(200);
            all.extend(reply["messages"].as_array().unwrap().iter().cloned());
            if all.len() as u64 >= reply["total"].as_u64().unwrap() {
                break;
            }
        }
        all
    }

    /// Waits until nothing is due or in progress. Level-triggered: polls the store, with a bound of five minutes, because
    /// a busy machine may need more than one.
    pub async fn settle(&self) {
        let settled = async {
            while let Some(busy) = self.store().busy(self.now()).await.unwrap() {
                let _ = busy;
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(300), settled)
            .await
            .is_err()
        {
            panic!(
                "not settled: {:?}",
                self.store().busy(self.now()).await.unwrap()
            );
        }
    }

    /// Shuts down in order.
    pub async fn finish(mut self) {
        self.stop().await;
    }
}

/// Waits until the lock on a directory is free. The last tasks of an app hold it until they are dropped.
async fn until_released(dir: &Path) {
    let released = async {
        while Store::lock(dir).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), released)
        .await
        .expect("the previous app releases its directory");
}

async fn launch(
    dir: &Path,
    clock: &Clock,
    options: &TestOptions,
    start: u8,
    parts: (&ScriptedModel, &OutsideTool),
) -> App {
    try_launch(dir, clock, options, start, parts)
        .await
        .expect("an app that starts")
}

async fn try_launch(
    dir: &Path,
    clock: &Clock,
    options: &TestOptions,
    start: u8,
    (model, payment): (&ScriptedModel, &OutsideTool),
) -> Result<App, String> {
    let config = settings(dir, options);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let ingredients = Ingredients {
        clock: clock.clone(),
        seed: [start; 32],
        models: Models::default().with("script", Arc::new(model.clone())),
        tools: Tools::builtin().with(vec![Arc::new(payment.clone())]),
        helper: options.helper.clone(),
        parser: program(),
        trial: options.trial.clone(),
        opening: errand::app::Opening {
            making: errand_store::data_dir::Making::BY_ITSELF,
            discards_secrets: false,
        },
    };
    App::start(config, listener, ingredients)
        .await
        .map_err(|error| format!("{error:#}"))
}

/// The `errand` binary, which cargo puts next to the tests.
fn program() -> Option<PathBuf> {
    let tests = std::env::current_exe().ok()?;
    let program = tests.parent()?.parent()?.join("errand");
    program.exists().then_some(program)
}

fn settings(dir: &Path, options: &TestOptions) -> Config {
    let mut environment: std::collections::BTreeMap<String, String> = [
        ("ERRAND_SERVER__DATA_DIR", dir.display().to_string()),
        ("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true".to_owned()),
        (
            "ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE",
            "100000".to_owned(),
        ),
        ("ERRAND_MASTER_KEY", "11".repeat(32)),
        ("ERRAND_SERVER__SHUTDOWN_GRACE_S", "5".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    environment.extend(
        options
            .settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone())),
    );
    let file = options.file.clone().map(|text| config::SettingsFile {
        path: "errand.toml".into(),
        text,
    });
    config::load(&Flags::default(), &environment, file.as_ref()).unwrap_or_else(|e| panic!("{e}"))
}

async fn call(
    router: &Router,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(body).unwrap();
    let peer: std::net::SocketAddr = ([127, 0, 0, 1], 40_000).into();
    request
        .extensions_mut()
        .insert(axum::extract::ConnectInfo(peer));
    let response = router
        .clone()
        .oneshot(request)
        .await
        .unwrap_or_else(|never| match never {});
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let status: StatusCode = status;
    Reply {
        status: status.as_u16(),
        headers,
        bytes,
    }
}

/// The hash under which API keys are stored.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
