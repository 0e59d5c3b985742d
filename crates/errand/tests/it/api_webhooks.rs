//! Webhooks of a team: their events, their deliveries, and the rotation of their secret.

use std::time::Duration;

use errand_core::role::Role;
use errand_testkit::{Team, TestApp, WebhookSink};
use http::Method;
use serde_json::{Value, json};

const NOBODY: &str = "0198f2a4-7c1e-7000-8000-000000000001";

fn asks() -> Value {
    json!([{"approve": {"title": "Pay?"}, "as": "ok"}, {"finish": "{{ ok.approved }}"}])
}

async fn make(app: &TestApp, team: &Team, body: Value) -> Value {
    let made = app.post(&team.key, "/v1/webhooks", body).await.expect(201);
    made["webhook"].clone()
}

fn id(of: &Value) -> &str {
    of["id"].as_str().unwrap()
}

async fn deliveries(app: &TestApp, key: &str, of: &str) -> Vec<Value> {
    let path = format!("/v1/{of}/deliveries?limit=100");
    let page = app.get(key, &path).await.expect(200);
    let listed = page["deliveries"].as_array().unwrap().clone();
    assert_eq!(page["total"], listed.len());
    listed
}

async fn to_webhook(app: &TestApp, team: &Team, webhook: &Value) -> Vec<Value> {
    deliveries(app, &team.key, &format!("webhooks/{}", id(webhook))).await
}

async fn of_run(app: &TestApp, team: &Team, run: &str) -> Vec<Value> {
    deliveries(app, &team.key, &format!("runs/{run}")).await
}

async fn run(app: &TestApp, team: &Team, steps: Value, more: Value) -> String {
    let agent = app.playbook(team, steps).await;
    let mut body = more;
    body["agent_id"] = json!(agent);
    let run = app.run(team, body).await;
    app.settle().await;
    run
}

async fn resend(app: &TestApp, key: &str, delivery: &Value) -> errand_testkit::Reply {
    let path = format!("/v1/deliveries/{}/resend", id(delivery));
    let reply = app.post(key, &path, json!({})).await;
    app.settle().await;
    reply
}

#[tokio::test]
async fn a_webhook_is_made_read_changed_and_deleted() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = make(&app, &team, json!({"url": "https://example.com/a?x=1"})).await;
    let expected = json!({
        "id": made["id"], "url": "https://example.com/a?x=1", "description": null, "enabled": true, "disabled_reason": null,
        "events": ["human_request", "run_completed", "run_failed", "run_interrupted"],
        "created_by": team.owner.to_string(), "created_at": app.now().to_string(), "updated_at": app.now().to_string()
    });
    assert_eq!(made, expected);
    let path = format!("/v1/webhooks/{}", id(&made));
    assert_eq!(app.get(&team.key, &path).await.expect(200)["webhook"], made);
    app.clock().advance(Duration::from_secs(5));
    let second = make(
        &app,
        &team,
        json!({"url": "https://example.com/b", "events": ["run_failed", "human_request", "run_failed"], "description": "on call", "enabled": false}),
    )
    .await;
    assert_eq!(second["events"], json!(["human_request", "run_failed"]));
    assert_eq!(
        (&second["description"], &second["enabled"]),
        (&json!("on call"), &json!(false))
    );
    let listed = app.get(&team.key, "/v1/webhooks").await.expect(200);
    assert_eq!(listed["webhooks"], json!([second, made]), "newest first");
    assert_eq!(
        (&listed["total"], &listed["limit"], &listed["offset"]),
        (&json!(2), &json!(20), &json!(0))
    );

    let change = json!({"url": "https://example.com/c", "events": ["run_completed"], "description": "more", "enabled": false});
    let changed = app.patch(&team.key, &path, change).await.expect(200)["webhook"].clone();
    let mut expected = made.clone();
    expected["url"] = json!("https://example.com/c");
    expected["events"] = json!(["run_completed"]);
    expected["description"] = json!("more");
    expected["enabled"] = json!(false);
    expected["updated_at"] = json!(app.now().to_string());
    assert_eq!(changed, expected);
    let changed = app
        .patch(&team.key, &path, json!({"description": null}))
        .await
        .expect(200);
    assert_eq!(changed["webhook"]["description"], Value::Null);
    assert_eq!(changed["webhook"]["url"], "https://example.com/c");

    app.delete(&team.key, &path).await.expect(204);
    app.get(&team.key, &path).await.error(404);
    app.delete(&team.key, &path).await.error(404);
    app.patch(&team.key, &path, json!({"enabled": true}))
        .await
        .error(404);
    app.post(&team.key, &format!("{path}/test"), json!({}))
        .await
        .error(404);
    let listed = app.get(&team.key, "/v1/webhooks").await.expect(200);
    assert_eq!(listed["webhooks"], json!([second]));
    // The URL can be used again.
    make(&app, &team, json!({"url": "https://example.com/c"})).await;
    app.finish().await;
}

