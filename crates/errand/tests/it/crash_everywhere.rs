//! Crashes before and after each commit of a plan, and a full disk at each commit: accepted work is done exactly once,
//! and ends as if nothing had happened.

use std::time::Duration;

use errand_core::ledger::{DONE, NOT_DONE, SKIP};
use errand_core::turn::Move;
use errand_testkit::{Gate, Plan, World, fail_everywhere};
use http::Method;
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3600);

fn call(name: &str, arguments: Value) -> Move {
    Move::Call {
        id: None,
        name: name.to_owned(),
        arguments: arguments.as_object().unwrap().clone(),
    }
}

fn finish(text: &str) -> Vec<Move> {
    vec![Move::Finish {
        text: text.to_owned(),
    }]
}

fn pay() -> Vec<Vec<Move>> {
    vec![vec![call("run_command", json!({"eur": 7}))]]
}

fn approve() -> Value {
    json!([{"approve": {"title": "Pay?"}, "as": "ok"}, {"finish": "{{ ok.approved }}"}])
}

async fn last_text(w: &World, run: &str) -> String {
    w.texts(run).await.pop().unwrap_or_default()
}

/// The results of a run's tool calls, in order.
async fn results(w: &World, run: &str) -> Vec<Value> {
    let messages = w.messages(run).await;
    let results = messages.iter().filter(|m| m["type"] == "tool_result");
    results.map(|m| m["tool_result"].clone()).collect()
}

