//! Answers to human requests over HTTP: every rule of the contract. A refused answer leaves the request open.

use std::time::Duration;

use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};

use crate::api_runs::{NOBODY, echo, seen, waiting};

fn respond_path(run: &str, request: &str) -> String {
    format!("/v1/runs/{run}/human-requests/{request}/respond")
}

/// A run that waits for these questions, and the path that answers them. Its last message contains the answers it
/// received.
async fn asking(app: &TestApp, team: &Team, questions: Value) -> (String, String) {
    let steps = json!([{"ask": {"title": "Tell me", "questions": questions}, "as": "told"}, {"finish": "{{ told | tojson }}"}]);
    let agent = app.playbook(team, steps).await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(team, &run).await;
    let request = got["pending_human_request"]["id"].as_str().unwrap();
    let path = respond_path(&run, request);
    (run, path)
}

/// The answers that the run received.
async fn told(app: &TestApp, team: &Team, run: &str) -> Value {
    app.settle().await;
    let messages = app.messages(team, run).await;
    serde_json::from_str(messages.last().unwrap()["text_content"].as_str().unwrap()).unwrap()
}

/// Each case is refused with 400, is named in the message, and changes nothing.
async fn all_refused(app: &TestApp, team: &Team, run: &str, path: &str, cases: &[(&str, Value)]) {
    let before = seen(app, team, run).await;
    for (word, body) in cases {
        let (code, message) = app.post(&team.key, path, body.clone()).await.error(400);
        assert_eq!(code, "bad_request", "{body}");
        assert!(
            message.contains(word),
            "{body} is refused with {message:?}, without {word:?}"
        );
    }
    app.settle().await;
    assert_eq!(
        seen(app, team, run).await,
        before,
        "what is refused changes nothing"
    );
}

#[tokio::test]
async fn a_pending_approval_and_its_answer_have_the_documented_form() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (approved, word) in [(true, "approved"), (false, "denied")] {
        let (run, request) = waiting(&app, &team).await;
        let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
        assert_eq!(
            [&pending["type"], &pending["title"], &pending["description"]],
            ["approval", "Pay?", "Now"]
        );
        assert_eq!(pending["created_at"], app.now().to_string());
        assert!(pending.get("questions").is_none(), "{pending}");
        app.clock().advance(Duration::from_secs(1));
        let body = json!({"approved": approved, "reason": "as agreed"});
        let answered = app
            .post(&team.key, &respond_path(&run, &request), body)
            .await
            .expect(200);
        let answered = &answered["human_request"];
        assert_eq!(
            *answered,
            json!({
                "id": request, "run_id": run, "title": "Pay?", "description": "Now", "response": word, "reason": "as agreed",
                "responded_at": app.now().to_string(), "created_at": pending["created_at"], "responded_by": team.owner.to_string(),
                "author": {"kind": "api_key", "id": answered["author"]["id"], "name": "test", "created_by": team.owner.to_string()}
            })
        );
        app.settle().await;
        let messages = app.messages(&team, &run).await;
        assert_eq!(
            messages.last().unwrap()["text_content"],
            approved.to_string()
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_reason_is_optional() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, request) = waiting(&app, &team).await;
    let answered = app
        .post(
            &team.key,
            &respond_path(&run, &request),
            json!({"approved": true}),
        )
        .await
        .expect(200);
    assert_eq!(answered["human_request"]["reason"], Value::Null);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn an_approval_takes_nothing_but_approved() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, request) = waiting(&app, &team).await;
    let cases = [
        ("approved", json!({})),
        ("approved", json!({"reason": "fine"})),
        ("approved", json!({"approved": "yes"})),
        ("approved", json!({"approved": 1})),
        ("approved", json!({"approved": null})),
        ("approved", json!({"answers": {"Pay?": "yes"}})),
        (
            "answers",
            json!({"approved": true, "answers": {"Pay?": "yes"}}),
        ),
        ("reason", json!({"approved": true, "reason": 7})),
        ("aproved", json!({"aproved": true})),
    ];
    all_refused(&app, &team, &run, &respond_path(&run, &request), &cases).await;
    app.finish().await;
}