#[tokio::test]
async fn what_does_not_fit_is_named_and_makes_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = make(&app, &team, json!({"url": "https://example.com/a"})).await;
    let other = make(&app, &team, json!({"url": "https://example.com/b"})).await;
    let before = app.get(&team.key, "/v1/webhooks").await.expect(200);
    let path = format!("/v1/webhooks/{}", id(&made));
    for (body, word) in [
        (json!({}), "url"),
        (json!({"url": 1}), "url"),
        (json!({"url": "example.com"}), "url"),
        (json!({"url": "ftp://example.com"}), "url"),
        (
            json!({"url": format!("https://example.com/{}", "x".repeat(2100))}),
            "url",
        ),
        (
            json!({"url": "https://example.com", "events": []}),
            "events",
        ),
        (
            json!({"url": "https://example.com", "events": ["run_started"]}),
            "run_completed",
        ),
        (
            json!({"url": "https://example.com", "events": "run_failed"}),
            "events",
        ),
        (
            json!({"url": "https://example.com", "description": "x".repeat(501)}),
            "description",
        ),
        (
            json!({"url": "https://example.com", "enabled": "yes"}),
            "enabled",
        ),
        (
            json!({"url": "https://example.com", "secret": "whsec_x"}),
            "secret",
        ),
    ] {
        let (_, message) = app
            .post(&team.key, "/v1/webhooks", body.clone())
            .await
            .error(400);
        assert!(message.contains(word), "{body}: {message}");
    }
    for (body, word) in [
        (json!({}), "changes nothing"),
        (json!({"url": "nowhere"}), "url"),
        (json!({"events": []}), "events"),
        (json!({"description": "x".repeat(501)}), "description"),
    ] {
        let (_, message) = app.patch(&team.key, &path, body.clone()).await.error(400);
        assert!(message.contains(word), "{body}: {message}");
    }
    let taken = json!({"url": "https://example.com/b"});
    let (_, message) = app
        .post(&team.key, "/v1/webhooks", taken.clone())
        .await
        .error(409);
    assert!(message.contains(id(&other)), "{message}");
    app.patch(&team.key, &path, taken).await.error(409);
    assert_eq!(app.get(&team.key, "/v1/webhooks").await.expect(200), before);
    app.finish().await;
}

#[tokio::test]
async fn a_private_address_is_refused_unless_the_operator_allows_it() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    app.set("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "false");
    app.stop_and_start().await;
    for url in ["http://127.0.0.1:9/", "http://10.0.0.1/", "http://[::1]/"] {
        let (_, message) = app
            .post(&team.key, "/v1/webhooks", json!({"url": url}))
            .await
            .error(400);
        assert!(message.starts_with("url: "), "{message}");
    }
    app.finish().await;
}

