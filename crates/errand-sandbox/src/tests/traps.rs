//! Traps that a command could put into its sandbox to attack the server.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use errand_core::path::SandboxPath;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use super::{
    TestSandbox, assert_refused, at, names_listed, names_on_disk, with_both_strategies,
    without_privileges,
};
use crate::{Kind, Root, SearchLimits};

fn search(root: &Root, path: &str) -> Result<crate::Found, crate::FileError> {
    root.search(&at(path), "content", &SearchLimits::default(), &|| false)
}

#[test]
fn a_link_as_the_last_name_is_not_followed() {
    with_both_strategies(|sandbox| {
        fs::write(sandbox.dir.join("inside.txt"), "inside content").unwrap();
        symlink(sandbox.outside.join("secret.txt"), sandbox.dir.join("file")).unwrap();
        symlink(&sandbox.outside, sandbox.dir.join("dir")).unwrap();
        symlink("inside.txt", sandbox.dir.join("inner")).unwrap();
        symlink("nowhere", sandbox.dir.join("dangling")).unwrap();
        symlink("loop", sandbox.dir.join("loop")).unwrap();
        symlink("/proc/self/root", sandbox.dir.join("magic")).unwrap();
        let root = &sandbox.root;
        for name in ["file", "dir", "inner", "dangling", "loop", "magic"] {
            let path = at(name);
            assert_refused!(root.open_file(&path), LinkInTheWay);
            assert_refused!(root.read(&path, 0, 100), LinkInTheWay);
            assert_refused!(root.read_to_string(&path, 100), LinkInTheWay);
            assert_refused!(root.digest_of(&path), LinkInTheWay);
            assert_refused!(root.list(&path), LinkInTheWay);
            assert_refused!(search(root, name), LinkInTheWay);
            assert_refused!(root.write(&path, b"x"), LinkInTheWay);
            assert_refused!(root.begin_upload(&path, 9), LinkInTheWay);
            assert_refused!(root.edit(&path, "content", "x", true), LinkInTheWay);
        }
        assert_eq!(names_listed(root, ""), ["inside.txt"]);
        let found = search(root, "").unwrap();
        assert_eq!(found.matches.len(), 1);
        assert_eq!(found.matches[0].path, at("inside.txt"));
        assert_eq!(root.usage().unwrap().size_bytes, 14);
        assert_eq!(
            fs::read_to_string(sandbox.dir.join("inside.txt")).unwrap(),
            "inside content"
        );
        sandbox.assert_outside_untouched();
        sandbox.assert_no_temps();
    });
}

#[test]
fn a_link_in_the_middle_is_not_followed() {
    with_both_strategies(|sandbox| {
        symlink(&sandbox.outside, sandbox.dir.join("out")).unwrap();
        symlink("..", sandbox.dir.join("up")).unwrap();
        fs::create_dir(sandbox.dir.join("real")).unwrap();
        symlink("real", sandbox.dir.join("inner")).unwrap();
        let root = &sandbox.root;
        for path in [
            "out/secret.txt",
            "up/outside/secret.txt",
            "inner/secret.txt",
            "out/new/deep.txt",
        ] {
            assert_refused!(root.read(&at(path), 0, 100), LinkInTheWay);
            assert_refused!(root.list(&at(path)), LinkInTheWay);
            assert_refused!(search(root, path), LinkInTheWay);
            assert_refused!(root.write(&at(path), b"x"), LinkInTheWay);
        }
        assert!(names_on_disk(&sandbox.dir.join("real")).is_empty());
        sandbox.assert_outside_untouched();
        sandbox.assert_no_temps();
    });
}

#[test]
fn a_link_that_appears_during_an_upload_is_refused() {
    with_both_strategies(|sandbox| {
        let mut upload = sandbox.root.begin_upload(&at("dir/file"), 99).unwrap();
        upload.write(b"x").unwrap();
        symlink(&sandbox.outside, sandbox.dir.join("dir")).unwrap();
        assert_refused!(upload.finish(), LinkInTheWay);
        let upload = sandbox.root.begin_upload(&at("file"), 99).unwrap();
        symlink(sandbox.outside.join("secret.txt"), sandbox.dir.join("file")).unwrap();
        assert_refused!(upload.finish(), LinkInTheWay);
        sandbox.assert_outside_untouched();
        sandbox.assert_no_temps();
    });
}

