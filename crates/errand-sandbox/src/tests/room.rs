//! How much a sandbox may hold.

use std::fs;
use std::sync::Barrier;

use super::at;
use crate::{FileError, Fresh, RoomLimits, Rooms, Root};

const LIMITS: RoomLimits = RoomLimits {
    disk_bytes_max: 1 << 20,
    files_max: 8,
};

fn sandbox(dir: &std::path::Path) -> (Root, Rooms) {
    let (rooms, dir) = (Rooms::new(LIMITS), dir.join("sandbox"));
    let root = Root::create_fresh(&dir, &Fresh::default()).unwrap();
    (root.with_room(&rooms, &dir), rooms)
}

fn is_full(result: Result<(), FileError>) -> bool {
    matches!(result, Err(FileError::SandboxFull { disk_bytes_max, .. }) if disk_bytes_max == LIMITS.disk_bytes_max)
}

#[test]
fn writes_fill_a_sandbox_and_no_more() {
    let temp = tempfile::tempdir().unwrap();
    let (root, rooms) = sandbox(temp.path());
    let part = vec![1; 400 << 10];
    root.write(&at("a"), &part).unwrap();
    root.write(&at("b"), &part).unwrap();
    assert!(is_full(root.write(&at("c"), &part)));
    assert!(!temp.path().join("sandbox/c").exists());
    // A file that is replaced makes room only once it is replaced: both are there for a moment.
    assert!(is_full(root.write(&at("a"), &part)));
    root.write(&at("a"), b"small").unwrap();
    root.write(&at("c"), &part).unwrap();
    // Another root of the same sandbox has the same room.
    let dir = temp.path().join("sandbox");
    let again = Root::open(&dir).unwrap().with_room(&rooms, &dir);
    assert!(is_full(again.write(&at("d"), &part)));
    // What something else removed is found once it is said.
    fs::remove_file(dir.join("b")).unwrap();
    assert!(is_full(root.write(&at("d"), &part)));
    root.has_changed();
    again.write(&at("d"), &part).unwrap();
}

#[test]
fn an_upload_that_is_dropped_gives_its_room_back() {
    let temp = tempfile::tempdir().unwrap();
    let (root, _) = sandbox(temp.path());
    let part = vec![1; 900 << 10];
    let mut upload = root.begin_upload(&at("a"), u64::MAX).unwrap();
    upload.write(&part).unwrap();
    assert!(is_full(root.write(&at("b"), &part)));
    drop(upload);
    root.write(&at("b"), &part).unwrap();
}

#[test]
fn files_and_directories_are_counted() {
    let temp = tempfile::tempdir().unwrap();
    let (root, _) = sandbox(temp.path());
    root.write(&at("a/b/c/d/e/one"), b"").unwrap();
    root.write(&at("two"), b"").unwrap();
    root.write(&at("three"), b"").unwrap();
    assert!(is_full(root.write(&at("four"), b"")));
    root.write(&at("three"), b"again").unwrap();
}

#[test]
fn many_writes_at_once_do_not_exceed_the_room() {
    let temp = tempfile::tempdir().unwrap();
    let (root, _) = sandbox(temp.path());
    root.has_changed();
    let (part, together) = (vec![1; 200 << 10], Barrier::new(8));
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let (root, part, together) = (&root, &part, &together);
            scope.spawn(move || {
                together.wait();
                let _ = root.write(&at(name), part);
            });
        }
    });
    assert!(root.usage().unwrap().disk_bytes <= LIMITS.disk_bytes_max);
    assert!(root.usage().unwrap().files >= 4);
}
