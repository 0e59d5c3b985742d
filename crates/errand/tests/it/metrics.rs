//! The metrics endpoint, over the network.

use std::time::Duration;

use errand_testkit::TestApp;
use reqwest::Client;
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

async fn start() -> TestApp {
    TestApp::with_settings(&[
        ("ERRAND_METRICS__LISTEN", "127.0.0.1:0"),
        ("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "7"),
    ])
    .await
}

fn client() -> Client {
    errand_engine::net::install_crypto_provider();
    Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap()
}

async fn scrape(app: &TestApp) -> String {
    let url = app.app().metrics_url().unwrap();
    let answer = client().get(url).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    answer.text().await.unwrap()
}

/// The value of a series, by the name on its line.
#[track_caller]
fn value(text: &str, series: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {series} in:\n{text}"));
    line.parse().unwrap()
}

#[tokio::test]
async fn open_counts_are_exact_and_ended_ones_a_minute_old() {
    let mut app = start().await;
    let team = app.team("acme").await;
    let asks = app
        .playbook(&team, json!([{"approve": {"title": "Go on?"}}]))
        .await;
    let ends = app.playbook(&team, json!([{"finish": "done"}])).await;
    let sleeps = app.playbook(&team, json!([{"wait": "1d"}])).await;
    let mut runs = Vec::new();
    for agent in [&asks, &asks, &ends, &sleeps] {
        runs.push(app.run(&team, json!({"agent_id": agent})).await);
    }
    app.settle().await;
    let text = scrape(&app).await;
    let runs_are =
        |text: &str, status: &str| value(text, &format!("errand_runs{{status=\"{status}\"}}"));
    for (status, expected) in [
        ("pending", 0),
        ("starting", 0),
        ("running", 1),
        ("waiting", 2),
        ("completed", 1),
        ("failed", 0),
        ("interrupted", 0),
    ] {
        assert_eq!(runs_are(&text, status), expected, "{status}");
    }
    for (series, expected) in [
        ("errand_build_info{version=\"0.1.0\"}", 1),
        ("errand_runs_without_reason", 0),
        ("errand_runs_ended_age_seconds", 0),
        ("errand_claims", 0),
        ("errand_places{state=\"free\"}", 7),
        ("errand_places{state=\"taken\"}", 0),
        ("errand_human_requests_open", 2),
        ("errand_deliveries{state=\"pending\"}", 0),
        ("errand_delivery_oldest_due_seconds", 0),
        ("errand_store_queue", 0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    for series in [
        "errand_store_commits_total",
        "errand_process_resident_bytes",
        "errand_process_open_fds",
        "errand_disk_free_bytes",
    ] {
        assert!(value(&text, series) > 0, "{series}");
    }

    // A stopped run is no longer open immediately; it counts as ended once the minute is over.
    let stop = format!("/v1/runs/{}/stop", runs[0]);
    app.post(&team.key, &stop, json!({})).await.expect(200);
    app.settle().await;
    let text = scrape(&app).await;
    assert_eq!(
        (runs_are(&text, "waiting"), runs_are(&text, "interrupted")),
        (1, 0)
    );
    app.advance(MINUTE - Duration::from_millis(1)).await;
    let text = scrape(&app).await;
    assert_eq!(runs_are(&text, "interrupted"), 0);
    assert_eq!(value(&text, "errand_runs_ended_age_seconds"), 59);
    app.advance(Duration::from_millis(1)).await;
    let text = scrape(&app).await;
    assert_eq!(runs_are(&text, "interrupted"), 1);
    assert_eq!(value(&text, "errand_runs_ended_age_seconds"), 0);

    // The crash releases the directory, and the next start shows the same.
    app.crash().await;
    let text = scrape(&app).await;
    assert_eq!(
        (runs_are(&text, "waiting"), runs_are(&text, "running")),
        (1, 1)
    );
    app.finish().await;
}

#[tokio::test]
async fn deliveries_are_counted_by_state() {
    let app = start().await;
    let team = app.team("acme").await;
    let sink = errand_testkit::WebhookSink::start().await;
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    let body = json!({"agent_id": agent, "webhook_url": sink.url()});
    app.run(&team, body).await;
    app.settle().await;
    let text = scrape(&app).await;
    assert_eq!(value(&text, "errand_deliveries{state=\"delivered\"}"), 1);
    // Nothing listens there, so the delivery is retried later.
    let body = json!({"agent_id": agent, "webhook_url": "http://127.0.0.1:1/hook"});
    app.run(&team, body).await;
    app.settle().await;
    let text = scrape(&app).await;
    assert_eq!(value(&text, "errand_deliveries{state=\"delivered\"}"), 1);
    assert_eq!(value(&text, "errand_deliveries{state=\"pending\"}"), 1);
    assert_eq!(value(&text, "errand_delivery_oldest_due_seconds"), 0);
    app.finish().await;
}

#[tokio::test]
async fn metrics_have_the_format_and_name_no_one() {
    let app = start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let text = scrape(&app).await;
    assert!(text.ends_with('\n'));
    let (mut described, mut typed) = (None, None);
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let Some(rest) = line.strip_prefix("# HELP ") {
            described = rest.split(' ').next();
            continue;
        }
        if line.starts_with("# TYPE ") {
            typed = Some(words[2]);
            assert_eq!(typed, described, "{line}");
            assert!(["gauge", "counter"].contains(&words[3]), "{line}");
            continue;
        }
        assert_eq!(words.len(), 2, "{line}");
        assert_eq!(words[0].split('{').next(), typed, "{line}");
        words[1].parse::<u64>().unwrap();
    }
    for secret in ["acme", agent.as_str(), &team.key, &team.id.to_string()] {
        assert!(!text.contains(secret), "{secret}");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_listener_gives_figures_and_nothing_else() {
    let without = TestApp::start().await;
    assert_eq!(without.app().metrics_url(), None);
    assert_eq!(without.get("", "/metrics").await.status, 404);
    without.finish().await;

    let app = start().await;
    let url = app.app().metrics_url().unwrap();
    let base = url.strip_suffix("/metrics").unwrap();
    let status =
        async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    for path in ["/", "/healthz", "/v1/runs"] {
        assert_eq!(
            status(client().get(format!("{base}{path}"))).await,
            404,
            "{path}"
        );
    }
    assert_eq!(status(client().post(&url)).await, 405);
    // Concurrent collectors are all served.
    let together: Vec<_> = (0..8).map(|_| scrape(&app)).collect();
    let texts = futures::future::join_all(together).await;
    assert!(texts.iter().all(|text| text.contains("errand_claims 0\n")));
    app.finish().await;
    assert!(
        client().get(&url).send().await.is_err(),
        "it ends with the server"
    );
}
