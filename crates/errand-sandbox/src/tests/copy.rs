use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::{Copied, CopyError, CopyLimits};

const MUCH: CopyLimits = CopyLimits {
    bytes_max: 1_000_000,
    names_max: 1_000,
};

struct Two {
    dir: tempfile::TempDir,
    from: Root,
    to: Root,
}

impl Two {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = Root::create(&dir.path().join("from")).unwrap();
        let to = Root::create(&dir.path().join("to")).unwrap();
        Self { dir, from, to }
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join("from").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn copied(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("to").join(path)
    }
}

#[test]
fn files_and_directories_are_copied_with_their_modes() {
    let two = Two::new();
    two.put("a.txt", "one");
    two.put("deep/er/b.sh", "two!");
    fs::create_dir(two.dir.path().join("from/empty")).unwrap();
    let script = two.dir.path().join("from/deep/er/b.sh");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
    let copied = two.from.copy_into(&two.to, MUCH).unwrap();
    assert_eq!(copied, Copied { files: 2, bytes: 7 });
    assert_eq!(fs::read_to_string(two.copied("a.txt")).unwrap(), "one");
    let script = fs::metadata(two.copied("deep/er/b.sh")).unwrap();
    assert_eq!(
        script.permissions().mode() & 0o100,
        0o100,
        "it can still be run"
    );
    assert!(two.copied("empty").is_dir());
    // The copy is independent of the original.
    fs::write(two.copied("a.txt"), "changed").unwrap();
    assert_eq!(
        fs::read_to_string(two.dir.path().join("from/a.txt")).unwrap(),
        "one"
    );
}

#[test]
fn links_pipes_and_the_outside_are_not_copied() {
    let two = Two::new();
    two.put("a.txt", "one");
    let outside = two.dir.path().join("secret");
    fs::write(&outside, "secret").unwrap();
    symlink(&outside, two.dir.path().join("from/link")).unwrap();
    symlink(two.dir.path(), two.dir.path().join("from/up")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        two.dir.path().join("from/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    two.put(&format!("{}x", crate::TEMP_PREFIX), "unfinished");
    let copied = two.from.copy_into(&two.to, MUCH).unwrap();
    assert_eq!(copied.files, 1);
    let names: Vec<_> = fs::read_dir(two.copied(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["a.txt"]);
}

#[test]
fn a_copy_above_the_limits_is_refused() {
    let over = |limits: CopyLimits, fill: &dyn Fn(&Two)| {
        let two = Two::new();
        fill(&two);
        matches!(two.from.copy_into(&two.to, limits), Err(CopyError::TooMuch(of)) if of == limits)
    };
    let some = |two: &Two| {
        two.put("a", "12345");
        two.put("b", "12345");
    };
    let bytes = |bytes_max| CopyLimits { bytes_max, ..MUCH };
    let names = |names_max| CopyLimits { names_max, ..MUCH };
    assert!(over(bytes(9), &some) && !over(bytes(10), &some));
    assert!(over(names(1), &some) && !over(names(2), &some));
    let deep = |levels: usize| move |two: &Two| two.put(&format!("{}f", "d/".repeat(levels)), "x");
    assert!(!over(MUCH, &deep(99)) && over(MUCH, &deep(120)));
}
