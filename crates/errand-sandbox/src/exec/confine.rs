//! A process of the program that does one thing for the server, bounds itself before it begins, and gives up what it
//! does not need: see [`confine`].

use std::fs;
use std::io;

use rustix::process::Resource;

use super::helper::{OOM_SCORE, close_inherited, give_up_privileges, set_limit};

/// How much such a process may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Processor time, in seconds; what takes more is ended by the kernel.
    pub cpu_seconds_max: u64,
    /// Memory, in bytes.
    pub memory_bytes_max: u64,
}

/// The user that such a process is where the server is root: nobody.
const NOBODY: u32 = 65_534;
/// Descriptors of such a process: the first three, and one to look at what is open.
const DESCRIPTORS_MAX: u64 = 8;

/// Bounds this process, and gives up its privileges. To be called first, while there is one thread.
///
/// Afterwards it can open no file for writing that has room for a byte, holds no descriptor but the first three, and is
/// not root.
///
/// # Errors
/// A part of it cannot be had: the process is to end.
pub fn confine(confinement: Confinement) -> io::Result<()> {
    close_inherited()?;
    // Not everywhere; it only decides who goes first.
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
