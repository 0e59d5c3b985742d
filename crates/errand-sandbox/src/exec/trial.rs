//! Finds out whether commands can be isolated, by isolating one; and says, where they cannot, why and what to do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use errand_core::cause::chain;
use errand_core::path::SandboxPath;
use tempfile::TempDir;

use super::bubblewrap::Inner;
use super::running::ShellParts;
use super::{Command, EndedBy, ExecError, Finished, Shell as _, Unavailable};
use crate::root::Root;

/// The program of bubblewrap.
const PROGRAM: &str = "bwrap";
/// How long the trial may take: a busy machine takes its time.
const TRIAL: Duration = Duration::from_secs(20);
/// How the names of the directories of trials begin.
const PREFIX: &str = ".errand-isolation-trial-";
/// What is in such a directory, and what the trial writes there.
const WORKSPACE: &str = "workspace";
const WRITTEN: &str = "trial";
/// A trial's directory that is older is of a server that was killed. Longer than any trial, with all its repetitions, takes.
const ABANDONED: Duration = Duration::from_secs(3600);
/// What the trial says when all is well.
const WELL: &str = "errand-trial: well";

/// What the trial does inside. It must be able to write its workspace, and nothing of the machine: the file of the kernel
/// is opened, and not written to. The network has nothing but a loopback that is down or its own.
const SCRIPT: &str = r#": > /workspace/trial || exit 3
if (: >> /proc/sys/kernel/core_pattern) 2>/dev/null; then exit 4; fi
if (: >> /usr/.errand-trial) 2>/dev/null; then exit 5; fi
echo "errand-trial: well""#;

/// Where bubblewrap is.
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

/// Tries it, with less where the machine or bubblewrap has less, and says what holds.
pub(super) async fn with_abilities(mut inner: Inner) -> Result<Inner, Unavailable> {
    let place = Place::make(&inner).map_err(|error| {
        Unavailable::new(
            format!("a directory for the trial of the isolation cannot be made: {error}"),
            "see to it that the directory for temporary files can be written to (TMPDIR, else /tmp), and, where the server is root, that the users from sandbox.uid_base on exist in its user namespace",
        )
    })?;
    loop {
        let said = match once(&inner, &place.workspace).await {
            Ok(()) => return Ok(inner),
            Err(said) => said,
        };
        let abilities = inner.abilities();
        if abilities.disables_user_namespaces && said.contains("--disable-userns") {
            // The filters forbid them as well.
            abilities.disables_user_namespaces = false;
        } else if abilities.own_proc && said.contains("mount proc") {
            abilities.own_proc = false;
        } else {
            return Err(explain(&said));
        }
    }
}

/// One trial. The error is what was said.
async fn once(inner: &Inner, workspace: &Path) -> Result<(), String> {
    let told = |error: &ExecError| chain(error);
    let root = Root::open(workspace).map_err(|error| chain(&error))?;
    let shell: ShellParts = inner.shell(&root).await.map_err(|error| told(&error))?;
    let command = Command {
        script: SCRIPT.to_owned(),
        cwd: SandboxPath::root(),
        timeout: TRIAL,
    };
    let never = Box::pin(std::future::pending());
    let finished = Box::new(shell)
        .run(&command, never)
        .await
        .map_err(|error| told(&error))?;
    judge(&finished)
}

fn judge(finished: &Finished) -> Result<(), String> {
    match (finished.exit_code, finished.ended_by) {
        (0, None) if finished.stdout.text.trim() == WELL => Ok(()),
        (_, Some(EndedBy::TimeLimit)) => Err(format!(
            "the trial did not end within {} s",
            TRIAL.as_secs()
        )),
        (3, _) => Err("the workspace cannot be written to from inside".to_owned()),
        (4, _) => Err("a file of the kernel can be opened for writing from inside".to_owned()),
        (5, _) => Err("the machine's programs can be written to from inside".to_owned()),
        (code, _) => Err(format!(
            "the trial ended with {code}: {}",
            finished.stderr.text.trim()
        )),
    }
}