#[tokio::test]
async fn a_plain_run() {
    let plan = Plan::new("a plain run", 4);
    let act = async |w: &mut World| {
        let agent = w
            .playbook(json!([
                {"tool": "write_file", "with": {"path": "out.txt", "content": "hello {{ message }}"}},
                {"tool": "read_file", "with": {"path": "out.txt"}, "as": "text"},
                {"finish": "It says {{ text }}."}
            ]))
            .await;
        w.begin();
        let run = w
            .start(json!({"agent_id": agent, "message": "world"}))
            .await;
        w.assert_status(&run, "completed").await;
        assert_eq!(
            w.texts(&run).await,
            ["user: world", "assistant: It says hello world."]
        );
        assert_eq!(results(w, &run).await.len(), 2);
        assert_eq!(w.events(&run).await, ["run_completed"]);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_webhook_of_the_team() {
    let plan = Plan::new("a webhook of the team", 8);
    let act = async |w: &mut World| {
        let agent = w.playbook(approve()).await;
        w.begin();
        let url = w.sink.url().to_owned();
        let made = w.post("/v1/webhooks", json!({"url": url})).await;
        let webhook = made.expect(201)["webhook"]["id"].clone();
        let started = w.post("/v1/runs", json!({"agent_id": agent})).await;
        let run = w.started(&started.expect(201));
        w.assert_status(&run, "waiting").await;
        let rolled = w.post("/v1/webhook-secret/roll", json!({})).await;
        assert_eq!(rolled.expect(200)["retired"].as_array().unwrap().len(), 1);
        w.respond(&run, json!({"approved": true})).await;
        w.assert_status(&run, "completed").await;
        assert_eq!(w.events(&run).await, ["human_request", "run_completed"]);
        let path = format!("/v1/webhooks/{}", webhook.as_str().unwrap());
        let gone = w.send(Method::DELETE, &path, json!({})).await;
        assert_eq!(gone.status, 204);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_fork() {
    let plan = Plan::new("a fork", 8);
    let act = async |w: &mut World| {
        let agent = w
            .playbook(json!([
                {"tool": "write_file", "with": {"path": "out.txt", "content": "{{ message }}"}},
                {"tool": "read_file", "with": {"path": "out.txt"}, "as": "text"},
                {"finish": "It says {{ text }}."}
            ]))
            .await;
        w.begin();
        let run = w.start(json!({"agent_id": agent, "message": "one"})).await;
        w.assert_status(&run, "completed").await;
        let path = format!("/v1/runs/{run}/fork");
        let forked = w.post(&path, json!({"message": "two"})).await;
        let fork = w.started(&forked.expect(201));
        w.assert_status(&fork, "completed").await;
        assert_eq!(
            w.texts(&fork).await,
            [
                "user: one",
                "assistant: It says one.",
                "user: two",
                "assistant: It says two."
            ]
        );
        assert_eq!(w.texts(&run).await.len(), 2);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn an_approval() {
    for approved in [true, false] {
        let plan = Plan::new(format!("an approval: {approved}"), 6);
        let act = async |w: &mut World| {
            let agent = w.playbook(approve()).await;
            w.begin();
            let run = w.start(json!({"agent_id": agent})).await;
            w.assert_status(&run, "waiting").await;
            w.respond(&run, json!({"approved": approved})).await;
            w.assert_status(&run, "completed").await;
            assert_eq!(last_text(w, &run).await, format!("assistant: {approved}"));
            assert_eq!(w.events(&run).await, ["human_request", "run_completed"]);
        };
        fail_everywhere(&plan, act).await;
    }
}

#[tokio::test]
async fn an_approval_of_a_call() {
    for approved in [true, false] {
        let plan = Plan::new(format!("an approval of a call: {approved}"), 6);
        let act = async |w: &mut World| {
            let data = json!({"tools": {"run_command": "ask"}});
            let agent = w.script("pay", pay(), data).await;
            w.say_of_doubts(NOT_DONE);
            w.begin();
            let run = w.start(json!({"agent_id": agent})).await;
            w.assert_status(&run, "waiting").await;
            assert_eq!(w.app.payment.begun(), 0);
            let pending = w.pending(&run).await;
            assert_eq!(pending["type"], "approval");
            assert_eq!(pending["tool_call"]["arguments"], json!({"eur": 7}));
            w.allow_payments(u32::from(approved));
            w.respond(&run, json!({"approved": approved})).await;
            w.assert_status(&run, "completed").await;
            assert_eq!(w.app.payment.begun() > 0, approved);
        };
        fail_everywhere(&plan, act).await;
    }
}

#[tokio::test]
async fn a_question() {
    let plan = Plan::new("a question", 6);
    let act = async |w: &mut World| {
        let ask = json!({"title": "A colour", "questions": [{"question": "Which?", "options": [{"label": "red"}, {"label": "blue"}]}]});
        let turns = vec![vec![call("ask_human", ask)], finish("Thanks.")];
        let agent = w.script("ask", turns, json!({})).await;
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.assert_status(&run, "waiting").await;
        w.respond(&run, json!({"answers": {"Which?": "blue"}}))
            .await;
        w.assert_status(&run, "completed").await;
        let results = results(w, &run).await;
        assert_eq!(results.len(), 1);
        assert!(results[0].to_string().contains("blue"), "{results:?}");
        assert_eq!(w.events(&run).await, ["human_request", "run_completed"]);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_tool_that_fails() {
    let plan = Plan::new("a tool that fails", 5);
    let act = async |w: &mut World| {
        let agent = w.script("pay", pay(), json!({})).await;
        w.app.payment.fail_with(Some("refused: no money"));
        w.say_of_doubts(NOT_DONE);
        w.allow_payments(1);
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.assert_status(&run, "completed").await;
        let results = results(w, &run).await;
        assert_eq!(results.len(), 1);
        assert_eq!(results[0]["error"], "refused: no money");
        assert_eq!(last_text(w, &run).await, "assistant: Done.");
    };
    fail_everywhere(&plan, act).await;
}

/// The server dies during a call: the person is asked, and their answer decides.
async fn a_call_in_doubt(answer: &'static str) {
    let plan = Plan::new(format!("a call in doubt: {answer}"), 9);
    let act = async |w: &mut World| {
        let agent = w.script("pay", pay(), json!({})).await;
        let gate = Gate::default();
        w.app.payment.hold_at(Some(&gate));
        w.say_of_doubts(answer);
        w.allow_payments(1);
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.reach(&gate).await;
        w.crash().await;
        gate.open_for_good();
        w.settle().await;
        let pending = w.pending(&run).await;
        if !pending.is_null() {
            assert_eq!(pending["type"], "question");
            assert_eq!(pending["tool_call"]["arguments"], json!({"eur": 7}));
            assert!(w.app.payment.begun() <= 1, "not again before the answer");
        }
        w.assert_status(&run, "completed").await;
        let results = results(w, &run).await;
        assert_eq!(results.len(), 1);
        let shown = results[0].to_string();
        let told = match answer {
            NOT_DONE => shown.contains("paid"),
            SKIP => shown.contains("skipped"),
            _ => shown.contains("a person looked"),
        };
        assert!(told, "{shown}");
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_call_in_doubt_that_was_done() {
    a_call_in_doubt(DONE).await;
}

#[tokio::test]
async fn a_call_in_doubt_that_was_not_done() {
    a_call_in_doubt(NOT_DONE).await;
}

#[tokio::test]
async fn a_call_in_doubt_that_is_skipped() {
    a_call_in_doubt(SKIP).await;
}

#[tokio::test]
async fn an_edit_is_settled_by_the_file() {
    let plan = Plan::new("an edit", 5);
    let act = async |w: &mut World| {
        let edit = json!({"path": "a.txt", "old": "one", "new": "one more"});
        let agent = w
            .playbook(json!([
                {"tool": "write_file", "with": {"path": "a.txt", "content": "There is one."}},
                {"tool": "edit_file", "with": edit},
                {"tool": "read_file", "with": {"path": "a.txt"}, "as": "text"},
                {"finish": "{{ text }}"}
            ]))
            .await;
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.assert_status(&run, "completed").await;
        assert_eq!(last_text(w, &run).await, "assistant: There is one more.");
        let sandbox = w.app.get_run(&w.team, &run).await["run"]["sandbox_id"].clone();
        let dir = w.app.sandbox_dir(sandbox.as_str().unwrap());
        assert_eq!(
            std::fs::read_to_string(dir.join("a.txt")).unwrap(),
            "There is one more."
        );
        assert_eq!(w.events(&run).await, ["run_completed"]);
    };
    fail_everywhere(&plan, act).await;
}

/// The state of a run when a stop or a message arrives.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    NoPlace,
    Starting,
    ModelCall,
    ToolCall,
    Waiting,
    Timer,
    Completed,
}

/// Brings a run to the state. It continues when the gate opens.
async fn bring(w: &mut World, state: State) -> (String, Gate) {
    let gate = Gate::default();
    let (wrote, heard) = (
        call("write_file", json!({"path": "a", "content": "x"})),
        json!({"finish": "heard {{ message }}"}),
    );
    let agent = match state {
        State::NoPlace | State::Starting => {
            w.app.model.hold_turn_at(0, &gate);
            w.script("held", vec![], json!({})).await
        }
        State::ModelCall => {
            w.app.model.hold_turn_at(1, &gate);
            w.script("held", vec![vec![wrote]], json!({})).await
        }
        State::ToolCall => {
            w.app.payment.hold_at(Some(&gate));
            w.allow_payments(1);
            w.script("pay", pay(), json!({})).await
        }
        State::Waiting => {
            w.playbook(json!([{"approve": {"title": "?"}}, heard]))
                .await
        }
        State::Timer => w.playbook(json!([{"wait": "1h"}, heard])).await,
        State::Completed => w.playbook(json!([heard])).await,
    };
    w.begin();
    let body = json!({"agent_id": agent, "message": "one"});
    let mut run = w.start(body.clone()).await;
    if state == State::NoPlace {
        w.reach(&gate).await;
        run = w.start(body).await;
    }
    // If the server died during the call, the call is in doubt now and the run waits.
    w.reach(&gate).await;
    (run, gate)
}

async fn a_stop(state: State, least: u64) {
    let mut plan = Plan::new(format!("a stop, {state:?}"), least);
    if state == State::NoPlace {
        plan = plan.with("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "1");
    }
    let act = async |w: &mut World| {
        let (run, gate) = bring(w, state).await;
        w.stop(&run).await;
        let stopped = w.texts(&run).await;
        gate.open_for_good();
        let (status, event) = match state {
            State::Completed => ("completed", "run_completed"),
            _ => ("interrupted", "run_interrupted"),
        };
        w.assert_status(&run, status).await;
        assert_eq!(
            w.texts(&run).await,
            stopped,
            "nothing is said after the stop"
        );
        let events = w.events(&run).await;
        let ends = events.iter().filter(|e| e.starts_with("run_"));
        assert_eq!(ends.collect::<Vec<_>>(), [event]);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_stop_of_a_run_without_a_place() {
    a_stop(State::NoPlace, 5).await;
}

#[tokio::test]
async fn a_stop_of_a_run_that_starts() {
    a_stop(State::Starting, 4).await;
}

#[tokio::test]
async fn a_stop_during_a_model_call() {
    a_stop(State::ModelCall, 5).await;
}

#[tokio::test]
async fn a_stop_during_a_tool_call() {
    a_stop(State::ToolCall, 4).await;
}

#[tokio::test]
async fn a_stop_of_a_run_that_waits() {
    a_stop(State::Waiting, 4).await;
}

#[tokio::test]
async fn a_stop_of_a_run_on_a_timer() {
    a_stop(State::Timer, 4).await;
}

#[tokio::test]
async fn a_stop_of_a_run_that_has_ended() {
    a_stop(State::Completed, 4).await;
}

async fn a_message(state: State, least: u64) {
    let mut plan = Plan::new(format!("a message, {state:?}"), least);
    if state == State::NoPlace {
        plan = plan.with("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "1");
    }
    let act = async |w: &mut World| {
        let (run, gate) = bring(w, state).await;
        w.message(&run, "two").await;
        gate.open_for_good();
        if state == State::Timer {
            w.advance(HOUR).await;
        }
        w.assert_status(&run, "completed").await;
        let texts = w.texts(&run).await;
        let heard = texts.iter().filter(|t| t.as_str() == "user: two").count();
        assert_eq!(heard, 1, "{texts:?}");
        let last = match state {
            State::Waiting | State::Timer | State::Completed => "assistant: heard two",
            _ => "assistant: Done.",
        };
        assert_eq!(texts.last().unwrap(), last, "the message is answered");
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_message_to_a_run_without_a_place() {
    a_message(State::NoPlace, 6).await;
}

#[tokio::test]
async fn a_message_to_a_run_that_starts() {
    a_message(State::Starting, 5).await;
}

#[tokio::test]
async fn a_message_during_a_model_call() {
    a_message(State::ModelCall, 7).await;
}

#[tokio::test]
async fn a_message_during_a_tool_call() {
    a_message(State::ToolCall, 5).await;
}

#[tokio::test]
async fn a_message_to_a_run_that_waits() {
    a_message(State::Waiting, 6).await;
}

#[tokio::test]
async fn a_message_to_a_run_on_a_timer() {
    a_message(State::Timer, 6).await;
}

#[tokio::test]
async fn a_message_to_a_run_that_has_ended() {
    a_message(State::Completed, 6).await;
}

#[tokio::test]
async fn a_message_during_the_last_model_call() {
    let plan = Plan::new("a message during the last model call", 5);
    let act = async |w: &mut World| {
        let gate = Gate::default();
        w.app.model.hold_turn_at(0, &gate);
        let turns = vec![finish("first"), finish("second")];
        let agent = w.script("two", turns, json!({})).await;
        w.begin();
        let run = w
            .start(json!({"agent_id": agent, "message": "hello"}))
            .await;
        assert!(w.reach(&gate).await);
        w.message(&run, "wait").await;
        gate.open_for_good();
        w.assert_status(&run, "completed").await;
        let texts = w.texts(&run).await;
        // A driver that follows a dead one reads the message before it calls the model.
        let once = ["user: hello", "user: wait", "assistant: first"];
        assert!(
            texts == once || texts == [&once[..], &["assistant: second"]].concat(),
            "{texts:?}"
        );
        assert_eq!(w.events(&run).await, ["run_completed"]);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_timer() {
    let plan = Plan::new("a timer", 6);
    let act = async |w: &mut World| {
        let agent = w
            .playbook(json!([{"wait": "3d"}, {"finish": "late"}]))
            .await;
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.advance(48 * HOUR).await;
        w.assert_status(&run, "running").await;
        assert_eq!(w.texts(&run).await, Vec::<String>::new());
        w.advance(24 * HOUR).await;
        w.assert_status(&run, "completed").await;
        assert_eq!(w.texts(&run).await, ["assistant: late"]);
        assert_eq!(w.events(&run).await, ["run_completed"]);
    };
    fail_everywhere(&plan, act).await;
}

async fn a_request_that_expires(on_expire: &'static str, status: &'static str) {
    let plan = Plan::new(format!("a request that expires: {on_expire}"), 6);
    let act = async |w: &mut World| {
        let ask = json!({"title": "Pay?", "expires_in": "1h", "on_expire": on_expire});
        let steps = json!([{"approve": ask, "as": "ok"}, {"finish": "{{ ok.approved }}"}]);
        let agent = w.playbook(steps).await;
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.assert_status(&run, "waiting").await;
        w.advance(HOUR).await;
        w.assert_status(&run, status).await;
        let ended = format!("run_{status}");
        assert_eq!(w.events(&run).await, ["human_request", ended.as_str()]);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_request_that_expires_denies() {
    a_request_that_expires("deny", "completed").await;
}

#[tokio::test]
async fn a_request_that_expires_continues() {
    a_request_that_expires("continue", "completed").await;
}

#[tokio::test]
async fn a_request_that_expires_fails() {
    a_request_that_expires("fail", "failed").await;
}

#[tokio::test]
async fn a_webhook_that_fails_twice() {
    let plan = Plan::new("a webhook that fails twice", 11);
    let act = async |w: &mut World| {
        let agent = w.playbook(approve()).await;
        w.sink.answer_with([500, 503]);
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.respond(&run, json!({"approved": true})).await;
        for _ in 0..4 {
            w.advance(Duration::from_secs(300)).await;
        }
        w.assert_status(&run, "completed").await;
        assert_eq!(w.events(&run).await, ["human_request", "run_completed"]);
        let refused = w.sink.received();
        let refused = refused.iter().filter(|r| r.answered >= 300).count();
        assert_eq!(refused, 2);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn uploads_while_the_run_works() {
    let plan = Plan::new("uploads while the run works", 7);
    let act = async |w: &mut World| {
        let read = |path: &str| call("read_file", json!({"path": path}));
        let gate = Gate::default();
        w.app.model.hold_turn_at(0, &gate);
        let turns = vec![vec![read("in/direct.txt"), read("in/by url.txt")]];
        let agent = w.script("read", turns, json!({})).await;
        let sandbox = w.sandbox().await;
        w.begin();
        let run = w
            .start(json!({"agent_id": agent, "sandbox_id": sandbox}))
            .await;
        assert!(w.reach(&gate).await);
        w.upload(&sandbox, "in/direct.txt", "came directly").await;
        w.upload_by_url(&sandbox, "in/by url.txt", "came by its address")
            .await;
        gate.open_for_good();
        w.assert_status(&run, "completed").await;
        let results = results(w, &run).await;
        assert_eq!(results.len(), 2);
        assert!(results[0].to_string().contains("came directly"));
        assert!(results[1].to_string().contains("came by its address"));
        let dir = w.app.sandbox_dir(&sandbox).join("in");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn the_same_call_twice_at_once() {
    let plan = Plan::new("the same call twice at once", 12);
    let act = async |w: &mut World| {
        let agent = w.playbook(approve()).await;
        w.begin();
        let body = json!({"agent_id": agent, "webhook_url": w.sink.url()});
        let answer = w.post_twice("/v1/runs", body).await;
        let run = w.started(&answer);
        w.quiet().await;
        let request = w.pending(&run).await["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
        w.post_twice(&path, json!({"approved": true})).await;
        w.quiet().await;
        let path = format!("/v1/runs/{run}/messages");
        w.post_twice(&path, json!({"message": "thanks"})).await;
        // It repeats its steps.
        w.respond(&run, json!({"approved": false})).await;
        w.assert_status(&run, "completed").await;
        let texts = w.texts(&run).await;
        assert_eq!(texts.iter().filter(|t| *t == "user: thanks").count(), 1);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn making_things() {
    let plan = Plan::new("making things", 9);
    let act = async |w: &mut World| {
        w.begin();
        let agent = w.playbook(json!([{"finish": "one"}])).await;
        let sandbox = w.sandbox().await;
        let key = w.post("/v1/api-keys", json!({"name": "deploy"})).await;
        let key = key.expect(201);
        let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "two"}]}}});
        let build = json!({"agent_id": agent, "name": "second", "config": config});
        w.post("/v1/builds", build).await.expect(201);
        let renamed = json!({"name": "renamed"});
        let agent_path = format!("/v1/agents/{agent}");
        let patched = w.send(Method::PATCH, &agent_path, renamed).await;
        assert_eq!(patched.expect(200)["agent"]["name"], "renamed");
        let key_path = format!("/v1/api-keys/{}", key["id"].as_str().unwrap());
        let deleted = w.send(Method::DELETE, &key_path, json!({})).await;
        assert_eq!(deleted.status, 204);
        let get = async |path: &str| w.app.get(&w.team.key, path).await.expect(200);
        assert_eq!(get("/v1/agents").await["total"], 1);
        let builds = get(&format!("/v1/agents/{agent}/revisions")).await;
        assert_eq!(builds["total"], 2, "{builds:#}");
        get(&format!("/v1/sandboxes/{sandbox}/files?path=/workspace")).await;
        let run = w.start(json!({"agent_id": agent})).await;
        w.assert_status(&run, "completed").await;
        assert_eq!(w.texts(&run).await, ["assistant: two"]);
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn two_runs_with_one_place() {
    let plan =
        Plan::new("two runs with one place", 8).with("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "1");
    let act = async |w: &mut World| {
        let steps = json!([{"tool": "write_file", "with": {"path": "a", "content": "x"}}, {"finish": "done"}]);
        let agent = w.playbook(steps).await;
        w.begin();
        let one = w.start(json!({"agent_id": agent})).await;
        let two = w.start(json!({"agent_id": agent})).await;
        for run in [one, two] {
            w.assert_status(&run, "completed").await;
            assert_eq!(results(w, &run).await.len(), 1);
            assert_eq!(w.events(&run).await, ["run_completed"]);
        }
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn two_runs_with_one_sandbox() {
    let plan = Plan::new("two runs with one sandbox", 16);
    let act = async |w: &mut World| {
        let agent = w.playbook(approve()).await;
        let sandbox = w.sandbox().await;
        let body = json!({"agent_id": agent, "sandbox_id": sandbox});
        w.begin();
        let one = w.start(body.clone()).await;
        w.quiet().await;
        w.stop(&one).await;
        let two = w.start(body).await;
        w.assert_status(&two, "waiting").await;
        // The resume of the first run is stored, and waits for the sandbox.
        w.message(&one, "go on").await;
        w.assert_status(&one, "pending").await;
        w.respond(&two, json!({"approved": true})).await;
        w.assert_status(&two, "completed").await;
        w.respond(&one, json!({"approved": true})).await;
        w.assert_status(&one, "completed").await;
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_retry_of_a_failed_run() {
    let plan = Plan::new("a retry of a failed run", 10);
    let act = async |w: &mut World| {
        let config = json!({"version": "v2", "data": {"tools": {"run_command": "allow", "write_file": "allow"}, "playbook": {"steps": [
            {"tool": "write_file", "with": {"path": "a", "content": "x"}},
            {"tool": "run_command", "with": {"command": "pay"}},
            {"finish": "paid"}
        ]}}});
        let agent = w.agent(config).await;
        w.app.payment.fail_with(Some("refused: no money"));
        w.say_of_doubts(NOT_DONE);
        w.allow_payments(1);
        w.begin();
        let run = w.start(json!({"agent_id": agent})).await;
        w.assert_status(&run, "failed").await;
        w.app.payment.fail_with(None);
        w.allow_payments(1);
        let path = format!("/v1/runs/{run}/retry");
        w.post(&path, json!({})).await.expect(200);
        w.assert_status(&run, "completed").await;
        assert_eq!(last_text(w, &run).await, "assistant: paid");
        let messages = w.messages(&run).await;
        let writes = messages
            .iter()
            .filter(|m| m["tool_call"]["name"] == "write_file");
        assert_eq!(writes.count(), 1, "what was done is not done again");
    };
    fail_everywhere(&plan, act).await;
}
