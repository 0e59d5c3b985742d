//! One team does everything that a member, a model and a foreign server can do to disable the server. Another team's
//! calls and runs still succeed, the process survives, and its memory is bounded.

use std::time::{Duration, Instant};

use errand_testkit::{Team, TestApp, TestOptions};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::hostile_templates::{nested, shared};
use crate::web::Browser;

/// Number of times that the other team checks whether it is served.
const LOOKS: usize = 12;
/// Maximum duration of a check on any machine. Without limits, none would ever end.
const LOOK_MAX: Duration = Duration::from_secs(20);
/// Maximum memory of the process in KiB.
const MEMORY_KIB_MAX: u64 = 2 * 1024 * 1024;

/// The other team's agent, whose runs end immediately.
struct Good {
    team: Team,
    agent: String,
}

impl Good {
    async fn new(app: &TestApp) -> Self {
        let team = app.team("good").await;
        let agent = app
            .playbook(&team, json!([{"say": "a"}, {"finish": "x"}]))
            .await;
        Self { team, agent }
    }

    /// Performs a `GET`, a `POST /v1/runs`, and the run to its end. Returns the duration.
    async fn look(&self, app: &TestApp) -> Duration {
        let began = Instant::now();
        app.get(&self.team.key, "/v1/agents").await.expect(200);
        let body = json!({"agent_id": self.agent});
        let run = app.post(&self.team.key, "/v1/runs", body).await.expect(201);
        let path = format!("/v1/runs/{}", run["run"]["id"].as_str().unwrap());
        loop {
            let run = app.get(&self.team.key, &path).await.expect(200);
            if run["run"]["status"] == "completed" {
                return began.elapsed();
            }
            assert_ne!(run["run"]["status"], "failed", "{run}");
            tokio::task::yield_now().await;
        }
    }
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse().unwrap()
}

/// Playbooks with template bombs.
pub(crate) fn bomb_steps() -> [Value; 7] {
    [
        json!([{"say": shared(60)}, {"finish": "x"}]),
        json!([{"set": {"a": nested(2_400, "{{ (a|string)|length }}")}}, {"finish": "x"}]),
        json!([{"say": "{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}"}]),
        json!([{"for_each": "{{ range(9000) }}", "steps": [{"set": {"a": "{{ range(90000)|list|length }}"}}]}]),
        json!([{"say": "{{ 'x' * 999999999 }}"}]),
        json!([{"say": "{{ '%999999999d'|format(1) }}"}]),
        json!([{"say": "{{ range(99999)|map('string')|join('x' * 100000) }}"}]),
    ]
}

/// Runs with bombs in templates, documents and children.
async fn start_bombs(app: &TestApp, evil: &Team) {
    let sandbox = app.sandbox(evil).await;
    let page = "<span><!--</x>-->".repeat(500_000);
    app.upload(&evil.key, &sandbox, "x.html", page)
        .await
        .expect(201);
    let read = json!({"tool": "read_file", "with": {"path": "x.html"}, "on_error": "continue"});
    for steps in bomb_steps() {
        let agent = app.playbook(evil, steps).await;
        for _ in 0..3 {
            app.run(evil, json!({"agent_id": agent})).await;
        }
    }
    let steps = json!([read, read, {"finish": "x"}]);
    let data = json!({"tools": {"read_file": "allow"}, "playbook": {"steps": steps}});
    let agent = app
        .agent(evil, json!({"version": "v2", "data": data}))
        .await;
    app.run(evil, json!({"agent_id": agent, "sandbox_id": sandbox}))
        .await;
}

