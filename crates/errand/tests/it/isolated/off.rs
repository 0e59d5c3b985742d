//! Without isolation, the tool is off and says why. No command ever runs without it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Bench, Real, program};

/// A bubblewrap that runs this script.
fn bubblewrap(dir: &Path, script: &str) -> String {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let path = bin.join("bwrap");
    std::fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
    for path in [dir, &bin, &path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin.display().to_string()
}

async fn doctor(dir: &Path, path: &str) -> Vec<Value> {
    let output = Real::program(&[("PATH", path)])
        .args(["doctor", "--json", "--data-dir"])
        .arg(dir)
        .output()
        .await
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .filter(|check| check["check"] == "isolation")
        .cloned()
        .collect()
}

#[tokio::test]
async fn without_bubblewrap_the_tool_is_off_and_says_so_everywhere() {
    let dir = TempDir::new().unwrap();
    let env = [("PATH", "/nonexistent")];
    let server = Real::start(dir.path(), &env).await;
    let tool = server.tool().await;
    assert_eq!(tool["available"], false, "{tool:#}");
    let reason = tool["unavailable_reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("bubblewrap (bwrap) is not installed")
            && reason.contains("apt-get install bubblewrap"),
        "{reason}"
    );
    // A build can name it; a call gets exactly the reason.
    let run = server.begin("touch /tmp/never").await;
    assert_eq!(
        server.last_words(&run).await,
        json!({"error": format!("unavailable: {reason}")}).to_string()
    );
    let checks = doctor(dir.path(), "/nonexistent").await;
    assert_eq!(checks[0]["level"], "warning", "{checks:?}");
    assert!(
        checks[0]["found"]
            .as_str()
            .unwrap()
            .contains("not installed")
    );
}

#[tokio::test]
async fn a_refusal_of_the_kernel_is_reported() {
    let dir = TempDir::new().unwrap();
    for (said, told) in [
        (
            "bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user namespaces.",
            "user.max_user_namespaces",
        ),
        (
            "bwrap: setting up uid map: Permission denied",
            "errand doctor",
        ),
    ] {
        let bin = bubblewrap(dir.path(), &format!("echo '{said}' >&2; exit 1"));
        let checks = doctor(&dir.path().join("data"), &bin).await;
        let found = checks[0]["found"].as_str().unwrap();
        assert!(
            found.contains(said) && found.contains("run_command is off"),
            "{found}"
        );
        assert!(
            checks[0]["advice"].as_str().unwrap().contains(told),
            "{checks:?}"
        );
    }
    // A bubblewrap that hangs, that says nothing, or that runs the command without isolation is detected.
    let bin = bubblewrap(dir.path(), "exit 0");
    let checks = doctor(&dir.path().join("data"), &bin).await;
    assert!(
        checks[0]["found"]
            .as_str()
            .unwrap()
            .contains("without an error message"),
        "{checks:?}"
    );
    let bin = bubblewrap(dir.path(), "shift 3; exec \"$@\"");
    let checks = doctor(&dir.path().join("data"), &bin).await;
    assert_eq!(checks[0]["level"], "warning", "{checks:?}");
}

#[tokio::test]
async fn a_machine_that_masks_proc_runs_commands_without_it() {
    let dir = TempDir::new().unwrap();
    // Refuses to mount /proc, like a machine that masks it; otherwise it is the real one.
    let script = r#"number=$2
args=$(mktemp) && cat <&"$number" > "$args" || exit 1
if tr '\0' '\n' < "$args" | grep -qx -- --proc; then
    echo "bwrap: Can't mount proc on /newroot/proc: Operation not permitted" >&2
    exit 1
fi
eval "exec $number<\"$args\""
rm "$args"
exec /usr/bin/bwrap "$@""#;
    let bin = bubblewrap(dir.path(), script);
    let path = format!("{bin}:/usr/bin:/bin");
    let server = Real::start(&dir.path().join("data"), &[("PATH", &path)]).await;
    assert_eq!(server.tool().await["available"], true);
    let run = server
        .begin("ls /proc | wc -l; echo here > file; cat file")
        .await;
    let told: Value = serde_json::from_str(&server.last_words(&run).await).unwrap();
    assert_eq!(
        (&told["exit_code"], &told["stdout"]),
        (&json!(0), &json!("0\nhere\n")),
        "{told:#}"
    );
    let checks = doctor(&dir.path().join("data"), &path).await;
    assert!(
        checks[0]["found"]
            .as_str()
            .unwrap()
            .contains("without its own /proc"),
        "{checks:?}"
    );
}

#[tokio::test]
async fn an_isolated_tool_is_listed_and_doctor_names_its_limits() {
    let bench = Bench::start().await;
    let listed = bench
        .app
        .get(&bench.team.key, "/v1/tools")
        .await
        .expect(200);
    let tools = listed["tools"].as_array().unwrap();
    let names: Vec<_> = tools
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    for name in ["read_file", "request_approval", "run_command"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let tool = tools
        .iter()
        .find(|tool| tool["name"] == "run_command")
        .unwrap();
    assert_eq!(
        (&tool["available"], &tool["hints"]["untrusted"]),
        (&json!(true), &json!(true)),
        "{tool:#}"
    );
    assert_eq!(tool["schema"]["required"], json!(["command"]));
    let output = tokio::process::Command::new(program())
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .args(["doctor", "--json", "--data-dir"])
        .arg(bench.app.dir().join("none"))
        .output()
        .await
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let found = |name: &str| {
        checks.iter().find(|check| check["check"] == name).unwrap()["found"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(
        found("isolation").contains("run_command is on"),
        "{checks:?}"
    );
    assert!(
        found("command limits").starts_with("memory is limited by "),
        "{checks:?}"
    );
    bench.finish().await;
}
