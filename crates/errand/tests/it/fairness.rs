//! Sharing of run slots and delivery slots: nobody takes them from everyone else.

use std::time::Duration;

use errand_testkit::{Gate, ScriptedModel, Team, TestApp, WebhookSink};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The same team with another key.
async fn with_another_key(app: &TestApp, team: &Team) -> Team {
    Team {
        key: app.key(team.id, team.owner).await,
        ..team.clone()
    }
}

#[tokio::test]
async fn one_key_leaves_slots_to_another_key_and_to_another_team() {
    let app = TestApp::with_settings(&[("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "16")]).await;
    let team = app.team("acme").await;
    let gate = Gate::default();
    app.model.add("held", vec![]);
    app.model.hold_at(&gate);
    let held = app
        .agent(&team, ScriptedModel::config("held", json!({})))
        .await;
    let mut runs = Vec::new();
    for _ in 0..40 {
        runs.push(app.run(&team, json!({"agent_id": held})).await);
    }
    for _ in 0..14 {
        gate.arrival().await;
    }
    // One key holds seven eighths. Others find the reserved slots, while 26 runs of the first key wait.
    let (second, other) = (with_another_key(&app, &team).await, app.team("other").await);
    for by in [&second, &other] {
        let quick = app.playbook(by, json!([{"finish": "done"}])).await;
        let run = app.run(by, json!({"agent_id": quick})).await;
        let done = async {
            while app.status(by, &run).await != "completed" {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), done)
            .await
            .expect("a slot that is kept for others");
    }
    assert_eq!(app.status(&team, &runs[14]).await, "pending");
    for _ in 0..runs.len() {
        gate.open();
    }
    app.settle().await;
    for run in &runs {
        assert_eq!(app.status(&team, run).await, "completed");
    }
    app.finish().await;
}

/// Number of dead receivers of a team, and of deliveries per receiver.
const DEAD: usize = 5;
const WAITING: usize = 1_000;
/// Default number of concurrent attempts to a receiver that has not answered yet.
const UNKNOWN_MAX: usize = 4;
/// An upper bound, not a measurement: an attempt that holds a slot in the test below holds it for 300 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// Accepts connections and never answers.
struct BlackHole {
    url: String,
    taken: watch::Receiver<usize>,
    server: JoinHandle<()>,
}

impl BlackHole {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (count, taken) = watch::channel(0);
        let server = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
                count.send_replace(held.len());
            }
        });
        Self { url, taken, server }
    }

    fn taken(&self) -> usize {
        *self.taken.borrow()
    }

    /// Waits until this many attempts have arrived in total.
    async fn until(&self, attempts: usize) {
        let mut taken = self.taken.clone();
        let waited = tokio::time::timeout(PATIENCE, taken.wait_for(|taken| *taken >= attempts));
        let waited = waited.await.map(|waited| waited.is_ok());
        assert_eq!(waited, Ok(true), "{attempts}, not {}", self.taken());
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A team whose webhooks go to dead receivers with a thousand pending deliveries each, and its agent.
async fn with_dead_receivers(app: &mut TestApp, dead: usize) -> (Team, String, Vec<BlackHole>) {
    let team = app.team("acme").await;
    let mut holes = Vec::new();
    for _ in 0..dead {
        let hole = BlackHole::start().await;
        subscribe(app, &team, &hole.url).await;
        holes.push(hole);
    }
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    app.run(&team, json!({"agent_id": agent})).await;
    for hole in &holes {
        hole.until(1).await;
    }
    app.die().await;
    let database = rusqlite::Connection::open(app.dir().join("errand.db")).unwrap();
    let copied = database
        .execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO deliveries (delivery_id, id, webhook_id, team_id, event, sequence, url, body, created_at, state,
                 attempts, due_at)
             SELECT randomblob(16), randomblob(16), webhook_id, team_id, event, sequence, url, body, created_at, state,
                 attempts, due_at
             FROM deliveries, n",
            [i64::try_from(WAITING - 1).unwrap()],
        )
        .unwrap();
    assert_eq!(copied, dead * (WAITING - 1));
    drop(database);
    app.come_back().await.unwrap();
    (team, agent, holes)
}

