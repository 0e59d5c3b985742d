//! One user per sandbox, if the server is root. As an ordinary user, nothing changes hands.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use super::{TestSandbox, at};
use crate::Root;
use crate::exec::Uids;

const BASE: u32 = 1_910_000_000;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn owner(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

#[test]
fn old_and_new_files_belong_to_the_sandbox_user() {
    let sandbox = TestSandbox::new();
    sandbox.root.write(&at("deep/er/old"), b"x").unwrap();
    symlink(
        sandbox.outside.join("secret.txt"),
        sandbox.dir.join("deep/link"),
    )
    .unwrap();
    let of_secret = owner(&sandbox.outside.join("secret.txt"));
    let uids = Uids::new(BASE, 4);
    let root = sandbox.root.clone().with_user_of_its_own(&uids).unwrap();
    root.write(&at("new/dir/file"), b"x").unwrap();
    root.write(&at("deep/er/old"), b"y").unwrap();
    let expected = if is_root() { BASE } else { of_secret };
    for name in [
        "",
        "deep",
        "deep/er",
        "deep/er/old",
        "deep/link",
        "new",
        "new/dir",
        "new/dir/file",
    ] {
        assert_eq!(owner(&sandbox.dir.join(name)), expected, "{name}");
    }
    assert_eq!(owner(&sandbox.outside.join("secret.txt")), of_secret);
    // Opened again, it keeps its owner, and new files get the same one.
    let again = Root::open(&sandbox.dir).unwrap();
    again.write(&at("later"), b"x").unwrap();
    assert_eq!(owner(&sandbox.dir.join("later")), expected);
    assert_eq!(
        again.with_user_of_its_own(&uids).unwrap().owner().unwrap(),
        expected
    );
}

#[test]
fn user_ids_are_unique_and_within_the_range() {
    let uids = Uids::new(BASE, 3);
    let sandboxes = [TestSandbox::new(), TestSandbox::new(), TestSandbox::new()];
    let given: Vec<_> = sandboxes
        .iter()
        .map(|sandbox| sandbox.root.clone().with_user_of_its_own(&uids))
        .collect();
    if is_root() {
        let owners: Vec<u32> = given[..2]
            .iter()
            .map(|root| root.as_ref().unwrap().owner().unwrap())
            .collect();
        assert_eq!(owners, [BASE, BASE + 1]);
        assert!(given[2].is_err());
        assert_eq!(owner(&sandboxes[2].dir), 0);
    } else {
        assert!(given.iter().all(Result::is_ok));
    }
}
