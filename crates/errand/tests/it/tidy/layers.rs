//! The layers inside the server: what the API and the pages share is below both, and neither knows the other.

use std::path::Path;

use super::{none, read, rust_files};

/// Modules of the crate `errand`, and the modules that they do not name.
const FORBIDDEN: [(&str, &[&str]); 4] = [
    ("api", &["web", "cli", "app"]),
    ("web", &["api", "cli", "app"]),
    ("http", &["api", "web", "state", "cli", "app"]),
    (
        "usecase",
        &["api", "web", "http", "state", "config", "cli", "app"],
    ),
];

#[test]
fn api_and_web_do_not_know_each_other() {
    let mut wrong = Vec::new();
    for (layer, forbidden) in FORBIDDEN {
        let files = files_of(layer);
        assert!(!files.is_empty(), "the module {layer} is not found");
        for path in files {
            let depth = module_depth(&path);
            let text = read(&path);
            for (number, line) in (1..).zip(without_tests(&text).lines()) {
                let code = line.split("//").next().unwrap();
                for name in named_at_root(code, depth) {
                    if forbidden.contains(&name.as_str()) {
                        wrong.push(format!("{path}:{number}: {layer} names {name}"));
                    }
                }
            }
        }
    }
    none(
        &wrong,
        "modules of the server that name a layer above or beside them",
    );
}

/// The files of a module and of those below it, but for its tests.
fn files_of(layer: &str) -> Vec<String> {
    let src = Path::new("crates/errand/src");
    let own = src.join(layer).with_extension("rs");
    rust_files()
        .into_iter()
        .filter(|path| *path == own || path.starts_with(src.join(layer)))
        .filter(|path| {
            !path
                .components()
                .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
        })
        .map(|path| path.display().to_string())
        .collect()
}

/// How many `super::` lead from a file to the root of the crate.
fn module_depth(path: &str) -> usize {
    let below_src = path.split("/src/").nth(1).unwrap();
    below_src.split('/').count()
}

fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap()
}

/// The modules of the root that a line names: after `crate::`, or after as many `super::` as lead there. A group
/// (`crate::{a, b}`) names all of its parts, if it is on one line.
fn named_at_root(code: &str, depth: usize) -> Vec<String> {
    let climb = "super::".repeat(depth);
    let mut names = Vec::new();
    for root in ["crate::", climb.as_str()] {
        for (at, _) in code.match_indices(root) {
            let is_whole = !code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                _ if !is_whole => {}
                Some(group) => {
                    let group = group.split('}').next().unwrap();
                    names.extend(group.split(',').map(|part| first_name(part.trim())));
                }
                None => names.push(first_name(rest)),
            }
        }
    }
    names
}

fn first_name(text: &str) -> String {
    let is_of_name = |c: &char| c.is_alphanumeric() || *c == '_';
    text.chars().take_while(is_of_name).collect()
}

#[test]
fn the_root_of_a_path_is_found() {
    let named = |code: &str, depth| named_at_root(code, depth);
    assert_eq!(named("use crate::web::guard;", 2), ["web"]);
    assert_eq!(named("let x = crate::api::router(a);", 1), ["api"]);
    assert_eq!(named("use crate::{api::auth, web};", 1), ["api", "web"]);
    assert_eq!(named("use super::super::web::ui;", 2), ["web"]);
    assert_eq!(named("use super::web;", 2), [""; 0]);
    assert_eq!(named("use errand_crate::web;", 1), [""; 0]);
}
