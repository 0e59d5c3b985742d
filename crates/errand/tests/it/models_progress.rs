//! Progress or end: whatever a model answers, a run ends, waits for a person, or makes progress, within a bounded
//! number of calls.

use errand_core::limits::{
    CALLS_PER_ANSWER_MAX, CUT_ANSWERS_MAX, DENIED_REPEATS_MAX, FAILED_TURNS_MAX, LOST_CALLS_MAX,
    MODEL_CALLS_DEFAULT_MAX, REPEATED_TURNS_MAX,
};
use errand_core::progress::DENIED_BEFORE;
use errand_testkit::TestOptions;
use errand_testkit::providers::{Answer, Asked, ProviderServer};
use serde_json::{Value, json};

use crate::models::{EACH, World};

/// A world with an additional provider, `local`, that speaks OpenAI's protocol, and with additional settings.
pub(crate) async fn local(more: &str) -> World {
    let server = ProviderServer::start().await;
    let file = format!(
        "[models.providers.local]\nkind = \"openai_compatible\"\nbase_url = \"{}\"\n{more}",
        server.openai_url()
    );
    let app = errand_testkit::TestApp::start_with(TestOptions {
        settings: server.settings(),
        file: Some(file),
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    World { app, team, server }
}

pub(crate) fn wants_summary(asked: &Asked) -> bool {
    asked.system().starts_with("You write the summary")
}

/// Counts tokens like real providers: four bytes per token.
fn counted(answer: Answer, asked: &Asked) -> Answer {
    let bytes = asked.body.to_string().len() as u64;
    answer.with_tokens(bytes / 4, 0, 0, 50)
}

async fn respond(world: &World, run: &str, body: Value) {
    let got = world.app.get_run(&world.team, run).await;
    let request = got["pending_human_request"]["id"].as_str().unwrap();
    let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
    let reply = world.app.post(&world.team.key, &path, body).await;
    reply.expect(200);
    world.app.settle().await;
}

async fn title(world: &World, run: &str) -> String {
    let got = world.app.get_run(&world.team, run).await;
    assert_eq!(got["run"]["status"], "waiting", "{got}");
    let title = got["pending_human_request"]["title"].as_str();
    title.unwrap().to_owned()
}

fn unattended() -> Value {
    json!({"human_in_the_loop": false})
}

#[tokio::test]
async fn a_newest_turn_that_is_too_large_is_shortened() {
    // Seven files of 64 KiB exceed the window of 128,000 tokens.
    let world = World::new().await;
    world.server.answer_by(|asked| {
        let answer = if wants_summary(asked) {
            Answer::text("A user wants files read.")
        } else if asked.turns() == 0 {
            (0..7).fold(Answer::text(""), |answer, n| {
                let path = format!("/workspace/f{n}.txt");
                answer.and_call("read_file", json!({"path": path}))
            })
        } else {
            Answer::text("All read.")
        };
        counted(answer, asked)
    });
    let sandbox = world.app.sandbox(&world.team).await;
    for n in 0..7 {
        let (key, path) = (&world.team.key, format!("f{n}.txt"));
        let reply = world.app.upload(key, &sandbox, &path, "x".repeat(65_536));
        reply.await.expect(201);
    }
    let config = crate::models::config("openai/gpt-4o-x", unattended());
    let agent = world.app.agent(&world.team, config).await;
    let body = json!({"agent_id": agent, "sandbox_id": sandbox, "message": "do it"});
    let run = world.app.run(&world.team, body).await;
    world.app.settle().await;
    world.completed(&run).await;
    let asked = world.server.asked();
    assert!(asked.len() <= 4, "{}", asked.len());
    let last = world.server.last();
    assert!(last.user_texts().contains(&"do it".to_owned()));
    let results = last.tool_results();
    assert_eq!(results.len(), 7);
    for result in results {
        assert!(
            result.contains("left out here for lack of space"),
            "{}",
            result.len()
        );
    }
    let tokens = last.body.to_string().len() / 4;
    assert!(tokens < 128_000, "{tokens}");
    world.app.finish().await;
}

#[tokio::test]
async fn arguments_of_the_newest_turn_are_shortened_too() {
    let world = local("").await;
    // An unknown model has a window of 32,000 tokens. In the middle of a run.
    world.server.answer_by(|asked| {
        let answer = match asked.turns() {
            _ if wants_summary(asked) => Answer::text("Files are written."),
            _ if asked.body.to_string().contains("huge.html") => Answer::text("Written."),
            n @ 0..3 => {
                let path = format!("/workspace/{n}.txt");
                Answer::call("write_file", json!({"path": path, "content": "x"}))
            }
            _ => {
                let content = "<p>".repeat(60_000);
                Answer::call(
                    "write_file",
                    json!({"path": "/workspace/huge.html", "content": content}),
                )
            }
        };
        counted(answer, asked)
    });
    let run = world.run("local/some", unattended(), "Write a page.").await;
    world.completed(&run).await;
    assert!(world.server.asked().len() <= 8);
    let sent = world.server.last().body.to_string();
    assert!(sent.contains("left out here for lack of space"), "{sent}");
    // The work is complete.
    let got = world.get(&run).await;
    let sandbox = got["sandbox_id"].as_str().unwrap();
    let file = world.app.sandbox_dir(sandbox).join("huge.html");
    assert_eq!(std::fs::metadata(file).unwrap().len(), 180_000);
    world.app.finish().await;
}

#[tokio::test]
async fn a_message_that_cannot_fit_fails_with_its_code() {
    let world = local("[models.windows]\n\"local/small\" = 1000\n").await;
    let run = world
        .run("local/small", json!({}), &"word ".repeat(4_000))
        .await;
    let (code, message) = world.failed(&run).await;
    assert_eq!(code, "model_context_exceeded");
    assert!(message.contains("models.windows"), "{message}");
    assert_eq!(world.server.asked().len(), 0);
    world.app.finish().await;
}

#[tokio::test]
async fn long_summaries_are_cut_and_empty_ones_bounded() {
    let file = "[models.windows]\n\"local/small\" = 12000\n";
    for empty in [false, true] {
        let world = local(file).await;
        world.server.answer_by(move |asked| {
            let answer = match asked.turns() {
                _ if wants_summary(asked) && empty => Answer::nothing(),
                _ if wants_summary(asked) => Answer::text(&"memory ".repeat(30_000)),
                n if n < 12 && !asked.body.to_string().contains("memory") => {
                    let path = format!("/workspace/{n}.txt");
                    Answer::call(
                        "write_file",
                        json!({"path": path, "content": "x".repeat(4_000)}),
                    )
                }
                _ => Answer::text("Done."),
            };
            counted(answer, asked)
        });
        let run = world.run("local/small", unattended(), "Write.").await;
        for _ in 0..3 {
            world.app.advance(std::time::Duration::from_secs(60)).await;
        }
        if empty {
            assert_eq!(world.failed(&run).await.0, "model_no_summary");
            let path = format!("/v1/runs/{run}/model-calls");
            let calls = world.app.get(&world.team.key, &path).await.expect(200);
            let calls = calls["model_calls"].as_array().unwrap().clone();
            let of_summaries: Vec<_> = calls.iter().filter(|c| c["purpose"] == "summary").collect();
            assert_eq!(of_summaries.len(), 3, "{calls:?}");
            assert!(of_summaries.iter().all(|c| c["outcome"] == "failed"));
            assert!(
                of_summaries
                    .iter()
                    .all(|c| c["input_tokens"].as_u64() > Some(0))
            );
        } else {
            world.completed(&run).await;
            let tokens = world.server.last().body.to_string().len() / 4;
            assert!(tokens < 12_000, "{tokens}");
        }
        world.app.finish().await;
    }
}

#[tokio::test]
async fn answers_that_are_cut_off_are_bounded() {
    for (model, _) in EACH {
        let world = World::new().await;
        world.server.answer_by(|asked| {
            Answer::text(&format!("More and more, {} times.", asked.turns())).cut()
        });
        let run = world.run(model, unattended(), "Tell.").await;
        assert_eq!(
            world.failed(&run).await.0,
            "model_answers_cut_off",
            "{model}"
        );
        assert_eq!(world.server.asked().len(), CUT_ANSWERS_MAX as usize);
        // With people, they are asked; an approval restarts the count.
        let run = world.run(model, json!({}), "Tell.").await;
        assert!(title(&world, &run).await.contains("truncated"));
        respond(&world, &run, json!({"approved": true})).await;
        assert!(title(&world, &run).await.contains("truncated"));
        assert_eq!(world.server.asked().len(), 3 * CUT_ANSWERS_MAX as usize);
        respond(&world, &run, json!({"approved": false})).await;
        assert_eq!(world.failed(&run).await.0, "model_answers_cut_off");
        world.app.finish().await;
    }
}

#[tokio::test]
async fn a_cut_answer_that_repeats_the_last_ends_at_once() {
    let world = World::new().await;
    world
        .server
        .answer_by(|_| Answer::text("More and more. ").cut());
    let run = world.run("openai/gpt-test", unattended(), "Tell.").await;
    assert_eq!(world.failed(&run).await.0, "model_answers_cut_off");
    assert_eq!(world.server.asked().len(), 2);
    world.app.finish().await;
}

/// A model's answer at its nth turn, the run's final error code, and the maximum number of calls.
type Case = (fn(usize) -> Answer, &'static str, u32);

#[tokio::test]
async fn calls_that_repeat_or_fail_are_bounded() {
    let cases: [Case; 4] = [
        (
            |_| Answer::call("list_files", json!({})),
            "model_repeats_calls",
            1 + REPEATED_TURNS_MAX,
        ),
        (
            |n| {
                let path = if n % 2 == 0 {
                    "/workspace"
                } else {
                    "/workspace/"
                };
                Answer::call("list_files", json!({"path": path}))
            },
            "model_repeats_calls",
            2 + REPEATED_TURNS_MAX,
        ),
        (
            |n| Answer::call("read_file", json!({"path": format!("/workspace/{n}")})),
            "model_calls_fail",
            FAILED_TURNS_MAX,
        ),
        (
            |n| Answer::text("I make coffee.").and_call("make_coffee", json!({"cup": n})),
            "model_calls_fail",
            FAILED_TURNS_MAX,
        ),
    ];
    for (model, _) in EACH {
        for (answer, code, calls) in &cases {
            let world = World::new().await;
            let answer = *answer;
            world.server.answer_by(move |asked| answer(asked.turns()));
            let run = world.run(model, unattended(), "Go.").await;
            assert_eq!(world.failed(&run).await.0, *code, "{model}");
            assert_eq!(world.server.asked().len(), *calls as usize, "{code}");
            // A retry permits the same number again; so does a message, if people can be asked.
            let path = format!("/v1/runs/{run}/retry");
            let reply = world.app.post(&world.team.key, &path, json!({}));
            reply.await.expect(200);
            world.app.settle().await;
            assert_eq!(world.failed(&run).await.0, *code, "{model}");
            assert!(world.server.asked().len() <= 2 * *calls as usize);
            let run = world.run(model, json!({}), "Go.").await;
            assert!(title(&world, &run).await.starts_with("Continue"));
            world.app.finish().await;
        }
    }
}

#[tokio::test]
async fn without_a_limit_of_steps_model_calls_are_bounded() {
    let world = World::new().await;
    world.server.answer_by(|asked| {
        let (path, n) = ("/workspace/a.txt", asked.turns());
        Answer::call(
            "write_file",
            json!({"path": path, "content": n.to_string()}),
        )
    });
    let run = world.run("openai/gpt-4.1", unattended(), "Go.").await;
    let (code, message) = world.failed(&run).await;
    assert_eq!(code, "limit_exceeded");
    assert!(message.contains("limits.steps"), "{message}");
    assert_eq!(world.server.asked().len(), MODEL_CALLS_DEFAULT_MAX as usize);
    world.app.finish().await;
}

/// A model that repeats the same call.
async fn stubborn() -> (World, String) {
    let world = World::new().await;
    world.server.answer_by(|_| {
        Answer::call(
            "write_file",
            json!({"path": "/workspace/a.txt", "content": "x"}),
        )
    });
    let data = json!({"tools": {"write_file": "ask"}});
    let run = world.run("openai/gpt-test", data, "Go.").await;
    (world, run)
}

/// How often a repeated call was refused.
async fn refused(world: &World, run: &str) -> usize {
    let texts = world.texts(run).await;
    let refusal = format!("error denied: {DENIED_BEFORE}");
    texts.iter().filter(|text| **text == refusal).count()
}

#[tokio::test]
async fn a_denied_call_is_refused_when_it_is_repeated() {
    let (mut world, run) = stubborn().await;
    assert_eq!(title(&world, &run).await, "Allow write_file?");
    respond(&world, &run, json!({"approved": false})).await;
    // Three repetitions are refused without a question; then a person decides whether the run continues.
    assert!(title(&world, &run).await.contains("denied calls"));
    assert_eq!(refused(&world, &run).await, DENIED_REPEATS_MAX as usize);
    // It still applies after a restart.
    world.app.crash().await;
    respond(&world, &run, json!({"approved": true})).await;
    assert!(title(&world, &run).await.contains("denied calls"));
    assert_eq!(refused(&world, &run).await, 2 * DENIED_REPEATS_MAX as usize);
    // A fork inherits it with the transcript.
    let path = format!("/v1/runs/{run}/fork");
    let forked = world.app.post(&world.team.key, &path, json!({})).await;
    let fork = forked.expect(201)["run"]["id"].as_str().unwrap().to_owned();
    world.app.settle().await;
    assert_ne!(title(&world, &fork).await, "Allow write_file?");
    respond(&world, &run, json!({"approved": false})).await;
    assert_eq!(world.failed(&run).await.0, "model_repeats_denied_calls");
    // A retry is not a message: the call stays denied.
    let path = format!("/v1/runs/{run}/retry");
    world
        .app
        .post(&world.team.key, &path, json!({}))
        .await
        .expect(200);
    world.app.settle().await;
    assert!(title(&world, &run).await.contains("denied calls"));
    // A message lifts it: the person is asked again.
    let path = format!("/v1/runs/{run}/messages");
    let message = json!({"message": "Well, then write it."});
    world
        .app
        .post(&world.team.key, &path, message)
        .await
        .expect(201);
    world.app.settle().await;
    assert_eq!(title(&world, &run).await, "Allow write_file?");
    world.app.finish().await;
}

#[tokio::test]
async fn a_request_of_the_model_itself_is_not_repeated_either() {
    let world = World::new().await;
    world
        .server
        .answer_by(|_| Answer::call("request_approval", json!({"title": "May I?"})));
    let run = world.run("gemini/gemini-test", json!({}), "Go.").await;
    assert_eq!(title(&world, &run).await, "May I?");
    respond(&world, &run, json!({"approved": false})).await;
    assert!(title(&world, &run).await.contains("denied calls"));
    world.app.finish().await;
}

#[tokio::test]
async fn a_withheld_answer_is_not_an_end() {
    let words = ["refusal", "content_filter", "SAFETY"];
    for ((model, _), word) in EACH.into_iter().zip(words) {
        let world = World::new().await;
        let partial = Answer::text("First you take the").ending(word);
        let partial = partial.and_call("list_files", json!({}));
        world
            .server
            .script(model.split_once('/').unwrap().1, vec![partial]);
        let run = world.run(model, json!({}), "Tell.").await;
        let (code, message) = world.failed(&run).await;
        assert_eq!(code, "model_refused", "{model}");
        assert!(message.contains(word), "{message}");
        // The text is kept, and the call is not executed.
        let texts = world.texts(&run).await;
        assert_eq!(texts[..2], ["Tell.", "First you take the"]);
        assert!(
            !texts.iter().any(|text| text.starts_with("call")),
            "{texts:?}"
        );
        assert_eq!(world.server.asked().len(), 1);
        world.app.finish().await;
    }
    let world = World::new().await;
    let refusal = Answer::text("I can't assist with that.").as_refusal();
    world.server.script("gpt-test", vec![refusal]);
    let run = world.run("openai/gpt-test", json!({}), "Tell.").await;
    assert_eq!(world.failed(&run).await.0, "model_refused");
    assert_eq!(world.texts(&run).await[1], "I can't assist with that.");
    assert_eq!(world.server.asked().len(), 1);
    world.app.finish().await;
}

#[tokio::test]
async fn a_call_without_an_index_runs_and_a_lost_one_is_a_fault() {
    let world = World::new().await;
    let call = Answer::text("I will write the file now.")
        .and_call(
            "write_file",
            json!({"path": "/workspace/a.txt", "content": "x"}),
        )
        .without_index();
    world.server.script("gpt-test", vec![call]);
    let run = world.run("openai/gpt-test", json!({}), "Go.").await;
    world.completed(&run).await;
    let texts = world.texts(&run).await;
    assert!(texts.iter().any(|t| t.contains("size_bytes")), "{texts:?}");

    for (model, word) in [
        ("openai/gpt-test", "tool_calls"),
        ("anthropic/claude-test", "tool_use"),
    ] {
        let world = World::new().await;
        world
            .server
            .answer_by(move |_| Answer::text("I will write the file now.").ending(word));
        let run = world.run(model, json!({}), "Go.").await;
        for _ in 0..LOST_CALLS_MAX {
            world.app.advance(std::time::Duration::from_secs(60)).await;
        }
        assert_eq!(world.failed(&run).await.0, "model_call_lost", "{model}");
        assert_eq!(world.server.asked().len(), LOST_CALLS_MAX as usize);
        world.app.finish().await;
    }
}

#[tokio::test]
async fn an_answer_with_thousands_of_calls_is_asked_for_once() {
    for model in ["openai/gpt-test", "anthropic/claude-test"] {
        let world = World::new().await;
        let read = || ("list_files", json!({"path": "/workspace"}));
        let calls = (0..3_000).fold(Answer::text("I will look."), |answer, _| {
            let (name, with) = read();
            answer.and_call(name, with)
        });
        let name = model.split_once('/').unwrap().1;
        world
            .server
            .script(name, vec![calls, Answer::text("Done.")]);
        let run = world.run(model, json!({}), "Go.").await;
        world.completed(&run).await;
        assert_eq!(world.server.asked().len(), 2, "{model}");
        let path = format!("/v1/runs/{run}/messages?limit=1");
        let page = world.app.get(&world.team.key, &path).await.expect(200);
        // The question, two texts, and each recorded call with its result.
        let recorded = page["total"].as_u64().unwrap();
        assert_eq!(recorded, 3 + 2 * CALLS_PER_ANSWER_MAX as u64, "{model}");
        world.app.finish().await;
    }
}
