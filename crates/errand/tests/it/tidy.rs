//! The repository itself: rules of its form that no lint holds.
//!
//! Looked at is every file that is not left out by `.gitignore`. A rule that is broken names the files and says what to
//! do; the lists of exceptions are here and may only shrink.

mod circles;
mod documents;
mod errors;
mod layers;
mod old_words;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Most lines of a Rust file. One that is longer has more than one topic.
const LINES_MAX: usize = 800;

/// What may be at the root. A new name needs a reason to be the first thing that a newcomer sees.
const ROOT: [&str; 20] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "DIVERGENCES.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "crates",
    "deny.toml",
    "docs",
    "examples",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "scripts",
];

fn root() -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR"));
    program.ancestors().nth(2).unwrap().to_owned()
}

/// All files, relative to the root, in order.
fn files() -> Vec<PathBuf> {
    let root = root();
    let ignored = ignored(&root);
    let (mut found, mut left) = (Vec::new(), vec![root.clone()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(&root).unwrap().to_owned();
            if ignored(&path) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                left.push(root.join(path));
            } else {
                found.push(path);
            }
        }
    }
    assert!(
        found.len() > 100,
        "this is not the repository: {}",
        root.display()
    );
    found.sort();
    found
}

/// `.gitignore`, of which two forms are used: `/name` at the root, `*.ending` everywhere.
fn ignored(root: &Path) -> impl Fn(&Path) -> bool + use<> {
    let text = fs::read_to_string(root.join(".gitignore")).unwrap();
    let mut names = vec![PathBuf::from(".git")];
    let mut endings = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix('/'), line.strip_prefix('*')) {
            (Some(name), _) => names.push(PathBuf::from(name)),
            (_, Some(ending)) => endings.push(ending.to_owned()),
            _ => panic!(".gitignore: this test does not understand {line:?}"),
        }
    }
    move |path| {
        names.iter().any(|name| path == name)
            || endings
                .iter()
                .any(|ending| path.to_string_lossy().ends_with(ending))
    }
}

