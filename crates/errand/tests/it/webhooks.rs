//! Webhooks: their content, when they are sent, and what happens to failed ones. Each attempt is recorded.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use errand_store::model::DeliveryRow;
use errand_testkit::{Held, Received, Team, TestApp, TestOptions, WebhookSink};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

const THREE_DAYS_MS: u64 = 3 * 86_400_000;

/// Asks for an approval, and then ends.
fn asks() -> Value {
    json!([{"approve": {"title": "Pay?", "description": "40 EUR"}, "as": "ok"}, {"finish": "{{ ok.approved }}"}])
}

async fn start(app: &TestApp, team: &Team, steps: Value, url: &str) -> String {
    let agent = app.playbook(team, steps).await;
    let run = app
        .run(team, json!({"agent_id": agent, "webhook_url": url}))
        .await;
    app.settle().await;
    run
}

async fn approve(app: &TestApp, team: &Team, run: &str) {
    app.answer(team, run, json!({"approved": true})).await;
    app.settle().await;
}

async fn deliveries(app: &TestApp, team: &Team, run: &str) -> Vec<DeliveryRow> {
    app.store()
        .deliveries_of(team.id, run.parse().unwrap())
        .await
        .unwrap()
}

async fn secret(app: &TestApp, team: &Team) -> String {
    app.get(&team.key, "/v1/webhook-secret").await.expect(200)["secret"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn header<'a>(hook: &'a Received, name: &str) -> &'a str {
    hook.headers
        .get(name)
        .unwrap_or_else(|| panic!("{name} in {:?}", hook.headers))
        .to_str()
        .unwrap()
}

#[tokio::test]
async fn a_webhook_contains_the_event_and_the_run_at_that_time() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    let run = start(&app, &team, asks(), sink.url()).await;
    let asked = app.get_run(&team, &run).await;
    let hook = sink.received().remove(0);
    let body = hook.json();
    let request = &asked["pending_human_request"];
    let respond = format!(
        "/v1/runs/{run}/human-requests/{}/respond",
        request["id"].as_str().unwrap()
    );
    let expected = json!({
        "id": body["id"], "event": "human_request", "sequence": body["sequence"], "created_at": app.now().to_string(),
        "run_id": run, "agent_id": asked["run"]["agent_id"], "run": asked["run"], "human_request": request,
        "respond_url": format!("{}{respond}", app.url())
    });
    assert_eq!(body, expected, "nothing more and nothing less");
    assert_eq!(header(&hook, "content-type"), "application/json");
    assert_eq!(header(&hook, "webhook-id"), body["id"].as_str().unwrap());
    assert_eq!(
        header(&hook, "webhook-timestamp"),
        app.now().as_seconds().to_string()
    );

    // The address in it accepts the answer.
    app.post(&team.key, &respond, json!({"approved": true}))
        .await
        .expect(200);
    app.settle().await;
    let hooks = sink.received();
    assert_eq!(hooks.len(), 2);
    let done = hooks[1].json();
    let ended = app.get_run(&team, &run).await;
    let expected = json!({
        "id": done["id"], "event": "run_completed", "sequence": done["sequence"], "created_at": app.now().to_string(),
        "run_id": run, "agent_id": asked["run"]["agent_id"], "run": ended["run"]
    });
    assert_eq!(done, expected);
    assert!(
        done["sequence"].as_u64() > body["sequence"].as_u64(),
        "the sequence rises within the run"
    );
    assert_ne!(done["id"], body["id"]);
    app.finish().await;
}

