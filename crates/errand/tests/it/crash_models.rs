//! Crashes before and after each commit of a run with a network model, with a full disk at each commit, and at moments
//! between commits: while the model answers, or a connection's server works. Accepted work is completed, each turn is
//! recorded once, and nothing is done twice without a person's approval.

use std::time::Duration;

use errand_core::ledger::{DONE, SKIP};
use errand_testkit::providers::{Answer, Asked, Fault, ProviderServer};
use errand_testkit::{Gate, Plan, World, fail_everywhere};
use reqwest::Method;
use serde_json::{Value, json};

use crate::connections::{Mailbox, options, stdio, tools_with};
use crate::models::config;

const MODEL: &str = "anthropic/claude-test";

fn plan(name: impl Into<String>, least: u64, server: &ProviderServer) -> Plan {
    let mut plan = Plan::new(name, least);
    plan.settings = server.settings();
    plan
}

/// A plan whose runs also have the mailbox.
fn with_mailbox(mut plan: Plan, mailbox: &Mailbox) -> Plan {
    let options = options(Some(mailbox));
    plan.settings.extend(options.settings);
    plan.file = options.file;
    plan
}

/// The results of a run's calls, in order.
async fn results(w: &World, run: &str) -> Vec<Value> {
    let messages = w.messages(run).await;
    let results = messages.iter().filter(|m| m["type"] == "tool_result");
    results.map(|m| m["tool_result"].clone()).collect()
}

async fn usage(w: &World, run: &str) -> Value {
    w.app.get_run(&w.team, run).await["run"]["usage"].clone()
}

/// Properties of every request to a model, whatever happened before.
fn assert_well_put(asked: &[Asked]) {
    for asked in asked {
        let messages = asked.body["messages"].as_array().unwrap();
        let calls = |m: &Value| {
            let parts = m["content"].as_array().cloned().unwrap_or_default();
            parts.iter().filter(|p| p["type"] == "tool_use").count()
        };
        for (at, message) in messages.iter().enumerate().filter(|(_, m)| calls(m) > 0) {
            let parts = messages[at + 1]["content"].as_array().unwrap();
            let results = parts.iter().filter(|p| p["type"] == "tool_result");
            assert_eq!(results.count(), calls(message), "{}", asked.body);
        }
    }
}

fn writes_and_reads(server: &ProviderServer) {
    let file = "/workspace/a.txt";
    let first = Answer::text("I write.")
        .and_call("write_file", json!({"path": file, "content": "hello"}))
        .and_call("list_files", json!({}));
    let second = Answer::call("read_file", json!({"path": file}));
    let script = vec![first, second, Answer::text("It says hello.")];
    server.script("claude-test", script);
}

const TEXTS: [&str; 3] = [
    "user: What is in it?",
    "assistant: I write.",
    "assistant: It says hello.",
];

