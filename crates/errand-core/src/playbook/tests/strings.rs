//! Templates: types, filters and bounds.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Drive;
use crate::limits;
use crate::playbook::RunFacts;
use crate::playbook::json::{from_json, to_json};
use crate::playbook::template::{EvaluationContext, Names, Node, Vars};
use crate::turn::Move;

fn names() -> Names {
    let vars = [
        ("csv", json!("a,b\r\n1,2\n3,4\n")),
        ("n", json!(3)),
        ("f", json!(4.0)),
        ("none_", json!(null)),
        ("list", json!([1, 2, 3])),
        ("map", json!({"b": [true, null], "a": {"x": "y"}})),
        ("amp", json!("<a> & 'b'")),
    ];
    let vars: Vars = vars
        .into_iter()
        .map(|(name, value)| (Arc::from(name), from_json(&value)))
        .collect();
    Names {
        scopes: vec![Arc::new(vars)],
        iteration: None,
        users: Arc::new(vec![
            (1, Arc::from("first")),
            (4, Arc::from("second")),
            (9, Arc::from("third")),
        ]),
        read: 2,
        run: RunFacts {
            id: "r".to_owned(),
            sandbox_id: Some("sb".to_owned()),
        },
        with_sandbox: true,
    }
}

fn value(source: impl Into<Value>) -> Result<Value, String> {
    let node = Node::parse("here", &source.into()).map_err(|e| e.to_string())?;
    node.value(
        &names(),
        &mut EvaluationContext::default().fuel_for_one_move(),
    )
    .map(|(json, _)| json)
}

#[test]
fn a_whole_expression_keeps_its_type() {
    let cases = [
        ("{{ n }}", json!(3)),
        ("{{ n * 2 }}", json!(6)),
        ("{{- n -}}", json!(3)),
        ("{{ f }}", json!(4.0)),
        ("{{ n / 2 }}", json!(1.5)),
        ("{{ none_ }}", json!(null)),
        ("{{ n > 2 }}", json!(true)),
        ("{{ list }}", json!([1, 2, 3])),
        ("{{ map }}", json!({"b": [true, null], "a": {"x": "y"}})),
        ("{{ map.a.x }}", json!("y")),
        ("{{ {'k': [n]} }}", json!({"k": [3]})),
        ("{{ '}}' ~ '{{' ~ '%}' }}", json!("}}{{%}")),
        ("{{ range(3) }}", json!([0, 1, 2])),
        ("{{ messages }}", json!(["first", "second"])),
        ("{{ messages | length }}", json!(2)),
        ("{{ messages[-1] }}", json!("second")),
        ("{{ message }}", json!("second")),
        ("{{ run }}", json!({"id": "r", "sandbox_id": "sb"})),
        ("{{ 18446744073709551615 }}", json!(u64::MAX)),
        // Not a single expression, so the result is text.
        ("{{ n }}{{ n }}", json!("33")),
        ("{{ n }} {{ f }}", json!("3 4.0")),
        (" {{ n }}", json!(" 3")),
        ("{{ n }}\n", json!("3\n")),
        ("{{ '<' }}&", json!("<&")),
        (
            "{{ map }} {{ true }} {{ none_ }} {{ [1, 'a'] }}",
            json!("{\"a\":{\"x\":\"y\"},\"b\":[true,null]} true null [1,\"a\"]"),
        ),
        ("{% if n > 2 %}yes{% endif %}", json!("yes")),
        ("plain }} text\n", json!("plain }} text\n")),
    ];
    for (source, expected) in cases {
        assert_eq!(value(source), Ok(expected), "{source}");
    }
    assert_eq!(
        value(json!({"a": ["{{ n }}", 1, null]})),
        Ok(json!({"a": [3, 1, null]}))
    );
}

#[test]
fn filters_give_the_documented_results() {
    let cases = [
        ("{{ csv | lines }}", json!(["a,b", "1,2", "3,4"])),
        ("{{ csv | lines | slice(1) }}", json!(["1,2", "3,4"])),
        ("{{ csv | lines | slice(1) | length * 100 }}", json!(200)),
        ("{{ list | slice(0, 2) }}", json!([1, 2])),
        ("{{ list | slice(-2) }}", json!([2, 3])),
        ("{{ list | slice(0, -1) }}", json!([1, 2])),
        ("{{ list | slice(2, 1) }}", json!([])),
        ("{{ list | slice(-9, 9) }}", json!([1, 2, 3])),
        ("{{ 'héllo' | slice(1, 3) }}", json!("él")),
        (
            "{{ '{\"a\": [1, 2.0]}' | fromjson }}",
            json!({"a": [1, 2.0]}),
        ),
        (
            "{{ map | tojson }}",
            json!("{\"a\":{\"x\":\"y\"},\"b\":[true,null]}"),
        ),
        ("{{ [1] | tojson(indent=2) }}", json!("[\n  1\n]")),
        ("{{ [1] | tojson(2) }}", json!("[\n  1\n]")),
        ("{{ amp | tojson }}", json!("\"<a> & 'b'\"")),
        ("{{ nope | default('x') }}", json!("x")),
        ("{{ nope is defined }}", json!(false)),
        ("{{ list | join('-') }}", json!("1-2-3")),
    ];
    for (source, expected) in cases {
        assert_eq!(value(source), Ok(expected), "{source}");
    }
}