#[tokio::test]
async fn an_event_is_sent_once_to_each_subscribed_url() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let other = app.team("other").await;
    let sinks = [
        WebhookSink::start().await,
        WebhookSink::start().await,
        WebhookSink::start().await,
        WebhookSink::start().await,
    ];
    let [all, ends, off, theirs] = &sinks;
    let to_all = make(&app, &team, json!({"url": all.url()})).await;
    make(
        &app,
        &team,
        json!({"url": ends.url(), "events": ["run_completed"]}),
    )
    .await;
    make(&app, &team, json!({"url": off.url(), "enabled": false})).await;
    make(&app, &other, json!({"url": theirs.url()})).await;
    let own = WebhookSink::start().await;
    let waiting = run(&app, &team, asks(), json!({"webhook_url": own.url()})).await;
    app.answer(&team, &waiting, json!({"approved": true})).await;
    app.settle().await;
    let both = ["human_request", "run_completed"];
    assert_eq!(all.events(), both);
    assert_eq!(ends.events(), ["run_completed"]);
    assert_eq!(own.events(), both);
    assert_eq!(off.events(), [""; 0]);
    assert_eq!(theirs.events(), [""; 0]);
    assert_eq!(
        all.received()[1].body,
        own.received()[1].body,
        "one event, one body and one id"
    );

    let listed = of_run(&app, &team, &waiting).await;
    let told: Vec<_> = listed
        .iter()
        .map(|d| (d["event"].as_str().unwrap(), d["url"].as_str().unwrap()))
        .collect();
    let expected = [
        ("human_request", own.url()),
        ("human_request", all.url()),
        ("run_completed", own.url()),
        ("run_completed", all.url()),
        ("run_completed", ends.url()),
    ];
    assert_eq!(told, expected);
    assert_eq!(listed[0]["webhook_id"], Value::Null);
    assert_eq!(listed[1]["webhook_id"], to_all["id"]);
    let first = &listed[1];
    let body = all.received()[0].json();
    let expected = json!({
        "id": first["id"], "event_id": body["id"], "event": "human_request", "run_id": waiting, "webhook_id": to_all["id"],
        "url": all.url(), "state": "delivered", "created_at": app.now().to_string(), "next_attempt_at": null,
        "attempts": [{"attempt": 1, "at": app.now().to_string(), "duration_ms": first["attempts"][0]["duration_ms"],
            "status": 200, "error": null, "answer": null}],
        "request": {"body": body}
    });
    assert_eq!(first, &expected);
    let mut newest_first = to_webhook(&app, &team, &to_all).await;
    newest_first.reverse();
    assert_eq!(newest_first, [listed[1].clone(), listed[3].clone()]);
    let one = app
        .get(&team.key, &format!("/v1/deliveries/{}", id(first)))
        .await
        .expect(200);
    assert_eq!(&one["delivery"], first);

    // A URL of both a run and a webhook receives the event once.
    run(
        &app,
        &team,
        json!([{"finish": "x"}]),
        json!({"webhook_url": all.url()}),
    )
    .await;
    assert_eq!(all.received().len(), 3);
    app.finish().await;
}

#[tokio::test]
async fn members_read_and_do_not_configure() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    let (_, admin) = app.person(&team, "a@acme.example", Role::Admin).await;
    let sink = WebhookSink::start().await;
    let url = format!("{}?token=secret", sink.url());
    let made = make(&app, &team, json!({"url": url})).await;
    let done = run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    let path = format!("/v1/webhooks/{}", id(&made));
    let before = app.get(&team.key, &path).await.expect(200);
    assert_eq!(app.get(&admin, &path).await.expect(200), before);
    let seen = app.get(&member, &path).await.expect(200);
    assert_eq!(seen["webhook"]["url"], format!("{}…", sink.url()));
    let listed = app.get(&member, "/v1/webhooks").await.expect(200);
    assert_eq!(listed["webhooks"][0], seen["webhook"]);
    let mut sent = deliveries(&app, &member, &format!("runs/{done}")).await;
    sent.extend(deliveries(&app, &member, &format!("webhooks/{}", id(&made))).await);
    let again = resend(&app, &member, &sent[0]).await.expect(200);
    sent.push(again["delivery"].clone());
    assert_eq!(sent.len(), 3);
    for delivery in &sent {
        assert!(!delivery.to_string().contains("secret"), "{delivery}");
    }
    assert_eq!(sink.received().len(), 2);

    for (method, path, body) in [
        (
            Method::POST,
            "/v1/webhooks",
            json!({"url": "https://example.com"}),
        ),
        (Method::PATCH, path.as_str(), json!({"enabled": false})),
        (Method::DELETE, path.as_str(), json!({})),
        (Method::POST, &format!("{path}/test"), json!({})),
        (Method::POST, "/v1/webhook-secret/roll", json!({})),
    ] {
        let refused = app.json(method.clone(), &member, path, body, &[]).await;
        assert_eq!(refused.error(403).0, "forbidden", "{method} {path}");
    }
    app.get(&member, "/v1/webhook-secret").await.error(403);
    assert_eq!(app.get(&team.key, &path).await.expect(200), before);
    app.patch(&admin, &path, json!({"enabled": false}))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test]
