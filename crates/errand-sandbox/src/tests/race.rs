//! A directory is replaced by a link to the outside and back, as fast as a command can do it.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags};

use super::{SECRET, TestSandbox, at, with_both_strategies};
use crate::{FileError, SearchLimits};

/// Minimum rounds, and maximum rounds to wait until both states were seen.
const ROUNDS_MIN: u32 = 4_000;
const ROUNDS_MAX: u32 = 2_000_000;
/// Writes sync the disk, so they happen only in some rounds.
const WRITE_EVERY: u32 = 40;

#[test]
fn a_link_swapped_in_is_never_followed() {
    with_both_strategies(|sandbox| {
        fs::create_dir(sandbox.dir.join("dir")).unwrap();
        fs::write(sandbox.dir.join("dir/secret.txt"), "inside").unwrap();
        symlink(&sandbox.outside, sandbox.dir.join("link")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (dir, link) = (sandbox.dir.join("dir"), sandbox.dir.join("link"));
                while !done.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE)
                        .unwrap();
                }
            });
            let stop = Stop(&done);
            let (mut inside, mut refused) = (0, 0);
            for round in 0..ROUNDS_MAX {
                if round >= ROUNDS_MIN && inside > 0 && refused > 0 {
                    break;
                }
                match attempt(sandbox, round) {
                    Ok(()) => inside += 1,
                    Err(FileError::LinkInTheWay { .. }) => refused += 1,
                    // The walk looks a second time to report the right error. A swap in between changes the error.
                    Err(FileError::NotADirectory { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            drop(stop);
            assert!(
                inside > 0 && refused > 0,
                "inside {inside} times, refused {refused} times"
            );
        });
        sandbox.assert_outside_untouched();
    });
}

/// Runs one operation, a different one in each round, and asserts that it saw the inside.
fn attempt(sandbox: &TestSandbox, round: u32) -> Result<(), FileError> {
    let root = &sandbox.root;
    let file = at("dir/secret.txt");
    if round.is_multiple_of(WRITE_EVERY) {
        return root.write(&at(&format!("dir/new-{round}/file.txt")), b"new");
    }
    if round % WRITE_EVERY == 1 {
        return root.write(&file, b"inside");
    }
    match round % 5 {
        0 => assert_eq!(root.read_to_string(&file, 99)?, "inside"),
        1 => assert_eq!(root.open_file(&file)?.size_bytes, 6),
        2 => assert!(
            root.list(&at("dir"))?
                .entries
                .iter()
                .all(|entry| entry.size_bytes != SECRET.len() as u64)
        ),
        3 => assert_eq!(root.digest_of(&file)?, crate::sha256_hex(b"inside")),
        _ => {
            let found = root.search(&at("dir"), "outside", &SearchLimits::default(), &|| false)?;
            assert_eq!(found.matches, []);
        }
    }
    Ok(())
}

/// Ends the swapping thread even if an assertion fails, so that the test ends too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
