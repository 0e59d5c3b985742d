use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn items_stay_for_a_day_after_the_time_in_their_name() {
    let data = tempfile::tempdir().unwrap();
    let trash = Trash::beneath(data.path());
    let moment = at("2026-11-23T09:30:00.000Z");
    let sandbox = data.path().join("sb_1");
    fs::create_dir_all(sandbox.join("deep/er")).unwrap();
    fs::write(data.path().join("file"), "x").unwrap();
    assert!(trash.take(&sandbox, moment).unwrap().is_some());
    assert!(trash.take(&sandbox, moment).unwrap().is_none());
    trash.take(&data.path().join("file"), moment).unwrap();
    // Two items with the same name at the same time do not replace each other.
    fs::write(data.path().join("file"), "y").unwrap();
    trash.take(&data.path().join("file"), moment).unwrap();
    let expected = [
        "2026-11-23T09:30:00.000Z-file",
        "2026-11-23T09:30:00.000Z-file.1",
        "2026-11-23T09:30:00.000Z-sb_1",
    ];
    assert_eq!(names(trash.dir()), expected);
    assert_eq!(names(data.path()), ["trash"]);

    let emptied = trash.empty(moment.plus_ms(TRASH_MS - 1), || false).unwrap();
    assert_eq!((emptied.removed, names(trash.dir()).len()), (0, 3));
    let emptied = trash.empty(moment.plus_ms(TRASH_MS), || true).unwrap();
    assert_eq!(emptied.removed, 0, "it was told to stop");
    let emptied = trash.empty(moment.plus_ms(TRASH_MS), || false).unwrap();
    assert_eq!((emptied.removed, names(trash.dir()).len()), (3, 0));
    assert!(emptied.failed.is_none());
}

#[test]
fn an_item_without_a_past_time_gets_a_day_from_now() {
    let data = tempfile::tempdir().unwrap();
    let trash = Trash::beneath(data.path());
    let now = at("2026-11-23T09:30:00.000Z");
    fs::create_dir_all(trash.dir().join("sb_of_an_older_program")).unwrap();
    fs::create_dir_all(trash.dir().join("2040-01-01T00:00:00.000Z-sb_2")).unwrap();
    fs::create_dir_all(trash.dir().join("2026-11-20T00:00:00.000Z")).unwrap();
    assert_eq!(trash.empty(now, || false).unwrap().removed, 0);
    let expected = [
        "2026-11-23T09:30:00.000Z-2026-11-20T00:00:00.000Z",
        "2026-11-23T09:30:00.000Z-sb_2",
        "2026-11-23T09:30:00.000Z-sb_of_an_older_program",
    ];
    assert_eq!(names(trash.dir()), expected);
    assert_eq!(
        trash
            .empty(now.plus_ms(TRASH_MS), || false)
            .unwrap()
            .removed,
        3
    );
}

#[test]
fn an_interrupted_removal_is_completed() {
    let data = tempfile::tempdir().unwrap();
    let trash = Trash::beneath(data.path());
    let now = at("2026-11-23T09:30:00.000Z");
    assert_eq!(
        trash.empty(now, || false).unwrap().removed,
        0,
        "no trash yet"
    );
    // The state in which the remover leaves a tree when it is interrupted.
    let half = trash.dir().join("2026-11-21T09:30:00.000Z-sb_3");
    fs::create_dir_all(half.join(".errand-removed-0")).unwrap();
    fs::write(half.join(".errand-removed-0/file"), "x").unwrap();
    assert_eq!(trash.empty(now, || false).unwrap().removed, 1);
    assert!(names(trash.dir()).is_empty());
}
