//! Every test that opens files runs twice: with `openat2`, and as on a system that has neither `openat2` nor unnamed
//! files.

use std::fs;
use std::path::{Path, PathBuf};

use errand_core::path::SandboxPath;
use tempfile::TempDir;

use crate::beneath::OpenStrategy;
use crate::{FileError, Root};

mod copy;
mod edit;
mod race;
mod room;
mod search;
mod traps;
mod tree;
mod user;
mod vast;
mod write;

/// A sandbox, and next to it a directory that no operation may reach.
pub(crate) struct TestSandbox {
    pub(crate) root: Root,
    /// The sandbox's directory on disk.
    pub(crate) dir: PathBuf,
    /// The directory next to it. Contains `secret.txt`.
    pub(crate) outside: PathBuf,
    temp: TempDir,
}

pub(crate) const SECRET: &str = "outside content";

impl TestSandbox {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (dir, outside) = (temp.path().join("sandbox"), temp.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret.txt"), SECRET).unwrap();
        let root = Root::create(&dir).unwrap();
        assert_eq!(
            root.strategy(),
            OpenStrategy::Openat2,
            "these tests need Linux 5.6 and no filter against openat2"
        );
        Self {
            root,
            dir,
            outside,
            temp,
        }
    }

    /// Asserts that everything outside the sandbox is unchanged.
    pub(crate) fn assert_outside_untouched(&self) {
        assert_eq!(names_on_disk(&self.outside), ["secret.txt"]);
        assert_eq!(
            fs::read_to_string(self.outside.join("secret.txt")).unwrap(),
            SECRET
        );
        assert_eq!(names_on_disk(self.temp.path()), ["outside", "sandbox"]);
    }

    /// Asserts that the sandbox is gone and everything else is still there.
    pub(crate) fn assert_only_outside_left(&self) {
        assert_eq!(names_on_disk(self.temp.path()), ["outside"]);
        assert_eq!(
            fs::read_to_string(self.outside.join("secret.txt")).unwrap(),
            SECRET
        );
    }

    /// Asserts that no unfinished write was left anywhere.
    pub(crate) fn assert_no_temps(&self) {
        let mut todo = vec![self.dir.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_encoded_bytes();
                assert!(!crate::write::is_temp(&name), "{:?}", entry.path());
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                }
            }
        }
    }
}

/// Runs a test with both open strategies and both ways of keeping unfinished writes.
pub(crate) fn with_both_strategies(test: impl Fn(&TestSandbox)) {
    let sandbox = TestSandbox::new();
    test(&sandbox);
    let mut sandbox = TestSandbox::new();
    sandbox.root = sandbox.root.clone().with(OpenStrategy::Walk, false);
    test(&sandbox);
}

pub(crate) fn at(path: &str) -> SandboxPath {
    SandboxPath::parse(path).unwrap()
}

/// All names in a directory, including hidden ones, sorted.
pub(crate) fn names_on_disk(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The names that a listing contains.
pub(crate) fn names_listed(root: &Root, path: &str) -> Vec<String> {
    root.list(&at(path))
        .unwrap()
        .entries
        .into_iter()
        .map(|entry| entry.name)
        .collect()
}

/// Runs `test` on a thread without the privileges of root, so that file permissions apply to it.
pub(crate) fn without_privileges<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut own = capabilities(None).unwrap();
            own.effective &= !(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
            set_capabilities(None, own).unwrap();
            test()
        });
        thread.join().unwrap()
    })
}

macro_rules! assert_refused {
    ($result:expr, $variant:ident) => {
        match $result {
            Err($crate::FileError::$variant { .. }) => {}
            other => panic!("{} gave {other:?}", stringify!($result)),
        }
    };
}
pub(crate) use assert_refused;

#[test]
fn a_root_is_created_once_and_opened_again() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("sb");
    assert_refused!(Root::open(&dir), SandboxMissing);
    Root::create(&dir).unwrap().write(&at("a"), b"1").unwrap();
    assert_eq!(
        Root::create(&dir).unwrap().read(&at("a"), 0, 9).unwrap(),
        b"1"
    );
    assert_eq!(
        Root::open(&dir).unwrap().read(&at("a"), 0, 9).unwrap(),
        b"1"
    );
    std::os::unix::fs::symlink(&dir, temp.path().join("link")).unwrap();
    for create in [Root::create, Root::open] {
        assert!(create(&temp.path().join("link")).is_err());
        assert!(create(&dir.join("a")).is_err());
    }
    assert_refused!(Root::create(&temp.path().join("no/such")), NotFound);
}

#[test]
fn errors_name_the_path_as_a_run_sees_it() {
    with_both_strategies(|sandbox| {
        let error = sandbox.root.read(&at("a/b.txt"), 0, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is nothing at /workspace/a/b.txt: list the directory that it should be in"
        );
        let error = FileError::from_errno(rustix::io::Errno::IO, "sync", &at("a"));
        assert_eq!(error.to_string(), "the server could not sync /workspace/a");
        assert!(std::error::Error::source(&error).is_some());
    });
}
