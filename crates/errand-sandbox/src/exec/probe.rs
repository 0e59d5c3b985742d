//! Finds out whether commands can be isolated, by isolating one. If not, explains why and what to do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use errand_core::error_chain::error_chain;
use errand_core::path::SandboxPath;
use tempfile::TempDir;

use super::bubblewrap::Inner;
use super::running::ShellParts;
use super::{Command, EndedBy, ExecError, Finished, Shell as _, Unavailable};
use crate::root::Root;

const PROGRAM: &str = "bwrap";
/// Time limit of the probe, long enough for a busy machine.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Prefix of the names of probe directories.
const DIRECTORY_PREFIX: &str = ".errand-isolation-trial-";
/// The workspace in such a directory, and the file that the probe writes there.
const WORKSPACE: &str = "workspace";
const WRITTEN_FILE: &str = "trial";
/// Age from which a probe directory must be left over from a server that was killed. Longer than any probe, with all
/// its repetitions, takes.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
/// Output of a successful probe.
const SUCCESS_OUTPUT: &str = "errand-trial: well";

/// The command that the probe runs. It must be able to write to its workspace, and to nothing of the machine. The
/// kernel file is opened but not written to.
const SCRIPT: &str = r#": > /workspace/trial || exit 3
if (: >> /proc/sys/kernel/core_pattern) 2>/dev/null; then exit 4; fi
if (: >> /usr/.errand-trial) 2>/dev/null; then exit 5; fi
echo "errand-trial: well""#;

/// Looks up bubblewrap.
pub(super) fn program(search_path: &OsStr) -> Result<String, Unavailable> {
    let found = std::env::split_paths(search_path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(PROGRAM))
        .find(|path| path.is_file());
    let text = found.and_then(|path| path.to_str().map(str::to_owned));
    text.ok_or_else(|| {
        Unavailable::new(
            "bubblewrap (bwrap) is not installed",
            "install it: `apt-get install bubblewrap`, or your distribution's package of that name",
        )
    })
}

/// Probes the isolation, and drops features that the machine or bubblewrap lacks. Returns `inner` with the features
/// that work.
pub(super) async fn probe(mut inner: Inner) -> Result<Inner, Unavailable> {
    let dir = ProbeDir::make(&inner).map_err(|error| {
        Unavailable::new(
            format!("cannot create a directory to test the isolation: {error}"),
            "make the directory for temporary files writable (TMPDIR, otherwise /tmp). If the server is root, make sure that the user ids from sandbox.uid_base on exist in its user namespace",
        )
    })?;
    loop {
        let message = match try_once(&inner, &dir.workspace).await {
            Ok(()) => return Ok(inner),
            Err(message) => message,
        };
        let abilities = inner.abilities();
        if abilities.disables_user_namespaces && message.contains("--disable-userns") {
            // The seccomp filter forbids user namespaces as well.
            abilities.disables_user_namespaces = false;
        } else if abilities.own_proc && message.contains("mount proc") {
            abilities.own_proc = false;
        } else {
            return Err(explain(&message));
        }
    }
}

/// Runs one probe. The error is its message.
async fn try_once(inner: &Inner, workspace: &Path) -> Result<(), String> {
    let describe = |error: &ExecError| error_chain(error);
    let root = Root::open(workspace).map_err(|error| error_chain(&error))?;
    let shell: ShellParts = inner.shell(&root).await.map_err(|error| describe(&error))?;
    let command = Command {
        script: SCRIPT.to_owned(),
        cwd: SandboxPath::root(),
        timeout: PROBE_TIMEOUT,
    };
    let never = Box::pin(std::future::pending());
    let finished = Box::new(shell)
        .run(&command, never)
        .await
        .map_err(|error| describe(&error))?;
    check_result(&finished)
}

fn check_result(finished: &Finished) -> Result<(), String> {
    match (finished.exit_code, finished.ended_by) {
        (0, None) if finished.stdout.text.trim() == SUCCESS_OUTPUT => Ok(()),
        (_, Some(EndedBy::TimeLimit)) => Err(format!(
            "the test command did not end within {} s",
            PROBE_TIMEOUT.as_secs()
        )),
        (3, _) => Err("the workspace is not writable from inside".to_owned()),
        (4, _) => Err("a kernel setting can be opened for writing from inside".to_owned()),
        (5, _) => Err("the machine's programs are writable from inside".to_owned()),
        (code, _) => Err(format!(
            "the test command ended with exit code {code}: {}",
            finished.stderr.text.trim()
        )),
    }
}

/// Explains a failed probe, and how to fix it.
fn explain(message: &str) -> Unavailable {
    let kernel = kernel_setting();
    let because = kernel
        .as_ref()
        .map_or(String::new(), |(what, _)| format!(" ({what})"));
    let remedy = if let Some((_, remedy)) = kernel {
        remedy.to_owned()
    } else if message.contains("new namespace") || message.contains("namespaces exceeded") {
        "allow user namespaces: set user.max_user_namespaces above 0, and in a container use a seccomp profile that permits unshare and mount".to_owned()
    } else if message.contains("give up privileges") {
        "give the server the capabilities SETUID, SETGID and SETPCAP and a sandbox.uid_base that exists in its user namespace, or run it as an ordinary user".to_owned()
    } else if message.contains("reach the workspace") || message.contains("source path") {
        "run the server as an ordinary user, or give it the capability SYS_ADMIN, which it needs to show commands only their own directory".to_owned()
    } else {
        "fix what the message says, then run `errand doctor` to check again".to_owned()
    };
    Unavailable::new(
        format!("commands cannot be isolated: {message}{because}"),
        remedy,
    )
}

