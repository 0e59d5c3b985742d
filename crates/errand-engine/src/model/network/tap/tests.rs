use serde_json::json;

use super::*;

fn tap(kind: Kind, frames: &[Value]) -> Tap {
    let tap = Tap::new(kind);
    frames
        .iter()
        .for_each(|frame| tap.frame(&frame.to_string()));
    tap
}

fn tokens(kind: Kind, frames: &[Value]) -> (u64, u64, u64, u64) {
    let tokens = tap(kind, frames).seen().reported(kind);
    (
        tokens.input,
        tokens.cached,
        tokens.cache_write,
        tokens.output,
    )
}

#[test]
fn usage_is_read_in_any_chunk_and_shape() {
    let openai = |usage: Value| tokens(Kind::OpenAi, &[json!({"choices": [], "usage": usage})]);
    let plain = json!({"prompt_tokens": 5000, "completion_tokens": 500, "total_tokens": 5500});
    assert_eq!(openai(plain.clone()), (5000, 0, 0, 500));
    let with_choices = json!({"choices": [{"index": 0, "delta": {}}], "usage": plain});
    let nothing = json!({"choices": [], "usage": null});
    let zeros = json!({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}});
    let frames = [nothing.clone(), with_choices, nothing, zeros];
    assert_eq!(tokens(Kind::OpenAiCompatible, &frames), (5000, 0, 0, 500));
    for (usage, expected) in [
        (
            json!({"prompt_tokens": 5000.0, "completion_tokens": "500"}),
            (5000, 0, 0, 500),
        ),
        (
            json!({"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": [{"cached_tokens": 4}]}),
            (9, 4, 0, 1),
        ),
        (
            json!({"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": null}),
            (9, 0, 0, 1),
        ),
        (
            json!({"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": "3"}}),
            (9, 3, 0, 1),
        ),
        (json!({"input_tokens": 9, "output_tokens": 1}), (9, 0, 0, 1)),
        (json!({"total_tokens": 7}), (7, 0, 0, 0)),
        // Reasoning tokens only in the total.
        (
            json!({"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 30}),
            (10, 0, 0, 20),
        ),
        (
            json!({"prompt_tokens": -1, "completion_tokens": {}}),
            (0, 0, 0, 0),
        ),
        (
            json!([{"prompt_tokens": 3, "completion_tokens": 2}]),
            (3, 0, 0, 2),
        ),
        (
            json!({"prompt_tokens": 1e300, "completion_tokens": 1}),
            (TOKENS_MAX, 0, 0, 1),
        ),
    ] {
        assert_eq!(openai(usage.clone()), expected, "{usage}");
    }
}