#[test]
fn evaluation_errors_name_the_place_and_the_reason() {
    let defined = "amp, csv, f, list, map, message, messages, n, none_, run";
    let cases = [
        (
            "{{ nope }}",
            format!("here: `nope` is not defined; defined here: {defined}"),
        ),
        (
            "{{ nope + 1 }}",
            format!(
                "here: invalid operation: tried to use + operator on unsupported types undefined and number (`nope` is not defined; defined here: {defined})"
            ),
        ),
        (
            "a {{ nope }}",
            format!("here: `nope` is not defined; defined here: {defined}"),
        ),
        (
            "{{ map.zip }}",
            format!("here: `map.zip` is not defined; defined here: {defined}"),
        ),
        (
            "{{ item }}",
            format!("here: `item` is not defined; defined here: {defined}"),
        ),
        (
            "{{ [nope] }}",
            "here: gives a value that is not defined".to_owned(),
        ),
        (
            "{{ nope | lines }}",
            format!(
                "here: invalid operation: value is not a string (`nope` is not defined; defined here: {defined})"
            ),
        ),
        (
            "{{ n | nofilter }}",
            "here: unknown filter: filter nofilter is unknown".to_owned(),
        ),
        (
            "{{ n | lines }}",
            "here: invalid operation: value is not a string".to_owned(),
        ),
        (
            "{{ n | slice(1) }}",
            "here: invalid operation: slice expects a list or a string, not a number".to_owned(),
        ),
        (
            "{{ '{' | fromjson }}",
            "here: invalid operation: fromjson: the text is not valid JSON".to_owned(),
        ),
        ("{{ range }}", "here: gives a".to_owned()),
        (
            "{{ 1e308 * 10 }}",
            "here: gives inf, which JSON cannot represent".to_owned(),
        ),
        (
            "{{ 2 ** 100 }}",
            "here: gives a whole number beyond 64 bits".to_owned(),
        ),
        ("{{ debug() }}", "here: unknown function".to_owned()),
        ("{{ namespace(a=1) }}", "here: unknown function".to_owned()),
        ("{% include 'x' %}", "here: template not found".to_owned()),
    ];
    for (source, expected) in cases {
        let message = value(source).unwrap_err();
        assert!(message.starts_with(&expected), "{source}\n  {message}");
    }
    assert!(value("{{ now() }}").unwrap_err().contains("now"));
}

#[test]
fn each_string_has_a_fuel_limit() {
    let spin = "{% for i in range(100000) %}{% endfor %}";
    assert_eq!(
        value(spin).unwrap_err(),
        "here: the template used up its fuel (100000); make it do less, or use less data"
    );
    // Shared parts cost nothing to build; their size counts when they are written or kept.
    let shared = "[[[[[1] * 1000] * 1000] * 1000] * 1000]";
    assert!(
        value(format!("{{{{ {shared} }}}}"))
            .unwrap_err()
            .contains("too large")
    );
    assert!(
        value(format!("a {{{{ {shared} }}}}"))
            .unwrap_err()
            .contains("too large")
    );
    assert!(
        value(format!("{{{{ {shared} | tojson }}}}"))
            .unwrap_err()
            .contains("too large")
    );
}

#[test]
fn the_steps_between_two_moves_have_a_fuel_limit() {
    let spin = json!({"set": {"x": "{{ range(1500) | map('string') | list | length }}"}});
    let mut drive = Drive::started(
        json!([{"for_each": "{{ range(20000) }}", "steps": [{"for_each": "{{ range(500) }}", "steps": [spin]}]}]),
        "go",
    );
    let (code, message) = drive.failed();
    assert_eq!(code, "playbook_failed");
    assert!(
        message.starts_with("playbook.steps[0].steps[0]"),
        "{message}"
    );
    assert!(
        message.contains("the steps since the last move used up their fuel"),
        "{message}"
    );
}

#[test]
fn deeply_nested_values_are_rejected() {
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    assert!(
        to_json(&from_json(&deep))
            .unwrap_err()
            .contains("nested deeper")
    );
}

#[test]
fn a_large_result_is_passed_on_unchanged() {
    let csv = "x".repeat(usize::try_from(limits::READ_FILE_BYTES_MAX).unwrap());
    let mut drive = Drive::started(
        json!([{"tool": "read_file", "as": "text"}, {"tool": "write_file", "with": {"content": "{{ text }}"}}]),
        "copy",
    );
    drive.call(super::ok(json!(csv)));
    let Move::Call { arguments, .. } = drive.next().action else {
        panic!()
    };
    assert_eq!(arguments["content"], json!(csv));
}