/// Creates a device. Returns `false` if that is not allowed, which takes root and a suitable file system.
fn make_device(at: &Path) -> bool {
    let null = rustix::fs::makedev(1, 3);
    match rustix::fs::mknodat(
        CWD,
        at,
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        null,
    ) {
        Ok(()) => true,
        Err(Errno::PERM | Errno::ACCESS) => false,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn a_pipe_a_socket_and_a_device_are_refused_and_block_nobody() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        rustix::fs::mknodat(
            CWD,
            sandbox.dir.join("pipe"),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let _socket = UnixListener::bind(sandbox.dir.join("socket")).unwrap();
        let mut names = vec!["pipe", "socket"];
        if make_device(&sandbox.dir.join("device")) {
            names.push("device");
        }
        for name in names {
            assert_refused!(root.open_file(&at(name)), NotARegularFile);
            assert_refused!(root.read(&at(name), 0, 1), NotARegularFile);
            assert_refused!(root.write(&at(name), b"x"), NotARegularFile);
            assert_refused!(root.edit(&at(name), "a", "b", false), NotARegularFile);
            assert_refused!(root.digest_of(&at(name)), NotARegularFile);
            assert_refused!(search(root, name), NotARegularFile);
            assert_refused!(root.list(&at(name)), NotADirectory);
            assert_refused!(root.write(&at(&format!("{name}/x")), b"x"), NotADirectory);
        }
        assert!(names_listed(root, "").is_empty());
        assert!(search(root, "").unwrap().matches.is_empty());
        assert_eq!(root.usage().unwrap().files, 0);
        sandbox.assert_no_temps();
        crate::remove_tree(&sandbox.dir).unwrap();
        assert!(!sandbox.dir.exists());
    });
}

#[test]
fn files_and_directories_are_not_confused() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("dir/file"), b"1").unwrap();
        for path in ["", "dir"] {
            assert_refused!(root.read(&at(path), 0, 1), IsADirectory);
            assert_refused!(root.write(&at(path), b"x"), IsADirectory);
            assert_refused!(root.begin_upload(&at(path), 1), IsADirectory);
            assert_refused!(root.edit(&at(path), "a", "b", true), IsADirectory);
        }
        for path in ["dir/file/x", "dir/file/x/y"] {
            assert_refused!(root.read(&at(path), 0, 1), NotADirectory);
            assert_refused!(root.list(&at(path)), NotADirectory);
            assert_refused!(root.write(&at(path), b"x"), NotADirectory);
        }
        assert_refused!(root.list(&at("dir/file")), NotADirectory);
        assert_refused!(root.list(&at("no")), NotFound);
        assert_refused!(root.read(&at("no/file"), 0, 1), NotFound);
        assert_eq!(names_on_disk(&sandbox.dir), ["dir"]);
        assert_eq!(names_on_disk(&sandbox.dir.join("dir")), ["file"]);
    });
}

#[test]
fn a_directory_created_during_an_upload_is_not_replaced() {
    with_both_strategies(|sandbox| {
        let upload = sandbox.root.begin_upload(&at("name"), 99).unwrap();
        fs::create_dir(sandbox.dir.join("name")).unwrap();
        assert_refused!(upload.finish(), IsADirectory);
        assert_eq!(names_on_disk(&sandbox.dir), ["name"]);
    });
}

#[test]
fn unusual_names_work() {
    with_both_strategies(|sandbox| {
        let long = "é".repeat(127) + "n";
        let names = [
            " ",
            "-rf",
            "a\nb",
            "a\\b",
            "*",
            "~",
            "..a",
            "...",
            "tab\there",
            "\u{202e}gnp.exe",
            "con",
            &long,
        ];
        for name in names {
            let path = SandboxPath::root().join(name).unwrap();
            sandbox.root.write(&path, name.as_bytes()).unwrap();
            assert_eq!(sandbox.root.read_to_string(&path, 999).unwrap(), name);
        }
        let mut expected = names.map(str::to_owned);
        expected.sort();
        let listed = sandbox.root.list(&at("")).unwrap();
        assert_eq!(
            listed
                .entries
                .iter()
                .map(|e| e.name.as_str())
                .collect::<Vec<_>>(),
            expected
        );
        for entry in listed.entries {
            let path = SandboxPath::parse(&entry.path).unwrap();
            assert_eq!(sandbox.root.read_to_string(&path, 999).unwrap(), entry.name);
            assert_eq!(
                (entry.kind, entry.size_bytes),
                (Kind::File, entry.name.len() as u64)
            );
        }
    });
}

