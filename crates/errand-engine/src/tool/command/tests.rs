//! Tests without isolation: arguments, and the results of finished commands. The integration tests run real commands.

use errand_core::id::IdGen;
use errand_core::time::Timestamp;
use tokio_util::sync::CancellationToken;

use super::*;

fn context() -> ToolContext {
    ToolContext {
        build: None,
        arguments: Map::new(),
        run: IdGen::new([1; 32]).run(Timestamp::from_millis(0)),
        call_id: "call_1".to_owned(),
        workspace: None,
        parsers: crate::parse::Parsers::new(None)
            .of(IdGen::new([1; 32]).team(Timestamp::from_millis(0))),
        cancel: CancellationToken::new(),
        draining: CancellationToken::new(),
    }
}

fn given(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn finished(ended_by: Option<EndedBy>) -> Finished {
    let output = |text: &str| Output {
        text: text.to_owned(),
        total_bytes: 0,
        truncated: false,
    };
    Finished {
        exit_code: 3,
        stdout: output("out"),
        stderr: output("err"),
        ended_by,
        duration: Duration::from_millis(12),
    }
}

#[test]
fn invalid_arguments_are_named() {
    for (arguments, wrong) in [
        (json!({}), "`command` is missing"),
        (json!({"command": " \n"}), "`command` is empty"),
        (json!({"command": "a\0b"}), "`command` contains a NUL"),
        (
            json!({"command": "x".repeat(COMMAND_BYTES_MAX + 1)}),
            "`command` has more than",
        ),
        (
            json!({"command": "x", "timeout_s": 0}),
            "`timeout_s`: 0 is not in 1..=600",
        ),
        (
            json!({"command": "x", "timeout_s": 601}),
            "`timeout_s`: 601 is not in 1..=600",
        ),
        (json!({"command": "x", "cwd": "/etc"}), "`cwd`"),
        (json!({"command": "x", "cwd": "../.."}), "`cwd`"),
        (
            json!({"command": "x", "dir": "/"}),
            "`dir` is not an argument",
        ),
    ] {
        let error = command_of(&given(arguments.clone()))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("invalid_arguments: ") && error.contains(wrong),
            "{arguments}: {error}"
        );
    }
    let command = command_of(&given(json!({"command": "x", "cwd": "sub"}))).unwrap();
    assert_eq!(command.timeout, Duration::from_secs(120));
    assert_eq!(command.cwd.to_string(), "/workspace/sub");
}

#[tokio::test]
async fn a_tool_that_is_off_says_why_and_needs_no_sandbox() {
    let why = Unavailable {
        reason: "bubblewrap is not installed".to_owned(),
        remedy: "install it".to_owned(),
    };
    let tool = RunCommand::off(why);
    let said = "run_command is off: bubblewrap is not installed; to enable it, install it";
    assert_eq!(tool.unavailable().as_deref(), Some(said));
    assert!(!tool.in_sandbox());
    let outcome = tool
        .run(&context(), given(json!({"command": "true"})))
        .await;
    assert_eq!(outcome, Outcome::error(ToolErrorCode::Unavailable, said));
}

#[test]
fn each_kind_of_end_has_its_own_result() {
    let (context, limits) = (context(), Limits::default());
    let result_of = |end| outcome(&finished(end), &context, limits);
    let result = result_of(None).unwrap();
    assert_eq!(
        result,
        json!({"exit_code": 3, "stdout": "out", "stderr": "err", "timed_out": false, "truncated": false, "duration_ms": 12})
    );
    assert_eq!(
        result_of(Some(EndedBy::TimeLimit)).unwrap()["timed_out"],
        true
    );
    assert_eq!(
        result_of(Some(EndedBy::Stop)).unwrap()["ended_by"],
        "run_stop"
    );
    for (bound, setting) in [
        (
            Bound::Memory,
            "sandbox.memory_bytes_max allows (1073741824)",
        ),
        (Bound::Processes, "sandbox.processes_max allows (256)"),
        (Bound::Disk, "sandbox.disk_bytes_max"),
        (Bound::TeamDisk, "sandbox.team_disk_bytes_max"),
        (Bound::Files, "sandbox.files_max"),
        (Bound::FileSize, "sandbox.file_bytes_max"),
        (Bound::Output, "more output than"),
    ] {
        let error = result_of(Some(EndedBy::Bound(bound)))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("limit_exceeded: ") && error.contains(setting),
            "{error}"
        );
        assert!(error.ends_with("stdout: out\nstderr: err"), "{error}");
    }
    context.draining.cancel();
    assert_eq!(told_of(&context)["ended_by"], "server_stop");
}

fn told_of(context: &ToolContext) -> Value {
    outcome(&finished(Some(EndedBy::Stop)), context, Limits::default()).unwrap()
}
