//! Limits on the size of a sandbox.

use std::fs;
use std::sync::Barrier;

use errand_core::id::IdGen;
use errand_core::time::Timestamp;

use super::at;
use crate::{Charged, CopyError, CopyLimits, FileError, Fresh, RoomLimits, Rooms, Root};

const LIMITS: RoomLimits = RoomLimits {
    disk_bytes_max: 1 << 20,
    files_max: 8,
    team_disk_bytes_max: 0,
};

/// A sandbox of this team, with nothing on record.
fn charged(team: u8) -> Charged {
    Charged {
        team: IdGen::new([team; 32]).team(Timestamp::from_millis(0)),
        bytes: 0,
    }
}

fn sandbox(dir: &std::path::Path) -> (Root, Rooms) {
    let (rooms, dir) = (Rooms::new(LIMITS), dir.join("sandbox"));
    let root = Root::create_fresh(&dir, &Fresh::default()).unwrap();
    (root.with_room(&rooms, &dir, charged(1)), rooms)
}

fn is_full(result: Result<(), FileError>) -> bool {
    matches!(result, Err(FileError::SandboxFull { disk_bytes_max, .. }) if disk_bytes_max == LIMITS.disk_bytes_max)
}

#[test]
fn a_sandbox_cannot_be_filled_beyond_its_limit() {
    let temp = tempfile::tempdir().unwrap();
    let (root, rooms) = sandbox(temp.path());
    let part = vec![1; 400 << 10];
    root.write(&at("a"), &part).unwrap();
    root.write(&at("b"), &part).unwrap();
    assert!(is_full(root.write(&at("c"), &part)));
    assert!(!temp.path().join("sandbox/c").exists());
    // Replacing a file frees space only afterwards: both versions exist for a moment.
    assert!(is_full(root.write(&at("a"), &part)));
    root.write(&at("a"), b"small").unwrap();
    root.write(&at("c"), &part).unwrap();
    // Another root of the same sandbox shares the limit.
    let dir = temp.path().join("sandbox");
    let again = Root::open(&dir)
        .unwrap()
        .with_room(&rooms, &dir, charged(1));
    assert!(is_full(again.write(&at("d"), &part)));
    // Space freed by something else counts only after `has_changed`.
    fs::remove_file(dir.join("b")).unwrap();
    assert!(is_full(root.write(&at("d"), &part)));
    root.has_changed();
    again.write(&at("d"), &part).unwrap();
}

