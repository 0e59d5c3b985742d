//! Compares the schemas with what `errand_core::human` accepts.

use errand_core::human::{OnExpire as CoreOnExpire, approval_from_call, question_from_call};
use errand_core::id::IdGen;
use errand_core::policy::builtin;
use errand_core::time::Timestamp;
use errand_core::transcript::ToolCall;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tool::Tools;

fn schema(tool: &str) -> Value {
    Tools::builtin().get(tool).unwrap().schema()
}

fn call(name: &str, arguments: &Value) -> ToolCall {
    ToolCall {
        id: "call_1".to_owned(),
        name: name.to_owned(),
        arguments: arguments.as_object().unwrap().clone(),
    }
}

/// The names of a schema's properties.
fn names_of(schema: &Value) -> Vec<&str> {
    let mut names: Vec<_> = schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names
}

fn keys_of(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
fn an_approval_with_every_argument_of_the_schema_is_read() {
    let full =
        json!({"title": "Pay?", "description": "40 EUR", "expires_in": "3d", "on_expire": "fail"});
    let schema = schema("request_approval");
    assert_eq!(names_of(&schema), keys_of(&full));
    let draft = approval_from_call(&call("request_approval", &full)).unwrap();
    assert_eq!(
        (draft.expires_in_ms, draft.on_expire),
        (Some(3 * 86_400_000), Some(CoreOnExpire::Fail))
    );
    assert_eq!(schema["required"], json!(["title"]));
    approval_from_call(&call("request_approval", &json!({"title": "Pay?"}))).unwrap();
    approval_from_call(&call("request_approval", &json!({}))).unwrap_err();
}

#[test]
fn a_question_with_every_argument_of_the_schema_is_read() {
    let full = json!({
        "title": "Which account?",
        "description": "For the invoices of May",
        "questions": [{
            "question": "Which account?",
            "header": "Account",
            "options": [{"label": "A", "description": "The old one"}],
            "multi_select": true,
            "free_text": false,
        }],
        "expires_in": "12h",
        "on_expire": "continue",
    });
    let schema = schema("ask_human");
    let question = &schema["properties"]["questions"]["items"];
    let option = &question["properties"]["options"]["items"];
    assert_eq!(names_of(&schema), keys_of(&full));
    assert_eq!(names_of(question), keys_of(&full["questions"][0]));
    assert_eq!(
        names_of(option),
        keys_of(&full["questions"][0]["options"][0])
    );
    question_from_call(&call("ask_human", &full)).unwrap();

    assert_eq!(schema["required"], json!(["title", "questions"]));
    assert_eq!(question["required"], json!(["question"]));
    assert_eq!(option["required"], json!(["label"]));
    assert_eq!(schema["properties"]["questions"]["minItems"], 1);
    let least = json!({"title": "Which?", "questions": [{"question": "Which?", "options": [{"label": "A"}]}]});
    question_from_call(&call("ask_human", &least)).unwrap();
    question_from_call(&call(
        "ask_human",
        &json!({"title": "Which?", "questions": []}),
    ))
    .unwrap_err();
}

#[test]
fn on_expire_accepts_what_the_schema_lists() {
    for tool in ["request_approval", "ask_human"] {
        let schema = schema(tool);
        let values = schema["properties"]["on_expire"]["enum"]
            .as_array()
            .unwrap();
        assert_eq!(values.len(), 3, "{schema}");
        for value in values {
            let arguments = json!({"title": "Pay?", "on_expire": value});
            approval_from_call(&call("request_approval", &arguments)).unwrap();
        }
    }
}

#[test]
fn schemas_are_closed_inlined_and_explained() {
    for tool in tools() {
        let schema = tool.schema();
        let text = schema.to_string();
        assert!(
            !text.contains("$ref") && !text.contains("$defs") && !text.contains("null"),
            "{text}"
        );
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["type"], "object");
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].is_string(), "{name}: {property}");
            assert!(property["type"].is_string(), "{name}: {property}");
        }
    }
}

#[test]
fn every_asking_tool_has_its_hints() {
    let names: Vec<_> = tools().iter().map(|tool| tool.name().to_owned()).collect();
    assert_eq!(names, ["request_approval", "ask_human"]);
    for tool in tools() {
        assert_eq!(Some(tool.hints()), builtin(tool.name()));
        assert!(tool.hints().asks);
        assert!(tool.description().len() > 40);
    }
}

#[tokio::test]
async fn an_executed_asking_tool_fails() {
    let context = ToolContext {
        build: None,
        arguments: Map::new(),
        run: IdGen::new([1; 32]).run(Timestamp::from_millis(0)),
        call_id: "call_1".to_owned(),
        workspace: None,
        parsers: crate::parse::Parsers::new(None)
            .of(IdGen::new([1; 32]).team(Timestamp::from_millis(0))),
        cancel: CancellationToken::new(),
        draining: CancellationToken::new(),
    };
    for tool in tools() {
        let outcome = tool.run(&context, Map::new()).await;
        let Outcome::Error(error) = outcome else {
            panic!("{} gave an answer", tool.name());
        };
        assert!(
            error
                .to_string()
                .starts_with(&format!("not_run: {} asks a person", tool.name())),
            "{error}"
        );
    }
}
