//! One user per sandbox, if the server runs as root: the sandbox's directory and everything in it belong to that
//! user.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use errand_core::path::SandboxPath;
use rustix::fs::{AtFlags, FileType, Gid, OFlags, Uid};
use rustix::io::Errno;

use crate::beneath::{file_type, scan};
use crate::error::FileError;
use crate::exec::Uids;
use crate::root::Root;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);
/// Maximum number of names in one directory; more than a sandbox may hold.
const NAMES_MAX: usize = 10_000_000;

impl Root {
    /// Ensures that the sandbox belongs to a user of its own. A sandbox that belongs to the server (created before
    /// commands could be isolated) changes hands with everything in it; only the server has written to it so far.
    ///
    /// Changes nothing if the server does not run as root.
    ///
    /// # Errors
    /// `Io` if no user id is free or the system refuses. The call can be repeated.
    pub fn with_user_of_its_own(mut self, uids: &Uids) -> Result<Self, FileError> {
        let failed = |errno| FileError::from_errno(errno, "give a user to", &SandboxPath::root());
        if !rustix::process::geteuid().is_root() {
            return Ok(self);
        }
        let _one_at_a_time = uids.assigning();
        let owner = rustix::fs::fstat(self.dir()).map_err(failed)?.st_uid;
        let uid = if uids.contains(owner) {
            uids.claim(owner);
            owner
        } else {
            let uid = uids.take().ok_or_else(|| failed(Errno::USERS))?;
            if let Err(errno) = self.chown_tree(uid) {
                uids.give_back(uid);
                return Err(failed(errno));
            }
            uid
        };
        self.set_user((Uid::from_raw(uid), Gid::from_raw(uid)));
        Ok(self)
    }

    /// Changes the owner of everything. The top directory comes last, so that its owner tells whether all is done.
    fn chown_tree(&self, uid: u32) -> Result<(), Errno> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)));
        let top: OwnedFd = self.strategy().open(self.dir(), b"", DIRECTORY)?;
        let mut todo = VecDeque::from([top]);
        while let Some(dir) = todo.pop_front() {
            for (name, _) in scan(dir.as_fd(), NAMES_MAX)?.names {
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                let Ok(found) = self.strategy().open(dir.as_fd(), name.to_bytes(), flags) else {
                    // A link, or removed in the meantime.
                    let _ = rustix::fs::chownat(&dir, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
                    continue;
                };
                rustix::fs::chownat(&found, c"", uid, gid, AtFlags::EMPTY_PATH)?;
                if file_type(&rustix::fs::fstat(&found)?) == FileType::Directory {
                    todo.push_back(self.strategy().open(
                        dir.as_fd(),
                        name.to_bytes(),
                        DIRECTORY,
                    )?);
                }
            }
        }
        rustix::fs::fchown(self.dir(), uid, gid)
    }
}