#[tokio::test]
async fn every_question_must_be_answered_and_no_other() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let questions = json!([{"question": "Which account?", "header": "Account", "options": [{"label": "A", "description": "the first"}, {"label": "B"}]}, {"question": "Why?"}]);
    let (run, path) = asking(&app, &team, questions).await;
    let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
    assert_eq!(pending["type"], "question");
    let first = &pending["questions"][0];
    assert_eq!(
        [
            &first["question"],
            &first["header"],
            &first["options"][0]["label"]
        ],
        ["Which account?", "Account", "A"]
    );
    assert_eq!(first["options"][0]["description"], "the first");
    let cases = [
        ("answers", json!({"approved": true})),
        ("answers", json!({})),
        ("answers", json!({"answers": "A"})),
        ("answers", json!({"answers": ["A", "because"]})),
        ("answers", json!({"answers": null})),
        ("Which account?", json!({"answers": {}})),
        ("Why?", json!({"answers": {"Which account?": "A"}})),
        ("Which account?", json!({"answers": {"Why?": "because"}})),
        (
            "When?",
            json!({"answers": {"Which account?": "A", "Why?": "because", "When?": "now"}}),
        ),
        (
            "Why?",
            json!({"answers": {"Which account?": "A", "Why?": ""}}),
        ),
        (
            "Why?",
            json!({"answers": {"Which account?": "A", "Why?": "  "}}),
        ),
        (
            "Why?",
            json!({"answers": {"Which account?": "A", "Why?": null}}),
        ),
        (
            "Why?",
            json!({"answers": {"Which account?": "A", "Why?": 7}}),
        ),
        (
            "Why?",
            json!({"answers": {"Which account?": "A", "Why?": ["because"]}}),
        ),
    ];
    all_refused(&app, &team, &run, &path, &cases).await;

    let answers = json!({"Which account?": "A", "Why?": "because"});
    let answered = app
        .post(&team.key, &path, json!({"answers": answers}))
        .await
        .expect(200);
    let response = answered["human_request"]["response"].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(response).unwrap(),
        answers,
        "the answers as a JSON object in text"
    );
    assert_eq!(told(&app, &team, &run).await, answers);
    app.finish().await;
}

#[tokio::test]
async fn any_text_is_accepted_beside_the_options() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, path) = asking(
        &app,
        &team,
        json!([{"question": "Which?", "options": [{"label": "A"}]}]),
    )
    .await;
    app.post(
        &team.key,
        &path,
        json!({"answers": {"Which?": "neither, rather C"}}),
    )
    .await
    .expect(200);
    assert_eq!(
        told(&app, &team, &run).await,
        json!({"Which?": "neither, rather C"})
    );
    app.finish().await;
}

#[tokio::test]
async fn free_text_false_accepts_the_options_alone() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let questions = json!([
        {"question": "Which?", "options": [{"label": "A"}, {"label": "B"}], "free_text": false},
        {"question": "Any?", "options": [{"label": "C"}, {"label": "D"}], "free_text": false, "multi_select": true}
    ]);
    let (run, path) = asking(&app, &team, questions).await;
    let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
    assert_eq!(pending["questions"][0]["free_text"], false);
    let both = |which: Value, any: Value| json!({"answers": {"Which?": which, "Any?": any}});
    let cases = [
        ("Which?", both(json!("E"), json!("C"))),
        ("Which?", both(json!("a"), json!("C"))),
        ("Which?", both(json!("A, B"), json!("C"))),
        ("Any?", both(json!("A"), json!("C, E"))),
        ("Any?", both(json!("A"), json!(["C", "E"]))),
        ("Any?", both(json!("A"), json!(["C, D"]))),
    ];
    all_refused(&app, &team, &run, &path, &cases).await;
    app.post(&team.key, &path, both(json!("B"), json!("D,C")))
        .await
        .expect(200);
    assert_eq!(
        told(&app, &team, &run).await,
        json!({"Which?": "B", "Any?": ["D", "C"]})
    );
    app.finish().await;
}

#[tokio::test]
async fn multi_select_takes_labels_with_commas_or_a_list() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let questions = json!([{"question": "Which?", "options": [{"label": "A"}, {"label": "B"}, {"label": "Paris, France"}], "multi_select": true}]);
    let cases = [
        (json!("A"), json!(["A"])),
        (json!("A,B"), json!(["A", "B"])),
        (json!(" A , B "), json!(["A", "B"])),
        (json!(["A", "B"]), json!(["A", "B"])),
        (json!("Paris, France"), json!(["Paris, France"])),
        (json!(["A", "Paris, France"]), json!(["A", "Paris, France"])),
        (json!("A, something else"), json!(["A", "something else"])),
    ];
    for (given, taken) in cases {
        let (run, path) = asking(&app, &team, questions.clone()).await;
        assert_eq!(
            app.get_run(&team, &run).await["pending_human_request"]["questions"][0]["multi_select"],
            true
        );
        app.post(&team.key, &path, json!({"answers": {"Which?": given}}))
            .await
            .expect(200);
        assert_eq!(
            told(&app, &team, &run).await,
            json!({"Which?": taken}),
            "{given}"
        );
    }
    let (run, path) = asking(&app, &team, questions).await;
    let bad = [
        json!(""),
        json!(" , "),
        json!([]),
        json!([""]),
        json!([7]),
        json!(7),
        json!({"A": true}),
        Value::Null,
    ];
    let cases: Vec<_> = bad
        .into_iter()
        .map(|value| ("Which?", json!({"answers": {"Which?": value}})))
        .collect();
    all_refused(&app, &team, &run, &path, &cases).await;
    app.finish().await;
}

