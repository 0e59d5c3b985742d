//! Import circles: modules that import one another cannot be read, tested or moved one at a time.
//!
//! The graph has one node for each file and an edge for each path of the code outside tests (`use crate::…`, `super::…`,
//! `crate::…` in an expression). A re-export leads to the module that defines the name. The root of a crate is no node,
//! because it declares and re-exports everything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{files, read, root};

/// Crates that are not checked. The domain types of the core refer to one another by nature, the sandbox is small, and the
/// last two are not shipped.
const FREE: [&str; 4] = [
    "errand-core",
    "errand-sandbox",
    "errand-testkit",
    "errand-bench",
];

/// Modules that are in a circle today. The lists may only shrink.
const IN_CIRCLES: &[(&str, &[&str])] = &[
    (
        "errand",
        &[
            "cli::many_runs",
            "cli::runs",
            "web::card",
            "web::failure",
            "web::form",
            "web::guard",
            "web::inbox",
            "web::layout",
            "web::reason",
            "web::run",
            "web::run::fork",
            "web::run::transcript",
            "web::runs",
            "web::text",
            "web::ui",
        ],
    ),
    (
        "errand-store",
        &[
            "accounts::members",
            "accounts::operate",
            "accounts::people",
            "accounts::sessions",
            "accounts::teams",
            "agents",
            "agents::builds",
            "crypto::reencrypt",
            "crypto::reencrypt::discard",
            "db::sqlite",
            "db::sqlite::condition",
            "db::sqlite::lost_log",
            "db::sqlite::migrate",
            "db::sqlite::open",
            "db::sqlite::origin",
            "db::sqlite::reserve",
            "db::sqlite::snapshot",
            "db::sqlite::trial",
            "db::sqlite::watched",
            "db::sqlite::whole",
            "db::sqlite::writer",
            "error",
            "idempotency",
            "integrations::providers",
            "integrations::secrets",
            "model",
            "requests::inbox",
            "sandboxes",
            "sandboxes::bytes",
            "stats::dashboard",
            "webhooks::deliveries::delivery_log",
            "webhooks::subscriptions",
        ],
    ),
];

