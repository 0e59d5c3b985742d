//! What the server tells the helper, over the socket that is the helper's standard input: at once, the files by which it
//! joins its cgroups; later one order, with descriptors.
//!
//! The helper is `errand` itself, started anew, because what must happen between fork and exec (giving up root, limits,
//! closing descriptors) is not to be done in the child of a program with many threads. It has one thread, no arguments
//! that say anything, and no environment.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most descriptors of one order: pipes, a filter, a workspace, and room.
const DESCRIPTORS_MAX: usize = 16;
/// Most bytes of an order: arguments of bubblewrap and of a service, no data.
const ORDER_BYTES_MAX: u32 = 1024 * 1024;

/// What is to be started, and as what.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// By what a later start of the server finds the process: its first argument, in place of the program's name.
    pub(super) label: String,
    /// The program of bubblewrap.
    pub(super) program: String,
    /// The user to become. None where the server is an ordinary user already.
    pub(super) uid: Option<u32>,
    /// The directory that becomes `/workspace`: which of the descriptors. With it, where it may be mounted in between.
    pub(super) workspace: Option<(usize, Vec<String>)>,
    pub(super) limits: Rlimits,
    /// What bubblewrap is told where nobody sees it.
    pub(super) args: Vec<Arg>,
    /// What runs inside.
    pub(super) command: Vec<String>,
    /// The standard input of that: which of the descriptors.
    pub(super) stdin: usize,
}

/// One argument of bubblewrap.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Arg {
    Text(String),
    /// The number of a descriptor from which this text can be read.
    Data(String),
    /// The number of the descriptor with this index.
    Descriptor(usize),
    /// The same, opened anew, so that it is read from its beginning.
    Reopened(usize),
    /// The path under which bubblewrap finds the workspace.
    Workspace,
}

/// Limits of each process, where the kernel keeps them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Rlimits {
    pub(super) file_bytes: u64,
    pub(super) descriptors: u64,
    /// Of all processes of the user: only where the user is the sandbox's alone.
    pub(super) processes: Option<u64>,
    /// Data of one process: only where no cgroup counts memory.
    pub(super) data_bytes: Option<u64>,
}

/// Sends a message. Blocks for no longer than the helper needs to start.
pub(super) fn send(
    socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let is_told = borrowed.is_empty() || control.push(SendAncillaryMessage::ScmRights(&borrowed));
    if !is_told {
        return Err(io::Error::other("too many descriptors for an order"));
    }
    let header = length.to_le_bytes();
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&header)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent != header.len() {
        return Err(io::Error::other("the order was cut off"));
    }
    let mut rest = json.as_slice();
    while !rest.is_empty() {
        let sent = rustix::net::send(socket, rest, SendFlags::NOSIGNAL)?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Receives a message, in the helper.
pub(super) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut header = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut header)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    if received.bytes != header.len() {
        return Err(io::Error::other("there is no order"));
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let length = u32::from_le_bytes(header);
    if length > ORDER_BYTES_MAX {
        return Err(io::Error::other("the order is too long"));
    }
    let mut json = vec![0; length as usize];
    let mut read = 0;
    while let Some(rest) = json.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut *rest))? {
            0 => return Err(io::Error::other("the order was cut off")),
            more => read += more,
        }
    }
    Ok((serde_json::from_slice(&json)?, descriptors))
}
