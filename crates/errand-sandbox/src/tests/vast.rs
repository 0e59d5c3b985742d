//! Very large files, sparse or not, must cost neither memory nor much time.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::{assert_refused, at, names_listed, with_both_strategies};
use crate::SearchLimits;

/// Size of the sparse file: one tebibyte.
const VAST: u64 = 1 << 40;

fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn a_sparse_file_costs_no_memory() {
    with_both_strategies(|sandbox| {
        let file = fs::File::create(sandbox.dir.join("vast")).unwrap();
        file.set_len(VAST).unwrap();
        let root = &sandbox.root;
        let before = peak_memory_kib();
        assert_refused!(root.read_to_string(&at("vast"), 1 << 20), TooLarge);
        assert_refused!(root.edit(&at("vast"), "a", "b", true), TooLarge);
        assert_refused!(root.digest_of(&at("vast")), TooLarge);
        assert_eq!(root.read(&at("vast"), VAST - 3, 1 << 20).unwrap(), [0; 3]);
        assert_eq!(root.read(&at("vast"), 0, 1000).unwrap(), [0; 1000]);
        let found = root
            .search(&at(""), "x", &SearchLimits::default(), &|| false)
            .unwrap();
        assert_eq!((found.matches.len(), found.files_skipped), (0, 1));
        let listed = root.list(&at("")).unwrap().entries;
        assert_eq!(listed[0].size_bytes, VAST);
        assert_eq!(root.usage().unwrap().disk_bytes, 0);
        // Other tests run at the same time, so this is generous. Reading the file would use thousands of times as
        // much.
        assert!(
            peak_memory_kib() - before < (1 << 20),
            "{before} KiB before"
        );
        root.write(&at("vast"), b"small").unwrap();
        assert_eq!(fs::metadata(sandbox.dir.join("vast")).unwrap().len(), 5);
    });
}

#[test]
fn set_user_id_and_hard_links_are_dropped_on_replace() {
    with_both_strategies(|sandbox| {
        let path = sandbox.dir.join("program");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
        fs::hard_link(&path, sandbox.dir.join("other")).unwrap();
        sandbox.root.write(&at("program"), b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(
            fs::read_to_string(sandbox.dir.join("other")).unwrap(),
            "old"
        );
        assert_eq!(names_listed(&sandbox.root, ""), ["other", "program"]);
        // A hard link to a file outside, made by somebody with access to both: writing replaces the link and leaves
        // the outside file unchanged.
        fs::hard_link(
            sandbox.outside.join("secret.txt"),
            sandbox.dir.join("linked"),
        )
        .unwrap();
        sandbox.root.write(&at("linked"), b"mine").unwrap();
        sandbox.assert_outside_untouched();
    });
}
