//! Nothing outside tests decides by the text of an error: a sentence may be reworded, or may come from outside. Errors
//! have a variant or a code for that (`ToolErrorCode`).

use super::circles::{crates, is_name, modules_of, tokens};
use super::none;

/// What looks at a text.
const LOOKS: [&str; 4] = ["starts_with", "ends_with", "contains", "strip_prefix"];
/// Names that errors have.
const ERRORS: [&str; 4] = ["error", "err", "why", "e"];

#[test]
fn no_error_is_told_by_its_text() {
    let mut broken = Vec::new();
    // The testkit is test code.
    for name in crates().into_iter().filter(|name| name != "errand-testkit") {
        for (module, tokens) in modules_of(&name) {
            let found = looks_at_errors(&tokens).into_iter();
            broken.extend(found.map(|look| format!("{name}: {module}: {look}")));
        }
    }
    none(
        &broken,
        "decisions by the text of an error: give the error a variant or a code",
    );
}

/// Each method of [`LOOKS`] that is called on an error, or on a text made from it, such as `error.to_string()`.
fn looks_at_errors(tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for at in 1..tokens.len() {
        if tokens[at - 1] != "." || !LOOKS.contains(&tokens[at].as_str()) {
            continue;
        }
        let receiver = receiver(&tokens[..at - 1]);
        if receiver
            .first()
            .is_some_and(|of| ERRORS.contains(&of.as_str()))
        {
            found.push(format!("{}.{}", receiver.concat(), tokens[at]));
        }
    }
    found
}

/// The expression at the end of `tokens` on which a method is called: names, fields and calls.
fn receiver(tokens: &[String]) -> &[String] {
    let mut from = tokens.len();
    loop {
        // Arguments of a call.
        if from > 0 && tokens[from - 1] == ")" {
            let mut depth = 0;
            while from > 0 {
                from -= 1;
                depth += match tokens[from].as_str() {
                    ")" => 1,
                    "(" => -1,
                    _ => 0,
                };
                if depth == 0 {
                    break;
                }
            }
        }
        if from == 0 || !is_name(&tokens[from - 1]) {
            return &tokens[from..];
        }
        from -= 1;
        if from == 0 || tokens[from - 1] != "." {
            return &tokens[from..];
        }
        from -= 1;
    }
}

#[test]
fn looks_at_errors_are_found() {
    let found = |text| looks_at_errors(&tokens(text));
    assert_eq!(
        found("if error.to_string().contains(\"x\") {}"),
        ["error.to_string().contains"]
    );
    assert_eq!(
        found("matches!(x, Err(e) if e.starts_with(\"a:\"))").len(),
        1
    );
    assert!(found("codes.contains(&error.code()); name.starts_with(error)").is_empty());
}
