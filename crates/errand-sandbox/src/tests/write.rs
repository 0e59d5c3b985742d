//! Files are written whole or not at all.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::{assert_refused, at, names_listed, names_on_disk, with_both_strategies};
use crate::TEMP_PREFIX;

#[test]
fn a_write_creates_directories_and_replaces_the_file() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("a/b/c/file.txt"), b"one").unwrap();
        root.write(&at("a/b/c/file.txt"), b"second").unwrap();
        root.write(&at("a/b/other.txt"), b"").unwrap();
        assert_eq!(
            root.read_to_string(&at("a/b/c/file.txt"), 6).unwrap(),
            "second"
        );
        assert_eq!(names_listed(root, "a/b"), ["c", "other.txt"]);
        assert_eq!(names_on_disk(&sandbox.dir.join("a/b/c")), ["file.txt"]);
        let mode = |path: &str| fs::metadata(sandbox.dir.join(path)).unwrap().mode() & 0o7777;
        // The umask may remove permissions, but none may be added.
        assert_eq!(mode("a/b/c/file.txt") & !0o644, 0);
        assert_eq!(mode("a/b") & !0o755, 0);
        sandbox.assert_no_temps();
    });
}

#[test]
fn a_replaced_file_keeps_its_permissions_and_open_readers() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("run.sh"), b"old").unwrap();
        fs::set_permissions(
            sandbox.dir.join("run.sh"),
            fs::Permissions::from_mode(0o4750),
        )
        .unwrap();
        let mut open = root.open_file(&at("run.sh")).unwrap();
        root.write(&at("run.sh"), b"newer").unwrap();
        let mut text = String::new();
        open.file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
        let mode = fs::metadata(sandbox.dir.join("run.sh")).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o750, "kept but for set-user-id");
    });
}

#[test]
fn a_hard_link_of_a_replaced_file_keeps_the_old_content() {
    with_both_strategies(|sandbox| {
        fs::write(sandbox.dir.join("one"), "old").unwrap();
        fs::hard_link(sandbox.dir.join("one"), sandbox.dir.join("two")).unwrap();
        sandbox.root.write(&at("one"), b"new").unwrap();
        assert_eq!(fs::read(sandbox.dir.join("two")).unwrap(), b"old");
    });
}

#[test]
fn an_upload_is_seen_when_it_is_finished_and_not_before() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("in/data.bin"), b"old").unwrap();
        let mut upload = root.begin_upload(&at("in/data.bin"), 6).unwrap();
        upload.write(b"abc").unwrap();
        assert_eq!(root.read(&at("in/data.bin"), 0, 9).unwrap(), b"old");
        assert_eq!(names_listed(root, ""), ["in"]);
        assert_eq!(names_listed(root, "in"), ["data.bin"]);
        upload.write(b"").unwrap();
        upload.write(b"def").unwrap();
        assert_eq!(upload.written_bytes(), 6);
        assert_eq!(upload.finish().unwrap(), 6);
        assert_eq!(root.read(&at("in/data.bin"), 0, 9).unwrap(), b"abcdef");
        sandbox.assert_no_temps();
    });
}

#[test]
fn half_an_upload_leaves_nothing() {
    with_both_strategies(|sandbox| {
        let mut upload = sandbox
            .root
            .begin_upload(&at("new/dir/data.bin"), 100)
            .unwrap();
        upload.write(&[7; 50]).unwrap();
        drop(upload);
        assert!(names_on_disk(&sandbox.dir).is_empty());
    });
}

#[test]
fn an_upload_over_its_limit_leaves_nothing() {
    with_both_strategies(|sandbox| {
        let mut upload = sandbox.root.begin_upload(&at("new/data.bin"), 100).unwrap();
        upload.write(&[7; 100]).unwrap();
        assert_refused!(upload.write(&[7; 1]), TooLarge);
        assert_refused!(upload.write(b""), UploadBroken);
        assert_refused!(upload.finish(), UploadBroken);
        assert!(names_on_disk(&sandbox.dir).is_empty());
        let mut upload = sandbox.root.begin_upload(&at("empty"), 0).unwrap();
        assert_refused!(upload.write(b"x"), TooLarge);
        drop(upload);
        assert_eq!(
            sandbox
                .root
                .begin_upload(&at("empty"), 0)
                .unwrap()
                .finish()
                .unwrap(),
            0
        );
        assert_eq!(names_on_disk(&sandbox.dir), ["empty"]);
    });
}