type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_modules_import_one_another() {
    let mut wrong = Vec::new();
    for name in crates()
        .into_iter()
        .filter(|name| !FREE.contains(&name.as_str()))
    {
        let allowed = IN_CIRCLES.iter().find(|(of, _)| *of == name);
        let allowed: BTreeSet<&str> =
            allowed.map_or_else(BTreeSet::new, |(_, all)| all.iter().copied().collect());
        let graph = graph_of(&modules_of(&name));
        let circles = circles(&graph);
        for circle in &circles {
            if circle
                .iter()
                .any(|module| !allowed.contains(module.as_str()))
            {
                wrong.push(format!(
                    "{name}: these modules import one another:\n{}",
                    explained(circle, &graph)
                ));
            }
        }
        let present: BTreeSet<&str> = circles.iter().flatten().map(String::as_str).collect();
        for module in allowed.difference(&present) {
            wrong.push(format!(
                "{name}: {module} is in no circle any more; remove it from tidy/circles.rs"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The circle's imports, one line each.
fn explained(circle: &BTreeSet<String>, graph: &Graph) -> String {
    let lines = circle.iter().map(|module| {
        let imports: Vec<&str> = graph[module]
            .intersection(circle)
            .map(String::as_str)
            .collect();
        format!("  {module} -> {}", imports.join(", "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// All crates of the workspace.
pub(super) fn crates() -> BTreeSet<String> {
    let names = files().into_iter().filter_map(|path| {
        let rest = path.strip_prefix("crates").ok()?;
        Some(rest.components().next()?.as_os_str().to_str()?.to_owned())
    });
    names.collect()
}

/// The tokens of each module of a crate, without tests. The root's name is empty.
pub(super) fn modules_of(name: &str) -> BTreeMap<String, Vec<String>> {
    let src = Path::new("crates").join(name).join("src");
    let mut modules = BTreeMap::new();
    let roots = ["lib.rs", "main.rs"].map(|file| src.join(file));
    let mut left = vec![String::new()];
    while let Some(module) = left.pop() {
        let texts: Vec<String> = if module.is_empty() {
            let there = roots.iter().filter(|file| root().join(file).exists());
            there.map(read).collect()
        } else {
            let file = src.join(module.replace("::", "/")).with_extension("rs");
            vec![read(file)]
        };
        let tokens: Vec<String> = texts.iter().flat_map(|text| tokens(text)).collect();
        let tokens = without_tests(&tokens);
        for window in tokens.windows(3) {
            if window[0] == "mod" && window[2] == ";" {
                let base = (!module.is_empty()).then_some(module.as_str());
                left.push(joined(base.into_iter().chain([window[1].as_str()])));
            }
        }
        modules.insert(module, tokens);
    }
    modules
}

/// Builds the graph from the tokens of each module.
fn graph_of(modules: &BTreeMap<String, Vec<String>>) -> Graph {
    let mut reexports = BTreeMap::new();
    let mut paths = Vec::new();
    for (module, tokens) in modules {
        for (is_public, path) in paths_in(tokens) {
            let Some(path) = absolute(module, &path, modules) else {
                continue;
            };
            if let (true, Some(last)) = (is_public, path.last()) {
                reexports.insert((module.clone(), last.clone()), path.clone());
            }
            paths.push((module, path));
        }
    }
    let mut graph: Graph = modules
        .keys()
        .map(|m| (m.clone(), BTreeSet::new()))
        .collect();
    for (module, path) in paths {
        let target = definition(path, modules, &reexports);
        if !module.is_empty() && !target.is_empty() && target != *module {
            graph.get_mut(module).unwrap().insert(target);
        }
    }
    graph
}

/// The module that defines what a path leads to.
fn definition(
    mut path: Vec<String>,
    modules: &BTreeMap<String, Vec<String>>,
    reexports: &BTreeMap<(String, String), Vec<String>>,
) -> String {
    // Bounded, because re-exports may lead to one another.
    for _ in 0..8 {
        let (module, rest) = longest_module(&path, modules);
        let through = rest
            .first()
            .and_then(|name| reexports.get(&(module.clone(), name.clone())));
        match through {
            Some(to) => path = to.iter().chain(rest.iter().skip(1)).cloned().collect(),
            None => return module,
        }
    }
    longest_module(&path, modules).0
}

/// The longest beginning of a path that is a module, and the rest.
fn longest_module<'p>(
    path: &'p [String],
    modules: &BTreeMap<String, Vec<String>>,
) -> (String, &'p [String]) {
    (0..=path.len())
        .rev()
        .map(|at| path.split_at(at))
        .map(|(module, rest)| (joined(module.iter().map(String::as_str)), rest))
        .find(|(module, _)| modules.contains_key(module))
        .unwrap()
}

/// A path from the root of the crate; `None` if it leads to another crate.
fn absolute(
    module: &str,
    path: &[String],
    modules: &BTreeMap<String, Vec<String>>,
) -> Option<Vec<String>> {
    let mut base: Vec<String> = module
        .split("::")
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => return Some(rest[1..].to_vec()),
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|first| first == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        first => {
            let child = joined(base.iter().map(String::as_str).chain([first]));
            if !modules.contains_key(&child) {
                return None;
            }
        }
    }
    base.extend_from_slice(rest);
    Some(base)
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join("::")
}

/// The paths of `use` items, and those elsewhere that begin with `crate`, `super` or `self`; whether they are re-exports.
fn paths_in(tokens: &[String]) -> Vec<(bool, Vec<String>)> {
    let (mut paths, mut at, mut is_public) = (Vec::new(), 0, false);
    while at < tokens.len() {
        match tokens[at].as_str() {
            "pub" => {
                is_public = true;
                // `pub(crate)`, `pub(in path)`.
                if tokens.get(at + 1).is_some_and(|next| next == "(") {
                    at += tokens[at..].iter().position(|t| t == ")").unwrap();
                }
                at += 1;
                continue;
            }
            "use" => {
                let end = at + tokens[at..].iter().position(|t| t == ";").unwrap();
                let mut found = Vec::new();
                expand(&tokens[at + 1..end], &[], &mut found);
                paths.extend(found.into_iter().map(|path| (is_public, path)));
                at = end;
            }
            "crate" | "super" | "self" if tokens.get(at + 1).is_some_and(|next| next == "::") => {
                let mut path = vec![tokens[at].clone()];
                while tokens.get(at + 1).is_some_and(|next| next == "::")
                    && tokens.get(at + 2).is_some_and(|next| is_name(next))
                {
                    path.push(tokens[at + 2].clone());
                    at += 2;
                }
                paths.push((false, path));
            }
            _ => {}
        }
        is_public = false;
        at += 1;
    }
    paths
}

pub(super) fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The paths of a `use` tree.
fn expand(tree: &[String], before: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    for (at, token) in tree.iter().enumerate() {
        match token.as_str() {
            "::" => {}
            "as" => break,
            "{" => {
                let inner = &tree[at + 1..tree.len() - 1];
                let (mut depth, mut start) = (0, 0);
                for (i, token) in inner.iter().enumerate() {
                    match token.as_str() {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        "," if depth == 0 => {
                            expand(&inner[start..i], &path, found);
                            start = i + 1;
                        }
                        _ => {}
                    }
                }
                if start < inner.len() {
                    expand(&inner[start..], &path, found);
                }
                return;
            }
            // `module::{self}` is the module.
            "self" if !path.is_empty() => {}
            _ => path.push(token.clone()),
        }
    }
    found.push(path);
}

/// Leaves out each item that is marked `#[cfg(test)]`.
pub(super) fn without_tests(tokens: &[String]) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].iter().map(String::as_str).take(7).eq(MARK) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += MARK.len();
        let mut depth = 0_i32;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            let ends = matches!(tokens[at].as_str(), ";" | "," | "}") && depth <= 0;
            // The brace that ends a block in which the item was the last thing belongs to that block.
            if depth < 0 {
                break;
            }
            at += 1;
            if ends {
                break;
            }
        }
    }
    kept
}

/// Names, `::` and single other characters, without comments and without the contents of literals.
pub(super) fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    while at < chars.len() {
        let next = chars.get(at + 1).copied();
        match chars[at] {
            '/' if next == Some('/') => at = after(&chars, at, "\n"),
            '/' if next == Some('*') => at = after(&chars, at + 2, "*/"),
            '"' => at = after_string(&chars, at + 1),
            'r' | 'b' | 'c' if raw_string(&chars, at).is_some() => {
                let (start, hashes) = raw_string(&chars, at).unwrap();
                at = after(&chars, start, &format!("\"{}", "#".repeat(hashes)));
            }
            '\'' if next == Some('\\') => at = after(&chars, at + 3, "'"),
            '\'' if chars.get(at + 2) == Some(&'\'') => at += 3,
            ':' if next == Some(':') => {
                tokens.push("::".to_owned());
                at += 2;
            }
            c if is_part(c) => {
                let length = chars[at..].iter().take_while(|c| is_part(**c)).count();
                tokens.push(chars[at..at + length].iter().collect());
                at += length;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                at += 1;
            }
        }
    }
    tokens
}

/// Where a raw string's contents begin, and how many `#` end it.
fn raw_string(chars: &[char], at: usize) -> Option<(usize, usize)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    if at > 0 && is_part(chars[at - 1]) {
        return None;
    }
    let prefix = chars[at..].iter().take_while(|c| is_part(**c)).count();
    if !chars[at..at + prefix].ends_with(&['r']) {
        return None;
    }
    let rest = &chars[at + prefix..];
    let hashes = rest.iter().take_while(|c| **c == '#').count();
    (rest.get(hashes) == Some(&'"')).then_some((at + prefix + hashes + 1, hashes))
}

fn after_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The position after the next occurrence of a text.
fn after(chars: &[char], at: usize, end: &str) -> usize {
    let end: Vec<char> = end.chars().collect();
    (at..chars.len())
        .find(|at| chars[*at..].starts_with(&end))
        .map_or(chars.len(), |found| found + end.len())
}

/// Strongly connected components of two or more modules, except a module with its own children.
fn circles(graph: &Graph) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = graph
        .keys()
        .map(|from| (from, reachable(from, graph)))
        .collect();
    let (mut circles, mut seen) = (Vec::new(), BTreeSet::new());
    for from in graph.keys() {
        if seen.contains(from) {
            continue;
        }
        let circle: BTreeSet<String> = reached[from]
            .iter()
            .filter(|to| reached[**to].contains(from))
            .map(|to| (*to).clone())
            .collect();
        seen.extend(circle.iter().cloned());
        let is_family = circle.iter().any(|parent| {
            let beneath = format!("{parent}::");
            let mut others = circle.iter().filter(|module| *module != parent);
            others.all(|module| module.starts_with(&beneath))
        });
        if circle.len() > 1 && !is_family {
            circles.push(circle);
        }
    }
    circles
}

fn reachable<'g>(from: &'g String, graph: &'g Graph) -> BTreeSet<&'g String> {
    let (mut reached, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(module) = left.pop() {
        for to in &graph[module] {
            if reached.insert(to) {
                left.push(to);
            }
        }
    }
    reached
}

#[test]
fn imports_and_circles_are_found() {
    let modules = [
        ("", "pub use a::Thing;"),
        ("a", "use crate::b::{self, c::D as E}; mod x;"),
        (
            "a::x",
            "use super::Other; /* crate::e */ const S: &str = r#\"crate::e\"#;",
        ),
        (
            "b",
            "pub use c::D;\n// crate::a\n#[cfg(test)]\nmod tests { use crate::a; }",
        ),
        (
            "b::c",
            "fn f() -> crate::Thing { let c = '\"'; crate::e::g::<'static>() }",
        ),
        ("e", "use crate::b::D;"),
    ];
    let modules = modules.map(|(name, text)| (name.to_owned(), without_tests(&tokens(text))));
    let graph = graph_of(&modules.into_iter().collect());
    let of = |name: &str| graph[name].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(of("a"), ["b", "b::c"]);
    assert_eq!(of("a::x"), ["a"]);
    assert_eq!(of("b"), ["b::c"]);
    assert_eq!(of("b::c"), ["a", "e"]);
    assert_eq!(of("e"), ["b::c"], "the re-export leads to the definition");
    let found = circles(&graph);
    assert_eq!(found.len(), 1);
    assert_eq!(
        explained(&found[0], &graph),
        "  a -> b, b::c\n  b -> b::c\n  b::c -> a, e\n  e -> b::c"
    );
    // A parent and its child may import each other.
    let family = [("p", "p::q"), ("p::q", "p")];
    let family = family.map(|(from, to)| (from.to_owned(), BTreeSet::from([to.to_owned()])));
    assert!(circles(&family.into_iter().collect()).is_empty());
}