/// Bodies and streams that stall.
async fn stand_still(app: &TestApp, evil: &Team) -> Vec<TcpStream> {
    let address = app.url().trim_start_matches("http://").to_owned();
    let run = {
        let agent = app.playbook(evil, json!([{"wait": "1h"}])).await;
        app.run(evil, json!({"agent_id": agent})).await
    };
    let sandbox = app.sandbox(evil).await;
    let mut open = Vec::new();
    for n in 0..40 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let (key, host) = (&evil.key, &address);
        let head = if n % 2 == 0 {
            format!(
                "POST /v1/sandboxes/{sandbox}/files?path=/workspace/{n} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\ncontent-length: 1000\r\n\r\nabc"
            )
        } else {
            format!(
                "GET /v1/runs/{run}/events HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\r\n"
            )
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        open.push(stream);
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_team_takes_nothing_from_another() {
    let app = TestApp::start_with(TestOptions {
        system_clock: true,
        ..TestOptions::default()
    })
    .await;
    let good = Good::new(&app).await;
    let (browser, evil) = Browser::owner(&app, "evil").await;
    good.look(&app).await;

    start_bombs(&app, &evil).await;
    let open = stand_still(&app, &evil).await;
    let agent = app.playbook(&evil, json!([{"finish": "x"}])).await;
    let compare = format!("/assignments/{agent}/builds/compare?from=x&to=y");
    for look in 0..LOOKS {
        let took = tokio::time::timeout(LOOK_MAX, good.look(&app)).await;
        assert!(took.is_ok(), "look {look}: not served");
        let chain = format!("{{{{ {}1 }}}}", "-".repeat(50_000));
        let data = json!({"playbook": {"steps": [{"say": chain}]}});
        let body =
            json!({"name": "b", "build": {"name": "v", "config": {"version": "v2", "data": data}}});
        app.post(&evil.key, "/v1/agents", body).await.error(400);
        browser.get(&compare).await.refused(400);
    }
    drop(open);
    let stopped = app.post(&evil.key, "/v1/runs/stop", json!({"all": true}));
    stopped.await.expect(200);
    good.look(&app).await;
    assert!(memory_kib() < MEMORY_KIB_MAX, "{} KiB", memory_kib());
    app.finish().await;
}

/// A tool server: `good` is harmless, the other tools have schema bombs.
pub(crate) async fn tools_server() -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(|request: &Request| {
            let Ok(asked) = request.body_json::<Value>() else {
                return ResponseTemplate::new(405);
            };
            let result = match asked["method"].as_str() {
                Some("initialize") => json!({
                    "protocolVersion": asked["params"]["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "bombs", "version": "1"}}),
                Some("tools/list") => json!({"tools": bombs()}),
                Some("tools/call") => json!({"content": [{"type": "text", "text": "called"}]}),
                _ => return ResponseTemplate::new(202),
            };
            let body = json!({"jsonrpc": "2.0", "id": asked["id"], "result": result});
            ResponseTemplate::new(200).set_body_json(body)
        })
        .mount(&server)
        .await;
    server
}

fn bombs() -> Value {
    let mut defs = Map::new();
    for level in 0..13 {
        let next = json!({"$ref": format!("#/$defs/a{}", level + 1)});
        defs.insert(format!("a{level}"), json!({"allOf": vec![next; 10]}));
    }
    defs.insert("a13".to_owned(), json!({}));
    let tower = json!({"type": "object", "$defs": defs, "allOf": [{"$ref": "#/$defs/a0"}]});
    let a = json!({"$ref": "#/$defs/a"});
    let doubled = json!({"type": "object", "$defs": {"a": {"type": "object", "additionalProperties": {"allOf": [a, a]}}}, "allOf": [a]});
    // A process with a time limit can check it: arguments that match neither branch are examined 2^depth times.
    let branch = json!({"properties": {"x": {"$ref": "#/$defs/a"}}});
    let either = json!({"type": "object", "anyOf": [branch, branch]});
    let tree = json!({"type": "object", "$defs": {"a": either}, "properties": {"x": {"$ref": "#/$defs/a"}}});
    let hints = json!({"readOnlyHint": true});
    json!([
        {"name": "good", "inputSchema": {"type": "object", "properties": {"to": {"type": "string"}}}, "annotations": hints},
        {"name": "tower", "inputSchema": tower, "annotations": hints},
        {"name": "doubled", "inputSchema": doubled, "annotations": hints},
        {"name": "tree", "inputSchema": tree, "annotations": hints},
    ])
}

#[tokio::test]
async fn an_unbounded_schema_is_refused_at_probe_and_call() {
    let app = TestApp::start_with(TestOptions {
        settings: vec![(
            "ERRAND_CONNECTIONS__ALLOW_PRIVATE_NETWORKS",
            "true".to_owned(),
        )],
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    let server = tools_server().await;
    let transport = json!({"type": "http", "url": format!("{}/mcp", server.uri())});
    let id = crate::connections::connect(&app, &team, "bombs", transport).await;
    let connection = app
        .get(&team.key, &format!("/v1/connections/{id}"))
        .await
        .expect(200);
    let refused: Vec<bool> = connection["connection"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .take(3)
        .map(|tool| !tool["refused"].is_null())
        .collect();
    assert_eq!(refused, [false, true, true], "{connection}");

    let call = |tool: &str| json!({"tool": tool, "with": {"x": {"x": {}}}, "on_error": "continue"});
    let steps =
        json!([call("bombs__tower"), call("bombs__doubled"), call("bombs__good"), {"finish": "x"}]);
    let tools = json!({"bombs__*": "default", "bombs__good": "allow"});
    let data = json!({"connections": [id], "tools": tools, "playbook": {"steps": steps}});
    let agent = app
        .agent(&team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let messages = app.messages(&team, &run).await;
    let results: Vec<&Value> = messages
        .iter()
        .map(|message| &message["tool_result"])
        .filter(|result| !result.is_null())
        .collect();
    for at in 0..2 {
        let error = results[at]["error"].as_str().unwrap();
        assert!(error.starts_with("unusable_schema: "), "{results:?}");
    }
    assert_eq!(results[2]["error"], Value::Null, "{results:?}");
    app.finish().await;
}
