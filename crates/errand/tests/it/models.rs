//! Runs of network models, with a server that speaks the protocols of the three providers.

use std::time::Duration;

use errand_testkit::providers::{Answer, Fault, Protocol, ProviderServer};
use errand_testkit::{Gate, Team, TestApp, TestOptions};
use serde_json::{Value, json};

use crate::api_events;

/// A model of each provider, with its protocol.
pub(crate) const EACH: [(&str, Protocol); 3] = [
    ("anthropic/claude-test", Protocol::Anthropic),
    ("openai/gpt-test", Protocol::OpenAi),
    ("gemini/gemini-test", Protocol::Gemini),
];

/// An app whose providers are all on one scripted server.
pub(crate) struct World {
    pub(crate) app: TestApp,
    pub(crate) team: Team,
    pub(crate) server: ProviderServer,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Vec::new()).await
    }

    pub(crate) async fn with(more: Vec<(&'static str, String)>) -> Self {
        let server = ProviderServer::start().await;
        let mut settings = server.settings();
        settings.extend(more);
        let app = TestApp::start_with(TestOptions {
            settings,
            ..TestOptions::default()
        })
        .await;
        let team = app.team("acme").await;
        Self { app, team, server }
    }

    /// Starts a run of a model.
    pub(crate) async fn start(&self, model: &str, data: Value, message: Option<&str>) -> String {
        let agent = self.app.agent(&self.team, config(model, data)).await;
        let mut body = json!({"agent_id": agent});
        if let Some(message) = message {
            body["message"] = json!(message);
        }
        self.app.run(&self.team, body).await
    }

    /// Starts a run and waits until nothing is due.
    pub(crate) async fn run(&self, model: &str, data: Value, message: &str) -> String {
        let run = self.start(model, data, Some(message)).await;
        self.app.settle().await;
        run
    }

    pub(crate) async fn get(&self, run: &str) -> Value {
        self.app.get_run(&self.team, run).await["run"].clone()
    }

    /// The texts of a run's messages; a short form for messages without text.
    pub(crate) async fn texts(&self, run: &str) -> Vec<String> {
        let messages = self.app.messages(&self.team, run).await;
        messages.iter().map(shown).collect()
    }

    pub(crate) async fn completed(&self, run: &str) -> Value {
        let got = self.get(run).await;
        assert_eq!(got["status"], "completed", "{got}");
        got
    }

    pub(crate) async fn failed(&self, run: &str) -> (String, String) {
        let got = self.get(run).await;
        assert_eq!(got["status"], "failed", "{got}");
        let text = |name: &str| got["error"][name].as_str().unwrap().to_owned();
        (text("code"), text("message"))
    }
}

pub(crate) fn config(model: &str, data: Value) -> Value {
    let mut data = data;
    data["models"] = json!({"agent": {"model": model}});
    json!({"version": "v2", "data": data})
}

