//! Long runs: large results, full context windows, the provider's cache.

use errand_testkit::TestOptions;
use errand_testkit::providers::{Answer, Asked};
use serde_json::{Value, json};

use crate::models::World;

#[tokio::test]
async fn a_large_result_is_cut_and_the_whole_is_in_a_file() {
    let world = World::new().await;
    let lines: Vec<String> = (0..20_000).map(|n| format!("line {n}")).collect();
    let whole = lines.join("\n");
    let sandbox = world.app.sandbox(&world.team).await;
    let reply = world
        .app
        .upload(&world.team.key, &sandbox, "big.txt", whole.clone())
        .await;
    reply.expect(201);
    world.server.script(
        "claude-test",
        vec![
            Answer::call("read_file", json!({"path": "/workspace/big.txt"})),
            Answer::text("Read."),
        ],
    );
    let config = crate::models::config("anthropic/claude-test", json!({}));
    let agent = world.app.agent(&world.team, config).await;
    let body = json!({"agent_id": agent, "sandbox_id": sandbox, "message": "Read it."});
    let run = world.app.run(&world.team, body).await;
    world.app.settle().await;
    world.completed(&run).await;
    let sent = world.server.last().tool_results().pop().unwrap();
    assert!(sent.len() < 70_000, "{}", sent.len());
    assert!(sent.starts_with("line 0\n") && sent.ends_with("line 19999"));
    let path = sent
        .split("The full text is in ")
        .nth(1)
        .and_then(|rest| rest.split(';').next())
        .expect("a note that names the file");
    let file = path.strip_prefix("/workspace/").unwrap();
    let kept = std::fs::read_to_string(world.app.sandbox_dir(&sandbox).join(file)).unwrap();
    assert_eq!(kept, whole);
    // People see all of it.
    let messages = world.app.messages(&world.team, &run).await;
    assert_eq!(messages[2]["tool_result"]["result"], json!(whole));
    world.app.finish().await;
}

