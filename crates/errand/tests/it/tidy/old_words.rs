//! The first version of errand was written in a dialect: sentences without a subject, words that no reader searches
//! for. This test counts what is left of it. The numbers may only shrink: nobody writes it anew, and who removes some
//! lowers the number in the same change.

use super::{files, read};

/// Words in a row, compared without case; `..` stands for one to three other words. Names count too: `in_line` is
/// `in line`. With each, how often it occurs in all Rust files and documents.
const PATTERNS: [(&str, usize); 20] = [
    ("whatever", 29),
    ("nobody's", 1),
    ("nobodys", 8),
    ("so many", 3),
    ("is told", 17),
    ("are told", 3),
    ("told apart", 0),
    ("in line", 0),
    ("by hand of", 0),
    ("lets .. in", 1),
    ("falls due by", 0),
    ("shall", 0),
    ("stands", 16),
    ("none where", 0),
    ("false where", 0),
    ("true where", 0),
    ("it takes a", 0),
    ("the same of", 0),
    ("at all costs", 3),
    ("goes over", 0),
];

/// How a document comment of an item must not begin: such a sentence has no subject, or no verb.
const BEGINNINGS: [(&str, usize); 8] = [
    ("What", 29),
    ("Whose", 0),
    ("Who", 2),
    ("None where", 0),
    ("By whom", 0),
    ("The same", 5),
    ("Those of", 0),
    ("As", 6),
];

#[test]
fn the_old_dialect_only_shrinks() {
    let (mut words, mut beginnings) = ([0; PATTERNS.len()], [0; BEGINNINGS.len()]);
    let patterns = PATTERNS.map(|(pattern, _)| words_of(pattern));
    for path in files() {
        let extension = path.extension().and_then(|e| e.to_str());
        // The lists themselves.
        if path.ends_with("tidy/old_words.rs") || !matches!(extension, Some("rs" | "md" | "html")) {
            continue;
        }
        let text = read(&path);
        for line in text.lines() {
            let line = words_of(line);
            for (pattern, count) in patterns.iter().zip(&mut words) {
                *count += occurrences(pattern, &line);
            }
        }
        if extension == Some("rs") {
            for first in first_lines_of_documents(&text) {
                for ((beginning, _), count) in BEGINNINGS.iter().zip(&mut beginnings) {
                    let follows = first.strip_prefix(beginning);
                    *count += usize::from(
                        follows.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric)),
                    );
                }
            }
        }
    }
    let wrong: Vec<_> = (PATTERNS.iter().zip(words))
        .chain(BEGINNINGS.iter().zip(beginnings))
        .filter(|((_, allowed), count)| allowed != count)
        .map(|((pattern, allowed), count)| {
            if count > *allowed {
                format!("{pattern:?}: {count} times, {allowed} before. Write plain English instead (CONTRIBUTING.md)")
            } else {
                format!("{pattern:?}: lower the number to {count} in tidy/old_words.rs, so that it stays there")
            }
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "words of the old dialect:\n{}",
        wrong.join("\n")
    );
}

/// The words of a line, in lower case. An apostrophe within a word is a part of it; an underscore is not.
fn words_of(line: &str) -> Vec<String> {
    line.split(|c: char| !(c.is_alphanumeric() || matches!(c, '\'' | '’' | '.')))
        .map(|word| word.replace('’', "'").to_lowercase())
        .map(|word| match word.as_str() {
            ".." => word,
            _ => word.trim_matches(['.', '\'']).to_owned(),
        })
        .filter(|word| !word.is_empty())
        .collect()
}

/// How often a pattern occurs in a line.
fn occurrences(pattern: &[String], line: &[String]) -> usize {
    (0..line.len())
        .filter(|at| matches(pattern, &line[*at..]))
        .count()
}

fn matches(pattern: &[String], line: &[String]) -> bool {
    match pattern {
        [] => true,
        [gap, rest @ ..] if gap == ".." => {
            (1..=3).any(|between| line.len() >= between && matches(rest, &line[between..]))
        }
        [word, rest @ ..] => line.first() == Some(word) && matches(rest, &line[1..]),
    }
}

/// The first line of each document comment, without its mark.
fn first_lines_of_documents(text: &str) -> impl Iterator<Item = &str> {
    let document = |line: &str| line.starts_with("///") || line.starts_with("//!");
    text.lines()
        .scan(false, move |within, line| {
            let line = line.trim_start();
            let first = document(line) && !std::mem::replace(within, document(line));
            *within = document(line);
            Some(first.then(|| line[3..].trim_start()))
        })
        .flatten()
}

#[test]
fn patterns_are_found_as_they_are_meant() {
    let count = |pattern, line| occurrences(&words_of(pattern), &words_of(line));
    assert_eq!(
        count("in line", "// Put in line, and `waits_in_line()`."),
        2
    );
    assert_eq!(count("in line", "error on line 3 in lines"), 0);
    assert_eq!(count("nobody's", "It is nobody’s time."), 1);
    assert_eq!(count("lets .. in", "It lets the run in."), 1);
    assert_eq!(count("lets .. in", "It lets in."), 0);
    let text = "/// What it is.\n/// Who.\nfn a() {}\n    //! Whose.\n";
    let first: Vec<_> = first_lines_of_documents(text).collect();
    assert_eq!(first, ["What it is.", "Whose."]);
}
