//! Limits a process of this program that does a single job for the server, before it begins: see [`confine`].

use std::fs;
use std::io;

use rustix::process::Resource;

use super::helper::{OOM_SCORE, close_inherited, give_up_privileges, set_limit};

/// Limits of a confined process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Processor time, in seconds. The kernel ends a process that uses more.
    pub cpu_seconds_max: u64,
    /// In bytes.
    pub memory_bytes_max: u64,
}

/// User id of a confined process if the server is root: `nobody`.
const NOBODY: u32 = 65_534;
/// Maximum number of descriptors: the first three, and a few to list the open ones.
const DESCRIPTORS_MAX: u64 = 8;

/// Limits the current process and gives up its privileges. Call this first, while there is only one thread.
///
/// Afterwards, the process cannot write a single byte to a file, has no descriptors except the first three, and is
/// not root.
///
/// # Errors
/// If a part of this fails. The process must end then.
pub fn confine(confinement: Confinement) -> io::Result<()> {
    close_inherited()?;
    // Missing on some systems, and only decides which process is killed first.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let _ = rustix::process::nice(super::helper::NICE);
    set_limit(Resource::Core, 0)?;
    set_limit(Resource::Fsize, 0)?;
    set_limit(Resource::Nofile, DESCRIPTORS_MAX)?;
    set_limit(Resource::Cpu, confinement.cpu_seconds_max)?;
    set_limit(Resource::Data, confinement.memory_bytes_max)?;
    let is_root = rustix::process::geteuid().is_root();
    give_up_privileges(is_root.then_some(NOBODY))
}
