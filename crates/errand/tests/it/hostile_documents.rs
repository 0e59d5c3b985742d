//! Documents and pages that attack their parser: each costs only its own call.

use std::path::PathBuf;
use std::time::Duration;

use errand_core::id::IdGen;
use errand_core::time::Timestamp;
use errand_engine::parse::{Kind, ParseError, Parsers, TeamParsers};
use errand_testkit::{TestApp, TestOptions};
use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

/// Deeply nested elements that seem to be closed immediately: walking them overflows any stack.
fn deep() -> String {
    "<span><!--</x>-->".repeat(500_000)
}

/// Adjacent elements that are joined one by one: the work grows with the square of their number.
fn wide() -> String {
    "<b>a</b>".repeat(1_200_000)
}

/// A tag with very many attributes, each of which is compared with all earlier ones.
fn attributes() -> String {
    use std::fmt::Write as _;
    let mut tag = "<p".to_owned();
    (0..1_200_000).for_each(|n| write!(tag, " a{n:x}").unwrap());
    tag + ">"
}

fn parsers(patience: Option<Duration>) -> TeamParsers {
    let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_errand")));
    let all = match patience {
        Some(patience) => Parsers::with_patience(program, patience),
        None => Parsers::new(program),
    };
    all.of(IdGen::new([1; 32]).team(Timestamp::default()))
}

#[tokio::test]
async fn a_parser_returns_the_text_and_reports_errors() {
    let parsers = parsers(None);
    let text = parsers.text(Kind::Html, b"<h1>A</h1><p>b".to_vec()).await;
    assert_eq!(text.unwrap(), "# A\n\nb");
    for kind in [Kind::Pdf, Kind::Docx, Kind::Xlsx] {
        let text = parsers.text(kind, b"nothing".to_vec()).await;
        assert_eq!(text, Err(ParseError::Broken));
    }
}

#[tokio::test]
async fn a_parser_that_overflows_or_does_not_end_is_ended() {
    let text = parsers(None).text(Kind::Html, deep().into_bytes()).await;
    assert_eq!(text, Err(ParseError::Failed));
    let hasty = parsers(Some(Duration::from_secs(1)));
    for page in [wide(), attributes()] {
        let text = hasty.text(Kind::Html, page.into_bytes()).await;
        assert_eq!(text, Err(ParseError::TooSlow));
    }
}

async fn app() -> TestApp {
    TestApp::start_with(TestOptions {
        settings: vec![(
            "ERRAND_FETCH_URL__ALLOW_PRIVATE_NETWORKS",
            "true".to_owned(),
        )],
        ..TestOptions::default()
    })
    .await
}

#[tokio::test]
async fn a_run_survives_documents_that_overflow_their_parser() {
    let server = MockServer::start().await;
    let page = ResponseTemplate::new(200).set_body_raw(deep(), "text/html");
    Mock::given(path("/deep"))
        .respond_with(page)
        .mount(&server)
        .await;
    let app = app().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "x.html", deep())
        .await
        .expect(201);
    let steps = json!([
        {"tool": "read_file", "with": {"path": "x.html"}, "on_error": "continue"},
        {"tool": "fetch_url", "with": {"url": format!("{}/deep", server.uri())}, "on_error": "continue"},
        {"tool": "write_file", "with": {"path": "y.html", "content": "<h1>Well</h1>"}},
        {"tool": "read_file", "with": {"path": "y.html"}}]);
    let tools = json!({"fetch_url": "allow", "read_file": "allow", "write_file": "allow"});
    let data = json!({"tools": tools, "playbook": {"steps": steps}});
    let agent = app
        .agent(&team, json!({"version": "v2", "data": data}))
        .await;
    let run = app
        .run(&team, json!({"agent_id": agent, "sandbox_id": sandbox}))
        .await;
    app.settle().await;
    let results: Vec<Value> = app
        .messages(&team, &run)
        .await
        .into_iter()
        .map(|message| message["tool_result"].clone())
        .filter(|result| !result.is_null())
        .collect();
    let error = |at: usize| results[at]["error"].as_str().unwrap().to_owned();
    assert!(error(0).starts_with("unreadable_document: "), "{results:?}");
    assert!(error(1).starts_with("unreadable: "), "{results:?}");
    assert_eq!(results[3]["result"], "# Well");
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}