fn rust_files() -> Vec<PathBuf> {
    files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files whose text has one of the words, with the line.
fn lines_with(files: &[PathBuf], words: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files {
        // What is no text (there is nothing of the kind yet) holds no words.
        let Ok(text) = fs::read_to_string(root().join(path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    found
}

#[track_caller]
fn none(broken: &[impl AsRef<str>], rule: &str) {
    let broken: Vec<_> = broken.iter().map(AsRef::as_ref).collect();
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn the_root_holds_what_is_listed() {
    let there: BTreeSet<String> = files()
        .iter()
        .filter_map(|path| {
            Some(
                path.components()
                    .next()?
                    .as_os_str()
                    .to_string_lossy()
                    .into_owned(),
            )
        })
        .collect();
    let strange: Vec<_> = there
        .into_iter()
        .filter(|name| !ROOT.contains(&name.as_str()))
        .collect();
    none(
        &strange,
        "files and directories at the root that are not in the list of this test",
    );
}

#[test]
fn rust_files_have_a_topic_and_a_size() {
    let long: Vec<_> = rust_files()
        .iter()
        .map(|path| (path, read(path).lines().count()))
        .filter(|(_, lines)| *lines >= LINES_MAX)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    none(
        &long,
        "Rust files that are too long: take a topic out of them",
    );
    let mods: Vec<_> = rust_files()
        .iter()
        .filter(|path| path.ends_with("mod.rs"))
        .map(|path| path.display().to_string())
        .collect();
    none(
        &mods,
        "`foo.rs` beside `foo/` is the form here, so that tabs of an editor have names",
    );
}

#[test]
fn every_rust_file_is_compiled() {
    let all: BTreeSet<PathBuf> = rust_files().into_iter().collect();
    let mut left: Vec<(PathBuf, bool)> = all
        .iter()
        .filter(|path| is_crate_root(path))
        .map(|path| (path.clone(), true))
        .collect();
    let mut reached = BTreeSet::new();
    while let Some((file, is_root)) = left.pop() {
        for child in modules_of(&file, is_root) {
            let child = child.into_iter().find(|path| all.contains(path));
            left.extend(child.map(|path| (path, false)));
        }
        reached.insert(file);
    }
    let dead: Vec<_> = all
        .difference(&reached)
        .map(|path| path.display().to_string())
        .collect();
    none(
        &dead,
        "Rust files that no `mod` leads to: declare or delete them",
    );
}

/// `src/lib.rs`, `src/main.rs`, `src/bin/NAME.rs`, `build.rs`, `examples/NAME.rs`, `benches/NAME.rs`, `tests/it/main.rs` of a crate.
fn is_crate_root(path: &Path) -> bool {
    let parts: Vec<_> = path
        .components()
        .map(|c| c.as_os_str().to_string_lossy())
        .collect();
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    matches!(
        parts.as_slice(),
        ["crates", _, "src", "lib.rs" | "main.rs"]
            | ["crates", _, "src", "bin", _]
            | ["crates", _, "build.rs"]
            | ["crates", _, "examples" | "benches", _]
            | ["crates", _, "tests", "it", "main.rs"]
            | ["crates", _, "tests", _]
    )
}

/// For each `mod name;` of a file, where it may be.
fn modules_of(file: &Path, is_root: bool) -> Vec<Vec<PathBuf>> {
    let dir = file.parent().unwrap();
    let below = if is_root {
        dir.to_owned()
    } else {
        file.with_extension("")
    };
    let (mut modules, mut named) = (Vec::new(), None);
    for line in read(file).lines() {
        let line = line.trim();
        if let Some(path) = line
            .strip_prefix("#[path = \"")
            .and_then(|rest| rest.strip_suffix("\"]"))
        {
            named = Some(normal(&dir.join(path)));
        }
        let Some(name) = line
            .strip_suffix(';')
            .and_then(|rest| rest.rsplit_once("mod "))
            .filter(|(before, _)| before.is_empty() || before.starts_with("pub"))
        else {
            continue;
        };
        modules.push(match named.take() {
            Some(path) => vec![path],
            None => vec![below.join(format!("{}.rs", name.1))],
        });
    }
    modules
}

/// Without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[test]
fn lints_are_never_switched_off_without_a_reason() {
    let words = [["#[al", "low("].concat(), ["#![al", "low("].concat()];
    none(
        &lines_with(&rust_files(), &words),
        "say `#[expect(…, reason = \"…\")]`, so that it goes when its reason goes",
    );
}

#[test]
fn each_crate_takes_the_workspace_s_lints_and_settings() {
    let manifests: Vec<_> = files()
        .into_iter()
        .filter(|path| path.starts_with("crates") && path.ends_with("Cargo.toml"))
        .collect();
    let lax: Vec<_> = manifests
        .iter()
        .filter(|path| !read(path).contains("[lints]\nworkspace = true\n"))
        .map(|path| path.display().to_string())
        .collect();
    none(&lax, "crates without `[lints]` `workspace = true`");
    let own: Vec<_> = files()
        .iter()
        .filter(|path| path.ends_with("clippy.toml") && path.components().count() > 1)
        .map(|path| path.display().to_string())
        .collect();
    none(&own, "a crate's own clippy.toml hides the one of the root");
}

#[test]
fn no_file_names_a_machine_or_a_registry() {
    let homes = [["/ho", "me/"], ["/ro", "ot/"], ["/Us", "ers/"]];
    let hosts = [
        ["crates", ".io"],
        ["npmjs", ".org"],
        ["npmjs", ".com"],
        ["pypi", ".org"],
    ];
    let words: Vec<String> = homes
        .iter()
        .chain(&hosts)
        .map(|word| word.concat())
        .collect();
    // The lock file names the registry in its own form.
    let files: Vec<_> = files()
        .into_iter()
        .filter(|path| !path.ends_with("Cargo.lock"))
        .collect();
    none(
        &lines_with(&files, &words),
        "paths of somebody's machine, or hosts of package registries",
    );
}

#[test]
fn the_readme_gives_the_two_commands() {
    let readme = read("README.md");
    for command in ["\ncargo run --release -- demo\n", "\n./scripts/test\n"] {
        assert!(
            readme.contains(command),
            "README.md lacks a line with the command {command:?}"
        );
    }
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let scripts: Vec<_> = files()
        .into_iter()
        .filter(|path| {
            path.starts_with("scripts")
                || path.starts_with(".ci")
                || path.extension().is_some_and(|e| e == "sh")
        })
        .filter(|path| {
            let mode = fs::metadata(root().join(path))
                .unwrap()
                .permissions()
                .mode();
            mode & 0o111 == 0 || !read(path).starts_with("#!/usr/bin/env bash\n")
        })
        .map(|path| path.display().to_string())
        .collect();
    none(
        &scripts,
        "scripts without `#!/usr/bin/env bash` or the right to be run",
    );
}

#[test]
fn decisions_are_numbered_and_say_what_would_change_them() {
    let decisions: Vec<_> = files()
        .into_iter()
        .filter(|path| path.starts_with("docs/decisions"))
        .collect();
    let mut last = 0;
    for path in &decisions {
        let (name, text) = (path.display(), read(path));
        let file = path.file_name().unwrap().to_string_lossy();
        let number: u32 = file
            .get(..4)
            .filter(|_| file.chars().nth(4) == Some('-'))
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{name} begins with its number, such as 0006-"));
        // There may be gaps: those who work at the same time take numbers apart.
        assert!(number > last, "{name}: another decision has this number");
        last = number;
        assert!(
            text.starts_with(&format!("# {number}. ")),
            "{name}: begins with `# {number}. `"
        );
        for part in [
            "**Context.**",
            "**Options.**",
            "**Choice.**",
            "**What would change it.**",
        ] {
            assert!(text.contains(part), "{name} lacks its {part}");
        }
    }
}

#[test]
fn each_error_code_has_a_page() {
    let pages: BTreeSet<String> = files()
        .iter()
        .filter(|path| {
            path.parent() == Some(Path::new("docs/errors")) && !path.ends_with("README.md")
        })
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let codes = error_codes();
    assert_eq!(pages, codes, "docs/errors and the table of error codes");
    let index = read("docs/errors/README.md");
    for code in codes {
        assert!(
            index.contains(&format!("[`{code}`]({code}.md)")),
            "docs/errors/README.md does not list {code}"
        );
        assert!(
            read(format!("docs/errors/{code}.md")).starts_with(&format!("# `{code}` (")),
            "docs/errors/{code}.md begins with the code and its status"
        );
    }
}

/// The words of the table from error to wire, as the program has it: the texts in `ErrorCode::parts`.
fn error_codes() -> BTreeSet<String> {
    let code = read("crates/errand/src/http/error.rs");
    let table = code.split_once("pub fn parts(self)").unwrap().1;
    let table = table.split_once("\n    }\n").unwrap().0;
    let codes: BTreeSet<String> = table
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert!(
        codes.contains("not_found"),
        "the table of error codes is not found"
    );
    codes
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for path in files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
    {
        let text = read(&path);
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = link.split('#').next().unwrap();
            let is_ours = !file.is_empty() && !file.contains(':') && !file.contains(' ');
            if is_ours && !root().join(path.parent().unwrap()).join(file).exists() {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    none(&broken, "links to files that are not there");
}