#[tokio::test]
async fn a_second_answer_says_when_and_by_whom_the_first_was_given() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, request) = waiting(&app, &team).await;
    let path = respond_path(&run, &request);
    app.post(&team.key, &path, json!({"approved": true}))
        .await
        .expect(200);
    let at = app.now().to_string();
    app.settle().await;
    app.clock().advance(Duration::from_secs(60));
    let cases = ["owner@acme.example", &at].map(|word| (word, json!({"approved": false})));
    all_refused(&app, &team, &run, &path, &cases).await;
    app.finish().await;
}

#[tokio::test]
async fn a_closed_request_accepts_no_answer() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, request) = waiting(&app, &team).await;
    app.message(&team, &run, "no").await;
    app.settle().await;
    all_refused(
        &app,
        &team,
        &run,
        &respond_path(&run, &request),
        &[("message", json!({"approved": true}))],
    )
    .await;

    let (run, request) = waiting(&app, &team).await;
    app.stop_run(&team, &run).await;
    app.settle().await;
    all_refused(
        &app,
        &team,
        &run,
        &respond_path(&run, &request),
        &[("stopped", json!({"approved": true}))],
    )
    .await;

    let steps = json!([{"approve": {"title": "Pay?", "expires_in": "1h"}, "as": "ok"}, {"finish": "{{ ok.approved }}"}]);
    let agent = app.playbook(&team, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
    assert_eq!(
        pending["expires_at"],
        app.now().plus_ms(3_600_000).to_string()
    );
    app.advance(Duration::from_secs(3600)).await;
    let path = respond_path(&run, pending["id"].as_str().unwrap());
    all_refused(
        &app,
        &team,
        &run,
        &path,
        &[("expired", json!({"approved": true}))],
    )
    .await;
    assert_eq!(
        app.messages(&team, &run).await.last().unwrap()["text_content"],
        "false"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_request_belongs_to_its_run() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (one, request_of_one) = waiting(&app, &team).await;
    let (two, _) = waiting(&app, &team).await;
    let agent = echo(&app, &team).await;
    let ended = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let before = [seen(&app, &team, &one).await, seen(&app, &team, &two).await];
    for (run, request) in [
        (&two, request_of_one.as_str()),
        (&two, NOBODY),
        (&ended, NOBODY),
        (&ended, &request_of_one),
    ] {
        let reply = app
            .post(
                &team.key,
                &respond_path(run, request),
                json!({"approved": true}),
            )
            .await;
        let (code, _) = reply.error(404);
        assert_eq!(code, "not_found");
    }
    app.settle().await;
    assert_eq!(
        [seen(&app, &team, &one).await, seen(&app, &team, &two).await],
        before
    );
    app.finish().await;
}

#[tokio::test]
async fn only_one_of_concurrent_answers_counts() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, request) = waiting(&app, &team).await;
    let path = respond_path(&run, &request);
    let answers = (0..8).map(|n| app.post(&team.key, &path, json!({"approved": n % 2 == 0})));
    let replies = futures::future::join_all(answers).await;
    let won: Vec<_> = replies.iter().filter(|r| r.status == 200).collect();
    assert_eq!(won.len(), 1);
    assert!(
        replies
            .iter()
            .all(|r| r.status == 200 || r.error(400).0 == "bad_request")
    );
    app.settle().await;
    let responses: Vec<_> = app
        .messages(&team, &run)
        .await
        .into_iter()
        .filter(|m| m["type"] == "human_response")
        .collect();
    assert_eq!(responses.len(), 1);
    assert_eq!(
        responses[0]["text_content"],
        won[0].json()["human_request"]["response"]
    );
    app.finish().await;
}

#[tokio::test]
async fn unknown_fields_of_an_answer_are_always_refused() {
    let app = TestApp::with_settings(&[("ERRAND_API__UNKNOWN_FIELDS", "ignore")]).await;
    let team = app.team("acme").await;
    let steps = json!([
        {"tool": "write_file", "with": {"path": "/workspace/pay", "content": "1000 EUR"}}, {"finish": "x"}
    ]);
    let data = json!({"tools": {"write_file": "ask"}, "playbook": {"steps": steps}});
    let agent = app
        .agent(&team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let view = app.get_run(&team, &run).await;
    let path = respond_path(&run, view["pending_human_request"]["id"].as_str().unwrap());
    let cases = [
        (
            "arguments",
            json!({"approved": true, "arguments": {"content": "10 EUR"}}),
        ),
        ("grant", json!({"approved": true, "grant": {}})),
        ("aproved", json!({"aproved": false, "approved": true})),
    ];
    all_refused(&app, &team, &run, &path, &cases).await;
    app.post(&team.key, &path, json!({"approved": true}))
        .await
        .expect(200);
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}