fn shown(message: &Value) -> String {
    match message["type"].as_str().unwrap() {
        "tool_call" => format!("call {}", message["tool_call"]["name"].as_str().unwrap()),
        "tool_result" => match message["tool_result"]["error"].as_str() {
            Some(error) => format!("error {error}"),
            None => format!("result {}", message["tool_result"]["result"]),
        },
        _ => message["text_content"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    }
}

#[tokio::test]
async fn each_provider_answers_calls_tools_and_gets_results() {
    let world = World::new().await;
    for (model, protocol) in EACH {
        let name = model.split_once('/').unwrap().1;
        let mut first = Answer::text("I look.").and_call(
            "write_file",
            json!({"path": "/workspace/a.txt", "content": "hello"}),
        );
        first = first.and_call("list_files", json!({}));
        world.server.script(
            name,
            vec![
                first,
                Answer::call("read_file", json!({"path": "/workspace/a.txt"})),
                Answer::text("It says hello."),
            ],
        );
        let run = world
            .run(model, json!({"input": "You help."}), "What is in a.txt?")
            .await;
        world.completed(&run).await;
        let texts = world.texts(&run).await;
        assert_eq!(texts[0], "What is in a.txt?", "{model}");
        assert_eq!(texts[1], "I look.", "{model}");
        assert_eq!(texts[2..4], ["call write_file", "call list_files"]);
        assert!(texts.contains(&"result \"hello\"".to_owned()), "{texts:?}");
        assert_eq!(texts.last().unwrap(), "It says hello.");

        let asked: Vec<_> = world.server.asked();
        let asked: Vec<_> = asked.iter().filter(|a| a.model == name).collect();
        assert_eq!(asked.len(), 3, "{model}");
        for (turn, asked) in asked.iter().enumerate() {
            assert_eq!(asked.protocol, protocol);
            assert_eq!(asked.system(), "You help.");
            assert_eq!(asked.user_texts(), ["What is in a.txt?"]);
            assert_eq!(asked.turns(), turn);
            assert!(asked.tools().contains(&"read_file".to_owned()));
        }
        let results = asked[2].tool_results();
        assert_eq!(results.len(), 3, "{results:?}");
        assert!(results[2].contains("hello"), "{results:?}");
        let key = match protocol {
            Protocol::Anthropic => asked[0].headers["x-api-key"].to_str().unwrap(),
            Protocol::OpenAi => asked[0].headers["authorization"].to_str().unwrap(),
            Protocol::Gemini => asked[0].headers["x-goog-api-key"].to_str().unwrap(),
        };
        assert!(key.ends_with(&format!("test-key-{}", model.split_once('/').unwrap().0)));
    }
    world.app.finish().await;
}

#[tokio::test]
async fn the_documented_example_runs_on_a_network_model() {
    let world = World::new().await;
    world
        .server
        .script("claude-sonnet-4-5", vec![Answer::text("It is done.")]);
    // A bare name, as in the documented configurations.
    let agent = world
        .app
        .agent(
            &world.team,
            json!({"version": "v2", "data": {"models": {"agent": {"model": "claude-sonnet-4-5"}}, "input": "Check the invoices."}}),
        )
        .await;
    let sandbox = world.app.sandbox(&world.team).await;
    for (path, text) in [("in/invoices.csv", "a,b\n"), ("notes.txt", "hi")] {
        let reply = world
            .app
            .upload(&world.team.key, &sandbox, path, text)
            .await;
        reply.expect(201);
    }
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let run = world.app.run(&world.team, body).await;
    world.app.settle().await;
    world.completed(&run).await;
    assert_eq!(world.texts(&run).await, ["It is done."]);
    let asked = world.server.last();
    assert_eq!(asked.system(), "Check the invoices.");
    assert_eq!(
        asked.user_texts(),
        [
            "Begin.\n\nFiles in /workspace:\n- /workspace/notes.txt (2 bytes)\n- /workspace/in/invoices.csv (4 bytes)"
        ]
    );

    // Without files, and with messages that open the transcript.
    let input = json!([
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "My name is Ann."},
        {"role": "assistant", "content": "Hello Ann."},
    ]);
    let run = world
        .start("claude-sonnet-4-5", json!({"input": input}), None)
        .await;
    world.app.settle().await;
    world.completed(&run).await;
    let asked = world.server.last();
    assert_eq!(asked.user_texts(), ["My name is Ann.", "Begin."]);
    assert_eq!(asked.turns(), 1);
    // A message continues from there, and nothing is sent twice.
    let path = format!("/v1/runs/{run}/messages");
    let reply = world
        .app
        .post(&world.team.key, &path, json!({"message": "And now?"}))
        .await;
    reply.expect(201);
    world.app.settle().await;
    assert_eq!(
        world.server.last().user_texts(),
        ["My name is Ann.", "Begin.", "And now?"]
    );
    world.app.finish().await;
}

#[tokio::test]
async fn the_engines_opening_stays_before_the_answers_to_it() {
    let world = World::new().await;
    let look = || Answer::call("list_files", json!({}));
    world.server.script(
        "claude-sonnet-4-5",
        vec![look(), look(), Answer::text("It is done.")],
    );
    let run = world.start("claude-sonnet-4-5", json!({}), None).await;
    world.app.settle().await;
    world.completed(&run).await;
    let asked = world.server.last();
    let turns = asked.body["messages"].as_array().unwrap();
    let roles: Vec<&str> = turns.iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(
        roles,
        ["user", "assistant", "user", "assistant", "user"],
        "{turns:#?}"
    );
    assert!(turns[0].to_string().contains("Begin."), "{turns:#?}");
    world.app.finish().await;
}

