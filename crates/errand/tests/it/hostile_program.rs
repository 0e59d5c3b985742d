//! The real program beside a team that does everything at once that a member, a model and a foreign server can do.
//! Another team is served during the attack and afterward, the process survives, and its memory is bounded.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use errand_testkit::providers::{Answer, ProviderServer};
use errand_testkit::{Team, TestApp, TestOptions};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use wiremock::MockServer;

use crate::hostile_member::{bomb_steps, tools_server};
use crate::real_server::{Caller, Server};
use crate::web::Browser;

/// Number of times that the other team checks whether it is served, in each phase.
const LOOKS: usize = 15;
/// Maximum median duration of a request or run of the other team, on an otherwise idle machine.
const MEDIAN_MAX: Duration = Duration::from_millis(250);
/// On a slow machine, a check may take up to this many times as long as without the hostile team.
const SLOWER_MAX: u32 = 10;
/// Maximum duration of a check on any machine.
const LOOK_MAX: Duration = Duration::from_secs(20);
/// Maximum memory of the server in KiB, without its helpers, which have their own limits.
const MEMORY_KIB_MAX: u64 = 1024 * 1024;
/// Event streams that the hostile team opens: more than a key may have.
const STREAMS: usize = 70;
/// Uploads that it sends byte by byte: more than a key may have.
const SLOW_UPLOADS: usize = 40;

/// The data of a team before the program starts.
struct World {
    app: TestApp,
    provider: ProviderServer,
    _tools: MockServer,
    good: Team,
    agent: String,
    evil: Evil,
}

#[derive(Clone)]
struct Evil {
    key: String,
    cookie: String,
    sandbox: String,
    /// A waiting run with megabytes of events.
    waiting: String,
    /// Assignments that are started repeatedly.
    agents: Vec<String>,
    /// The comparison page of two builds that have nothing in common.
    compare: String,
}

fn settings(provider: &ProviderServer) -> Vec<(&'static str, String)> {
    let mut settings = provider.settings();
    let allowed = "ERRAND_CONNECTIONS__ALLOW_PRIVATE_NETWORKS";
    settings.push((allowed, "true".to_owned()));
    settings
}

async fn prepare() -> World {
    let provider = ProviderServer::start().await;
    let app = TestApp::start_with(TestOptions {
        system_clock: true,
        settings: settings(&provider),
        ..TestOptions::default()
    })
    .await;
    let good = app.team("good").await;
    let agent = app
        .playbook(&good, json!([{"say": "a"}, {"finish": "x"}]))
        .await;
    let (browser, team) = Browser::owner(&app, "evil").await;
    let cookie = browser.cookie.clone();
    let tools = tools_server().await;
    let evil = Evil {
        key: team.key.clone(),
        cookie,
        sandbox: app.sandbox(&team).await,
        waiting: waiting_run(&app, &team).await,
        agents: hostile_agents(&app, &team, &provider, &tools).await,
        compare: comparison(&app, &team).await,
    };
    World {
        app,
        provider,
        _tools: tools,
        good,
        agent,
        evil,
    }
}

/// A waiting run with many messages.
async fn waiting_run(app: &TestApp, team: &Team) -> String {
    let agent = app.playbook(team, json!([{"wait": "10h"}])).await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    let path = format!("/v1/runs/{run}/messages");
    for _ in 0..4 {
        let body = json!({"message": "x".repeat(1_000_000)});
        app.post(&team.key, &path, body).await.expect(201);
    }
    run
}

/// Templates, documents, a network model that calls a tool with an endless schema, and runs that start all of these.
async fn hostile_agents(
    app: &TestApp,
    team: &Team,
    provider: &ProviderServer,
    tools: &MockServer,
) -> Vec<String> {
    let mut agents = Vec::new();
    for steps in bomb_steps() {
        agents.push(app.playbook(team, steps).await);
    }
    let transport = json!({"type": "http", "url": format!("{}/mcp", tools.uri())});
    let connection = crate::connections::connect(app, team, "bombs", transport).await;
    provider.answer_by(|_| {
        let deep = (0..60).fold(json!(1), |inner, _| json!({"x": inner}));
        Answer::call("bombs__tree", deep.clone())
            .and_call("bombs__tower", deep.clone())
            .and_call("bombs__doubled", deep)
    });
    let tools = json!({"bombs__*": "allow"});
    let model = json!({"agent": {"model": "openai/gpt-test"}});
    let data = json!({"connections": [connection], "tools": tools, "models": model});
    let config = json!({"version": "v2", "data": data});
    agents.push(app.agent(team, config).await);
    let starts: Vec<Value> = agents
        .iter()
        .map(|agent| json!({"tool": "run_assignment", "with": {"assignment": agent}, "on_error": "continue"}))
        .collect();
    let data = json!({"tools": {"run_assignment": "allow"}, "assignments": agents, "playbook": {"steps": starts}});
    let config = json!({"version": "v2", "data": data});
    agents.push(app.agent(team, config).await);
    agents
}