/// A model with a window of 12,000 tokens.
async fn small() -> World {
    let server = errand_testkit::providers::ProviderServer::start().await;
    let file = format!(
        "[models.providers.local]\nkind = \"openai_compatible\"\nbase_url = \"{}\"\n[models.windows]\n\"local/small\" = 12000\n",
        server.openai_url()
    );
    let app = errand_testkit::TestApp::start_with(TestOptions {
        file: Some(file),
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    World { app, team, server }
}

fn wants_summary(asked: &Asked) -> bool {
    asked.system().starts_with("You write the summary")
}

#[tokio::test]
async fn when_the_window_fills_older_turns_are_replaced_by_a_summary() {
    let mut world = small().await;
    let turns = 40;
    let made = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&made);
    world.server.answer_by(move |asked| {
        if wants_summary(asked) {
            return Answer::text("SUMMARY: files were written.").with_tokens(500, 0, 0, 10);
        }
        let bytes = asked.body.to_string().len() as u64;
        let n = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let answer = if n < turns {
            let path = format!("/workspace/f{n}.txt");
            Answer::call(
                "write_file",
                json!({"path": path, "content": "x".repeat(1_500)}),
            )
        } else {
            Answer::text("All written.")
        };
        answer.with_tokens(bytes / 4, 0, 0, 50)
    });
    let data = json!({"input": "Write files. RULE: never stop early."});
    let run = world.run("local/small", data, "Write forty files.").await;
    world.completed(&run).await;
    let asked = world.server.asked();
    let summaries = asked.iter().filter(|a| wants_summary(a)).count();
    assert!(summaries >= 2, "{summaries}");
    for asked in asked.iter().filter(|a| !wants_summary(a)) {
        let tokens = asked.body.to_string().len() / 4;
        assert!(tokens < 12_000, "{tokens}");
        assert!(asked.system().contains("RULE"));
        assert!(
            asked.user_texts().iter().any(|t| t == "Write forty files."),
            "{:?}",
            asked.user_texts()
        );
    }
    let last = world.server.last();
    assert!(
        last.user_texts()
            .iter()
            .any(|t| t.contains("SUMMARY: files"))
    );
    // Each call in the request has its result.
    let messages = last.body["messages"].as_array().unwrap();
    for (at, message) in messages.iter().enumerate() {
        if message["tool_calls"].is_array() {
            assert_eq!(messages[at + 1]["role"], "tool", "{at}");
            let id = &message["tool_calls"][0]["id"];
            assert_eq!(&messages[at + 1]["tool_call_id"], id);
        }
    }
    // The summary is in the transcript but not among the messages; all messages still exist.
    let texts = world.texts(&run).await;
    assert_eq!(
        texts.iter().filter(|t| *t == "call write_file").count(),
        turns
    );
    assert!(!texts.iter().any(|t| t.contains("SUMMARY")));
    let path = format!("/v1/runs/{run}/model-calls");
    let calls = world.app.get(&world.team.key, &path).await.expect(200);
    let calls = calls["model_calls"].as_array().unwrap().clone();
    let of_summaries = calls.iter().filter(|c| c["purpose"] == "summary").count();
    assert_eq!(of_summaries, summaries);

    // The same is sent after a restart, because the summary is read from the transcript.
    world.app.crash().await;
    let path = format!("/v1/runs/{run}/messages");
    let reply = world
        .app
        .post(&world.team.key, &path, json!({"message": "Thanks."}))
        .await;
    reply.expect(201);
    world.app.settle().await;
    world.completed(&run).await;
    let texts = world.server.last().user_texts();
    assert!(
        texts.iter().any(|t| t.contains("SUMMARY: files")),
        "{texts:?}"
    );
    assert_eq!(texts.last().unwrap(), "Thanks.");
    world.app.finish().await;
}

#[tokio::test]
async fn anthropic_requests_mark_the_cache_and_show_its_share() {
    let world = World::new().await;
    world.server.answer_by(|asked| {
        let turn = asked.turns() as u64;
        // Like the provider: everything up to the last mark of the previous call is in the cache.
        let cached = if turn == 0 {
            0
        } else {
            4_000 + 500 * (turn - 1)
        };
        let input = 4_000 + 500 * turn;
        let answer = if turn < 4 {
            Answer::call("list_files", json!({}))
        } else {
            Answer::text("Done.")
        };
        answer.with_tokens(input, cached, input - cached, 50)
    });
    let run = world
        .run(
            "anthropic/claude-sonnet-4-5",
            json!({"input": "You help."}),
            "Go.",
        )
        .await;
    let got = world.completed(&run).await;
    let mark = json!({"type": "ephemeral"});
    for asked in world.server.asked() {
        let body = &asked.body;
        assert_eq!(body["system"][0]["cache_control"], mark, "{body}");
        let last = body["messages"].as_array().unwrap().last().unwrap();
        let part = last["content"].as_array().unwrap().last().unwrap();
        assert_eq!(part["cache_control"], mark, "{last}");
        let marks = body.to_string().matches("cache_control").count();
        assert!(marks <= 4, "{marks}");
    }
    // Each request begins with the previous one, apart from the marks.
    let unmarked = |asked: &Asked| {
        let mut messages = asked.body["messages"].clone();
        strip(&mut messages);
        messages
    };
    for pair in world.server.asked().windows(2) {
        let (before, after) = (unmarked(&pair[0]), unmarked(&pair[1]));
        let before = before.as_array().unwrap();
        assert_eq!(before[..], after.as_array().unwrap()[..before.len()]);
    }
    let usage = &got["usage"];
    let share = usage["cached_tokens"].as_f64().unwrap() / usage["input_tokens"].as_f64().unwrap();
    assert!(share > 0.7, "{share}: {usage}");
    world.app.finish().await;
}

/// Removes the marks, and unwraps text that is alone, as it would be without a mark.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("cache_control");
            map.values_mut().for_each(strip);
            if let Some(Value::Array(parts)) = map.get("content")
                && let [part] = parts.as_slice()
                && part["type"] == "text"
            {
                let text = part["text"].clone();
                map.insert("content".to_owned(), text);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}