#[test]
fn a_name_that_is_not_utf8_is_listed_and_opens_nothing() {
    with_both_strategies(|sandbox| {
        let long = [0xff; 255];
        for bytes in [&b"r\xe9sum\xe9"[..], b"\xff", &long] {
            fs::write(sandbox.dir.join(OsStr::from_bytes(bytes)), "x").unwrap();
        }
        // The printable names of the other two, already taken by a command.
        for taken in [
            "\u{fffd}FF",
            "\u{fffd}FF\u{fffd}",
            "r\u{fffd}E9sum\u{fffd}E9",
        ] {
            fs::write(sandbox.dir.join(taken), "another file").unwrap();
        }
        fs::create_dir(sandbox.dir.join(OsStr::from_bytes(b"dir\xfe"))).unwrap();
        let listed = sandbox.root.list(&at("")).unwrap().entries;
        let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
        let shown_long = "\u{fffd}FF".repeat(255);
        assert_eq!(
            names,
            [
                "dir\u{fffd}FE",
                "r\u{fffd}E9sum\u{fffd}E9",
                "r\u{fffd}E9sum\u{fffd}E9\u{fffd}",
                "\u{fffd}FF",
                "\u{fffd}FF\u{fffd}",
                &shown_long,
                "\u{fffd}FF\u{fffd}\u{fffd}",
            ]
        );
        for entry in listed
            .iter()
            .filter(|entry| entry.size_bytes == 1 || entry.kind == Kind::Dir)
        {
            if let Ok(path) = SandboxPath::parse(&entry.path) {
                assert_refused!(sandbox.root.read(&path, 0, 9), NotFound);
            } else {
                assert_eq!(entry.name, shown_long);
            }
        }
        assert_eq!(search(&sandbox.root, "").unwrap().files_skipped, 4);
        crate::remove_tree(&sandbox.dir).unwrap();
    });
}

#[test]
fn missing_permissions_are_reported() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("file"), b"x").unwrap();
        root.write(&at("dir/file"), b"x").unwrap();
        for name in ["file", "dir"] {
            fs::set_permissions(sandbox.dir.join(name), fs::Permissions::from_mode(0o000)).unwrap();
        }
        without_privileges(|| {
            assert_refused!(root.read(&at("file"), 0, 1), NoPermission);
            assert_refused!(root.list(&at("dir")), NoPermission);
            assert_refused!(root.read(&at("dir/file"), 0, 1), NoPermission);
            assert_refused!(root.write(&at("dir/file"), b"y"), NoPermission);
            assert!(!root.usage().unwrap().is_complete);
            let found = root
                .search(&at(""), "x", &SearchLimits::default(), &|| false)
                .unwrap();
            assert_eq!((found.matches.len(), found.files_skipped), (0, 2));
            // Replacing the file needs no permission on it, and the new file is readable.
            root.write(&at("file"), b"y").unwrap();
            assert_eq!(root.read(&at("file"), 0, 1).unwrap(), b"y");
        });
        sandbox.assert_outside_untouched();
    });
}

#[test]
fn a_removed_sandbox_is_empty_and_refuses_writes() {
    with_both_strategies(|sandbox: &TestSandbox| {
        let mut upload = sandbox.root.begin_upload(&at("late"), 9).unwrap();
        upload.write(b"x").unwrap();
        crate::remove_tree(&sandbox.dir).unwrap();
        assert_refused!(upload.finish(), SandboxMissing);
        assert_refused!(sandbox.root.write(&at("a/b"), b"x"), SandboxMissing);
        assert_refused!(sandbox.root.read(&at("a"), 0, 1), NotFound);
    });
}