async fn subscribe(app: &TestApp, team: &Team, url: &str) {
    let body = json!({"url": url, "events": ["run_completed"]});
    app.post(&team.key, "/v1/webhooks", body).await.expect(201);
}

/// Starts a run and waits until a working receiver has been notified of its end.
async fn is_told(app: &TestApp, team: &Team, agent: &str, sink: &WebhookSink) {
    let before = sink.received().len();
    app.run(team, json!({"agent_id": agent})).await;
    let told = tokio::time::timeout(PATIENCE, sink.until(before + 1)).await;
    told.expect("a webhook to a receiver that answers");
}

#[tokio::test]
async fn receivers_that_never_answer_are_not_in_the_way_of_others() {
    // No attempt to a dead receiver ends during this test, so a webhook that arrives has waited for none of them.
    let mut app = TestApp::with_settings(&[("ERRAND_WEBHOOKS__TIMEOUT_S", "300")]).await;
    let (team, agent, holes) = with_dead_receivers(&mut app, DEAD).await;
    let sink = WebhookSink::start().await;
    let mut attempts = 1;
    // Also right after a restart, which forgets which receivers answer.
    for restart in [false, true] {
        if restart {
            app.crash().await;
        } else {
            // The same runs are delivered to the dead receivers and to the working one.
            subscribe(&app, &team, sink.url()).await;
        }
        attempts += UNKNOWN_MAX;
        for hole in &holes {
            hole.until(attempts).await;
        }
        for _ in 0..5 {
            is_told(&app, &team, &agent, &sink).await;
        }
        // In the meantime, no dead receiver was called again.
        for hole in &holes {
            assert_eq!(hole.taken(), attempts);
        }
    }
    app.die().await;
}

#[tokio::test]
async fn receivers_that_are_probed_are_not_in_the_way_of_others() {
    // One probe of one second after another: all pending ones would take a thousand seconds.
    let mut app = TestApp::with_settings(&[("ERRAND_WEBHOOKS__TIMEOUT_S", "1")]).await;
    let (team, agent, holes) = with_dead_receivers(&mut app, DEAD).await;
    let sink = WebhookSink::start().await;
    subscribe(&app, &team, sink.url()).await;
    for probes in 1..=3 {
        for hole in &holes {
            hole.until(1 + 2 * UNKNOWN_MAX + probes).await;
        }
        is_told(&app, &team, &agent, &sink).await;
    }
    app.die().await;
}

/// Until the receivers have been called that many times together.
async fn until_called(holes: &[BlackHole], attempts: usize) {
    let called = || holes.iter().map(BlackHole::taken).sum::<usize>();
    let enough = async {
        while called() < attempts {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, enough).await;
    assert!(waited.is_ok(), "{attempts}, not {}", called());
}

#[tokio::test]
async fn dead_receivers_of_one_team_hold_its_places_for_a_second() {
    // More than have room in the places, and nothing is known of any of them. No attempt ends during this test.
    const MANY: usize = 12;
    /// All places but those that are kept for another team.
    const PLACES: usize = 30;
    let mut app = TestApp::with_settings(&[("ERRAND_WEBHOOKS__TIMEOUT_S", "300")]).await;
    let (team, agent, holes) = with_dead_receivers(&mut app, MANY).await;
    let sink = WebhookSink::start().await;
    subscribe(&app, &team, sink.url()).await;
    until_called(&holes, MANY + PLACES).await;
    app.run(&team, json!({"agent_id": agent})).await;
    app.clock().advance(Duration::from_secs(1));
    let told = tokio::time::timeout(PATIENCE, sink.until(1)).await;
    told.expect("a webhook to a receiver of the same team that answers");
    // All of them wait beside the places now.
    until_called(&holes, MANY + MANY * UNKNOWN_MAX).await;
    app.clock().advance(Duration::from_secs(1));
    for received in 2..=6 {
        app.run(&team, json!({"agent_id": agent})).await;
        let arrived = tokio::time::timeout(PATIENCE, sink.until(received)).await;
        arrived.expect("a webhook to a receiver that answers");
    }
    app.die().await;
}