#[test]
fn anthropic_counts_in_parts() {
    let start = json!({"type": "message_start", "message": {"usage": {
        "input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 1}}});
    let delta = json!({"type": "message_delta", "usage": {"output_tokens": 20}});
    // A stream that breaks off has already reported the input.
    assert_eq!(
        tokens(Kind::Anthropic, std::slice::from_ref(&start)),
        (20, 7, 3, 1)
    );
    assert_eq!(tokens(Kind::Anthropic, &[start, delta]), (20, 7, 3, 20));
}

#[test]
fn gemini_reasoning_counts_without_candidates() {
    let usage =
        json!({"promptTokenCount": 10, "thoughtsTokenCount": 50, "cachedContentTokenCount": 4});
    let frames = [json!({"candidates": [], "usageMetadata": usage})];
    assert_eq!(tokens(Kind::Gemini, &frames), (10, 4, 0, 50));
    let usage = json!({"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 50, "totalTokenCount": 65});
    assert_eq!(
        tokens(Kind::Gemini, &[json!({"usageMetadata": usage})]),
        (10, 0, 0, 55)
    );
}

fn calls(pieces: &[Value]) -> Vec<(String, String)> {
    let frame =
        |piece: &Value| json!({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]});
    let frames: Vec<Value> = pieces.iter().map(frame).collect();
    let tap = tap(Kind::OpenAi, &frames);
    let seen = tap.seen();
    let pairs = seen
        .calls
        .iter()
        .map(|call| (call.name.clone(), call.arguments.clone()));
    pairs.collect()
}

#[test]
fn calls_are_assembled_from_any_kind_of_pieces() {
    let piece = |index: Value, id: &str, name: &str, arguments: &str| {
        let mut piece = json!({"function": {"arguments": arguments}});
        if index != json!("none") {
            piece["index"] = index;
        }
        if !id.is_empty() {
            piece["id"] = json!(id);
        }
        if !name.is_empty() {
            piece["function"]["name"] = json!(name);
        }
        piece
    };
    let (none, null) = (json!("none"), Value::Null);
    let two = [
        ("a".to_owned(), "{1}".to_owned()),
        ("b".to_owned(), "{2}".to_owned()),
    ];
    for pieces in [
        // OpenAI's form.
        [
            piece(json!(0), "x", "a", "{"),
            piece(json!(0), "", "", "1}"),
            piece(json!(1), "y", "b", "{"),
            piece(json!(1), "", "", "2}"),
        ],
        // Interleaved, and with ids and names on each piece.
        [
            piece(json!(0), "x", "a", "{"),
            piece(json!(1), "y", "b", "{"),
            piece(json!(0), "x", "a", "1}"),
            piece(json!(1), "y", "b", "2}"),
        ],
        // Without an index.
        [
            piece(none.clone(), "x", "a", "{"),
            piece(none.clone(), "", "", "1}"),
            piece(none.clone(), "y", "b", "{"),
            piece(none.clone(), "", "", "2}"),
        ],
        [
            piece(null.clone(), "x", "a", "{"),
            piece(null.clone(), "x", "", "1}"),
            piece(null.clone(), "y", "b", "{2"),
            piece(null, "", "", "}"),
        ],
        // The same index for all calls.
        [
            piece(json!(0), "x", "a", "{"),
            piece(json!(0), "", "", "1}"),
            piece(json!(0), "y", "b", "{2"),
            piece(json!(0), "", "", "}"),
        ],
    ] {
        assert_eq!(calls(&pieces), two, "{pieces:?}");
    }
    // Arguments as an object.
    let piece = json!({"id": "x", "function": {"name": "a", "arguments": {"k": 1}}});
    assert_eq!(calls(&[piece]), [("a".to_owned(), "{\"k\":1}".to_owned())]);
}

#[test]
fn refusals_and_blocks_are_seen() {
    let refusal = |text: &str| json!({"choices": [{"delta": {"refusal": text}}]});
    let tap_of = tap(Kind::OpenAi, &[refusal("I can't "), refusal("assist.")]);
    assert_eq!(tap_of.seen().refusal, "I can't assist.");
    let block = json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 5}});
    let tap_of = tap(Kind::Gemini, &[block]);
    assert_eq!(tap_of.seen().blocked.as_deref(), Some("PROHIBITED_CONTENT"));
    assert_eq!(tap_of.seen().reported(Kind::Gemini).input, 5);
}

#[test]
fn collected_data_is_bounded() {
    let call = json!({"choices": [{"delta": {"tool_calls": [{"id": "x", "function": {"name": "a", "arguments": "y".repeat(1 << 20)}}]}}]});
    let tap = Tap::new(Kind::OpenAi);
    for _ in 0..20 {
        tap.frame(&call.to_string());
    }
    let seen = tap.seen();
    assert!(seen.too_large);
    assert!(seen.calls.is_empty());
}

#[test]
fn calls_beyond_the_bound_are_left_out_with_all_their_pieces() {
    let tap = Tap::new(Kind::OpenAi);
    for index in 0..3_000 {
        let begun = json!({"index": index, "id": format!("c{index}"), "function": {"name": "a", "arguments": "{"}});
        let rest = json!({"index": index, "function": {"arguments": "}"}});
        for piece in [begun, rest] {
            tap.frame(&json!({"choices": [{"delta": {"tool_calls": [piece]}}]}).to_string());
        }
    }
    let rest = json!({"function": {"arguments": "of none"}});
    tap.frame(&json!({"choices": [{"delta": {"tool_calls": [rest]}}]}).to_string());
    let seen = tap.seen();
    assert!(!seen.too_large);
    assert_eq!(seen.calls.len(), CALLS_PER_ANSWER_MAX);
    assert!(seen.calls.iter().all(|call| call.arguments == "{}"));
}

#[test]
fn unreported_usage_is_estimated_and_marked() {
    let silent = tap(Kind::OpenAi, &[]);
    // No answer began, so no usage is assumed.
    assert_eq!(
        silent.seen().spent(Kind::OpenAi, 400, false),
        Spent::default()
    );
    silent.seen().answer_bytes = 41;
    let spent = silent.seen().spent(Kind::OpenAi, 400, false);
    assert_eq!((spent.tokens.input, spent.tokens.output), (100, 11));
    assert!(spent.estimated);
    let usage = json!({"usage": {"prompt_tokens": 7, "completion_tokens": 2}});
    let tap = tap(Kind::OpenAi, &[usage]);
    tap.seen().answer_bytes = 41;
    let spent = tap.seen().spent(Kind::OpenAi, 400, true);
    assert_eq!((spent.tokens.input, spent.tokens.output), (7, 2));
    assert!(!spent.estimated);
}
