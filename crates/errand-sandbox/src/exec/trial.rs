//! Finds out whether commands can be isolated, by isolating one; and says, where they cannot, why and what to do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use errand_core::cause::chain;
use errand_core::path::SandboxPath;

use super::bubblewrap::Inner;
use super::running::ShellParts;
use super::{Command, EndedBy, ExecError, Finished, Shell as _, Unavailable};
use crate::root::Root;

/// The program of bubblewrap.
const PROGRAM: &str = "bwrap";
/// How long the trial may take: a busy machine takes its time.
const TRIAL: Duration = Duration::from_secs(20);
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

/// A workspace for the trial, in a directory that others cannot look into, as the real ones are. Removed when dropped.
struct Place {
    dir: PathBuf,
    workspace: PathBuf,
}

impl Place {
    fn make(inner: &Inner) -> std::io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "errand-trial-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let workspace = dir.join("workspace");
        let place = Self { dir, workspace };
        fs::create_dir(&place.workspace)?;
        fs::set_permissions(&place.workspace, fs::Permissions::from_mode(0o700))?;
        if inner.is_root() {
            let uid = inner.settings().uids.of_trials();
            std::os::unix::fs::chown(&place.workspace, Some(uid), Some(uid))?;
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = crate::remove_tree(&self.dir);
    }
}