/// Checks a completed run of [`writes_and_reads`]. `repeated`: number of requests that may have been repeated.
async fn assert_wrote_and_read(w: &mut World, run: &str, asked: &[Asked], repeated: usize) {
    w.assert_status(run, "completed").await;
    assert_eq!(w.texts(run).await, TEXTS);
    let results = results(w, run).await;
    assert_eq!(results.len(), 3);
    assert_eq!(results[2]["result"], "hello");
    let usage = usage(w, run).await;
    assert_eq!(usage["model_calls"], 3, "each turn is counted once");
    assert_eq!(usage["input_tokens"], 300);
    assert!(asked.len() <= 3 + repeated, "{} questions", asked.len());
    assert_well_put(asked);
    assert_eq!(w.events(run).await, ["run_completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_network_model() {
    let server = ProviderServer::start().await;
    writes_and_reads(&server);
    let plan = plan("a run of a network model", 7, &server);
    let act = async |w: &mut World| {
        let agent = w.agent(config(MODEL, json!({}))).await;
        let before = server.asked().len();
        w.begin();
        let body = json!({"agent_id": agent, "message": "What is in it?"});
        let run = w.start(body).await;
        w.quiet().await;
        // The request whose response was lost with the program is repeated.
        assert_wrote_and_read(w, &run, &server.asked()[before..], 1).await;
    };
    fail_everywhere(&plan, act).await;
}

/// Kills the server after this many events of the first answer.
async fn a_kill_during_an_answer(events: usize) {
    let server = ProviderServer::start().await;
    writes_and_reads(&server);
    let plan = plan(format!("a kill after {events} events"), 7, &server);
    let act = async |w: &mut World| {
        let agent = w.agent(config(MODEL, json!({}))).await;
        let before = server.asked().len();
        let gate = Gate::default();
        server.fail_with([Fault::Trickle(gate.clone())]);
        w.begin();
        let body = json!({"agent_id": agent, "message": "What is in it?"});
        let run = w.start(body).await;
        for _ in 0..events {
            w.reach(&gate).await;
            gate.open();
        }
        w.reach(&gate).await;
        w.crash().await;
        gate.open_for_good();
        w.quiet().await;
        assert_wrote_and_read(w, &run, &server.asked()[before..], 2).await;
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_the_answer_begins() {
    a_kill_during_an_answer(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_the_answer() {
    a_kill_during_an_answer(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_overloaded_at_first() {
    let server = ProviderServer::start().await;
    writes_and_reads(&server);
    let plan = plan("an overloaded model", 8, &server);
    let act = async |w: &mut World| {
        let agent = w.agent(config(MODEL, json!({}))).await;
        let before = server.asked().len();
        server.fail_with([Fault::Status(529), Fault::Cut(3)]);
        w.begin();
        let body = json!({"agent_id": agent, "message": "What is in it?"});
        let run = w.start(body).await;
        for _ in 0..4 {
            w.advance(Duration::from_secs(8)).await;
        }
        assert_wrote_and_read(w, &run, &server.asked()[before..], 3).await;
    };
    fail_everywhere(&plan, act).await;
}

/// The number of the last file that a request mentions.
fn written(asked: &Asked) -> usize {
    let body = asked.body.to_string();
    let numbers = body.split("/workspace/f").skip(1).filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    numbers.max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_fills() {
    const FILES: usize = 9;
    let server = ProviderServer::start().await;
    server.answer_by(|asked| {
        let n = written(asked);
        if asked.system().starts_with("You write the summary") {
            return Answer::text(&format!("Written up to /workspace/f{n}.txt."));
        }
        if n == FILES {
            return Answer::text("All written.");
        }
        let path = format!("/workspace/f{}.txt", n + 1);
        let arguments = json!({"path": path, "content": "x".repeat(1_500)});
        let tokens = asked.body.to_string().len() as u64 / 4;
        Answer::call("write_file", arguments).with_tokens(tokens, 0, 0, 10)
    });
    let mut plan = Plan::new("a window that fills", 12);
    plan.file = Some(format!(
        "[models.providers.local]\nkind = \"openai_compatible\"\nbase_url = \"{}\"\n[models.windows]\n\"local/small\" = 4000\n",
        server.openai_url()
    ));
    let act = async |w: &mut World| {
        let data = json!({"tools": {"write_file": "allow"}});
        let agent = w.agent(config("local/small", data)).await;
        w.begin();
        let body = json!({"agent_id": agent, "message": "Write nine files."});
        let run = w.start(body).await;
        w.assert_status(&run, "completed").await;
        assert_eq!(
            w.texts(&run).await,
            ["user: Write nine files.", "assistant: All written."]
        );
        let results = results(w, &run).await;
        assert_eq!(results.len(), FILES);
        assert!(results.iter().all(|r| r["error"].is_null()), "{results:?}");
        let path = format!("/v1/runs/{run}/model-calls");
        let calls = w.app.get(&w.team.key, &path).await.expect(200);
        let calls = calls["model_calls"].as_array().unwrap().clone();
        let summaries = calls.iter().filter(|c| c["purpose"] == "summary").count();
        assert!(summaries >= 1, "{calls:?}");
        assert_eq!(calls.len(), FILES + 1 + summaries);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_that_share_a_team_s_limit() {
    let server = ProviderServer::start().await;
    // A quarter of a cent each, and three turns per run: both runs reach the limit before their last turn.
    server.answer_by(|asked| {
        let results = asked.body.to_string().matches("tool_result").count();
        let answer = match results {
            0 | 1 => Answer::call("list_files", json!({})),
            _ => Answer::text("Done."),
        };
        answer.with_tokens(1_000, 600, 100, 50)
    });
    let plan = plan("two runs that share a team's limit", 14, &server);
    let act = async |w: &mut World| {
        let agent = w
            .agent(config("anthropic/claude-sonnet-4-5", json!({})))
            .await;
        let limits = "/v1/usage/limits";
        let set = json!({"cost_usd_month": 0.004});
        w.send(Method::PATCH, limits, set).await.expect(200);
        let before = server.asked().len();
        w.begin();
        let body = json!({"agent_id": agent, "message": "Go."});
        let one = w.start(body.clone()).await;
        let two = w.start(body).await;
        for run in [&one, &two] {
            w.assert_status(run, "waiting").await;
            let title = w.pending(run).await["title"].to_string();
            assert!(title.contains("team's cost"), "{title}");
        }
        // Two turns reach the limit; a third may have started before their cost was known, and two were lost with a
        // crash.
        let asked = server.asked().len() - before;
        assert!((2..=5).contains(&asked), "{asked}");
        w.respond(&one, json!({"approved": true})).await;
        w.respond(&two, json!({"approved": false})).await;
        w.assert_status(&one, "completed").await;
        w.assert_status(&two, "failed").await;
        let got = w.app.get_run(&w.team, &two).await;
        assert_eq!(got["run"]["error"]["code"], "limit_exceeded", "{got:#}");
        let set = json!({"cost_usd_month": 1});
        w.send(Method::PATCH, limits, set).await.expect(200);
        let retry = format!("/v1/runs/{two}/retry");
        w.post(&retry, json!({})).await.expect(200);
        w.assert_status(&two, "completed").await;
        let mut cost = 0.0;
        for run in [&one, &two] {
            assert_eq!(w.texts(run).await.last().unwrap(), "assistant: Done.");
            let usage = usage(w, run).await;
            assert_eq!(usage["model_calls"], 3, "each turn is counted once");
            cost += usage["cost_usd"].as_f64().unwrap();
        }
        let spent = w.app.get(&w.team.key, limits).await.expect(200);
        let spent = spent["spent_usd_month"].as_f64().unwrap();
        assert!((spent - cost).abs() < 1e-9, "{spent} is not {cost}");
    };
    fail_everywhere(&plan, act).await;
}

/// Starts a run whose model calls these tools of the mailbox in order, and returns its ID.
async fn start(w: &mut World, mailbox: &Mailbox, says: &'static str) -> String {
    mailbox.forget();
    let body = json!({"name": "mail", "transport": stdio("mailbox")});
    let made = w.post("/v1/connections", body).await.expect(201);
    let id = made["connection"]["id"].as_str().unwrap().to_owned();
    let probe = format!("/v1/connections/{id}/probe");
    let probed = w.post(&probe, json!({})).await.expect(200);
    assert_eq!(probed["error"], Value::Null, "{probed}");
    let agent = w
        .agent(config(
            MODEL,
            json!({"connections": [id], "tools": tools_with("mail")}),
        ))
        .await;
    w.say_of_doubts(says);
    w.begin();
    w.start(json!({"agent_id": agent, "message": "Go."})).await
}

fn send() -> Answer {
    let mail = json!({"to": "a", "subject": "b", "body": "c"});
    Answer::call("mail__send_message", mail)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_call_that_could_happen_twice_asks() {
    let (server, mailbox) = (ProviderServer::start().await, Mailbox::new());
    server.script("claude-test", vec![send(), Answer::text("Sent.")]);
    let plan = with_mailbox(plan("a model sends", 5, &server), &mailbox);
    let act = async |w: &mut World| {
        let run = start(w, &mailbox, SKIP).await;
        w.assert_status(&run, "completed").await;
        let results = results(w, &run).await;
        assert_eq!(results.len(), 1);
        let sent = mailbox.log().len();
        match results[0]["error"].as_str() {
            None => assert_eq!(sent, 1),
            Some(error) => assert!(error.starts_with("skipped:") && sent <= 1, "{error}"),
        }
        assert_eq!(w.texts(&run).await.last().unwrap(), "assistant: Sent.");
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_model_s_calls_of_a_connection_that_read() {
    let (server, mailbox) = (ProviderServer::start().await, Mailbox::new());
    let read = |id: &str| json!({"id": id});
    let both =
        Answer::call("mail__read_message", read("1")).and_call("mail__read_message", read("2"));
    server.script("claude-test", vec![both, Answer::text("Read.")]);
    let plan = with_mailbox(plan("a model reads", 4, &server), &mailbox);
    let act = async |w: &mut World| {
        let run = start(w, &mailbox, SKIP).await;
        w.assert_status(&run, "completed").await;
        let results = results(w, &run).await;
        assert_eq!(results.len(), 2);
        assert!(results.iter().all(|r| r["error"].is_null()), "{results:?}");
        assert_eq!(usage(w, &run).await["model_calls"], 2);
    };
    fail_everywhere(&plan, act).await;
}

/// Kills the program while a server works on a call, which it executes but never answers.
async fn a_kill_during_a_call(tool: &'static str, says: &'static str) {
    let (server, mailbox) = (ProviderServer::start().await, Mailbox::new());
    let call = match tool {
        "send_message" => send(),
        "label_message" => Answer::call("mail__label_message", json!({"id": "1", "label": "seen"})),
        _ => Answer::call("mail__read_message", json!({"id": "1"})),
    };
    server.script("claude-test", vec![call, Answer::text("Done.")]);
    let name = format!("a kill during {tool}, {says}");
    let plan = with_mailbox(plan(name, 4, &server), &mailbox);
    let act = async |w: &mut World| {
        mailbox.is_silent_on(tool, true);
        let run = start(w, &mailbox, says).await;
        w.until("silent", || mailbox.was_silent_on(tool)).await;
        w.crash().await;
        mailbox.is_silent_on(tool, false);
        w.assert_status(&run, "completed").await;
        let results = results(w, &run).await;
        assert_eq!(results.len(), 1);
        let (done, result) = (mailbox.log().len(), &results[0]);
        if tool == "send_message" {
            assert!(done <= 1, "it was sent {done} times");
            let told = result.to_string();
            assert!(
                told.contains("skipped:") || told.contains("a person looked"),
                "{told}"
            );
        } else {
            assert!(result["error"].is_null(), "{result}");
        }
        assert_eq!(w.texts(&run).await.last().unwrap(), "assistant: Done.");
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_a_call_that_may_do_something_twice() {
    a_kill_during_a_call("send_message", SKIP).await;
    a_kill_during_a_call("send_message", DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_a_call_that_is_idempotent() {
    a_kill_during_a_call("label_message", SKIP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_a_call_that_reads() {
    a_kill_during_a_call("read_message", SKIP).await;
}