#[tokio::test]
async fn each_end_of_a_run_has_its_event() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (steps, stop, event) in [
        (json!([{"finish": "done"}]), false, "run_completed"),
        (json!([{"fail": "no"}]), false, "run_failed"),
        (json!([{"wait": "1h"}]), true, "run_interrupted"),
    ] {
        let sink = WebhookSink::start().await;
        let run = start(&app, &team, steps, sink.url()).await;
        if stop {
            app.stop_run(&team, &run).await;
            app.settle().await;
        }
        assert_eq!(sink.events(), [event]);
        let body = sink.received()[0].json();
        assert_eq!(body["run"], app.get_run(&team, &run).await["run"]);
        assert_eq!(body["run"]["status"], event.strip_prefix("run_").unwrap());
        assert!(body.get("human_request").is_none() && body.get("respond_url").is_none());
        // A second end has a second event.
        if event == "run_completed" {
            app.message(&team, &run, "again").await;
            app.settle().await;
            assert_eq!(sink.events(), ["run_completed", "run_completed"]);
            assert_ne!(sink.received()[0].id, sink.received()[1].id);
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn a_human_request_goes_to_both_addresses_and_the_rest_to_one() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (all, people) = (WebhookSink::start().await, WebhookSink::start().await);
    let agent = app.playbook(&team, asks()).await;
    let run = app.run(&team, json!({"agent_id": agent, "webhook_url": all.url(), "human_request_webhook_url": people.url()})).await;
    app.settle().await;
    approve(&app, &team, &run).await;
    assert_eq!(all.events(), ["human_request", "run_completed"]);
    assert_eq!(people.events(), ["human_request"]);
    assert_eq!(
        all.received()[0].body,
        people.received()[0].body,
        "one event, one body"
    );

    let only = app
        .run(
            &team,
            json!({"agent_id": agent, "human_request_webhook_url": people.url()}),
        )
        .await;
    app.settle().await;
    approve(&app, &team, &only).await;
    assert_eq!(people.events(), ["human_request", "human_request"]);
    assert_eq!(all.received().len(), 2);
    app.finish().await;
}

#[tokio::test]
async fn each_attempt_is_signed_and_recorded() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let sink = WebhookSink::start().await;
    sink.answer_with([500, 404]);
    let run = start(&app, &team, json!([{"finish": "done"}]), sink.url()).await;
    let first = deliveries(&app, &team, &run).await.remove(0);
    assert_eq!(
        (
            first.state.as_str(),
            first.event.as_str(),
            first.attempts.len()
        ),
        ("pending", "run_completed", 1)
    );
    let (began, at) = (app.now(), first.due_at.unwrap());
    // The pause before a retry is seconds long, with 25% jitter.
    assert!(
        (3_750..=6_250).contains(&at.ms_since(began)),
        "{}",
        at.ms_since(began)
    );
    app.advance(Duration::from_secs(7)).await;
    assert_eq!(deliveries(&app, &team, &run).await[0].attempts.len(), 2);
    app.advance(Duration::from_secs(40)).await;

    let hooks = sink.received();
    assert_eq!(hooks.len(), 3);
    let secret = secret(&app, &team).await;
    for hook in &hooks {
        assert!(hook.is_signed_by(&secret));
        assert!(!hook.is_signed_by("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="));
        assert_eq!(
            (&hook.id, &hook.body),
            (&hooks[0].id, &hooks[0].body),
            "the id and the body stay the same"
        );
    }
    let times: Vec<i64> = hooks
        .iter()
        .map(|h| header(h, "webhook-timestamp").parse().unwrap())
        .collect();
    assert_eq!(
        times,
        [
            began.as_seconds(),
            began.as_seconds() + 7,
            began.as_seconds() + 47
        ],
        "the time is the attempt's"
    );

    let row = deliveries(&app, &team, &run).await.remove(0);
    assert_eq!((row.state.as_str(), row.due_at), ("delivered", None));
    assert_eq!(row.url, sink.url());
    assert_eq!(row.id.to_string(), hooks[0].id);
    let seen: Vec<_> = row
        .attempts
        .iter()
        .map(|a| (a.attempt, a.status, a.at.as_seconds()))
        .collect();
    assert_eq!(
        seen,
        [
            (1, Some(500), times[0]),
            (2, Some(404), times[1]),
            (3, Some(200), times[2])
        ]
    );
    assert!(row.attempts[0].error.as_deref().unwrap().contains("500"));
    assert_eq!(row.attempts[2].error, None);
    assert!(
        app.store()
            .deliveries_of(other.id, run.parse().unwrap())
            .await
            .is_err(),
        "another team's are not to be seen"
    );
    app.finish().await;
}

#[tokio::test]
async fn later_events_overtake_a_failed_one_whose_body_stays() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([503]);
    let run = start(&app, &team, asks(), sink.url()).await;
    approve(&app, &team, &run).await;
    assert_eq!(
        sink.events(),
        ["run_completed"],
        "later ones overtake one that has failed"
    );
    app.advance(Duration::from_secs(10)).await;
    assert_eq!(sink.events(), ["run_completed", "human_request"]);
    let hooks = sink.received();
    assert_eq!(hooks[0].body, hooks[2].body);
    assert_eq!(
        hooks[2].json()["run"]["status"],
        "waiting",
        "the body is fixed when the event commits"
    );
    app.finish().await;
}