#[test]
fn unfinished_writes_are_hidden_and_their_names_reserved() {
    with_both_strategies(|sandbox| {
        let name = format!("{TEMP_PREFIX}1-1");
        fs::write(sandbox.dir.join(&name), "left by a crash").unwrap();
        assert!(names_listed(&sandbox.root, "").is_empty());
        for path in [name.clone(), format!("{name}/file"), format!("dir/{name}")] {
            assert_refused!(sandbox.root.write(&at(&path), b"x"), ReservedName);
        }
        assert_eq!(names_on_disk(&sandbox.dir), [name]);
    });
}

#[test]
fn names_left_by_crashes_are_skipped() {
    with_both_strategies(|sandbox| {
        // Some of the numbers that this process uses next are taken.
        for number in 0..300 {
            fs::write(
                sandbox
                    .dir
                    .join(format!("{TEMP_PREFIX}{}-{number}", std::process::id())),
                "",
            )
            .unwrap();
        }
        sandbox.root.write(&at("file"), b"x").unwrap();
        assert_eq!(sandbox.root.read(&at("file"), 0, 9).unwrap(), b"x");
        assert_eq!(names_listed(&sandbox.root, ""), ["file"]);
    });
}

#[test]
fn unfinished_writes_of_all_sandboxes_are_in_one_place() {
    with_both_strategies(|sandbox| {
        let temps = tempfile::tempdir().unwrap();
        let root = sandbox.root.clone().with_temps(temps.path()).unwrap();
        root.write(&at("dir/file"), b"old").unwrap();
        let mut upload = root.begin_upload(&at("dir/file"), 100).unwrap();
        upload.write(b"new").unwrap();
        assert_eq!(names_on_disk(&sandbox.dir), ["dir"]);
        assert_eq!(names_on_disk(&sandbox.dir.join("dir")), ["file"]);
        assert_eq!(upload.finish().unwrap(), 3);
        assert_eq!(root.read(&at("dir/file"), 0, 9).unwrap(), b"new");
        drop(root.begin_upload(&at("other"), 100).unwrap());
        assert!(names_on_disk(temps.path()).is_empty());
        assert_eq!(names_on_disk(&sandbox.dir), ["dir"]);
        // A removed sandbox is refused before the bytes arrive, even though they would go elsewhere.
        fs::remove_dir_all(&sandbox.dir).unwrap();
        assert_refused!(root.begin_upload(&at("late"), 100), SandboxMissing);
    });
}

#[test]
fn two_writers_of_the_same_new_path_both_succeed() {
    with_both_strategies(|sandbox| {
        std::thread::scope(|scope| {
            for writer in 0..4_u8 {
                let root = sandbox.root.clone();
                scope.spawn(move || {
                    for round in 0..10 {
                        root.write(&at(&format!("new-{round}/deep/file")), &[writer; 1000])
                            .unwrap();
                    }
                });
            }
        });
        for round in 0..10 {
            let bytes = sandbox
                .root
                .read(&at(&format!("new-{round}/deep/file")), 0, 9999)
                .unwrap();
            assert_eq!(bytes.len(), 1000);
            assert!(
                bytes.iter().all(|byte| *byte == bytes[0]),
                "a mixture of two writes"
            );
        }
        sandbox.assert_no_temps();
    });
}

#[test]
fn files_can_be_read_in_parts() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        root.write(&at("f"), &bytes).unwrap();
        assert_eq!(root.read(&at("f"), 0, u64::MAX).unwrap(), bytes);
        assert_eq!(
            root.read(&at("f"), 70_000, 80_000).unwrap(),
            bytes[70_000..150_000]
        );
        assert_eq!(root.read(&at("f"), 199_999, 9).unwrap(), bytes[199_999..]);
        for (offset, limit) in [(200_000, 9), (u64::MAX, u64::MAX), (5, 0)] {
            assert!(root.read(&at("f"), offset, limit).unwrap().is_empty());
        }
        assert_refused!(root.read_to_string(&at("f"), 199_999), TooLarge);
        assert_refused!(root.read_to_string(&at("f"), 200_000), NotUtf8);
        root.write(&at("t"), "äöü\0".as_bytes()).unwrap();
        assert_eq!(root.read_to_string(&at("t"), 7).unwrap(), "äöü\0");
        assert_eq!(root.digest_of(&at("f")).unwrap(), crate::sha256_hex(&bytes));
        assert!(root.open_file(&at("f")).unwrap().modified_at.as_millis() > 0);
    });
}

#[test]
fn a_full_disk_and_a_full_quota_are_reported_as_no_space() {
    let path = at("a");
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        let error = crate::FileError::from_io(errno.into(), "write", &path);
        assert!(
            matches!(error, crate::FileError::NoSpace { .. }),
            "{error:?}"
        );
    }
}
