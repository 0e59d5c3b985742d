//! Checks for other programs that have the database open: one that holds the write lock blocks every write, and one
//! that reads prevents the log from being truncated.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use errand_store::Store;

use super::Check;

const CHECK: &str = "other programs";
/// The byte of SQLite's shared memory that a writer locks, and the bytes of readers.
const WRITER: u64 = 120;
const READERS: std::ops::RangeInclusive<u64> = 123..=127;

/// How another program uses the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Does {
    Reads,
    Writes,
}

pub(super) async fn foreign(store: &Store) -> Check {
    let dir = store.dir().to_owned();
    let found = tokio::task::spawn_blocking(move || look(&dir)).await;
    judge(&found.unwrap_or_default())
}

fn look(dir: &Path) -> BTreeMap<u32, Does> {
    let (Ok(shared), Ok(locks)) = (
        fs::metadata(dir.join("errand.db-shm")),
        fs::read_to_string("/proc/locks"),
    ) else {
        return BTreeMap::new();
    };
    of_others(&locks, shared.ino(), std::process::id())
}

/// Programs with locks on the file with this inode, according to `/proc/locks`, in lines such as
/// `1: POSIX  ADVISORY  WRITE 1234 08:01:123456 120 120`.
fn of_others(locks: &str, inode: u64, own: u32) -> BTreeMap<u32, Does> {
    let mut found = BTreeMap::new();
    for line in locks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., kind, pid, file, from, _] = words.as_slice() else {
            continue;
        };
        let is_ours = file.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode);
        let (Ok(pid), Ok(from)) = (pid.parse::<u32>(), from.parse::<u64>()) else {
            continue;
        };
        if !is_ours || pid == own {
            continue;
        }
        let does = match from {
            WRITER if *kind == "WRITE" => Does::Writes,
            from if READERS.contains(&from) => Does::Reads,
            _ => continue,
        };
        let known = found.entry(pid).or_insert(does);
        *known = does.max(*known);
    }
    found
}

fn judge(found: &BTreeMap<u32, Does>) -> Check {
    let named = |wanted: Does| {
        let names = found
            .iter()
            .filter(|(_, does)| **does == wanted)
            .map(|(pid, _)| named(*pid));
        names.collect::<Vec<_>>().join(", ")
    };
    let (writers, readers) = (named(Does::Writes), named(Does::Reads));
    if !writers.is_empty() {
        return Check::problem(
            CHECK,
            format!(
                "{writers} holds the write lock of errand.db: every write waits for it and then fails"
            ),
            "end that program; only errand may write to its database",
        );
    }
    if !readers.is_empty() {
        return Check::warning(
            CHECK,
            format!("{readers} reads errand.db, so its log cannot be truncated and grows"),
            "end that program if it stays; use a backup to copy the database",
        );
    }
    Check::ok(CHECK, "no other program has the database locked")
}

fn named(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {pid}"),
        name => format!("{name} (process {pid})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    const LOCKS: &str = "1: POSIX  ADVISORY  WRITE 77 08:01:4242 120 120\n\
         2: POSIX  ADVISORY  READ  78 08:01:4242 124 124\n\
         3: POSIX  ADVISORY  READ  79 08:01:4242 128 128\n\
         4: POSIX  ADVISORY  WRITE 80 08:01:9999 120 120\n\
         5: POSIX  ADVISORY  WRITE 81 08:01:4242 120 120\n\
         5: -> POSIX  ADVISORY  WRITE 82 08:01:4242 120 120\n\
         6: FLOCK  ADVISORY  WRITE 83 08:01:4243 0 EOF\n";

    #[test]
    fn writers_and_readers_are_distinguished() {
        let found = of_others(LOCKS, 4242, 81);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [(77, Does::Writes), (78, Does::Reads), (82, Does::Writes)]
        );
        assert!(of_others("nonsense\n\n1: 2", 4242, 1).is_empty());
    }

    #[test]
    fn a_foreign_writer_is_a_problem_and_a_reader_a_warning() {
        let of = |pairs: &[(u32, Does)]| judge(&pairs.iter().copied().collect()).level;
        assert_eq!(of(&[]), Level::Ok);
        assert_eq!(of(&[(u32::MAX, Does::Reads)]), Level::Warning);
        assert_eq!(
            of(&[(u32::MAX, Does::Reads), (u32::MAX - 1, Does::Writes)]),
            Level::Problem
        );
    }
}
