//! Calls the tools as the engine does, on a sandbox in a temporary directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use errand_core::id::IdGen;
use errand_core::limits::{READ_FILE_BYTES_MAX, WRITE_FILE_BYTES_MAX};
use errand_core::policy::{Settle, builtin};
use errand_core::time::Timestamp;
use errand_sandbox::FileError;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::sandboxes::{Sandboxes, Workspace};
use crate::tool::Tools;

struct Bench {
    _dir: TempDir,
    root: PathBuf,
    context: ToolContext,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let ids = IdGen::new([1; 32]);
        let id = ids.sandbox(Timestamp::from_millis(0));
        let root = dir.path().join("sandboxes").join(id.as_str());
        let charged = errand_sandbox::Charged {
            team: ids.team(Timestamp::from_millis(0)),
            bytes: 0,
        };
        let workspace = Workspace::new(Sandboxes::beneath(dir.path()), id, charged);
        workspace.root().unwrap();
        let context = ToolContext {
            build: None,
            arguments: Map::new(),
            run: ids.run(Timestamp::from_millis(0)),
            call_id: "call_1".to_owned(),
            workspace: Some(workspace),
            parsers: crate::parse::Parsers::new(None).of(ids.team(Timestamp::from_millis(0))),
            cancel: CancellationToken::new(),
            draining: CancellationToken::new(),
        };
        Self {
            _dir: dir,
            root,
            context,
        }
    }

    fn on_disk(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.on_disk(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.on_disk(path)).unwrap()
    }

    async fn call(&self, tool: &str, arguments: Value) -> Outcome {
        find(tool).run(&self.context, map(arguments)).await
    }

    async fn ok(&self, tool: &str, arguments: Value) -> Value {
        match self.call(tool, arguments).await {
            Outcome::Result(value) => value,
            Outcome::Error(error) => panic!("{tool}: {error}"),
        }
    }

    async fn error(&self, tool: &str, arguments: Value) -> String {
        match self.call(tool, arguments).await {
            Outcome::Result(value) => panic!("{tool} gave {value}"),
            Outcome::Error(error) => error.to_string(),
        }
    }

    async fn evidence(&self, arguments: &Value) -> Result<Option<Value>, ToolError> {
        let arguments = map(arguments.clone());
        find("edit_file").evidence(&self.context, &arguments).await
    }

    async fn look_up(&self, arguments: &Value, evidence: Option<&Value>) -> LookedUp {
        let arguments = map(arguments.clone());
        find("edit_file")
            .look_up(&self.context, &arguments, evidence)
            .await
    }
}

