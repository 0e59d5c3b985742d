//! Searching files.

use std::cell::Cell;
use std::fs;

use super::{TestSandbox, assert_refused, at, with_both_strategies};
use crate::{Found, SearchLimits};

fn search_with(sandbox: &TestSandbox, path: &str, pattern: &str, limits: SearchLimits) -> Found {
    sandbox
        .root
        .search(&at(path), pattern, &limits, &|| false)
        .unwrap()
}

fn lines(found: &Found) -> Vec<(&str, u64, &str)> {
    found
        .matches
        .iter()
        .map(|hit| (hit.path.relative(), hit.line, hit.text.as_str()))
        .collect()
}

#[test]
fn matches_are_sorted_by_path_and_line() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("a/x.txt"), b"no\nTotal: 5\r\n\nTotal: 7")
            .unwrap();
        root.write(&at("a.txt"), b"Total: 1\n").unwrap();
        root.write(&at("a/b/c.txt"), b"Total: 3\n").unwrap();
        root.write(&at("ab"), b"total: 9\n").unwrap();
        root.write(&at("empty"), b"").unwrap();
        let found = search_with(sandbox, "", r"^Total: \d$", SearchLimits::default());
        let expected = [
            ("a.txt", 1, "Total: 1"),
            ("a/b/c.txt", 1, "Total: 3"),
            ("a/x.txt", 2, "Total: 5"),
            ("a/x.txt", 4, "Total: 7"),
        ];
        assert_eq!(lines(&found), expected);
        assert_eq!((found.truncated, found.files_skipped), (false, 0));
        let mut sorted = found.matches.clone();
        sorted.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
        assert_eq!(sorted, found.matches);
        assert_eq!(
            lines(&search_with(sandbox, "a/b", "T", SearchLimits::default())),
            [expected[1]]
        );
        assert_eq!(
            lines(&search_with(
                sandbox,
                "a/x.txt",
                "5",
                SearchLimits::default()
            )),
            [expected[2]]
        );
        // The line break at the end of the file does not begin another line, but an empty line counts.
        let found = search_with(sandbox, "", "^$", SearchLimits::default());
        assert_eq!(lines(&found), [("a/x.txt", 3, "")]);
        assert_eq!(
            lines(&search_with(
                sandbox,
                "",
                "(?i)TOTAL: 9",
                SearchLimits::default()
            )),
            [("ab", 1, "total: 9")]
        );
    });
}

#[test]
fn every_limit_is_enforced_and_reported() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("a"), "äx\n".repeat(10).as_bytes()).unwrap();
        root.write(&at("b"), "äx\n".repeat(10).as_bytes()).unwrap();
        root.write(&at("d/e/f"), b"x").unwrap();
        let all = SearchLimits::default();
        let found = search_with(sandbox, "", "x", all);
        assert_eq!((found.matches.len(), found.truncated), (21, false));
        let found = search_with(
            sandbox,
            "",
            "x",
            SearchLimits {
                matches_max: 12,
                ..all
            },
        );
        assert_eq!((found.matches.len(), found.truncated), (12, true));
        let found = search_with(
            sandbox,
            "",
            "x",
            SearchLimits {
                matches_max: 21,
                ..all
            },
        );
        assert_eq!((found.matches.len(), found.truncated), (21, false));
        let found = search_with(
            sandbox,
            "",
            "x",
            SearchLimits {
                total_bytes_max: 45,
                ..all
            },
        );
        assert_eq!((found.matches.len(), found.truncated), (10, true));
        let found = search_with(
            sandbox,
            "",
            "x",
            SearchLimits {
                depth_max: 1,
                ..all
            },
        );
        assert_eq!((found.matches.len(), found.truncated), (20, true));
        let found = search_with(
            sandbox,
            "",
            "x",
            SearchLimits {
                entries_max: 4,
                ..all
            },
        );
        assert_eq!((found.matches.len(), found.truncated), (20, true));
        let found = search_with(
            sandbox,
            "",
            "x",
            SearchLimits {
                file_bytes_max: 39,
                ..all
            },
        );
        assert_eq!(
            (found.matches.len(), found.truncated, found.files_skipped),
            (1, false, 2)
        );
        let found = search_with(
            sandbox,
            "a",
            "x",
            SearchLimits {
                line_chars_max: 1,
                ..all
            },
        );
        assert_eq!(found.matches[0].text, "ä");
    });
}

#[test]
fn a_search_can_be_stopped() {
    with_both_strategies(|sandbox| {
        sandbox
            .root
            .write(&at("a"), "x\n".repeat(1000).as_bytes())
            .unwrap();
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > 10
        };
        let found = sandbox
            .root
            .search(&at(""), "x", &SearchLimits::default(), &stop)
            .unwrap();
        assert!(
            found.truncated && found.matches.len() < 10,
            "{}",
            found.matches.len()
        );
    });
}

#[test]
fn binary_and_unfinished_files_are_skipped() {
    with_both_strategies(|sandbox| {
        sandbox.root.write(&at("binary"), b"x\0x").unwrap();
        sandbox.root.write(&at("latin1"), b"caf\xe9 x\n").unwrap();
        fs::write(sandbox.dir.join(".errand-tmp-1-1"), "x").unwrap();
        let found = search_with(sandbox, "", "x", SearchLimits::default());
        assert_eq!(lines(&found), [("latin1", 1, "caf\u{fffd} x")]);
        assert_eq!(found.files_skipped, 1);
    });
}

#[test]
fn an_invalid_pattern_is_refused() {
    with_both_strategies(|sandbox| {
        for pattern in ["(", "(?<x", r"\w{1000}{1000}", &"(".repeat(10_000)] {
            assert_refused!(
                sandbox
                    .root
                    .search(&at(""), pattern, &SearchLimits::default(), &|| false),
                BadPattern
            );
        }
        assert_refused!(
            sandbox
                .root
                .search(&at("no"), "x", &SearchLimits::default(), &|| false),
            NotFound
        );
    });
}

#[test]
fn only_the_beginning_of_a_long_line_is_searched() {
    with_both_strategies(|sandbox| {
        let line = "y".repeat(64 * 1024);
        sandbox
            .root
            .write(&at("a"), format!("{line}x\n{}x\n", &line[1..]).as_bytes())
            .unwrap();
        let found = search_with(sandbox, "", "x", SearchLimits::default());
        assert_eq!(
            found.matches.iter().map(|hit| hit.line).collect::<Vec<_>>(),
            [2]
        );
        assert_eq!(found.matches[0].text.len(), 500);
    });
}