/// A receiver that holds each request until the test releases it.
struct Holding {
    url: String,
    arrived: Arc<Semaphore>,
    let_go: Arc<Semaphore>,
    events: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Holding {
    async fn start() -> Self {
        let (arrived, let_go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let events = Arc::new(Mutex::new(Vec::new()));
        let (at, go, seen) = (
            Arc::clone(&arrived),
            Arc::clone(&let_go),
            Arc::clone(&events),
        );
        let router = Router::new().fallback(move |body: Bytes| {
            let (at, go, seen) = (Arc::clone(&at), Arc::clone(&go), Arc::clone(&seen));
            async move {
                let body: Value = serde_json::from_slice(&body).unwrap();
                seen.lock()
                    .unwrap()
                    .push(body["event"].as_str().unwrap().to_owned());
                at.add_permits(1);
                go.acquire().await.unwrap().forget();
            }
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            arrived,
            let_go,
            events,
            server,
        }
    }

    async fn arrival(&self) {
        let arrival = tokio::time::timeout(Duration::from_secs(60), self.arrived.acquire()).await;
        arrival.expect("a webhook is awaited").unwrap().forget();
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_run_has_one_delivery_in_flight_and_blocks_no_other() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (holding, sink) = (Holding::start().await, WebhookSink::start().await);
    let agent = app.playbook(&team, asks()).await;
    let run = app
        .run(
            &team,
            json!({"agent_id": agent, "webhook_url": holding.url}),
        )
        .await;
    holding.arrival().await;
    app.stop_run(&team, &run).await;
    // While the first webhook is in flight, the second one of the same run waits, but another run's does not.
    let quick = app.playbook(&team, json!([{"finish": "done"}])).await;
    app.run(&team, json!({"agent_id": quick, "webhook_url": sink.url()}))
        .await;
    sink.until(1).await;
    assert_eq!(holding.events(), ["human_request"]);
    holding.let_go.add_permits(1);
    holding.arrival().await;
    assert_eq!(holding.events(), ["human_request", "run_interrupted"]);
    holding.let_go.add_permits(1);
    app.settle().await;
    holding.server.abort();
    app.finish().await;
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_in_time_has_failed() {
    let app = TestApp::with_settings(&[("ERRAND_WEBHOOKS__TIMEOUT_S", "1")]).await;
    let team = app.team("acme").await;
    let holding = Holding::start().await;
    let run = start(&app, &team, json!([{"finish": "done"}]), &holding.url).await;
    let row = deliveries(&app, &team, &run).await.remove(0);
    assert_eq!(
        (
            row.state.as_str(),
            row.attempts.len(),
            row.attempts[0].status
        ),
        ("pending", 1, None)
    );
    assert!(row.attempts[0].error.is_some());
    holding.let_go.add_permits(10);
    app.advance(Duration::from_secs(10)).await;
    assert_eq!(
        deliveries(&app, &team, &run).await[0].state.as_str(),
        "delivered"
    );
    holding.server.abort();
    app.finish().await;
}

#[tokio::test]
async fn status_410_ends_a_delivery() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([410]);
    let run = start(&app, &team, asks(), sink.url()).await;
    app.advance(Duration::from_millis(THREE_DAYS_MS)).await;
    let row = deliveries(&app, &team, &run).await.remove(0);
    assert_eq!(
        (row.state.as_str(), row.due_at, row.attempts.len()),
        ("gone", None, 1)
    );
    assert_eq!(sink.received().len(), 1);
    approve(&app, &team, &run).await;
    assert_eq!(
        sink.events(),
        ["run_completed"],
        "it is the event that is over, not the address"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (elsewhere, redirects) = (WebhookSink::start().await, MockServer::start().await);
    for status in [301, 302, 303, 307, 308] {
        redirects.reset().await;
        Mock::given(any())
            .respond_with(ResponseTemplate::new(status).insert_header("location", elsewhere.url()))
            .mount(&redirects)
            .await;
        let run = start(
            &app,
            &team,
            json!([{"finish": "done"}]),
            &format!("{}/hook", redirects.uri()),
        )
        .await;
        let row = deliveries(&app, &team, &run).await.remove(0);
        assert_eq!(
            (row.state.as_str(), row.attempts[0].status),
            ("pending", Some(status))
        );
        assert_eq!(redirects.received_requests().await.unwrap().len(), 1);
    }
    assert!(elsewhere.received().is_empty());
    app.finish().await;
}

#[tokio::test]
async fn a_delivery_is_given_up_after_three_days() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([500; 100]);
    let run = start(&app, &team, json!([{"finish": "done"}]), sink.url()).await;
    let made = app.now();
    let mut row = deliveries(&app, &team, &run).await.remove(0);
    while let Some(due) = row.due_at {
        assert!(row.attempts.len() < 50, "it is never given up");
        let pause = Duration::from_millis(due.ms_since(app.now()));
        if row.attempts.len() == 3 {
            // Due deliveries survive a crash.
            app.crash().await;
        }
        app.advance(pause.saturating_sub(Duration::from_millis(1)))
            .await;
        assert_eq!(
            deliveries(&app, &team, &run).await[0].attempts.len(),
            row.attempts.len(),
            "not before it is due"
        );
        app.advance(Duration::from_millis(1)).await;
        let next = deliveries(&app, &team, &run).await.remove(0);
        assert_eq!(next.attempts.len(), row.attempts.len() + 1);
        row = next;
    }
    assert_eq!(row.state.as_str(), "exhausted");
    let last = row.attempts.last().unwrap().at;
    assert_eq!(
        last.ms_since(made),
        THREE_DAYS_MS,
        "the last attempt is at the end of the third day"
    );
    let pauses: Vec<u64> = row
        .attempts
        .windows(2)
        .map(|pair| pair[1].at.ms_since(pair[0].at))
        .collect();
    assert!(
        pauses[..8].windows(2).all(|pair| pair[0] <= pair[1]),
        "the pauses grow: {pauses:?}"
    );
    assert_eq!(sink.received().len(), row.attempts.len());
    app.advance(Duration::from_millis(THREE_DAYS_MS)).await;
    assert_eq!(sink.received().len(), row.attempts.len());
    assert_eq!(
        app.status(&team, &run).await,
        "completed",
        "a run does not depend on who hears of it"
    );
    app.finish().await;
}

fn without_private_networks() -> TestOptions {
    TestOptions {
        settings: vec![(
            "ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS",
            "false".to_owned(),
        )],
        ..TestOptions::default()
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_called_starts_no_run() {
    let app = TestApp::start_with(without_private_networks()).await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    let private = [
        "http://127.0.0.1/",
        "https://10.1.2.3:8443/hook",
        "http://192.168.0.1/",
        "http://172.16.0.1/",
        "http://169.254.169.254/latest",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[fd00::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com/hook",
        "http://",
        "",
    ];
    for url in private {
        for field in ["webhook_url", "human_request_webhook_url"] {
            let mut body = json!({"agent_id": agent});
            body[field] = json!(url);
            let (code, message) = app.post(&team.key, "/v1/runs", body).await.error(400);
            assert_eq!(code, "bad_request");
            assert!(message.contains(field), "{url}: {message}");
        }
    }
    assert_eq!(app.get(&team.key, "/v1/runs").await.expect(200)["total"], 0);
    // A host name is checked when it is called.
    app.post(
        &team.key,
        "/v1/runs",
        json!({"agent_id": agent, "webhook_url": "https://name.invalid/hook"}),
    )
    .await
    .expect(201);
    let app_that_allows = TestApp::start().await;
    let team = app_that_allows.team("acme").await;
    let agent = app_that_allows
        .playbook(&team, json!([{"wait": "1h"}]))
        .await;
    app_that_allows
        .post(
            &team.key,
            "/v1/runs",
            json!({"agent_id": agent, "webhook_url": "http://127.0.0.1:1/"}),
        )
        .await
        .expect(201);
    app_that_allows
        .post(
            &team.key,
            "/v1/runs",
            json!({"agent_id": agent, "webhook_url": "http://169.254.169.254/"}),
        )
        .await
        .error(400);
    app.finish().await;
    app_that_allows.finish().await;
}

#[tokio::test]
async fn an_address_is_checked_again_at_each_delivery() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([500, 500]);
    let literal = start(&app, &team, json!([{"finish": "done"}]), sink.url()).await;
    let by_name = sink.url().replace("127.0.0.1", "localhost");
    let named = start(&app, &team, json!([{"finish": "done"}]), &by_name).await;
    assert_eq!(sink.received().len(), 2);
    app.set("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "false");
    app.stop_and_start().await;
    app.advance(Duration::from_secs(10)).await;
    for run in [&literal, &named] {
        let row = deliveries(&app, &team, run).await.remove(0);
        assert_eq!(
            (
                row.state.as_str(),
                row.attempts.len(),
                row.attempts[1].status
            ),
            ("pending", 2, None)
        );
        let error = row.attempts[1].error.as_deref().unwrap();
        assert!(error.contains("allow_private_networks"), "{error}");
    }
    assert_eq!(sink.received().len(), 2, "nothing was sent");
    app.set("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true");
    app.stop_and_start().await;
    app.advance(Duration::from_secs(60)).await;
    assert_eq!(sink.events(), ["run_completed", "run_completed"]);
    app.finish().await;
}

#[tokio::test]
async fn a_crash_between_commit_and_delivery_loses_nothing() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let holding = Holding::start().await;
    let held = app.thinking_run(&team);
    let held = held.field("webhook_url", holding.url.as_str());
    let Held { run, gate, .. } = held.held().await;
    gate.open();
    holding.arrival().await;
    // The request was sent but its outcome was not recorded, so it is sent again with the same ID.
    app.crash().await;
    holding.let_go.add_permits(10);
    app.settle().await;
    assert_eq!(holding.events(), ["run_completed", "run_completed"]);
    let row = deliveries(&app, &team, &run).await.remove(0);
    assert_eq!((row.state.as_str(), row.attempts.len()), ("delivered", 1));
    holding.server.abort();
    app.finish().await;
}
