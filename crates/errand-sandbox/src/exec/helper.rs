//! The helper, `errand __exec`, which turns itself into bubblewrap.
//!
//! # Guarantees
//!
//! The started program has no environment, no descriptors except those of its order, no privileges, and is never uid 0.
//! The helper is a separate process with one thread, so whatever it changes about itself affects nothing else. If any
//! of this fails, it ends without having started anything.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::fs::{MemfdFlags, Mode};
use rustix::io::FdFlags;
use rustix::mount::MountPropagationFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::order::{self, Arg, Order, Rlimits};

/// The command line argument that makes the program a helper.
pub const HELPER_ARGUMENT: &str = "__exec";

/// OOM score adjustment, so that the kernel kills what runs inside before the server when the machine is out of
/// memory.
pub(super) const OOM_SCORE: &str = "500";
/// Niceness, so that the server gets the processor first.
pub(super) const NICE: i32 = 5;

/// Acts as the helper if the command line asks for it. Returns `None` if it does not; returns the exit code if
/// becoming bubblewrap failed.
#[must_use]
pub fn run_helper<S: AsRef<OsStr>>(mut args: impl Iterator<Item = S>) -> Option<ExitCode> {
    let wanted = args.nth(1)?;
    if wanted.as_ref() != HELPER_ARGUMENT {
        return None;
    }
    let Err(error) = become_bubblewrap();
    // The server reads this and reports it as the reason.
    let _ = writeln!(io::stderr(), "errand: {error}");
    Some(ExitCode::from(125))
}

