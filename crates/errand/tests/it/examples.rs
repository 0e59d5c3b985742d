//! Runs the examples.

use errand_testkit::{TestApp, TestOptions};
use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::connections::{Mailbox, connect, options, respond, root, stdio};

/// An example's agent as the command line creates it, with replacements.
fn example(file: &str, replace: &[(&str, &str)]) -> Value {
    let text = std::fs::read_to_string(root().join("examples").join(file)).unwrap();
    let text = replace
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to));
    let mut data: Value = serde_saphyr::from_str(&text).unwrap();
    let name = data.as_object_mut().unwrap().remove("name").unwrap();
    json!({"name": name, "build": {"name": "first", "config": {"version": "v2", "data": data}}})
}

async fn created(app: &TestApp, key: &str, agent: Value) -> String {
    let made = app.post(key, "/v1/agents", agent).await.expect(201);
    made["agent"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mailbox_triage_labels_and_asks_before_it_deletes() {
    let mailbox = Mailbox::new();
    for (id, subject, body) in [
        ("3", "Your invoice", "Please find the invoice attached."),
        ("4", "Win!", "Click here. Unsubscribe below."),
    ] {
        mailbox.put(id, "shop@example.com", subject, body);
    }
    let app = TestApp::start_with(options(Some(&mailbox))).await;
    let team = app.team("acme").await;
    let id = connect(&app, &team, "mail", stdio("mailbox")).await;
    let placeholder = "00000000-0000-7000-8000-000000000000";
    let agent = example("mailbox/triage.yaml", &[(placeholder, &id)]);
    let agent = created(&app, &team.key, agent).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "invoice"}))
        .await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    let request = &got["pending_human_request"];
    assert_eq!(
        request["tool_call"]["arguments"],
        json!({"id": "4"}),
        "{got}"
    );
    respond(&app, &team, &run, json!({"approved": true})).await;
    assert_eq!(app.status(&team, &run).await, "completed");
    let log = mailbox.log();
    let labels: Vec<_> = log
        .iter()
        .filter(|line| line["did"] == "label")
        .map(|line| line["label"].as_str().unwrap())
        .collect();
    assert_eq!(labels, ["later", "later", "important", "junk"]);
    let deleted: Vec<_> = log.iter().filter(|line| line["did"] == "delete").collect();
    assert_eq!(deleted.len(), 1);
    let messages = app.messages(&team, &run).await;
    let last = messages.last().unwrap()["text_content"].as_str().unwrap();
    assert!(
        last.contains("4 messages:") && last.contains("shop@example.com: important"),
        "{last}"
    );
    app.finish().await;
}

#[tokio::test]
async fn the_research_brief_quotes_its_sources() {
    let server = MockServer::start().await;
    let page = "<html><head><title>Rust</title></head><body><p>Ownership is the idea.</p><p>Other things.</p></body></html>";
    Mock::given(path("/"))
        .respond_with(ResponseTemplate::new(200).set_body_raw(page, "text/html"))
        .mount(&server)
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
    let address = server.uri();
    let hosts = format!("[\"{}\"]", server.address());
    let replace = [
        ("https://www.rust-lang.org", address.as_str()),
        ("https://doc.rust-lang.org", address.as_str()),
        ("[www.rust-lang.org, doc.rust-lang.org]", hosts.as_str()),
        // No person is needed.
        ("tools:\n", "human_in_the_loop: false\ntools:\n"),
    ];
    let agent = created(&app, &team.key, example("research-brief.yaml", &replace)).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "ownership"}))
        .await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "completed", "{got}");
    let sandbox = got["run"]["sandbox_id"].as_str().unwrap();
    let brief = std::fs::read_to_string(app.sandbox_dir(sandbox).join("brief.md")).unwrap();
    assert!(
        brief.contains("> Ownership is the idea.") && !brief.contains("Other things"),
        "{brief}"
    );
    assert!(brief.contains("Not to be had: http_status"), "{brief}");
    app.finish().await;
}

/// Uploads a file of an example to a sandbox.
async fn upload(app: &TestApp, key: &str, sandbox: &str, file: &str) {
    let bytes = std::fs::read(root().join("examples/invoices").join(file)).unwrap();
    app.upload(key, sandbox, file, bytes).await.expect(201);
}

#[tokio::test]
async fn the_invoice_check_writes_exactly_what_was_approved() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = created(&app, &team.key, example("invoice-check.yaml", &[])).await;
    for approved in [true, false] {
        let sandbox = app.sandbox(&team).await;
        for file in [
            "orders.csv",
            "paper-and-pens-4711.pdf",
            "clean-rooms-2026-118.pdf",
            "paper-and-pens-88-3.pdf",
        ] {
            upload(&app, &team.key, &sandbox, file).await;
        }
        let body = json!({"agent_id": agent, "sandbox_id": sandbox});
        let run = app.run(&team, body).await;
        app.settle().await;
        // One fits; the others charge more than was ordered, or name another account.
        let got = app.get_run(&team, &run).await;
        let call = &got["pending_human_request"]["tool_call"];
        assert_eq!(call["name"], "write_file", "{got}");
        let payments =
            "supplier,iban,eur,reference\nPaper & Pens,DE89370400440532013000,180.5,4711\n";
        assert_eq!(
            call["arguments"],
            json!({"path": "/workspace/payments.csv", "content": payments})
        );
        let file = app.sandbox_dir(&sandbox).join("payments.csv");
        assert!(!file.exists(), "before a person said so");
        respond(&app, &team, &run, json!({"approved": approved})).await;
        assert_eq!(app.status(&team, &run).await, "completed");
        let written = std::fs::read_to_string(&file).ok();
        assert_eq!(written.as_deref(), approved.then_some(payments));
        let messages = app.messages(&team, &run).await;
        let last = messages.last().unwrap()["text_content"].as_str().unwrap();
        for part in [
            "1 of 3 invoices fit their orders",
            if approved {
                "their payment is in"
            } else {
                "nobody released"
            },
            "2026-118 is not paid: it asks for 640",
            "88-3 is not paid: it names the account GB33BUKB20201555555555",
        ] {
            assert!(last.contains(part), "{part}: {last}");
        }
    }
    app.finish().await;
}