#[test]
fn a_dropped_upload_returns_its_reserved_space() {
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
fn files_and_directories_count_toward_the_limit() {
    let temp = tempfile::tempdir().unwrap();
    let (root, _) = sandbox(temp.path());
    root.write(&at("a/b/c/d/e/one"), b"").unwrap();
    root.write(&at("two"), b"").unwrap();
    root.write(&at("three"), b"").unwrap();
    assert!(is_full(root.write(&at("four"), b"")));
    root.write(&at("three"), b"again").unwrap();
}

#[test]
fn concurrent_writes_do_not_exceed_the_limit() {
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

/// Limits each team to 1 MiB, and each of its sandboxes, too.
fn teams() -> Rooms {
    Rooms::new(RoomLimits {
        team_disk_bytes_max: 1 << 20,
        ..LIMITS
    })
}

fn of_team(rooms: &Rooms, dir: &std::path::Path, name: &str, charged: Charged) -> Root {
    let dir = dir.join(name);
    let root = Root::create_fresh(&dir, &Fresh::default()).unwrap();
    root.with_room(rooms, &dir, charged)
}

fn is_team_full(result: Result<(), FileError>) -> bool {
    matches!(result, Err(FileError::TeamFull { disk_bytes_max, .. }) if disk_bytes_max == 1 << 20)
}

#[test]
fn a_teams_sandboxes_share_its_room_and_no_other_teams() {
    let temp = tempfile::tempdir().unwrap();
    let (rooms, part) = (teams(), vec![1; 400 << 10]);
    let sandbox = |name: &str, team: u8| of_team(&rooms, temp.path(), name, charged(team));
    let (first, second, other) = (sandbox("a", 1), sandbox("b", 1), sandbox("c", 2));
    first.write(&at("x"), &part).unwrap();
    second.write(&at("new/x"), &part).unwrap();
    assert!(is_team_full(first.write(&at("y"), &part)));
    assert!(is_team_full(second.write(&at("y"), &part)));
    other.write(&at("x"), &part).unwrap();
    let held = rooms.team_bytes(charged(1).team);
    let measured = first.usage().unwrap().disk_bytes + second.usage().unwrap().disk_bytes;
    assert_eq!(held, measured);

    // What is deleted makes room for the others, and what is still written there counts no more.
    let mut late = first.begin_upload(&at("late"), u64::MAX).unwrap();
    late.write(b"late").unwrap();
    rooms.forget(&temp.path().join("a"), None);
    late.finish().unwrap();
    second.write(&at("y"), &part).unwrap();
    assert_eq!(
        rooms.team_bytes(charged(1).team),
        second.usage().unwrap().disk_bytes
    );
}

#[test]
fn records_of_an_earlier_start_count_until_they_are_corrected() {
    let temp = tempfile::tempdir().unwrap();
    let (rooms, part) = (teams(), vec![1; 400 << 10]);
    let team = charged(1).team;
    let dir = temp.path().join("old");
    let recorded = Charged {
        team,
        bytes: 900 << 10,
    };
    let root = Root::create(&dir).unwrap();
    root.write(&at("x"), &part).unwrap();
    rooms.begin_with([(team, recorded.bytes)]);
    // The record says more than there is: what is not looked at yet is not given to others.
    let other = of_team(&rooms, temp.path(), "new", charged(1));
    assert!(is_team_full(other.write(&at("x"), &part)));
    assert_eq!(rooms.measure(&dir, recorded).unwrap(), 1);
    let held = root.usage().unwrap().disk_bytes;
    assert_eq!(rooms.team_bytes(team), held);
    assert_eq!(rooms.unrecorded(0), [(dir.clone(), held)]);
    other.write(&at("x"), &part).unwrap();
    rooms.has_recorded(&dir, held);
    assert_eq!(rooms.unrecorded_of(&dir), Some((0, held)));

    // One whose directory is gone holds nothing; one that was not used is freed by its record.
    let gone = temp.path().join("gone");
    let recorded = Charged { team, bytes: 5 };
    assert_eq!(rooms.measure(&gone, recorded).unwrap(), 0);
    let before = rooms.team_bytes(team);
    rooms.forget(&temp.path().join("unused"), Some(recorded));
    assert_eq!(rooms.team_bytes(team), before - 5);
}

#[test]
fn what_a_command_left_is_measured_when_it_is_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let rooms = teams();
    let root = of_team(&rooms, temp.path(), "a", charged(1));
    let dir = temp.path().join("a");
    root.write(&at("x"), b"small").unwrap();
    assert_eq!(rooms.unmeasured(9), Vec::<std::path::PathBuf>::new());
    fs::write(dir.join("large"), vec![1; 2 << 20]).unwrap();
    root.has_changed();
    assert_eq!(rooms.unmeasured(9), std::slice::from_ref(&dir));
    assert_eq!(rooms.measure_known(&dir).unwrap(), Some(2));
    assert_eq!(rooms.unmeasured(9), Vec::<std::path::PathBuf>::new());
    let other = of_team(&rooms, temp.path(), "b", charged(1));
    assert!(is_team_full(other.write(&at("x"), b"small")));
    assert_eq!(rooms.measure_known(&temp.path().join("c")).unwrap(), None);
}

#[test]
fn a_copy_takes_room_of_its_team() {
    let temp = tempfile::tempdir().unwrap();
    let rooms = teams();
    let from = of_team(&rooms, temp.path(), "from", charged(1));
    from.write(&at("d/x"), &vec![1; 300 << 10]).unwrap();
    from.measure().unwrap();
    let limits = CopyLimits {
        bytes_max: 1 << 30,
        names_max: 100,
    };
    let copy = |name: &str| from.copy_into(&of_team(&rooms, temp.path(), name, charged(1)), limits);
    copy("one").unwrap();
    copy("two").unwrap();
    let held = rooms.team_bytes(charged(1).team);
    assert_eq!(held, 3 * from.usage().unwrap().disk_bytes);
    let refused = copy("three").unwrap_err();
    assert!(
        matches!(refused, CopyError::File(FileError::TeamFull { .. })),
        "{refused}"
    );
    // The caller removes the remains.
    rooms.forget(&temp.path().join("three"), None);
    assert_eq!(rooms.team_bytes(charged(1).team), held);
}

#[test]
fn writes_at_once_in_many_sandboxes_do_not_exceed_the_quota() {
    let temp = tempfile::tempdir().unwrap();
    let (rooms, part, together) = (teams(), vec![1; 200 << 10], Barrier::new(8));
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let (rooms, part, together, temp) = (&rooms, &part, &together, temp.path());
            scope.spawn(move || {
                let root = of_team(rooms, temp, name, charged(1));
                together.wait();
                let _ = root.write(&at("x"), part);
            });
        }
    });
    let held = rooms.team_bytes(charged(1).team);
    assert!((4 * (200 << 10)..=1 << 20).contains(&held), "{held}");
}