/// A kernel setting that forbids what bubblewrap needs: its value, and what to do.
fn kernel_setting() -> Option<(&'static str, &'static str)> {
    let is =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|found| found.trim() == value);
    [
        (
            ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            ("kernel.unprivileged_userns_clone is 0", "set the kernel setting kernel.unprivileged_userns_clone to 1"),
        ),
        (
            ("/proc/sys/user/max_user_namespaces", "0"),
            ("user.max_user_namespaces is 0", "set the kernel setting user.max_user_namespaces to 1000 or more"),
        ),
        (
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
            (
                "kernel.apparmor_restrict_unprivileged_userns is 1",
                "give bwrap an AppArmor profile that allows user namespaces, or set kernel.apparmor_restrict_unprivileged_userns to 0",
            ),
        ),
    ]
    .into_iter()
    .find(|((path, value), _)| is(path, value))
    .map(|(_, advice)| advice)
}

/// A workspace for a probe, in a directory that other users cannot enter, like the real ones. Removed when dropped;
/// [`remove_abandoned`] removes what a killed server has left.
struct ProbeDir {
    workspace: PathBuf,
    _dir: TempDir,
}

impl ProbeDir {
    fn make(inner: &Inner) -> std::io::Result<Self> {
        let private = fs::Permissions::from_mode(0o700);
        // A random name: in a container, each start has the same process id.
        let dir = tempfile::Builder::new()
            .prefix(DIRECTORY_PREFIX)
            .permissions(private.clone())
            .tempdir()?;
        let workspace = dir.path().join(WORKSPACE);
        fs::create_dir(&workspace)?;
        fs::set_permissions(&workspace, private)?;
        if inner.is_root() {
            let uid = inner.settings().uids.probe_uid();
            std::os::unix::fs::chown(&workspace, Some(uid), Some(uid))?;
        }
        Ok(Self {
            workspace,
            _dir: dir,
        })
    }
}

/// Removes probe directories that a killed server has left. Blocking.
///
/// They are in the shared directory for temporary files. Therefore only files with the probe's names are removed, and
/// a directory that contains anything else stays.
pub(super) fn remove_abandoned() {
    remove_abandoned_in(&std::env::temp_dir(), file_time_now());
}

fn remove_abandoned_in(above: &Path, now: SystemTime) {
    let user = rustix::process::geteuid().as_raw();
    let is_abandoned = |entry: &fs::DirEntry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_dir);
        metadata.is_some_and(|of| {
            let age = of
                .modified()
                .ok()
                .and_then(|at| now.duration_since(at).ok());
            of.uid() == user && age.is_some_and(|age| age > ABANDONED_AFTER)
        })
    };
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let is_probe_dir = entry
            .file_name()
            .as_bytes()
            .starts_with(DIRECTORY_PREFIX.as_bytes());
        if is_probe_dir && is_abandoned(&entry) {
            let workspace = entry.path().join(WORKSPACE);
            let _ = fs::remove_file(workspace.join(WRITTEN_FILE));
            let _ = fs::remove_dir(workspace);
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with modification times, which come from the machine's clock and not from an injected one"
)]
fn file_time_now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_leftovers_of_probes_are_removed() {
        assert!(SCRIPT.starts_with(&format!(": > /{WORKSPACE}/{WRITTEN_FILE} ")));
        let (above, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let probe_dir = |name: &str| above.path().join(format!("{DIRECTORY_PREFIX}{name}"));
        let (left, never_used, used) = (
            probe_dir("left"),
            probe_dir("never-used"),
            probe_dir("used"),
        );
        for dir in [&left, &used] {
            fs::create_dir_all(dir.join(WORKSPACE)).unwrap();
            fs::write(dir.join(WORKSPACE).join(WRITTEN_FILE), "").unwrap();
        }
        fs::write(used.join(WORKSPACE).join("by somebody"), "").unwrap();
        let other = above.path().join("errand-demo");
        for dir in [&never_used, &other, &outside.path().join(WORKSPACE)] {
            fs::create_dir(dir).unwrap();
        }
        std::os::unix::fs::symlink(outside.path(), probe_dir("link")).unwrap();
        let now = file_time_now();
        remove_abandoned_in(above.path(), now);
        assert!(left.is_dir());
        remove_abandoned_in(
            above.path(),
            now + ABANDONED_AFTER + Duration::from_secs(60),
        );
        assert!(!left.exists() && !never_used.exists());
        assert!(used.join(WORKSPACE).join("by somebody").is_file() && other.is_dir());
        assert!(outside.path().join(WORKSPACE).is_dir());
    }
}