async fn a_deleted_webhook_drops_what_it_has_not_delivered() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([200, 500]);
    let made = make(&app, &team, json!({"url": sink.url()})).await;
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    let failed = run(&app, &team, json!([{"fail": "x"}]), json!({})).await;
    let before = to_webhook(&app, &team, &made).await;
    assert_eq!(
        (&before[0]["state"], &before[1]["state"]),
        (&json!("pending"), &json!("delivered"))
    );
    let path = format!("/v1/webhooks/{}", id(&made));
    app.delete(&team.key, &path).await.expect(204);
    app.advance(Duration::from_secs(4 * 86_400)).await;
    assert_eq!(sink.received().len(), 2, "nothing more is sent");
    let dropped = of_run(&app, &team, &failed).await.remove(0);
    assert_eq!(
        (&dropped["state"], &dropped["next_attempt_at"]),
        (&json!("dropped"), &Value::Null)
    );
    let (_, message) = resend(&app, &team.key, &dropped).await.error(400);
    assert!(message.contains("deleted"), "{message}");
    assert_eq!(of_run(&app, &team, &failed).await, [dropped]);
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    assert_eq!(sink.received().len(), 2);
    app.finish().await;
}

#[tokio::test]
async fn a_resent_delivery_is_equal_and_has_its_own_three_days() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with(std::iter::repeat_n(503, 60));
    let done = run(
        &app,
        &team,
        json!([{"finish": "x"}]),
        json!({"webhook_url": sink.url()}),
    )
    .await;
    // Each round advances beyond the longest pause.
    for _ in 0..30 {
        app.advance(Duration::from_secs(11 * 3600)).await;
    }
    let given_up = of_run(&app, &team, &done).await.remove(0);
    assert_eq!(given_up["state"], "exhausted");
    let tried = given_up["attempts"].as_array().unwrap().len();
    assert_eq!(given_up["attempts"][0]["status"], 503);
    let again = resend(&app, &team.key, &given_up).await.expect(200)["delivery"].clone();
    assert_eq!(
        (&again["state"], &again["next_attempt_at"]),
        (&json!("pending"), &json!(app.now().to_string()))
    );
    let now = of_run(&app, &team, &done).await.remove(0);
    assert_eq!(now["attempts"].as_array().unwrap().len(), tried + 1);
    assert_eq!(now["attempts"][tried]["attempt"], tried + 1);
    assert_eq!(now["state"], "pending", "a schedule of its own");
    let next: errand_core::time::Timestamp =
        now["next_attempt_at"].as_str().unwrap().parse().unwrap();
    assert!(
        next.ms_since(app.now()) < 10_000,
        "its pauses begin with the first again"
    );
    sink.answer_with([200]);
    // Asking repeatedly uses up the refused responses.
    for _ in 0..60 {
        if of_run(&app, &team, &done).await[0]["state"] == "delivered" {
            break;
        }
        resend(&app, &team.key, &given_up).await.expect(200);
    }
    let delivered = of_run(&app, &team, &done).await.remove(0);
    assert_eq!(delivered["state"], "delivered");
    resend(&app, &team.key, &delivered).await.expect(200);
    let received = sink.received();
    let last = received.last().unwrap();
    assert_eq!(last.answered, 200);
    assert!(
        received
            .iter()
            .all(|r| (&r.id, &r.body) == (&last.id, &last.body)),
        "the same id and bytes at each attempt"
    );
    assert_eq!(received.iter().filter(|r| r.answered == 200).count(), 2);
    let path = format!("/v1/deliveries/{NOBODY}/resend");
    app.post(&team.key, &path, json!({})).await.error(404);
    app.finish().await;
}