fn find(tool: &str) -> Arc<dyn Tool> {
    Arc::clone(Tools::builtin().get(tool).unwrap())
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn list_files_returns_the_same_as_the_api() {
    let bench = Bench::new();
    bench.put("b.txt", "12345").put("a/c.txt", "x");
    symlink("b.txt", bench.on_disk("link")).unwrap();
    let all = json!({"files": [
        {"name": "a", "path": "/workspace/a", "type": "dir", "size_bytes": 0},
        {"name": "b.txt", "path": "/workspace/b.txt", "type": "file", "size_bytes": 5},
    ]});
    assert_eq!(
        bench.ok("list_files", json!({"path": "/workspace"})).await,
        all
    );
    assert_eq!(bench.ok("list_files", json!({})).await, all);
    assert_eq!(bench.ok("list_files", json!({"path": null})).await, all);
    assert_eq!(
        bench.ok("list_files", json!({"path": "a/"})).await,
        json!({"files": [{"name": "c.txt", "path": "/workspace/a/c.txt", "type": "file", "size_bytes": 1}]})
    );
}

#[tokio::test]
async fn read_file_returns_the_plain_text() {
    let bench = Bench::new();
    let text = "\u{feff}one\r\ntwo\n\nfour";
    bench
        .put("t", text)
        .put("empty", "")
        .put("bytes", b"a\xffb\0");
    assert_eq!(
        bench.ok("read_file", json!({"path": "t"})).await,
        json!(text)
    );
    assert_eq!(
        bench.ok("read_file", json!({"path": "empty"})).await,
        json!("")
    );
    assert_eq!(
        bench
            .ok("read_file", json!({"path": "/workspace/bytes"}))
            .await,
        json!("a\u{fffd}b\0")
    );
}

#[tokio::test]
async fn read_file_returns_lines() {
    let bench = Bench::new();
    bench.put("t", "zero\none\n\nthree");
    for (offset, limit, expected) in [
        (json!(0), json!(1), "zero\n"),
        (json!(1), json!(2), "one\n\n"),
        (json!(1), Value::Null, "one\n\nthree"),
        (json!(3), json!(1), "three"),
        (json!(3), json!(u64::MAX), "three"),
        (Value::Null, json!(2), "zero\none\n"),
        (json!(0), json!(0), ""),
        (json!(4), json!(1), ""),
        (json!(u64::MAX), json!(u64::MAX), ""),
    ] {
        let arguments = json!({"path": "t", "offset": offset, "limit": limit});
        assert_eq!(
            bench.ok("read_file", arguments.clone()).await,
            json!(expected),
            "{arguments}"
        );
    }
}

#[tokio::test]
async fn read_file_refuses_too_much_text_at_once() {
    let bench = Bench::new();
    let max = usize::try_from(READ_FILE_BYTES_MAX).unwrap();
    let line = "x".repeat(1023) + "\n";
    let full = line.repeat(max / 1024);
    bench.put("full", &full).put("more", format!("{full}é\n"));
    assert_eq!(
        bench.ok("read_file", json!({"path": "full"})).await,
        json!(full)
    );

    let whole = bench.error("read_file", json!({"path": "more"})).await;
    assert!(
        whole.starts_with("too_large: /workspace/more has more than 4194304 bytes"),
        "{whole}"
    );
    assert!(
        whole.contains("`offset`") && whole.contains("`limit`"),
        "{whole}"
    );
    let part = bench
        .error("read_file", json!({"path": "more", "offset": 0}))
        .await;
    assert!(
        part.starts_with("too_large: these lines of /workspace/more"),
        "{part}"
    );
    assert_eq!(
        bench
            .ok("read_file", json!({"path": "more", "offset": 4096}))
            .await,
        json!("é\n")
    );
    // Lines longer than the read buffer are assembled.
    bench.put(
        "long",
        format!("{}\n{}", "é".repeat(100_000), "ü".repeat(100_000)),
    );
    assert_eq!(
        bench
            .ok(
                "read_file",
                json!({"path": "long", "offset": 1, "limit": 1})
            )
            .await,
        json!("ü".repeat(100_000))
    );
}

#[tokio::test]
async fn write_file_creates_parents_and_replaces() {
    let bench = Bench::new();
    for content in ["first, é", "second"] {
        assert_eq!(
            bench
                .ok(
                    "write_file",
                    json!({"path": "a/b/../c/d.txt", "content": content})
                )
                .await,
            json!({"path": "/workspace/a/c/d.txt", "size_bytes": content.len()})
        );
        assert_eq!(bench.text("a/c/d.txt"), content);
    }
    assert_eq!(
        bench
            .ok("write_file", json!({"path": "empty", "content": ""}))
            .await,
        json!({"path": "/workspace/empty", "size_bytes": 0})
    );
}

#[tokio::test]
async fn write_file_has_a_limit() {
    let bench = Bench::new();
    let full = "x".repeat(usize::try_from(WRITE_FILE_BYTES_MAX).unwrap());
    bench
        .ok("write_file", json!({"path": "full", "content": full}))
        .await;
    let error = bench
        .error("write_file", json!({"path": "more", "content": full + "x"}))
        .await;
    assert!(
        error.starts_with("too_large: `content` has more than 8388608 bytes"),
        "{error}"
    );
    assert!(!bench.on_disk("more").exists());
}

#[tokio::test]
async fn edit_file_replaces_one_passage_or_all() {
    let bench = Bench::new();
    bench.put("t", "a b a");
    assert_eq!(
        bench
            .ok("edit_file", json!({"path": "t", "old": "b", "new": "a"}))
            .await,
        json!({"path": "/workspace/t", "replaced": 1})
    );
    assert_eq!(bench.text("t"), "a a a");
    assert_eq!(
        bench
            .ok(
                "edit_file",
                json!({"path": "t", "old": "a", "new": "", "all": true})
            )
            .await,
        json!({"path": "/workspace/t", "replaced": 3})
    );
    assert_eq!(bench.text("t"), "  ");
}

#[tokio::test]
async fn an_invalid_edit_is_refused_before_and_during_the_call() {
    let bench = Bench::new();
    bench.put("t", "a b a").put("bytes", b"\xff");
    for (arguments, begins) in [
        (
            json!({"path": "t", "old": "c", "new": ""}),
            "old_not_found: /workspace/t was not edited: `old` does not occur",
        ),
        (
            json!({"path": "t", "old": "a", "new": ""}),
            "old_not_unique: /workspace/t was not edited: `old` occurs more than once",
        ),
        (
            json!({"path": "t", "old": "", "new": ""}),
            "invalid_arguments: /workspace/t was not edited: `old` is empty",
        ),
        (
            json!({"path": "t", "old": "b", "new": "x".repeat(9_000_000)}),
            "too_large: /workspace/t was not edited",
        ),
        (
            json!({"path": "bytes", "old": "b", "new": ""}),
            "not_utf8: /workspace/bytes",
        ),
        (
            json!({"path": "none", "old": "b", "new": ""}),
            "not_found: there is nothing at /workspace/none",
        ),
        (
            json!({"path": "t", "old": "b"}),
            "invalid_arguments: `new` is missing: it must be a string",
        ),
    ] {
        let planned = bench.evidence(&arguments).await.unwrap_err().to_string();
        assert!(planned.starts_with(begins), "{planned}");
        assert_eq!(bench.error("edit_file", arguments).await, planned);
        assert_eq!(bench.text("t"), "a b a");
    }
}

#[tokio::test]
async fn an_edit_in_doubt_is_settled_by_the_file() {
    let bench = Bench::new();
    bench.put("t", "a b a");
    let arguments = json!({"path": "t", "old": "a", "new": "c", "all": true});
    let evidence = bench.evidence(&arguments).await.unwrap().unwrap();
    assert_eq!(
        evidence,
        json!({
            "before": errand_sandbox::sha256_hex(b"a b a"),
            "after": errand_sandbox::sha256_hex(b"c b c"),
            "replaced": 2,
        })
    );
    assert_eq!(bench.text("t"), "a b a", "evidence changes nothing");
    assert_eq!(
        bench.look_up(&arguments, Some(&evidence)).await,
        LookedUp::NotDone
    );

    let result = bench.ok("edit_file", arguments.clone()).await;
    assert_eq!(
        bench.look_up(&arguments, Some(&evidence)).await,
        LookedUp::Done(result)
    );

    let changed = LookedUp::Unknown(ToolError::new(
        ToolErrorCode::OutcomeUnknown,
        "the server restarted and the file has changed since; check it",
    ));
    bench.put("t", "c b c, and more");
    assert_eq!(bench.look_up(&arguments, Some(&evidence)).await, changed);
    fs::remove_file(bench.on_disk("t")).unwrap();
    assert_eq!(bench.look_up(&arguments, Some(&evidence)).await, changed);
    bench.put("t", "a b a");
    assert_eq!(
        bench.look_up(&arguments, Some(&json!({"before": 1}))).await,
        changed
    );
    let LookedUp::Unknown(why) = bench.look_up(&arguments, None).await else {
        panic!("settled without evidence");
    };
    assert_eq!(why.code(), ToolErrorCode::OutcomeUnknown, "{why}");
}

#[tokio::test]
async fn an_edit_that_changes_nothing_counts_as_done() {
    let bench = Bench::new();
    bench.put("t", "same");
    let arguments = json!({"path": "t", "old": "same", "new": "same"});
    let evidence = bench.evidence(&arguments).await.unwrap().unwrap();
    assert_eq!(
        bench.look_up(&arguments, Some(&evidence)).await,
        LookedUp::Done(json!({"path": "/workspace/t", "replaced": 1}))
    );
}

#[tokio::test]
async fn tools_that_run_again_need_no_evidence() {
    let bench = Bench::new();
    for tool in ["list_files", "read_file", "write_file", "search_files"] {
        assert_eq!(
            find(tool).evidence(&bench.context, &Map::new()).await,
            Ok(None)
        );
    }
}

#[tokio::test]
async fn search_files_returns_lines() {
    let bench = Bench::new();
    bench
        .put("b.txt", "Total 3\nnothing\ntotal 40\n")
        .put("a/x", "total")
        .put("bin", b"total\0");
    let all = json!([
        {"path": "/workspace/a/x", "line": 1, "text": "total"},
        {"path": "/workspace/b.txt", "line": 1, "text": "Total 3"},
        {"path": "/workspace/b.txt", "line": 3, "text": "total 40"},
    ]);
    assert_eq!(
        bench
            .ok("search_files", json!({"pattern": "(?i)^total"}))
            .await,
        all
    );
    assert_eq!(
        bench
            .ok(
                "search_files",
                json!({"pattern": r"\d\d", "path": "/workspace/b.txt"})
            )
            .await,
        json!([all[2]])
    );
    assert_eq!(
        bench
            .ok("search_files", json!({"pattern": "total", "path": "a"}))
            .await,
        json!([all[0]])
    );
    assert_eq!(
        bench
            .ok("search_files", json!({"pattern": "nowhere"}))
            .await,
        json!([])
    );
}

#[tokio::test]
async fn search_files_never_returns_an_incomplete_result() {
    let bench = Bench::new();
    bench.put("t", "x\n".repeat(1000));
    let all = bench.ok("search_files", json!({"pattern": "x"})).await;
    assert_eq!(all.as_array().unwrap().len(), 1000);
    bench.put("u", "x");
    let error = bench.error("search_files", json!({"pattern": "x"})).await;
    assert!(
        error.starts_with("too_large: the search in /workspace stopped"),
        "{error}"
    );
}

#[tokio::test]
async fn a_bad_pattern_is_explained_in_one_line() {
    let bench = Bench::new();
    for (pattern, end) in [
        ("a(b", ": unclosed group"),
        ("a(?=b)", "is not supported"),
        ("(a{1000}){1000}", "size limit"),
    ] {
        let error = bench
            .error("search_files", json!({"pattern": pattern}))
            .await;
        assert!(
            error.starts_with("invalid_arguments: the pattern is not a valid regular expression"),
            "{error}"
        );
        assert!(error.contains(end) && !error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn errors_name_the_obstacle() {
    let bench = Bench::new();
    bench.put("file", "x").put("dir/x", "x");
    symlink("file", bench.on_disk("link")).unwrap();
    symlink("/etc", bench.on_disk("etc")).unwrap();
    let _socket = UnixListener::bind(bench.on_disk("socket")).unwrap();
    let read = |path: &str| ("read_file", json!({"path": path}));
    let write = |path: &str| ("write_file", json!({"path": path, "content": "y"}));
    let list = |path: &str| ("list_files", json!({"path": path}));
    for ((tool, arguments), begins) in [
        (read("x"), "not_found: there is nothing at /workspace/x: "),
        (read("file/x"), "not_a_directory: "),
        (read("dir"), "is_a_directory: /workspace/dir is a directory"),
        (read("socket"), "not_a_regular_file: "),
        (read("link"), "link_in_the_way: "),
        (read("etc/passwd"), "link_in_the_way: "),
        (
            read("../x"),
            "invalid_arguments: `path`: the path \"../x\" is not in /workspace",
        ),
        (read("/etc/passwd"), "invalid_arguments: `path`: "),
        (read("a\0b"), "invalid_arguments: `path`: "),
        (write("dir"), "is_a_directory: "),
        (write("/workspace"), "is_a_directory: "),
        (
            write("new/"),
            "invalid_arguments: `path`: it is a directory",
        ),
        (write("link"), "link_in_the_way: "),
        (write("etc/x"), "link_in_the_way: "),
        (write("file/x"), "not_a_directory: "),
        (write("socket"), "not_a_regular_file: "),
        (write(".errand-tmp-1"), "reserved_name: "),
        (list("none"), "not_found: "),
        (list("file"), "not_a_directory: "),
        (list("etc"), "link_in_the_way: "),
        (
            ("search_files", json!({"pattern": "x", "path": "none"})),
            "not_found: ",
        ),
        (
            ("search_files", json!({"pattern": "x", "path": "etc"})),
            "link_in_the_way: ",
        ),
    ] {
        let error = bench.error(tool, arguments.clone()).await;
        assert!(error.starts_with(begins), "{tool} {arguments}: {error}");
        assert!(!error.contains(bench.root.to_str().unwrap()), "{error}");
    }
    assert_eq!(bench.text("file"), "x");
}

#[tokio::test]
async fn a_missing_sandbox_is_an_error() {
    let bench = Bench::new();
    fs::remove_dir(&bench.root).unwrap();
    let error = bench
        .error("write_file", json!({"path": "x", "content": ""}))
        .await;
    assert!(error.starts_with("sandbox_missing: "), "{error}");
}

#[tokio::test]
async fn invalid_arguments_are_named() {
    let bench = Bench::new();
    bench.put("t", "x");
    for (tool, arguments, sentence) in [
        (
            "read_file",
            json!({}),
            "`path` is missing: it must be a string",
        ),
        (
            "read_file",
            json!({"path": 3}),
            "`path`: it must be a string, not the number 3",
        ),
        (
            "read_file",
            json!({"path": null}),
            "`path`: it must be a string, not null",
        ),
        (
            "read_file",
            json!({"path": "t", "offset": -1}),
            "`offset`: it must be an integer from 0, not the number -1",
        ),
        (
            "read_file",
            json!({"path": "t", "limit": "3"}),
            "`limit`: it must be an integer from 0, not a string",
        ),
        (
            "read_file",
            json!({"path": "t", "line": 3}),
            "`line` is not an argument of this tool; its arguments are `limit`, `offset`, `path`, `raw`",
        ),
        (
            "edit_file",
            json!({"path": "t", "old": "x", "new": null, "all": null}),
            "`new`: it must be a string, not null",
        ),
        (
            "edit_file",
            json!({"path": null, "old": "x", "new": "y"}),
            "`path`: it must be a string, not null",
        ),
        (
            "write_file",
            json!({"path": "t", "content": {"a": 1}}),
            "`content`: it must be a string, not an object",
        ),
        (
            "write_file",
            json!({"path": "t", "content": ["a"]}),
            "`content`: it must be a string, not a list",
        ),
        (
            "edit_file",
            json!({"path": "t", "old": "x", "new": "y", "all": "yes"}),
            "`all`: it must be true or false, not a string",
        ),
        (
            "edit_file",
            json!({"path": "t", "old": "x", "new": true}),
            "`new`: it must be a string, not true",
        ),
        (
            "search_files",
            json!({"path": "t"}),
            "`pattern` is missing: it must be a string",
        ),
    ] {
        let error = bench.error(tool, arguments).await;
        assert_eq!(error, format!("invalid_arguments: {sentence}"), "{tool}");
    }
    assert_eq!(bench.text("t"), "x");
}

#[tokio::test]
async fn a_cancelled_call_does_nothing() {
    let bench = Bench::new();
    bench.put("t", "x");
    bench.context.cancel.cancel();
    for (tool, arguments) in [
        ("read_file", json!({"path": "t"})),
        ("write_file", json!({"path": "t", "content": "y"})),
        ("edit_file", json!({"path": "t", "old": "x", "new": "y"})),
        ("search_files", json!({"pattern": "x"})),
    ] {
        let error = bench.error(tool, arguments).await;
        assert!(error.starts_with("not_run: "), "{error}");
    }
    assert_eq!(bench.text("t"), "x");
}

#[tokio::test]
async fn a_cancelled_call_can_still_be_settled() {
    let bench = Bench::new();
    bench.put("t", "x");
    bench.context.cancel.cancel();
    let arguments = json!({"path": "t", "old": "x", "new": "y"});
    let evidence = bench.evidence(&arguments).await.unwrap();
    assert_eq!(
        bench.look_up(&arguments, evidence.as_ref()).await,
        LookedUp::NotDone
    );
}

#[tokio::test]
async fn a_call_that_is_cancelled_while_it_reads_stops() {
    let bench = Bench::new();
    bench.put("t", "x\n");
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let root = bench.context.workspace.as_ref().unwrap().root().unwrap();
    let cancelled = Aids {
        cancel: cancelled,
        parsers: bench.context.parsers.clone(),
        engine: Handle::current(),
    };
    let read = arguments::read(&map(json!({"path": "t"}))).unwrap();
    let error = read::ReadFile::run(root, read, &cancelled).unwrap_err();
    assert_eq!(error.code(), ToolErrorCode::Interrupted);
    let search = arguments::read(&map(json!({"pattern": "x"}))).unwrap();
    let error = search::SearchFiles::run(root, search, &cancelled).unwrap_err();
    assert_eq!(error.code(), ToolErrorCode::Interrupted);
}

#[tokio::test]
async fn a_panic_is_an_error_of_the_server() {
    let bench = Bench::new();
    let done = on_a_thread::<()>(&bench.context, "read_file", |_, _| panic!("secret")).await;
    let text = done.unwrap_err().to_tool_error().to_string();
    assert!(
        text.starts_with("internal: ") && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn a_full_disk_has_its_own_error() {
    let path = SandboxPath::root();
    let text = |error: FileError| CallError::File(error).to_tool_error().to_string();
    assert!(
        text(FileError::NoSpace { path: path.clone() })
            .starts_with("no_space: there is no disk space left")
    );
    let failed = FileError::Io {
        op: "sync",
        path,
        source: std::io::Error::other("the disk is on fire"),
    };
    assert_eq!(
        text(failed),
        "io_error: the server could not sync /workspace: the disk is on fire"
    );
}

#[test]
fn every_file_tool_has_its_hints() {
    let names: Vec<_> = tools().iter().map(|tool| tool.name().to_owned()).collect();
    assert_eq!(
        names,
        [
            "list_files",
            "read_file",
            "write_file",
            "edit_file",
            "search_files"
        ]
    );
    for tool in tools() {
        assert_eq!(Some(tool.hints()), builtin(tool.name()), "{}", tool.name());
        assert!(!tool.hints().open_world && !tool.hints().asks);
    }
    // An unlisted tool is not trusted.
    let unlisted = arguments::hints_of("no_such_tool");
    assert!(!unlisted.read_only && unlisted.destructive && unlisted.open_world);
    assert_eq!(unlisted.settle, Settle::AskPerson);
}

#[test]
fn schemas_say_what_is_required_and_explain_each_argument() {
    for (tool, required, optional) in [
        ("list_files", vec![], vec![("path", "string")]),
        (
            "read_file",
            vec![("path", "string")],
            vec![
                ("offset", "integer"),
                ("limit", "integer"),
                ("raw", "boolean"),
            ],
        ),
        (
            "write_file",
            vec![("path", "string"), ("content", "string")],
            vec![],
        ),
        (
            "edit_file",
            vec![("path", "string"), ("old", "string"), ("new", "string")],
            vec![("all", "boolean")],
        ),
        (
            "search_files",
            vec![("pattern", "string")],
            vec![("path", "string")],
        ),
    ] {
        let tool = find(tool);
        assert!(tool.description().len() > 40, "{}", tool.name());
        let schema = tool.schema();
        assert_eq!(schema["type"], "object");
        assert_eq!(schema["additionalProperties"], false);
        let names: Vec<_> = required.iter().map(|(name, _)| *name).collect();
        let in_schema = schema.get("required").cloned().unwrap_or(json!([]));
        assert_eq!(in_schema, json!(names), "{}", tool.name());
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), required.len() + optional.len());
        for (name, kind) in required.into_iter().chain(optional) {
            assert_eq!(properties[name]["type"], kind, "{schema}");
            assert!(
                properties[name]["description"].as_str().unwrap().len() > 10,
                "{schema}"
            );
        }
    }
}

#[test]
fn the_schema_of_read_file_is_plain() {
    assert_eq!(
        find("read_file").schema(),
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["path"],
            "properties": {
                "path": {"type": "string", "description": "The path of the file, such as /workspace/notes.txt."},
                "offset": {"type": "integer", "minimum": 0, "description": "The first line to return, counted from 0. Default: 0. Past the end, nothing is returned."},
                "limit": {"type": "integer", "minimum": 0, "description": "The maximum number of lines to return. Default: all lines to the end."},
                "raw": {"type": "boolean", "description": "Whether to return the file's own bytes as text, even if it is a document (PDF, DOCX, XLSX, HTML) or an image."},
            },
        })
    );
}

#[test]
fn descriptions_state_the_real_limits() {
    let limits = errand_sandbox::SearchLimits::default();
    let search = find("search_files").description().to_owned();
    for part in [
        format!("{} MiB", limits.file_bytes_max / 1024 / 1024),
        format!("{} lines", limits.matches_max),
        format!("{} characters", limits.line_chars_max),
    ] {
        assert!(search.contains(&part), "{part}");
    }
    let read = format!("{} MiB", READ_FILE_BYTES_MAX / 1024 / 1024);
    assert!(find("read_file").description().contains(&read));
}
