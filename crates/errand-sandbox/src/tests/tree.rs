//! Removing and measuring whole trees.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::{assert_refused, at, with_both_strategies, without_privileges};
use crate::remove_tree;

/// Creates a chain of directories, deeper than any path can be long, each with this mode.
fn make_deep(top: &Path, levels: usize, mode: Mode) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for level in 0..levels {
        let name = if level % 2 == 0 { "d" } else { "another-name" };
        rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
        let inner = rustix::fs::openat(&at, name, flags, Mode::empty()).unwrap();
        rustix::fs::openat(
            &at,
            "file",
            OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::RUSR,
        )
        .unwrap();
        rustix::fs::fchmod(&at, mode).unwrap();
        at = inner;
    }
}

#[test]
fn a_deep_tree_is_measured_and_removed() {
    with_both_strategies(|sandbox| {
        make_deep(&sandbox.dir, 2_000, Mode::RWXU);
        let usage = sandbox.root.usage().unwrap();
        assert_eq!(
            (usage.files, usage.directories, usage.is_complete),
            (2_000, 2_000, true)
        );
        remove_tree(&sandbox.dir).unwrap();
        assert!(!sandbox.dir.exists());
        sandbox.assert_only_outside_left();
    });
}

#[test]
fn a_deep_tree_without_permissions_is_removed() {
    with_both_strategies(|sandbox| {
        make_deep(&sandbox.dir, 2_000, Mode::empty());
        without_privileges(|| remove_tree(&sandbox.dir)).unwrap();
        sandbox.assert_only_outside_left();
    });
}

#[test]
fn directories_of_any_mode_are_removed() {
    with_both_strategies(|sandbox| {
        for mode in [0o000, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600, 0o700] {
            let dir = sandbox.dir.join(format!("mode-{mode:o}"));
            fs::create_dir_all(dir.join("sub/empty")).unwrap();
            fs::write(dir.join("file"), "x").unwrap();
            fs::write(dir.join("sub/file"), "x").unwrap();
            for inner in ["sub/file", "sub/empty", "sub", "file", "."] {
                fs::set_permissions(dir.join(inner), fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        fs::set_permissions(&sandbox.dir, fs::Permissions::from_mode(0o000)).unwrap();
        without_privileges(|| remove_tree(&sandbox.dir)).unwrap();
        sandbox.assert_only_outside_left();
    });
}

#[test]
fn links_are_removed_and_not_followed() {
    with_both_strategies(|sandbox| {
        fs::create_dir_all(sandbox.dir.join("a/b")).unwrap();
        for dir in [
            sandbox.dir.join("a"),
            sandbox.dir.join("a/b"),
            sandbox.dir.clone(),
        ] {
            symlink(&sandbox.outside, dir.join("out")).unwrap();
            symlink(sandbox.outside.join("secret.txt"), dir.join("file")).unwrap();
            rustix::fs::mknodat(CWD, dir.join("pipe"), FileType::Fifo, Mode::empty(), 0).unwrap();
        }
        remove_tree(&sandbox.dir).unwrap();
        sandbox.assert_only_outside_left();
    });
}

#[test]
fn names_that_collide_with_the_removal_are_removed_too() {
    with_both_strategies(|sandbox| {
        for number in 0..5 {
            fs::create_dir_all(
                sandbox
                    .dir
                    .join(format!("dir-{number}/deep/deeper/deepest")),
            )
            .unwrap();
            fs::write(
                sandbox.dir.join(format!("dir-{number}/deep/deeper/file")),
                "x",
            )
            .unwrap();
        }
        fs::write(sandbox.dir.join(".errand-removed-0"), "x").unwrap();
        fs::create_dir(sandbox.dir.join(".errand-removed-1")).unwrap();
        fs::create_dir_all(sandbox.dir.join(".errand-removed-2/full/fuller")).unwrap();
        symlink(&sandbox.outside, sandbox.dir.join(".errand-removed-3")).unwrap();
        remove_tree(&sandbox.dir).unwrap();
        sandbox.assert_only_outside_left();
    });
}

#[test]
fn a_wide_tree_is_removed() {
    with_both_strategies(|sandbox| {
        for number in 0..3_000 {
            fs::write(sandbox.dir.join(format!("file-{number}")), "").unwrap();
        }
        for number in 0..1_500 {
            fs::create_dir_all(sandbox.dir.join(format!("dir/sub-{number}/x"))).unwrap();
        }
        remove_tree(&sandbox.dir).unwrap();
        sandbox.assert_only_outside_left();
    });
}

#[test]
fn removing_a_missing_sandbox_succeeds_and_a_file_fails() {
    with_both_strategies(|sandbox| {
        remove_tree(&sandbox.dir.join("no")).unwrap();
        remove_tree(&sandbox.dir.join("no/such")).unwrap();
        fs::write(sandbox.dir.join("file"), "x").unwrap();
        assert_refused!(remove_tree(&sandbox.dir.join("file")), NotADirectory);
        symlink(&sandbox.outside, sandbox.dir.join("link")).unwrap();
        assert_refused!(remove_tree(&sandbox.dir.join("link")), NotADirectory);
        sandbox.assert_outside_untouched();
        remove_tree(&sandbox.dir).unwrap();
        remove_tree(&sandbox.dir).unwrap();
        sandbox.assert_only_outside_left();
    });
}

#[test]
fn usage_counts_files_and_disk_space() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        assert_eq!(root.usage().unwrap().files, 0);
        root.write(&at("a/b"), &[1; 5000]).unwrap();
        root.write(&at("c"), &[1; 10]).unwrap();
        fs::File::create(sandbox.dir.join("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let usage = root.usage().unwrap();
        assert_eq!(
            (usage.files, usage.directories, usage.is_complete),
            (3, 1, true)
        );
        assert_eq!(usage.size_bytes, (1 << 40) + 5010);
        assert!(usage.disk_bytes < 1 << 30, "{}", usage.disk_bytes);
    });
}
