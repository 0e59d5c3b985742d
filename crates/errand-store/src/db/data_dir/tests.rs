use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn nothing_is_made_beside_what_another_store_left() {
    for name in REMAINS {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), "x").unwrap();
        let refused = prepare(dir.path(), Making::BY_ITSELF, None, false);
        let message = refused.err().unwrap().to_string();
        assert!(
            message.contains(name) && message.contains("--new"),
            "{message}"
        );
        assert_eq!(names(dir.path()), [name], "nothing was created");
        assert!(matches!(
            expect_store(dir.path()),
            Err(DataDirError::NoDatabase { .. })
        ));
    }
}

#[test]
fn an_empty_database_is_refused_unless_one_was_being_made() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), "").unwrap();
    let refused = prepare(dir.path(), Making::BY_ITSELF, None, false);
    assert!(refused.err().unwrap().to_string().contains("0 bytes"));
    // An interrupted start leaves the mark.
    begin(dir.path()).unwrap();
    prepare(dir.path(), Making::BY_ITSELF, None, false)
        .ok()
        .unwrap();
    made(dir.path()).unwrap();
    assert_eq!(names(dir.path()), [FILE, MASTER_KEY_FILE]);
}

#[test]
fn a_new_store_beside_remains_keeps_them_but_takes_no_log() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("sandboxes/sb_1")).unwrap();
    fs::write(dir.path().join("errand.db-wal"), "frames").unwrap();
    fs::write(dir.path().join(FILE), "").unwrap();
    let anew = Making {
        allowed: true,
        beside_remains: true,
    };
    prepare(dir.path(), anew, None, false).ok().unwrap();
    assert!(dir.path().join("sandboxes/sb_1").exists());
    let kept = fs::read(dir.path().join("errand.db-wal.old0")).unwrap();
    assert_eq!(kept, b"frames");
    assert!(!dir.path().join("errand.db-wal").exists());
}

#[test]
fn where_there_is_no_store_only_who_may_makes_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        prepare(dir.path(), Making::default(), None, false),
        Err(DataDirError::NoStore(_))
    ));
    assert!(matches!(
        expect_store(&dir.path().join("not/there")),
        Err(DataDirError::NoStore(_))
    ));
    assert!(names(dir.path()).is_empty());
}

/// A database of SQLite that has never held anything, or holds nothing any more.
fn empty_database(dir: &Path) {
    let conn = rusqlite::Connection::open(dir.join(FILE)).unwrap();
    conn.execute_batch("CREATE TABLE t (x); DROP TABLE t; VACUUM")
        .unwrap();
}

#[test]
fn a_database_without_tables_is_not_taken_for_a_new_store() {
    for name in ["", MASTER_KEY_FILE, "sandboxes"] {
        let dir = tempfile::tempdir().unwrap();
        if !name.is_empty() {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        empty_database(dir.path());
        let refused = prepare(dir.path(), Making::BY_ITSELF, None, false);
        let message = refused.err().unwrap().to_string();
        for word in [name, "tables", "backup", "--new"] {
            assert!(message.contains(word), "{word}: {message}");
        }
        assert!(expect_store(dir.path()).is_err());
        assert!(!dir.path().join(MAKING).exists(), "nothing was begun");
        let anew = Making {
            allowed: true,
            beside_remains: true,
        };
        let _ = fs::remove_file(dir.path().join(MASTER_KEY_FILE));
        prepare(dir.path(), anew, None, false).ok().unwrap();
        assert!(dir.path().join("errand.db.old0").exists());
        assert!(!dir.path().join(FILE).exists());
    }
}

#[test]
fn a_database_without_tables_continues_if_it_was_being_made() {
    let dir = tempfile::tempdir().unwrap();
    begin(dir.path()).unwrap();
    empty_database(dir.path());
    prepare(dir.path(), Making::BY_ITSELF, None, false)
        .ok()
        .unwrap();
    expect_store(dir.path()).unwrap();
}
