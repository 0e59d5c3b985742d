//! Messages from the server to the helper, over the socket that is the helper's standard input: first the files
//! through which it joins its cgroups, later one order, with descriptors.
//!
//! The helper is the `errand` program itself, started again. Between fork and exec there is work to do (giving up
//! root, setting limits, closing descriptors) that is not safe in the forked child of a program with many threads.
//! The helper has one thread, no revealing arguments, and no environment.

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

/// Maximum number of descriptors of one order: pipes, a filter, a workspace, and some to spare.
const DESCRIPTORS_MAX: usize = 16;
/// Maximum size of an order. It holds the arguments of bubblewrap and of a service, and no data.
const ORDER_BYTES_MAX: u32 = 1024 * 1024;

/// The process to start, and its user.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// First argument of the process, in place of the program name. A later start of the server finds the process by
    /// it.
    pub(super) label: String,
    /// Path of bubblewrap.
    pub(super) program: String,
    /// User id to switch to. `None` if the server is an ordinary user.
    pub(super) uid: Option<u32>,
    /// Index of the descriptor of the directory that becomes `/workspace`, and the places where it may be mounted on
    /// the way.
    pub(super) workspace: Option<(usize, Vec<String>)>,
    pub(super) limits: Rlimits,
    /// Arguments of bubblewrap. They are passed in a file, because other users can read a command line.
    pub(super) args: Vec<Arg>,
    /// The program to run inside, with its arguments.
    pub(super) command: Vec<String>,
    /// Index of the descriptor that becomes its standard input.
    pub(super) stdin: usize,
}

/// One argument of bubblewrap.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Arg {
    Text(String),
    /// Becomes the number of a descriptor from which this text can be read.
    Data(String),
    /// Becomes the number of the descriptor with this index.
    Descriptor(usize),
    /// Like [`Arg::Descriptor`], but opened again so that it is read from its beginning.
    Reopened(usize),
    /// Becomes the path under which bubblewrap finds the workspace.
    Workspace,
}

/// Limits of each process, enforced by the kernel.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Rlimits {
    pub(super) file_bytes: u64,
    pub(super) descriptors: u64,
    /// Processes of the user. Only set if the user belongs to this sandbox alone.
    pub(super) processes: Option<u64>,
    /// Data size of one process. Only set if no cgroup limits the memory.
    pub(super) data_bytes: Option<u64>,
}

/// Sends a message. Blocks at most until the helper has started.
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
    let fits = borrowed.is_empty() || control.push(SendAncillaryMessage::ScmRights(&borrowed));
    if !fits {
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

/// Receives a message. Called in the helper.
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
        return Err(io::Error::other(
            "the server closed the socket without an order",
        ));
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