fn become_bubblewrap() -> Result<std::convert::Infallible, io::Error> {
    let failed =
        |what: &'static str| move |error: io::Error| io::Error::other(format!("{what}: {error}"));
    close_inherited().map_err(failed("close inherited descriptors"))?;
    let (cgroups, _) =
        order::receive::<Vec<String>>(io::stdin().as_fd()).map_err(failed("read the cgroups"))?;
    for file in &cgroups {
        // "0" means the writing process itself.
        fs::write(file, "0").map_err(failed("join the cgroup"))?;
    }
    // Missing on some systems, and only decides which process is killed first.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let _ = rustix::process::nice(NICE);
    let has_own_mounts = rustix::process::geteuid().is_root()
        && own_mounts().map_err(failed("create a mount namespace"))?;
    let (order, descriptors) =
        order::receive::<Order>(io::stdin().as_fd()).map_err(failed("read the order"))?;
    let workspace = order
        .workspace
        .as_ref()
        .map(|(index, mount_points)| {
            let dir = descriptors.get(*index).ok_or_else(missing)?;
            place_workspace(dir, mount_points, has_own_mounts)
        })
        .transpose()
        .map_err(failed("reach the workspace"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    set_limits(order.limits).map_err(failed("set limits"))?;
    // Opened while /proc/self is still owned by the current user.
    let (args, opened) = arguments(&order, &descriptors, workspace.as_deref())
        .map_err(failed("prepare the arguments"))?;
    let stdin = descriptors.get(order.stdin).ok_or_else(missing)?;
    rustix::stdio::dup2_stdin(stdin).map_err(|e| failed("pass the input")(e.into()))?;
    give_up_privileges(order.uid).map_err(failed("give up privileges"))?;
    let args = memory_file(&args)?;
    rustix::io::fcntl_setfd(&args, FdFlags::empty())?;
    let error = Command::new(&order.program)
        .arg0(&order.label)
        .env_clear()
        .current_dir("/")
        .arg("--args")
        .arg(args.as_raw_fd().to_string())
        .arg("--")
        .args(&order.command)
        .exec();
    drop(opened);
    Err(failed("start bubblewrap")(error))
}

/// Mounts that bubblewrap does not use but that are in its mount list, which it reads again for each mount that it
/// adds. Usually half of the list, mostly cgroups; those are joined by now.
const UNNEEDED_MOUNTS: [&str; 4] = ["/sys", "/dev/pts", "/dev/mqueue", "/dev/hugepages"];

fn missing() -> io::Error {
    io::Error::other("a descriptor of the order is missing")
}

/// Closes all descriptors except the first three, which the server or a library may have left open.
pub(super) fn close_inherited() -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in open {
        // The descriptor through which the list was read is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Enters a private mount namespace. Returns `false` if that is forbidden.
fn own_mounts() -> io::Result<bool> {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_err() {
        return Ok(false);
    }
    // Mounts that are made outside later stay visible, because a workspace may be on one.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    for place in UNNEEDED_MOUNTS {
        while rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
    Ok(true)
}

/// Returns the path by which bubblewrap, running as the sandbox's user, finds the workspace.
///
/// A server that runs as root keeps its data in directories that other users cannot enter, and that must stay so.
/// Therefore the workspace is mounted at a place that everyone can reach, but only in the mount namespace of this
/// process and its children.
fn place_workspace(
    dir: &OwnedFd,
    mount_points: &[String],
    has_own_mounts: bool,
) -> io::Result<String> {
    // A descriptor refers to the old mount namespace. In the new one, the directory must be found by its path.
    let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    if has_own_mounts {
        let found = mount_points
            .iter()
            .find(|point| fs::metadata(point).is_ok_and(|found| found.is_dir()));
        let target = found.ok_or_else(|| io::Error::other("no directory to mount it at"))?;
        rustix::mount::mount_bind(&path, target.as_str())?;
        // The path was resolved a moment ago: check that the mount shows the directory that was meant.
        let (meant, found) = (rustix::fs::fstat(dir)?, rustix::fs::stat(target.as_str())?);
        if (meant.st_dev, meant.st_ino) != (found.st_dev, found.st_ino) {
            return Err(io::Error::other("the directory was moved in the meantime"));
        }
        return Ok(target.clone());
    }
    path.into_os_string()
        .into_string()
        .map_err(|_| io::Error::other("its path is not UTF-8"))
}

fn set_limits(limits: Rlimits) -> io::Result<()> {
    set_limit(Resource::Core, 0)?;
    set_limit(Resource::Fsize, limits.file_bytes)?;
    set_limit(Resource::Nofile, limits.descriptors)?;
    if let Some(processes) = limits.processes {
        set_limit(Resource::Nproc, processes)?;
    }
    if let Some(bytes) = limits.data_bytes {
        set_limit(Resource::Data, bytes)?;
    }
    Ok(())
}

/// Sets a limit of this process, but never above the server's own.
pub(super) fn set_limit(resource: Resource, value: u64) -> io::Result<()> {
    let own = rustix::process::getrlimit(resource).maximum;
    let value = own.map_or(value, |own| own.min(value));
    Ok(rustix::process::setrlimit(
        resource,
        Rlimit {
            current: Some(value),
            maximum: Some(value),
        },
    )?)
}

/// Returns the arguments, each terminated by a NUL, and the descriptors that must stay open until bubblewrap has read
/// them.
fn arguments(
    order: &Order,
    descriptors: &[OwnedFd],
    workspace: Option<&str>,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = Vec::new();
    let mut opened = Vec::new();
    let mut pass = |file: OwnedFd| -> io::Result<String> {
        rustix::io::fcntl_setfd(&file, FdFlags::empty())?;
        let number = file.as_raw_fd().to_string();
        opened.push(file);
        Ok(number)
    };
    for arg in &order.args {
        let argument = match arg {
            Arg::Text(argument) => argument.clone(),
            Arg::Workspace => workspace
                .ok_or_else(|| io::Error::other("the order has no workspace"))?
                .to_owned(),
            Arg::Data(data) => pass(memory_file(data.as_bytes())?)?,
            Arg::Descriptor(index) => {
                let descriptor = descriptors.get(*index).ok_or_else(missing)?;
                rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
                descriptor.as_raw_fd().to_string()
            }
            Arg::Reopened(index) => {
                let descriptor = descriptors.get(*index).ok_or_else(missing)?;
                let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
                pass(File::open(path)?.into())?
            }
        };
        text.extend_from_slice(argument.as_bytes());
        text.push(0);
    }
    Ok((text, opened))
}

/// An in-memory file with this content, positioned at its beginning.
pub(super) fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("errand", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Switches to the user of the order, if there is one, and gives up every capability. The last step before bubblewrap
/// starts.
pub(super) fn give_up_privileges(uid: Option<u32>) -> io::Result<()> {
    if let Some(id) = uid {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    // A service manager may have given capabilities to a server that is not root.
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, none)?;
    // Makes the set-user-id bit of an installed bubblewrap ineffective.
    rustix::thread::set_no_new_privs(true)?;
    // Verify instead of trusting the calls above.
    let left = rustix::thread::capabilities(None)?;
    let (real, effective) = (rustix::process::getuid(), rustix::process::geteuid());
    if real.is_root() || effective.is_root() || !left.permitted.is_empty() {
        return Err(io::Error::other(
            "bubblewrap must not be started with privileges",
        ));
    }
    Ok(())
}