#[tokio::test]
async fn pending_deliveries_follow_a_webhook_to_its_new_url() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (old, new) = (WebhookSink::start().await, WebhookSink::start().await);
    old.answer_with([200, 500, 500]);
    let made = make(&app, &team, json!({"url": old.url()})).await;
    for _ in 0..2 {
        run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    }
    let path = format!("/v1/webhooks/{}", id(&made));
    app.patch(&team.key, &path, json!({"url": new.url()}))
        .await
        .expect(200);
    app.advance(Duration::from_secs(10)).await;
    assert_eq!((old.received().len(), new.received().len()), (2, 1));
    let listed = to_webhook(&app, &team, &made).await;
    assert_eq!(
        (&listed[0]["url"], &listed[1]["url"]),
        (&json!(new.url()), &json!(old.url()))
    );
    // Resent deliveries do so as well.
    resend(&app, &team.key, &listed[1]).await.expect(200);
    assert_eq!((old.received().len(), new.received().len()), (2, 2));
    app.finish().await;
}

#[tokio::test]
async fn a_receiver_that_answers_410_disables_its_webhook() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([410]);
    let made = make(&app, &team, json!({"url": sink.url()})).await;
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    assert_eq!(to_webhook(&app, &team, &made).await[0]["state"], "gone");
    let path = format!("/v1/webhooks/{}", id(&made));
    let disabled = app.get(&team.key, &path).await.expect(200)["webhook"].clone();
    assert_eq!(disabled["enabled"], false);
    let why = disabled["disabled_reason"].as_str().unwrap();
    assert!(why.contains("410"), "{why}");
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    assert_eq!(sink.received().len(), 1);
    let enabled = app
        .patch(&team.key, &path, json!({"enabled": true}))
        .await
        .expect(200);
    assert_eq!(enabled["webhook"]["disabled_reason"], Value::Null);
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    assert_eq!(sink.received().len(), 2);
    app.finish().await;
}

#[tokio::test]
async fn a_test_is_sent_and_shows_the_receivers_answer() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([500]);
    let made = make(
        &app,
        &team,
        json!({"url": sink.url(), "events": ["run_failed"], "enabled": false}),
    )
    .await;
    let path = format!("/v1/webhooks/{}/test", id(&made));
    let sent = app.post(&team.key, &path, json!({})).await.expect(201)["delivery"].clone();
    assert_eq!(
        (&sent["event"], &sent["run_id"], &sent["state"]),
        (&json!("webhook_test"), &Value::Null, &json!("pending"))
    );
    app.settle().await;
    app.advance(Duration::from_secs(10)).await;
    let received = sink.received();
    assert_eq!(received.len(), 2);
    let body = received[0].json();
    let expected = json!({
        "id": sent["event_id"], "event": "webhook_test", "created_at": sent["created_at"], "webhook_id": made["id"],
        "message": body["message"]
    });
    assert_eq!(body, expected);
    assert_eq!(
        (&received[0].id, &received[0].body),
        (&received[1].id, &received[1].body)
    );
    assert_eq!(received[0].id, sent["event_id"].as_str().unwrap());
    let secret = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    assert!(received[0].is_signed_by(secret["secret"].as_str().unwrap()));
    let listed = to_webhook(&app, &team, &made).await;
    assert_eq!(listed[0]["state"], "delivered");
    // Two concurrent tests do not block each other.
    for _ in 0..2 {
        app.post(&team.key, &path, json!({})).await.expect(201);
    }
    app.settle().await;
    assert_eq!(sink.received().len(), 4);
    app.finish().await;
}

