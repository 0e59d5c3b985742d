//! Property: for any two builds, the comparison ends quickly, its page has a bounded size, and nothing from the builds
//! becomes markup. `scripts/fuzz` runs more cases.

use errand_core::limits::CONFIG_BYTES_MAX;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{SHOWN_BYTES_MAX, difference};
use crate::web::assignments::editor::yaml;
use crate::web::fuzz::{repeated, within_bounds};

/// Maximum size of a page: an escaped character takes up to six bytes, and each line has markup.
const PAGE_MAX: usize = 10 * SHOWN_BYTES_MAX;

/// The page that compares two texts.
fn compared(old: String, new: String) -> String {
    let page = within_bounds("a comparison", move || difference(&old, &new).into_string());
    assert!(page.len() < PAGE_MAX, "{} bytes", page.len());
    assert!(!page.contains("<script"));
    page
}

const LINES: [&str; 12] = [
    "a\n",
    "b\n",
    "\n",
    "  - say: \"{{ a }}\"\n",
    "<script>",
    "\r",
    "\r\n",
    "x",
    "\u{2028}",
    "\u{0}",
    "&\n",
    "\t",
];

/// Two texts, one of which was derived from the other by removing, doubling and reversing parts.
fn edited() -> impl Strategy<Value = (String, String)> {
    let edits = prop::collection::vec((0..4u8, 0..5_000usize, 1..500usize), 0..8);
    (repeated(&LINES), edits).prop_map(|(old, edits)| {
        let mut lines: Vec<&str> = old.split_inclusive('\n').collect();
        for (edit, from, length) in edits {
            let from = from % (lines.len() + 1);
            let to = (from + length).min(lines.len());
            match edit {
                0 => drop(lines.drain(from..to)),
                1 => lines[from..to].reverse(),
                2 => {
                    let twice = lines[from..to].to_vec();
                    drop(lines.splice(from..from, twice));
                }
                _ => drop(lines.splice(from..from, vec!["new\n"; length])),
            }
        }
        let new = lines.concat();
        (old, new)
    })
}

/// An arbitrary configuration.
fn config() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        "[ -~\n\t]{0,40}".prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        Just(Value::Null),
        Just(json!("yes")),
        Just(json!("- a: |\n  b\n")),
        Just(json!("\u{0}\u{202e}\u{2028}é")),
    ];
    leaf.prop_recursive(8, 100, 8, |inner| {
        let key = "[ -~]{0,8}";
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map(key, inner.clone(), 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            (inner, 1..100usize).prop_map(|(inner, depth)| {
                (0..depth).fold(inner, |inner, _| {
                    Value::Object(Map::from_iter([("a".to_owned(), inner)]))
                })
            }),
        ]
    })
}

proptest! {
    #[test]
    fn texts_are_compared_within_a_moment((old, new) in edited()) {
        let is_alike = old == new;
        let page = compared(old, new);
        prop_assert_eq!(page.contains("These builds have the same configuration"), is_alike);
    }

    #[test]
    fn texts_that_have_nothing_in_common_are_compared((old, new) in (repeated(&LINES), repeated(&LINES))) {
        compared(old, new);
    }

    #[test]
    fn configs_are_compared_within_a_moment((old, new) in (config(), config())) {
        let (old, new) = within_bounds("YAML", move || (yaml(&old), yaml(&new)));
        compared(old, new);
    }
}

#[test]
fn the_largest_builds_are_compared_within_a_moment() {
    let lines = |line: &dyn Fn(usize) -> String| -> String {
        let mut left = CONFIG_BYTES_MAX;
        let fits = |line: &String| {
            left = left.saturating_sub(line.len());
            left > 0
        };
        (0..).map(line).take_while(fits).collect()
    };
    let scattered = |n: usize, seed: usize| (n.wrapping_mul(seed) >> 16) % 10_000;
    let texts = [
        lines(&|n| format!("{}\n", scattered(n, 2_654_435_761))),
        lines(&|n| format!("{}\n", scattered(n, 40_503))),
        lines(&|n| format!("{n}\n")),
        lines(&|n| format!("{}\n", 1_000_000 - n)),
        lines(&|n| format!("{}\n", n % 2)),
        lines(&|_| "\n".to_owned()),
        lines(&|_| "\r".to_owned()),
        lines(&|_| "<".to_owned()),
        lines(&|n| format!("{}<\n", "ab".repeat(n % 7))),
    ];
    for pair in texts.windows(2) {
        compared(pair[0].clone(), pair[1].clone());
        compared(pair[1].clone(), pair[0].clone());
    }
    let page = compared(texts[0].clone(), texts[1].clone());
    // Removed lines come first, and may fill the page by themselves.
    let is_cut = page.contains("The rest of the difference is too long to show");
    assert!(page.contains("removed: ") && (is_cut || page.contains("added: ")));
}