/// Why it does not work, for people.
fn explain(said: &str) -> Unavailable {
    let kernel = kernel_setting();
    let because = kernel
        .as_ref()
        .map_or(String::new(), |(what, _)| format!(" ({what})"));
    let remedy = if let Some((_, remedy)) = kernel {
        remedy.to_owned()
    } else if said.contains("new namespace") || said.contains("namespaces exceeded") {
        "allow user namespaces: user.max_user_namespaces above 0, and in a container a seccomp profile that lets unshare and mount through".to_owned()
    } else if said.contains("give up privileges") {
        "give the server the capabilities SETUID, SETGID and SETPCAP and a sandbox.uid_base that exists in its user namespace, or start it as an ordinary user".to_owned()
    } else if said.contains("reach the workspace") || said.contains("source path") {
        "start the server as an ordinary user, or give it the capability SYS_ADMIN, so that it can show commands their directory alone".to_owned()
    } else {
        "see what it says; `errand doctor` tries again".to_owned()
    };
    Unavailable::new(
        format!("commands cannot be isolated: {said}{because}"),
        remedy,
    )
}

/// A setting of the kernel that forbids what bubblewrap needs: what is so, and what to do.
fn kernel_setting() -> Option<(&'static str, &'static str)> {
    let is =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|found| found.trim() == value);
    [
        (
            ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            ("kernel.unprivileged_userns_clone is 0", "set the kernel's kernel.unprivileged_userns_clone to 1"),
        ),
        (
            ("/proc/sys/user/max_user_namespaces", "0"),
            ("user.max_user_namespaces is 0", "set the kernel's user.max_user_namespaces to 1000 or more"),
        ),
        (
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
            (
                "kernel.apparmor_restrict_unprivileged_userns is 1",
                "give bwrap a profile of AppArmor that allows user namespaces, or set kernel.apparmor_restrict_unprivileged_userns to 0",
            ),
        ),
    ]
    .into_iter()
    .find(|((path, value), _)| is(path, value))
    .map(|(_, told)| told)
}

/// A workspace for the trial, in a directory that others cannot look into, as the real ones are. Removed when dropped; for
/// what a server that was killed has left there is [`remove_abandoned`].
struct Place {
    workspace: PathBuf,
    _dir: TempDir,
}

impl Place {
    fn make(inner: &Inner) -> std::io::Result<Self> {
        let private = fs::Permissions::from_mode(0o700);
        // A name with chance in it: in a container each start has the same process id.
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(private.clone())
            .tempdir()?;
        let workspace = dir.path().join(WORKSPACE);
        fs::create_dir(&workspace)?;
        fs::set_permissions(&workspace, private)?;
        if inner.is_root() {
            let uid = inner.settings().uids.of_trials();
            std::os::unix::fs::chown(&workspace, Some(uid), Some(uid))?;
        }
        Ok(Self {
            workspace,
            _dir: dir,
        })
    }
}

/// Removes the directories of trials that have been there for longer than a trial takes: what a server that was killed has
/// left. They are in the directory for temporary files, where others write as well: what a trial leaves is removed by its
/// names, and a directory in which there is anything else stays. Blocking.
pub(super) fn remove_abandoned() {
    remove_abandoned_in(&std::env::temp_dir(), time_of_files());
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
            of.uid() == user && age.is_some_and(|age| age > ABANDONED)
        })
    };
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let is_of_trial = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        if is_of_trial && is_abandoned(&entry) {
            let workspace = entry.path().join(WORKSPACE);
            let _ = fs::remove_file(workspace.join(WRITTEN));
            let _ = fs::remove_dir(workspace);
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with times of files, which have the machine's, not that of a clock given"
)]
fn time_of_files() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_trials_left_is_removed_when_it_is_old_and_nothing_else() {
        assert!(SCRIPT.starts_with(&format!(": > /{WORKSPACE}/{WRITTEN} ")));
        let (above, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let named = |name: &str| above.path().join(format!("{PREFIX}{name}"));
        let (left, never_used, used) = (named("left"), named("never-used"), named("used"));
        for dir in [&left, &used] {
            fs::create_dir_all(dir.join(WORKSPACE)).unwrap();
            fs::write(dir.join(WORKSPACE).join(WRITTEN), "").unwrap();
        }
        fs::write(used.join(WORKSPACE).join("by somebody"), "").unwrap();
        let other = above.path().join("errand-demo");
        for dir in [&never_used, &other, &outside.path().join(WORKSPACE)] {
            fs::create_dir(dir).unwrap();
        }
        std::os::unix::fs::symlink(outside.path(), named("link")).unwrap();
        let now = time_of_files();
        remove_abandoned_in(above.path(), now);
        assert!(left.is_dir());
        remove_abandoned_in(above.path(), now + ABANDONED + Duration::from_secs(60));
        assert!(!left.exists() && !never_used.exists());
        assert!(used.join(WORKSPACE).join("by somebody").is_file() && other.is_dir());
        assert!(outside.path().join(WORKSPACE).is_dir());
    }
}