/// The comparison page of two builds without a common line.
async fn comparison(app: &TestApp, team: &Team) -> String {
    let config = |seed: u64| {
        let line = |n: u64| format!("{:04x}\n", (n.wrapping_mul(seed) >> 40) & 0xffff);
        let input: String = (0..80_000).map(line).collect();
        json!({"version": "v2", "data": {"input": input, "playbook": {"steps": [{"finish": "x"}]}}})
    };
    let agent = app.agent(team, config(6_364_136_223_846_793_005)).await;
    let path = format!("/v1/agents/{agent}");
    let first = app.get(&team.key, &path).await.expect(200);
    let body = json!({"name": "v2", "config": config(1_442_695_040_888_963_407)});
    let path = format!("/v1/agents/{agent}/builds");
    let second = app.post(&team.key, &path, body).await.expect(201);
    let id = |build: &Value| build["build"]["id"].as_str().unwrap().to_owned();
    let (from, to) = (id(&first), id(&second));
    format!("/assignments/{agent}/builds/compare?from={from}&to={to}")
}

/// Durations of each kind of request, and of a run.
#[derive(Clone, Copy, Debug)]
struct Look {
    get: Duration,
    post: Duration,
    run: Duration,
}

async fn look(caller: &Caller, agent: &str) -> Look {
    let began = Instant::now();
    caller.get("/v1/agents").await;
    let get = began.elapsed();
    let began = Instant::now();
    let run = caller.post("/v1/runs", json!({"agent_id": agent})).await;
    let post = began.elapsed();
    let path = format!("/v1/runs/{}", run["run"]["id"].as_str().unwrap());
    loop {
        let run = caller.get(&path).await;
        match run["run"]["status"].as_str().unwrap() {
            "completed" => break,
            "failed" => panic!("{run}"),
            _ => tokio::task::yield_now().await,
        }
    }
    let run = began.elapsed();
    Look { get, post, run }
}

/// The medians of several checks.
async fn looks(what: &str, caller: &Caller, agent: &str, server: &Server) -> Look {
    let (mut all, mut memory) = (Vec::new(), 0);
    for _ in 0..LOOKS {
        let looked = tokio::time::timeout(LOOK_MAX, look(caller, agent)).await;
        all.push(looked.unwrap_or_else(|_| panic!("{what}: not served within {LOOK_MAX:?}")));
        memory = memory.max(memory_kib(server));
    }
    let of = |part: fn(&Look) -> Duration| {
        let mut times: Vec<Duration> = all.iter().map(part).collect();
        times.sort();
        times[LOOKS / 2]
    };
    assert!(memory < MEMORY_KIB_MAX, "{what}: {memory} KiB");
    Look {
        get: of(|look| look.get),
        post: of(|look| look.post),
        run: of(|look| look.run),
    }
}

/// The memory of the server's process. Fails if the process is dead.
fn memory_kib(server: &Server) -> u64 {
    let id = server.child.id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.expect("a process that lives").parse().unwrap()
}

fn http() -> Client {
    let client = Client::builder().no_proxy().tls_certs_only([]);
    client.timeout(LOOK_MAX).build().unwrap()
}

/// Sends the hostile team's requests one after another until dropped. Any response is fine.
async fn again_and_again(url: String, key: String, requests: Vec<(Method, String, String)>) {
    let http = http();
    for (method, path, body) in requests.iter().cycle() {
        let request = http.request(method.clone(), format!("{url}{path}"));
        let request = request
            .bearer_auth(&key)
            .header("content-type", "application/json");
        if let Ok(answer) = request.body(body.clone()).send().await {
            drop(answer.bytes().await);
        }
    }
}

