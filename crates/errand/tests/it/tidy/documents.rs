//! The documents: what they say of the code is checked against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use errand::config::{Config, SettingLine, table};

use super::{files, none, read, root, rust_files};

/// The document with the table of settings, which this test generates.
const SETTINGS: &str = "docs/settings.md";
const BEGIN: &str = "<!-- generated: settings -->\n";
const END: &str = "<!-- end of generated: settings -->\n";

/// Rewrites the generated parts of documents instead of checking them.
const UPDATE: &str = "UPDATE_DOCS";

/// Limits of ARCHITECTURE.md: about ten pages that can be read in a diff.
const ARCHITECTURE_LINES_MAX: usize = 600;
const ARCHITECTURE_LINE_CHARS_MAX: usize = 120;

#[test]
fn the_list_of_settings_is_current() {
    let document = read(SETTINGS);
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let current = format!("{before}{BEGIN}\n{}{END}{after}", settings());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(root().join(SETTINGS), current).unwrap();
        return;
    }
    assert!(
        document == current,
        "{SETTINGS} does not list the settings as `errand config` does. Rewrite it with\n\
         {UPDATE}=1 cargo test -p errand --test it -- tidy::documents"
    );
}

/// One table for each section, in the order of `errand config`.
fn settings() -> String {
    let mut text = String::new();
    let mut section = None;
    let config = Config::default();
    for line in table(&config) {
        let of = line.name.split_once('.').map(|(section, _)| section);
        if section != Some(of) {
            section = Some(of);
            let heading = of.map_or_else(
                || "Environment variable only".to_owned(),
                |of| format!("`[{of}]`"),
            );
            let _ = write!(
                text,
                "### {heading}\n\n| setting | default | values | meaning |\n|---|---|---|---|\n"
            );
        }
        let name = of.map_or(line.env.as_str(), |_| line.name);
        let default = line
            .default
            .as_deref()
            .filter(|default| !default.starts_with('('))
            .map_or_else(|| "none".to_owned(), |default| format!("`{default}`"));
        let meaning = line.doc.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{name}` | {default} | {} | {meaning} |",
            values(line)
        );
        if last_of_section(line, table(&config)) {
            text.push('\n');
        }
    }
    text
}

fn last_of_section(line: &SettingLine, lines: &[SettingLine]) -> bool {
    let of = |name: &str| name.split_once('.').map(|(section, _)| section.to_owned());
    let next = lines
        .iter()
        .skip_while(|other| other.name != line.name)
        .nth(1);
    next.is_none_or(|next| of(next.name) != of(line.name))
}

/// The allowed values as a reader expects them: `1 to 10 (seconds)`, `text or json`.
fn values(line: &SettingLine) -> String {
    let allowed = match line.allowed.split_once("..=") {
        Some((from, to)) => format!("{from} to {to}"),
        None => line.allowed.replace(" | ", ", "),
    };
    // Durations and sizes are written with their units.
    if line.unit.is_empty() || line.unit.contains('(') {
        allowed
    } else {
        format!("{allowed} ({})", line.unit)
    }
}

#[test]
fn architecture_is_short() {
    let text = read("ARCHITECTURE.md");
    let lines = text.lines().count();
    assert!(
        lines <= ARCHITECTURE_LINES_MAX,
        "ARCHITECTURE.md has {lines} lines, of at most {ARCHITECTURE_LINES_MAX}: move details to docs/"
    );
    let long: Vec<_> = (1..)
        .zip(text.lines())
        .filter(|(_, line)| line.chars().count() > ARCHITECTURE_LINE_CHARS_MAX)
        .map(|(number, line)| format!("ARCHITECTURE.md:{number}: {line}"))
        .collect();
    none(
        &long,
        "lines of ARCHITECTURE.md with more than 120 characters",
    );
}

/// Each list item of the code map begins with the modules that it is about, in backticks, before the first colon.
#[test]
fn the_modules_of_the_code_map_exist() {
    let text = read("ARCHITECTURE.md");
    let map = text.split_once("\n## Code map\n").unwrap().1;
    let map = map.split("\n## ").next().unwrap();
    let mut missing = Vec::new();
    let mut checked = 0;
    for part in map.split("\n### ").skip(1) {
        let (heading, items) = part.split_once('\n').unwrap();
        let Some(of) = heading.split('`').nth(1) else {
            continue;
        };
        let there: BTreeSet<String> = rust_files()
            .iter()
            .filter(|path| path.starts_with(of))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        for item in items
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("- `"))
        {
            let (names, _) = item.split_once(": ").unwrap_or((item, ""));
            let names = format!("`{names}");
            for name in names.split('`').skip(1).step_by(2) {
                checked += 1;
                if !there.contains(name) {
                    missing.push(format!("{of}: {name}"));
                }
            }
        }
    }
    assert!(checked > 100, "the code map is not found");
    none(
        &missing,
        "ARCHITECTURE.md names modules that are not there: rename them in the code map",
    );
}

/// Names of functions, types and fields in the documents, such as `` `Store::claim` `` and `` `wake_at` ``. A name that was
/// changed in the code is found here.
#[test]
fn the_names_in_documents_are_in_the_code() {
    let mut code = BTreeSet::new();
    for path in files() {
        if matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("rs" | "sql" | "toml")
        ) {
            let text = read(&path);
            code.extend(text.split(|c: char| !is_of_a_name(c)).map(str::to_owned));
        }
    }
    let mut missing = Vec::new();
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"] {
        let text = read(document);
        for name in text.split('`').skip(1).step_by(2) {
            let is_name = name.chars().all(|c| is_of_a_name(c) || c == ':');
            let last = name.rsplit(':').next().unwrap();
            if is_name && (name.contains("::") || name.contains('_')) && !code.contains(last) {
                missing.push(format!("{document}: {name}"));
            }
        }
    }
    none(
        &missing,
        "documents name what is not in the code: rename it there",
    );
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The right column of each table of invariants names tests, each as `` `name_of_a_test` ``.
#[test]
fn the_tests_of_the_invariants_exist() {
    let code: String = rust_files().iter().map(read).collect();
    let invariants = read("docs/invariants.md");
    let tests: Vec<&str> = invariants
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(|line| line.trim_end_matches('|').rsplit_once('|'))
        .flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2))
        .collect();
    assert!(tests.len() > 100, "the tables of invariants are not found");
    let missing: Vec<_> = tests
        .into_iter()
        .filter(|test| !code.contains(&format!("fn {test}(")))
        .collect();
    none(
        &missing,
        "docs/invariants.md names tests that are not there",
    );
}

/// A document that nothing links to is not found by those who need it.
#[test]
fn every_document_is_linked() {
    let documents: Vec<_> = files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    let mut links: BTreeMap<String, bool> = documents
        .iter()
        .filter(|path| path.starts_with("docs") && !path.starts_with("docs/decisions"))
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                false,
            )
        })
        .collect();
    for path in &documents {
        let text = read(path);
        for (name, linked) in &mut links {
            *linked |= text.contains(&format!("/{name})"))
                || text.contains(&format!("({name}"))
                || text.contains(&format!("/{name}#"));
        }
    }
    let lost: Vec<_> = links
        .iter()
        .filter(|(_, linked)| !**linked)
        .map(|(name, _)| name)
        .collect();
    none(&lost, "documents in docs/ that no document links to");
}