#[tokio::test]
async fn text_is_streamed_and_stored_once() {
    for (model, protocol) in EACH {
        let world = World::new().await;
        let name = model.split_once('/').unwrap().1;
        let gate = Gate::default();
        // Within the text.
        let cut = match protocol {
            Protocol::Anthropic => 5,
            Protocol::OpenAi => 3,
            Protocol::Gemini => 2,
        };
        world
            .server
            .script(name, vec![Answer::text("one two three")]);
        world
            .server
            .fail_with([Fault::Cut(cut), Fault::Trickle(gate.clone())]);
        let run = world.start(model, json!({}), Some("Count.")).await;
        let mut stream = api_events::open(&world.app, &world.team.key, &run, None).await;
        // The first attempt breaks off; the second one arrives in pieces.
        world.server.until(1).await;
        world.app.settle().await;
        assert_eq!(world.get(&run).await["waiting_on"]["kind"], "retry");
        world.app.clock().advance(Duration::from_secs(8));
        gate.open_for_good();
        let mut items = Vec::new();
        while let Some(item) = stream.next().await {
            items.push(item);
        }
        let deltas: Vec<_> = items.iter().filter(|i| i.kind == "message.delta").collect();
        let created: Vec<_> = items
            .iter()
            .filter(|i| i.kind == "message.created" && i.data["role"] == "assistant")
            .collect();
        assert_eq!(created.len(), 1, "{model}");
        assert_eq!(created[0].data["text_content"], "one two three");
        let mut second = String::new();
        for delta in &deltas {
            assert_eq!(delta.id, None);
            assert_eq!(delta.data["message_id"], created[0].data["id"], "{model}");
            assert_eq!(delta.data["run_id"], run);
            if delta.data["attempt"] == 2 {
                assert_eq!(delta.data["offset"], second.len());
                second.push_str(delta.data["text"].as_str().unwrap());
            }
        }
        assert_eq!(second, "one two three", "{model}");
        let last_delta = items
            .iter()
            .rposition(|i| i.kind == "message.delta")
            .unwrap();
        let message = items
            .iter()
            .position(|i| i.data["id"] == created[0].data["id"])
            .unwrap();
        assert!(last_delta < message, "pieces come before the message");
        // They are not stored.
        let again = api_events::open(&world.app, &world.team.key, &run, Some(0)).await;
        assert!(again.rest().await.iter().all(|i| i.kind != "message.delta"));
        world.app.finish().await;
    }
}

#[tokio::test]
async fn invalid_calls_return_to_the_model_with_the_field() {
    for (model, protocol) in EACH {
        let world = World::new().await;
        let name = model.split_once('/').unwrap().1;
        let mut first = Answer::text("")
            .and_call("read_file", json!({"pth": "/workspace/a.txt"}))
            .and_call("read_file", json!({"path": 7}))
            .and_call("make_coffee", json!({}))
            .and_call(
                "write_file",
                json!({"path": "/workspace/a.txt", "content": "x"}),
            );
        if protocol != Protocol::Gemini {
            first = first.and_raw_call("read_file", "{\"path\": ");
        }
        world.server.script(name, vec![first]);
        let run = world.run(model, json!({}), "Go.").await;
        world.completed(&run).await;
        let texts = world.texts(&run).await;
        let errors: Vec<_> = texts.iter().filter(|t| t.starts_with("error")).collect();
        assert!(
            errors[0].contains("invalid_arguments") && errors[0].contains("pth"),
            "{errors:?}"
        );
        assert!(errors[1].contains("`path`"), "{errors:?}");
        assert!(
            errors[2].contains("unknown_tool") && errors[2].contains("write_file"),
            "{errors:?}"
        );
        if protocol != Protocol::Gemini {
            assert!(errors[3].contains("not JSON"), "{errors:?}");
        }
        // The valid call was executed, and each call has its result, in order.
        assert!(texts.iter().any(|t| t.contains("size_bytes")), "{texts:?}");
        let results = world.server.last().tool_results();
        assert!(
            results[0].contains("pth") && results[3].contains("size_bytes"),
            "{results:?}"
        );
        if protocol == Protocol::Anthropic {
            let body = world.server.last().body;
            let parts = &body["messages"][2]["content"];
            assert_eq!(parts[0]["is_error"], true);
            assert_eq!(parts[3]["is_error"], Value::Null);
        }
        world.app.finish().await;
    }
}

