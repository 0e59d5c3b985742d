//! The machine: limits of the process, and whether programs could be isolated on it.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Resource, geteuid, getrlimit};
use tokio::process::Command;

use super::Check;

/// Fewer open files than this are used up by a few hundred streams and runs.
const DESCRIPTORS: u64 = 4096;
/// The program of bubblewrap.
const PROGRAM: &str = "bwrap";
/// How long the trial of the isolation may take.
const TRIAL: Duration = Duration::from_secs(5);
/// The user as whom it is tried where the server is root, who may do what others may not: the one who is nobody.
const NOBODY: u32 = 65534;
/// What this means for the present version.
const NOT_USED: &str = "this version has no tool that runs commands, so nothing needs it";

pub(super) fn file_descriptors() -> Check {
    judge_descriptors(getrlimit(Resource::Nofile).current)
}

/// `limit`: none where there is no limit.
pub(super) fn judge_descriptors(limit: Option<u64>) -> Check {
    const CHECK: &str = "open files";
    match limit {
        Some(limit) if limit < DESCRIPTORS => Check::warning(
            CHECK,
            format!("at most {limit} files and connections can be open at once"),
            "raise the limit to 4096 or more: `ulimit -n 65536` before the start, or LimitNOFILE= of the service",
        ),
        Some(limit) => Check::ok(
            CHECK,
            format!("{limit} files and connections can be open at once"),
        ),
        None => Check::ok(
            CHECK,
            "any number of files and connections can be open at once",
        ),
    }
}

/// What a trial of bubblewrap came to.
pub(super) enum Trial {
    Works,
    /// There is no program of this name on the path.
    Missing,
    /// It does not end.
    Hangs,
    /// It could not be started: why.
    NotStarted(String),
    /// It said so.
    Refused(String),
}

/// Whether programs can be shut off from the machine by bubblewrap. Never more than information.
pub(super) async fn isolation() -> Check {
    let hint = kernel_hint();
    judge_isolation(&try_bubblewrap().await, hint.as_deref())
}

async fn try_bubblewrap() -> Trial {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(program) = find(PROGRAM, &path) else {
        return Trial::Missing;
    };
    let mut command = Command::new(program);
    command
        .args(["--unshare-all", "--ro-bind", "/", "/", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .current_dir("/")
        .kill_on_drop(true);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Trial::NotStarted(error.to_string()),
    };
    match tokio::time::timeout(TRIAL, child.wait_with_output()).await {
        Err(_) => Trial::Hangs,
        Ok(Err(error)) => Trial::NotStarted(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Trial::Works,
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: String = said.trim().chars().take(300).collect();
            Trial::Refused(if said.is_empty() {
                output.status.to_string()
            } else {
                said
            })
        }
    }
}

/// Where a program is. Looked for here: the system's own search says "permission denied" of a program that is nowhere,
/// where nobody may not look into one of the directories.
fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|found| found.is_file())
}

/// A setting of the kernel that forbids what bubblewrap needs.
fn kernel_hint() -> Option<String> {
    let is =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|found| found.trim() == value);
    [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0; it takes 1"),
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0; it takes 1000 or more"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns is 1; bwrap needs a profile of AppArmor that allows it, or 0",
        ),
    ]
    .into_iter()
    .find(|(path, value, _)| is(path, value))
    .map(|(.., hint)| hint.to_owned())
}

pub(super) fn judge_isolation(trial: &Trial, hint: Option<&str>) -> Check {
    let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
    let found = match trial {
        Trial::Works => "bubblewrap (bwrap) is there and can isolate programs".to_owned(),
        Trial::Missing => format!("bubblewrap (bwrap) is not installed; {NOT_USED}"),
        Trial::Hangs => format!("bwrap did not end within {} s; {NOT_USED}", TRIAL.as_secs()),
        Trial::NotStarted(why) => format!("bwrap could not be started: {why}{hint}; {NOT_USED}"),
        Trial::Refused(said) => {
            format!("bwrap is there and cannot isolate: {said}{hint}; {NOT_USED}")
        }
    };
    Check::ok("isolation", found)
}