#[tokio::test]
async fn a_receivers_response_is_stored_as_text_and_cut() {
    use wiremock::matchers::any;
    use wiremock::{Mock, MockServer, ResponseTemplate};
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (body, expected) in [
        (b"<b>not&now</b>".to_vec(), "<b>not&now</b>".to_owned()),
        (
            b"\x00\x1b[31mred\xff\n".to_vec(),
            "[31mred\u{fffd}\n".to_owned(),
        ),
        (
            "é".repeat(3000).into_bytes(),
            format!("{}…", "é".repeat(512)),
        ),
        (b"  ".to_vec(), String::new()),
    ] {
        let server = MockServer::start().await;
        let answer = ResponseTemplate::new(422).set_body_bytes(body);
        Mock::given(any()).respond_with(answer).mount(&server).await;
        let made = make(&app, &team, json!({"url": server.uri()})).await;
        app.post(
            &team.key,
            &format!("/v1/webhooks/{}/test", id(&made)),
            json!({}),
        )
        .await
        .expect(201);
        app.settle().await;
        let attempt = to_webhook(&app, &team, &made).await[0]["attempts"][0].clone();
        assert_eq!(attempt["status"], 422);
        assert_eq!(attempt["answer"].as_str().unwrap_or_default(), expected);
        app.delete(&team.key, &format!("/v1/webhooks/{}", id(&made)))
            .await
            .expect(204);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_rotated_secret_stays_valid_for_a_day() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    make(&app, &team, json!({"url": sink.url()})).await;
    let known = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    assert_eq!(known["retired"], json!([]));
    let old = known["secret"].as_str().unwrap();
    let headers = [("idempotency-key", "roll")];
    let roll = || {
        app.json(
            Method::POST,
            &team.key,
            "/v1/webhook-secret/roll",
            json!({}),
            &headers,
        )
    };
    let rolled = roll().await.expect(200);
    let new = rolled["secret"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    let until = app.now().plus_ms(86_400_000).to_string();
    assert_eq!(rolled["retired"], json!([{"valid_until": until}]));
    let replay = roll().await.expect(200);
    assert_eq!(
        replay,
        json!({"secret": null, "retired": rolled["retired"]}),
        "it is not kept for a replay"
    );
    let present = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    assert_eq!(
        present,
        json!({"secret": new, "retired": rolled["retired"]})
    );

    app.stop_and_start().await;
    app.advance(Duration::from_secs(86_399)).await;
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    let hook = sink.received().remove(0);
    assert!(hook.is_signed_by(old) && hook.is_signed_by(&new));
    let signatures = hook.headers["webhook-signature"].to_str().unwrap();
    assert_eq!(
        signatures
            .split(' ')
            .filter(|s| s.starts_with("v1,"))
            .count(),
        2
    );
    app.advance(Duration::from_secs(1)).await;
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    let hook = sink.received().remove(1);
    assert!(!hook.is_signed_by(old) && hook.is_signed_by(&new));
    let present = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    assert_eq!(present, json!({"secret": new, "retired": []}));

    // All secrets that were replaced within a day still sign, but only up to a maximum number.
    for _ in 0..4 {
        app.post(&team.key, "/v1/webhook-secret/roll", json!({}))
            .await
            .expect(200);
    }
    let before = app.get(&team.key, "/v1/webhook-secret").await.expect(200);
    app.post(&team.key, "/v1/webhook-secret/roll", json!({}))
        .await
        .error(409);
    assert_eq!(
        app.get(&team.key, "/v1/webhook-secret").await.expect(200),
        before
    );
    run(&app, &team, json!([{"finish": "x"}]), json!({})).await;
    assert!(sink.received()[2].is_signed_by(&new));
    app.finish().await;
}

#[tokio::test]
async fn a_repeat_under_its_key_is_answered_and_does_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    let twice = async |method: Method, path: &str, body: Value| {
        let headers = [("idempotency-key", "one")];
        let call = || app.json(method.clone(), &team.key, path, body.clone(), &headers);
        let (first, second) = (call().await, call().await);
        assert_eq!(
            (first.status, &first.bytes),
            (second.status, &second.bytes),
            "{path}"
        );
        assert_eq!(second.header("idempotency-replayed"), Some("true"));
        app.settle().await;
        first
    };
    let made = twice(Method::POST, "/v1/webhooks", json!({"url": sink.url()}))
        .await
        .json();
    let path = format!("/v1/webhooks/{}", id(&made["webhook"]));
    let sent = twice(Method::POST, &format!("{path}/test"), json!({}))
        .await
        .json();
    assert_eq!(sink.received().len(), 1);
    twice(
        Method::POST,
        &format!("/v1/deliveries/{}/resend", id(&sent["delivery"])),
        json!({}),
    )
    .await;
    assert_eq!(sink.received().len(), 2);
    twice(Method::PATCH, &path, json!({"description": "x"})).await;
    twice(Method::DELETE, &path, json!({})).await;
    app.finish().await;
}