#[tokio::test]
async fn three_answers_in_a_row_that_hold_nothing_fail_the_run() {
    let world = World::new().await;
    let bad = || Answer::call("make_coffee", json!({}));
    world.server.script(
        "gpt-test",
        vec![Answer::nothing(), bad(), Answer::nothing()],
    );
    let run = world.run("openai/gpt-test", json!({}), "Go.").await;
    let (code, message) = world.failed(&run).await;
    assert_eq!(code, "model_no_answer");
    assert!(message.contains("retry the run"), "{message}");
    assert_eq!(world.server.asked().len(), 3);
    let told = world.server.asked()[1].user_texts();
    assert!(
        told.last().unwrap().contains("neither text nor a call"),
        "{told:?}"
    );

    // A valid call in between restarts the count.
    let fine = Answer::call("list_files", json!({}));
    let answers = [
        Answer::nothing(),
        bad(),
        fine,
        bad(),
        Answer::nothing(),
        Answer::text("There."),
    ];
    // An empty answer leaves no turn in later requests: the count is of requests.
    let world = World::new().await;
    let asked = std::sync::atomic::AtomicUsize::new(0);
    world.server.answer_by(move |_| {
        let n = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        answers[n].clone()
    });
    let run = world.run("openai/gpt-test", json!({}), "Go.").await;
    world.completed(&run).await;
    assert_eq!(world.texts(&run).await.last().unwrap(), "There.");
    world.app.finish().await;
}

#[tokio::test]
async fn an_answer_that_was_cut_off_is_gone_on_with() {
    let world = World::new().await;
    world.server.script(
        "claude-test",
        vec![
            Answer::text("The first half").cut(),
            Answer::text("and the second."),
        ],
    );
    let run = world.run("anthropic/claude-test", json!({}), "Tell.").await;
    world.completed(&run).await;
    assert_eq!(
        world.texts(&run).await,
        ["Tell.", "The first half", "and the second."]
    );
    let told = world.server.last().user_texts();
    assert!(told.last().unwrap().contains("cut off"), "{told:?}");
    world.app.finish().await;
}

#[tokio::test]
async fn a_message_during_a_model_call_is_read_before_the_next_one() {
    let world = World::new().await;
    let gate = Gate::default();
    world.server.hold_at(&gate);
    world.server.script(
        "claude-test",
        vec![Answer::call("list_files", json!({})), Answer::text("Both.")],
    );
    let run = world
        .start("anthropic/claude-test", json!({}), Some("One."))
        .await;
    gate.arrival().await;
    let path = format!("/v1/runs/{run}/messages");
    let reply = world
        .app
        .post(&world.team.key, &path, json!({"message": "Two."}))
        .await;
    reply.expect(201);
    gate.open_for_good();
    world.app.settle().await;
    world.completed(&run).await;
    // It precedes the turn in the transcript, and follows it in the model's request.
    let body = world.server.last().body;
    let roles: Vec<_> = body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant", "user", "user"]);
    assert_eq!(body["messages"][2]["content"][0]["type"], "tool_result");
    let last = serde_json::to_string(&body["messages"][3]).unwrap();
    assert!(last.contains("Two."), "{last}");
    world.app.finish().await;
}

#[tokio::test]
async fn a_stop_cancels_the_call() {
    let world = World::new().await;
    world.server.fail_with([Fault::Hang]);
    let run = world
        .start("gemini/gemini-test", json!({}), Some("Go."))
        .await;
    world.server.until(1).await;
    let path = format!("/v1/runs/{run}/stop");
    world
        .app
        .post(&world.team.key, &path, json!({}))
        .await
        .expect(200);
    world.app.settle().await;
    assert_eq!(world.get(&run).await["status"], "interrupted");
    // A message resumes it, and the model is called again.
    let path = format!("/v1/runs/{run}/messages");
    world
        .app
        .post(&world.team.key, &path, json!({"message": "Again."}))
        .await
        .expect(201);
    world.app.settle().await;
    world.completed(&run).await;
    world.app.finish().await;
}
