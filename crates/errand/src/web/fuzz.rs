//! Property: any text that reaches a page or the editor is shown or refused quickly, on a stack that is a quarter of
//! the size of the server's thread stacks. `scripts/fuzz` runs more cases.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::Value;

use super::assignments::yaml;
use super::text;

/// Far above what the largest text needs, and far below what a quadratic algorithm would need.
const TIME_MAX: Duration = Duration::from_secs(10);

pub(super) fn within_bounds<T: Send + 'static>(
    what: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> T {
    let began = Instant::now();
    let thread = std::thread::Builder::new().stack_size(512 * 1024);
    let done = thread.spawn(act).unwrap().join().unwrap();
    assert!(began.elapsed() < TIME_MAX, "{what}: {:?}", began.elapsed());
    done
}

pub(super) fn repeated(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece = prop::sample::select(pieces.to_vec());
    prop::collection::vec((piece, 1..1_000usize), 1..6).prop_map(|parts| {
        parts
            .iter()
            .map(|(piece, times)| piece.repeat(*times))
            .collect()
    })
}

const MARKDOWN: [&str; 20] = [
    "*", "_", "**a", "[", "](", ")", "![", "> ", "- ", "1. ", "`", "~~", "|", "\n", "|-|\n", "<a",
    "<!--", "&", "\\", "[a]: b\n",
];
const YAML: [&str; 16] = [
    "[", "{", "- ", "a: ", "? ", "\n", "  ", "&a ", "*a, ", "!!x ", "\"", "'", "| ", "<<: *a\n",
    "---\n", "a: [b]\n",
];

proptest! {
    #[test]
    fn markdown_is_rendered_quickly(source in repeated(&MARKDOWN)) {
        let shown = within_bounds("Markdown", move || text::markdown(&source).into_string());
        prop_assert!(!shown.contains("<script"));
    }

    #[test]
    fn tables_are_rendered_quickly(source in repeated(&[",", ";", "\"", "\n", "a,", "\"\"", "1\n"])) {
        within_bounds("a table", move || text::csv("x.csv", &source).into_string());
    }

    #[test]
    fn yaml_is_parsed_or_refused_quickly(source in repeated(&YAML)) {
        within_bounds("YAML", move || drop(yaml::parse::<Value>(&source)));
    }
}

#[test]
fn deeply_nested_or_multiplied_yaml_is_refused() {
    for source in [
        "[".repeat(200_000),
        "- ".repeat(200_000),
        "a: &a [*a]\n".to_owned(),
    ] {
        let refused = within_bounds("YAML", move || yaml::parse::<Value>(&source).is_err());
        assert!(refused);
    }
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..12 {
        let part = format!("*a{},", n - 1).repeat(10);
        laughs += &format!("a{n}: &a{n} [{part}]\n");
    }
    assert!(within_bounds("YAML", move || {
        yaml::parse::<Value>(&laughs).is_err()
    }));
}