/// Requests comparison pages as a browser does.
async fn compare(url: String, cookie: String) -> Infallible {
    let http = http();
    loop {
        let request = http.get(&url).header("cookie", &cookie);
        if let Ok(answer) = request.header("accept", "text/html").send().await {
            drop(answer.bytes().await);
        }
    }
}

/// Sends a handwritten request and does not read its response.
async fn unread(address: String, head: String) {
    let Ok(mut stream) = TcpStream::connect(&address).await else {
        return;
    };
    if stream.write_all(head.as_bytes()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Sends a handwritten request whose body arrives byte by byte, and repeats it if it is refused.
async fn slow(address: String, head: String) -> Infallible {
    loop {
        let connected = TcpStream::connect(&address).await;
        let Ok(mut stream) = connected else { continue };
        let mut sent = stream.write_all(head.as_bytes()).await;
        while sent.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sent = stream.write_all(b"x").await;
        }
    }
}

/// Runs the whole attack until dropped.
fn attack(server: &Server, evil: &Evil) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (address, key) = (server.address().to_owned(), &evil.key);
    let head = |request: String, more: &str| {
        format!(
            "{request} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n{more}\r\n"
        )
    };
    for _ in 0..STREAMS {
        let head = head(format!("GET /v1/runs/{}/events", evil.waiting), "");
        tasks.spawn(unread(address.clone(), head));
    }
    for n in 0..SLOW_UPLOADS {
        let path = format!("/v1/sandboxes/{}/files?path=slow{n}", evil.sandbox);
        let head = head(format!("POST {path}"), "content-length: 1000000\r\n");
        let slow = slow(address.clone(), head);
        tasks.spawn(async { match slow.await {} });
    }
    let runs: Vec<_> = evil
        .agents
        .iter()
        .map(|agent| {
            let body = json!({"agent_id": agent}).to_string();
            (Method::POST, "/v1/runs".to_owned(), body)
        })
        .collect();
    let chain = format!("{{{{ {}1 }}}}", "-".repeat(50_000));
    let data = json!({"playbook": {"steps": [{"say": chain}]}});
    let config = json!({"version": "v2", "data": data});
    let build = json!({"name": "b", "build": {"name": "v", "config": config}}).to_string();
    let builds = vec![(Method::POST, "/v1/agents".to_owned(), build)];
    let path = format!("/v1/sandboxes/{}/files?path=quick", evil.sandbox);
    let uploads = vec![(Method::POST, path, "x".repeat(100_000))];
    for requests in [runs, builds, uploads] {
        for _ in 0..2 {
            let loops = again_and_again(server.url.clone(), key.clone(), requests.clone());
            tasks.spawn(loops);
        }
    }
    for _ in 0..2 {
        let url = format!("{}{}", server.url, evil.compare);
        let compare = compare(url, evil.cookie.clone());
        tasks.spawn(async { match compare.await {} });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_team_takes_nothing_from_another_team() {
    let mut world = prepare().await;
    world.app.die().await;
    let master_key = "11".repeat(32);
    let settings = settings(&world.provider);
    let mut settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, to)| (*name, &**to)).collect();
    settings.push(("ERRAND_MASTER_KEY", &master_key));
    settings.push(("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000"));
    let mut server = Server::start_with(world.app.dir(), &settings).await;
    let good = Caller::new(&server, &world.good.key);
    let agent = world.agent.as_str();
    look(&good, agent).await;
    let alone = looks("alone", &good, agent, &server).await;

    let tasks = attack(&server, &world.evil);
    // The comparison, the model and the streams are active.
    world.provider.until(1).await;
    let beside = looks("beside", &good, agent, &server).await;
    for (what, alone, beside) in [
        ("GET", alone.get, beside.get),
        ("POST", alone.post, beside.post),
        ("run", alone.run, beside.run),
    ] {
        let most = MEDIAN_MAX + alone * SLOWER_MAX;
        assert!(
            beside < most,
            "{what}: {beside:?}, and {alone:?} alone\n{}",
            server.log()
        );
    }
    drop(tasks);
    let evil = Caller::new(&server, &world.evil.key);
    evil.post("/v1/runs/stop", json!({"all": true})).await;
    looks("afterward", &good, agent, &server).await;
    assert_eq!(server.child.try_wait().unwrap(), None, "it lives");
    assert_eq!(server.stop().await, Some(0));
}
