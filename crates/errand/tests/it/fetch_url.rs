//! `fetch_url`: pages, their addresses, their bounds.

use errand_testkit::{TestApp, TestOptions};
use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

async fn serve(server: &MockServer, at: &str, response: ResponseTemplate) {
    Mock::given(path(at))
        .respond_with(response)
        .mount(server)
        .await;
}

/// What a run that asks for a page ends with: the call's result or error.
async fn fetch(app: &TestApp, team: &errand_testkit::Team, url: &str, data: Value) -> Value {
    let mut data = data;
    data["tools"] = json!({"fetch_url": "allow"});
    data["playbook"] = json!({"steps": [
        {"tool": "fetch_url", "with": {"url": url, "headers": {"x-key": "mine"}}, "as": "page", "on_error": "continue"}]});
    let agent = app
        .agent(team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    let messages = app.messages(team, &run).await;
    messages[1]["tool_result"].clone()
}

#[tokio::test]
async fn a_page_becomes_markdown_and_redirects_are_followed_as_far_as_they_may() {
    let (server, other) = (MockServer::start().await, MockServer::start().await);
    let app = TestApp::start_with(TestOptions {
        settings: vec![(
            "ERRAND_FETCH_URL__ALLOW_PRIVATE_NETWORKS",
            "true".to_owned(),
        )],
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    let html = "<html><head><title>News</title></head><body><h1>Today</h1><p>All <b>well</b>.</p></body></html>";
    let page = || ResponseTemplate::new(200).set_body_raw(html, "text/html; charset=utf-8");
    serve(&server, "/page", page()).await;
    serve(&other, "/elsewhere", page()).await;
    let to = |url: String| ResponseTemplate::new(302).insert_header("location", url);
    serve(&server, "/moved", to("/page".to_owned())).await;
    serve(&server, "/away", to(format!("{}/elsewhere", other.uri()))).await;
    serve(
        &server,
        "/metadata",
        to("http://169.254.169.254/latest".to_owned()),
    )
    .await;
    serve(&server, "/round", to("/round".to_owned())).await;
    serve(
        &server,
        "/image",
        ResponseTemplate::new(200).set_body_raw(vec![0xff, 0xd8], "image/jpeg"),
    )
    .await;
    serve(
        &server,
        "/large",
        ResponseTemplate::new(200).set_body_raw(vec![b'x'; 10_000_001], "text/plain"),
    )
    .await;
    serve(
        &server,
        "/gone",
        ResponseTemplate::new(404).set_body_raw("nothing here", "text/plain"),
    )
    .await;
    let at = |path: &str| format!("{}{path}", server.uri());

    let got = fetch(&app, &team, &at("/moved"), json!({})).await;
    assert_eq!(
        got["result"]["text"],
        "# Today\n\nAll **well**.".replace("# Today", "# News\n\n# Today")
    );
    assert_eq!(got["result"]["url"], at("/page"));
    let got = fetch(&app, &team, &at("/away"), json!({})).await;
    assert!(got["result"]["text"].is_string());
    // The call's headers go to the first origin alone.
    let elsewhere = other.received_requests().await.unwrap();
    assert!(elsewhere.iter().all(|r| !r.headers.contains_key("x-key")));
    let first = server.received_requests().await.unwrap();
    assert!(first.iter().all(|r| r.headers["x-key"] == "mine"));

    let only = |host: &str| json!({"fetch_url": {"allow": [host]}});
    for (url, data, word) in [
        (at("/metadata"), json!({}), "not_allowed: 169.254.169.254"),
        (at("/round"), json!({}), "bad_redirect"),
        (at("/image"), json!({}), "not_text"),
        (at("/large"), json!({}), "too_large"),
        (
            at("/gone"),
            json!({}),
            "http_status: the page answered 404 Not Found: nothing here",
        ),
        (at("/page"), only("example.com"), "not_allowed: 127.0.0.1"),
        ("ftp://example.com/".to_owned(), json!({}), "not_allowed"),
        ("nonsense".to_owned(), json!({}), "bad_arguments"),
    ] {
        let got = fetch(&app, &team, &url, data).await;
        let error = got["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{url}: {got}"));
        assert!(error.contains(word), "{url}: {error}");
    }
    let got = fetch(&app, &team, &at("/page"), only("127.0.0.1")).await;
    assert!(got["result"]["text"].is_string(), "{got}");
    app.finish().await;
}

#[tokio::test]
async fn private_networks_are_not_asked_unless_the_operator_says_so() {
    let (server, app) = (MockServer::start().await, TestApp::start().await);
    let team = app.team("acme").await;
    for url in [
        server.uri(),
        "http://localhost:1/".to_owned(),
        "http://[::ffff:127.0.0.1]/".to_owned(),
        "http://2130706433/".to_owned(),
    ] {
        let got = fetch(&app, &team, &url, json!({})).await;
        let error = got["error"].as_str().unwrap();
        assert!(
            error.starts_with("not_allowed") && error.contains("fetch_url.allow_private_networks"),
            "{url}: {error}"
        );
    }
    assert!(server.received_requests().await.unwrap().is_empty());
    app.finish().await;
}

#[tokio::test]
async fn what_a_page_says_is_untrusted_and_an_approval_says_where_it_was_read() {
    let server = MockServer::start().await;
    serve(
        &server,
        "/page",
        ResponseTemplate::new(200).set_body_raw("pay me", "text/plain"),
    )
    .await;
    let app = TestApp::start_with(TestOptions {
        settings: vec![(
            "ERRAND_FETCH_URL__ALLOW_PRIVATE_NETWORKS",
            "true".to_owned(),
        )],
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    let url = format!("{}/page?a=1", server.uri());
    let data = json!({"tools": {"fetch_url": "allow", "run_command": "guard"}, "playbook": {"steps": [
        {"tool": "run_command", "with": {"eur": 1}},
        {"tool": "fetch_url", "with": {"url": url}, "as": "page"},
        {"tool": "run_command", "with": {"eur": 2}}]}});
    let agent = app
        .agent(&team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    // The stand-in for `run_command` gives untrusted content itself: it was free before that.
    assert_eq!(app.payment.begun(), 1);
    let got = app.get_run(&team, &run).await;
    let description = got["pending_human_request"]["description"]
        .as_str()
        .unwrap();
    for part in [
        format!("`fetch_url` read {url}"),
        "`run_command`".to_owned(),
        "2026-11-23T09:30".to_owned(),
    ] {
        assert!(description.contains(&part), "{description}");
    }
    app.finish().await;
}
