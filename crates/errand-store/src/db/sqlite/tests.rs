use errand_core::id::{IdGen, RunId};
use errand_core::time::Timestamp;
use rusqlite::params;
use uuid::Uuid;

use super::*;
use crate::webhooks::deliveries::DeliveryTurns;

fn options(dir: &Path) -> OpenOptions {
    let boot = IdGen::new([1; 32]).boot(Timestamp::from_millis(1));
    OpenOptions {
        dir: dir.to_owned(),
        boot,
        respond_base: "http://localhost".to_owned(),
        master_key: MasterKey::from_bytes([1; 32]),
        readers: 2,
        cache_kib: 2048,
    }
}

fn open(dir: &Path) -> Store {
    Store::open(options(dir)).unwrap()
}

async fn count(store: &Store) -> i64 {
    store
        .read(|conn| Ok(conn.query_row("SELECT count(*) FROM set_up_links", [], |row| row.get(0))?))
        .await
        .unwrap()
}

fn insert(tx: &Tx<'_>, n: u8) -> Result<()> {
    tx.execute(
        "INSERT INTO users (id, created_at) VALUES (?1, 0) ON CONFLICT DO NOTHING",
        params![vec![0_u8; 16]],
    )?;
    tx.execute("INSERT INTO set_up_links (token_hash, user_id, created_at, expires_at) VALUES (?1, ?2, 0, 0)", params![vec![n], vec![0_u8; 16]])?;
    Ok(())
}

#[tokio::test]
async fn those_that_wait_together_are_each_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // The jobs are handed over before the writer's thread can have taken the first ones: some share a transaction.
    let writes = (0..200_u8).map(|n| {
        let store = store.clone();
        async move {
            store
                .write(move |tx| {
                    insert(tx, n)?;
                    match n % 4 {
                        // Fails after it has written.
                        1 => Err(StoreError::Corrupt {
                            table: "t",
                            column: "c",
                            message: String::new(),
                        }),
                        // A refusal that has written, against the rule: it is taken back all the same.
                        2 => Err(StoreError::Refused("no".to_owned())),
                        _ => Ok(n),
                    }
                })
                .await
        }
    });
    let mut set = tokio::task::JoinSet::new();
    writes.for_each(|write| {
        set.spawn(write);
    });
    let mut done = 0;
    while let Some(result) = set.join_next().await {
        done += i64::from(result.unwrap().is_ok());
    }
    assert_eq!(done, 100);
    assert_eq!(
        count(&store).await,
        100,
        "what was refused or failed left nothing, what was answered is there"
    );
}

#[tokio::test]
async fn a_statement_that_fails_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (good, bad) = tokio::join!(
        store.write(|tx| insert(tx, 1)),
        store.write(|tx| Ok(tx.execute("INSERT INTO api_keys (id) VALUES (x'00')", [])?)),
    );
    good.unwrap();
    assert!(matches!(bad, Err(StoreError::Sql(_))), "{bad:?}");
    assert_eq!(count(&store).await, 1);
}

#[tokio::test]
async fn a_second_server_on_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(
        Store::open(options(dir.path())),
        Err(OpenError::InUse(_))
    ));
    drop(store);
    open(dir.path());
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store
        .write(|tx| {
            tx.execute("INSERT INTO refinery_schema_history (version, name, applied_on, checksum) VALUES (999, 'later', '', '0')", [])?;
            Ok(())
        })
        .await
        .unwrap();
    drop(store);
    match Store::open(options(dir.path())) {
        Err(error @ OpenError::Newer { found: 999, .. }) => {
            assert!(error.to_string().contains("newer errand"), "{error}")
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a newer schema was opened"),
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_and_settings_hold() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write(|tx| insert(tx, 9)).await.unwrap();
    let pragma = |name: &'static str| {
        let store = store.clone();
        async move {
            store
                .write(move |tx| {
                    Ok(tx.query_row(&format!("PRAGMA {name}"), [], |row| {
                        row.get::<_, rusqlite::types::Value>(0)
                    })?)
                })
                .await
                .unwrap()
        }
    };
    use rusqlite::types::Value;
    assert_eq!(pragma("journal_mode").await, Value::Text("wal".to_owned()));
    assert_eq!(pragma("synchronous").await, Value::Integer(2), "FULL");
    assert_eq!(pragma("foreign_keys").await, Value::Integer(1));
    drop(store);
    assert_eq!(count(&open(dir.path())).await, 1);
}

#[tokio::test]
async fn an_ended_run_and_a_transcript_are_guarded_by_the_database_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let triggers: i64 = store
        .read(|conn| {
            Ok(conn.query_row(
                "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name IN ('runs_ended_is_final', 'messages_are_final')",
                [],
                |row| row.get(0),
            )?)
        })
        .await
        .unwrap();
    assert_eq!(triggers, 2);
}

#[tokio::test]
async fn nobody_else_reads_the_files_whoever_made_the_directory() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let store = open(dir.path());
    store.write(|tx| insert(tx, 1)).await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
}

/// Content of a store of an older schema: a run that ended, with a delivery that failed once and one that arrived.
const OLD: &str = "
    INSERT INTO teams (id, name, created_at, webhook_secret) VALUES (zeroblob(16), 't', 1, x'00');
    INSERT INTO users (id, created_at) VALUES (zeroblob(16), 1);
    INSERT INTO agents (id, team_id, name, created_at, updated_at) VALUES (zeroblob(16), zeroblob(16), 'a', 1, 1);
    INSERT INTO builds (id, team_id, agent_id, number, name, config, created_at)
        VALUES (zeroblob(16), zeroblob(16), zeroblob(16), 1, 'b', '{}', 1);
    INSERT INTO runs (id, team_id, agent_id, build_id, status, title, sandbox_ttl_ms, people, created_at, updated_at, started_at, completed_at,
            position, shown, sequence, newest_user, turn, step, seconds_limit_ms, worked_ms, steps, model_calls, tool_calls, input_tokens,
            cached_tokens, output_tokens, cost_usd)
        VALUES (zeroblob(16), zeroblob(16), zeroblob(16), zeroblob(16), 'completed', 'Pay', 1, 1, 1, 1, 1, 86400005, 0, 0, 2, 0, 0, 0, 1, 1,
            1, 1, 1, 1, 1, 1, 0.5);
    INSERT INTO deliveries (number, id, run_id, team_id, event, sequence, url, body, created_at, state, attempts, due_at) VALUES
        (3, x'00000000000000000000000000000003', zeroblob(16), zeroblob(16), 'human_request', 1, 'http://x/', x'7b7d', 1700000000000, 'delivered', 2, NULL),
        (7, x'00000000000000000000000000000007', zeroblob(16), zeroblob(16), 'run_completed', 2, 'http://x/', x'7b7d', 1700000000001, 'pending', 1, 9);
    INSERT INTO delivery_attempts (delivery, attempt, at, duration_ms, status, error) VALUES
        (3, 1, 5, 6, 500, 'no 2xx'), (3, 2, 7, 8, 200, NULL), (7, 1, 5, 6, NULL, 'nobody there');";

#[tokio::test]
async fn what_an_older_schema_holds_is_taken_over() {
    use crate::model::{PageQuery, RunFilter};
    let dir = tempfile::tempdir().unwrap();
    let mut conn = Connection::open(dir.path().join("errand.db")).unwrap();
    conn.pragma_update(None, "journal_mode", "WAL").unwrap();
    super::open::migrations::runner()
        .set_target(refinery::Target::Version(2))
        .run(&mut conn)
        .unwrap();
    conn.execute_batch(OLD).unwrap();
    drop(conn);

    let store = open(dir.path());
    assert_eq!(store.integrity().await.unwrap(), [""; 0]);
    let nil = Uuid::nil();
    let (team, run) = (TeamId::from_stored(nil), RunId::from_stored(nil));
    let rows = store.deliveries_of(team, run).await.unwrap();
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.id.as_u128(), row.state.as_str(), row.attempts.len()))
        .collect();
    assert_eq!(told, [(3, "delivered", 2), (7, "pending", 1)]);
    assert_eq!(rows[0].attempts[0].error.as_deref(), Some("no 2xx"));
    assert!(
        rows.iter()
            .all(|row| row.webhook.is_none() && row.run == Some(run))
    );
    // Each has an id of its own, which is one of version 7 and can be asked for.
    for row in &rows {
        let id = row.delivery.as_uuid();
        assert_eq!(
            (id.get_version_num(), id.get_variant()),
            (7, uuid::Variant::RFC4122)
        );
        assert_eq!(store.delivery(team, row.delivery).await.unwrap(), *row);
    }
    assert!(rows[0].delivery < rows[1].delivery);
    let due = store
        .due_deliveries(Timestamp::from_millis(10), 9, DeliveryTurns::unshared(9))
        .await
        .unwrap()
        .due;
    assert_eq!(
        (due.len(), due[0].number, due[0].begun_at.as_millis()),
        (1, 7, 1_700_000_000_001)
    );
    let sums = store
        .runs_summary(
            team,
            errand_core::time::Day::from_number(0),
            errand_core::time::Day::from_number(2),
        )
        .await
        .unwrap();
    let days: Vec<_> = sums
        .days
        .iter()
        .map(|(_, s)| (s.started, s.completed))
        .collect();
    assert_eq!(days, [(1, 0), (0, 1)]);
    let filter = RunFilter {
        q: Some("pay".to_owned()),
        ..RunFilter::default()
    };
    let page = PageQuery {
        limit: 9,
        offset: 0,
    };
    assert_eq!(store.list_runs(team, filter, page).await.unwrap().total, 1);
}

/// A database of an older version, closed.
fn older(dir: &Path, schema: i32) {
    Trial::create_older_database(dir, schema).unwrap();
}

#[tokio::test]
async fn an_upgrade_that_ended_after_any_migration_is_completed() {
    for ended_at in 2..Store::schema_known() {
        let dir = tempfile::tempdir().unwrap();
        older(dir.path(), 2);
        let conn = super::open::connect(dir.path(), false, 256).unwrap();
        conn.execute_batch(OLD).unwrap();
        drop(conn);
        older(dir.path(), i32::try_from(ended_at).unwrap());
        let store = open(dir.path());
        assert_eq!(store.integrity().await.unwrap(), [""; 0], "{ended_at}");
        let (team, run) = (
            TeamId::from_stored(Uuid::nil()),
            RunId::from_stored(Uuid::nil()),
        );
        let kept = store.deliveries_of(team, run).await.unwrap();
        assert_eq!(kept.len(), 2, "{ended_at}");
        drop(store);
        let schema = Store::schema(dir.path()).unwrap().unwrap();
        assert_eq!(schema.found, schema.known);
    }
}

#[tokio::test]
async fn a_migration_leaves_a_copy_to_go_back_to_and_a_new_store_none() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    older(dir.path(), 7);
    let earlier = dir.path().join("errand.db.before-V7");
    std::fs::write(&earlier, "of an earlier migration").unwrap();
    std::fs::write(dir.path().join("errand.db.before-Vacation"), "not ours").unwrap();
    drop(Store::open(options(dir.path())).unwrap());
    let known = Store::schema_known();
    let copy = dir.path().join(format!("errand.db.before-V{known}"));
    assert_eq!(database_facts(&copy).unwrap().schema, 7);
    let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!earlier.exists());
    assert!(dir.path().join("errand.db.before-Vacation").exists());

    // The way back, as it is documented; and forth again.
    std::fs::copy(&copy, dir.path().join("errand.db")).unwrap();
    std::fs::remove_file(dir.path().join("store.mark")).unwrap();
    let schema = Store::schema(dir.path()).unwrap().unwrap();
    assert_eq!(schema.found, 7);
    drop(Store::open(options(dir.path())).unwrap());

    let new = tempfile::tempdir().unwrap();
    drop(Store::open(options(new.path())).unwrap());
    let copies = std::fs::read_dir(new.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains("before")
    });
    assert_eq!(copies.count(), 0);
}

#[tokio::test]
async fn a_migration_that_was_cut_off_keeps_the_copy_that_it_has_made() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path(), 7);
    let name = format!("errand.db.before-V{}", Store::schema_known());
    std::fs::write(dir.path().join(&name), "the first copy").unwrap();
    drop(Store::open(options(dir.path())).unwrap());
    let kept = std::fs::read_to_string(dir.path().join(&name)).unwrap();
    assert_eq!(kept, "the first copy");
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
async fn a_copy_of_an_open_store_is_refused_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (live, closed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(options(dir.path())).unwrap();
    copy_files(dir.path(), live.path());
    drop(store);
    copy_files(dir.path(), closed.path());

    let refused = Store::open(options(live.path())).err().unwrap();
    assert!(matches!(refused, OpenError::Copied(_)), "{refused}");
    let lock = Store::lock(live.path()).unwrap();
    Store::accept_copy(live.path(), &lock).unwrap();
    drop(lock);
    drop(Store::open(options(live.path())).unwrap());
    // What was closed in order opens wherever it is.
    drop(Store::open(options(closed.path())).unwrap());
}

#[tokio::test]
async fn a_crash_and_a_move_are_no_copies_and_a_damaged_copy_is_not_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    // As after a crash: the mark says that it is open.
    let mark = std::fs::read(dir.path().join("store.mark")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_files(dir.path(), copy.path());
    drop(store);
    std::fs::write(dir.path().join("store.mark"), &mark).unwrap();
    let moved = dir.path().with_extension("moved");
    std::fs::rename(dir.path(), &moved).unwrap();
    drop(Store::open(options(&moved)).unwrap());
    std::fs::remove_dir_all(&moved).unwrap();

    let database = copy.path().join("errand.db");
    let mut bytes = std::fs::read(&database).unwrap();
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    std::fs::write(&database, bytes).unwrap();
    let _ = std::fs::remove_file(copy.path().join("errand.db-wal"));
    let lock = Store::lock(copy.path()).unwrap();
    assert!(Store::accept_copy(copy.path(), &lock).is_err());
    drop(lock);
    let refused = Store::open(options(copy.path())).err().unwrap();
    assert!(matches!(refused, OpenError::Copied(_)), "{refused}");
}

#[tokio::test]
async fn a_snapshot_holds_what_was_committed_when_it_was_taken_and_nothing_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let put = |value: i64| {
        let store = store.clone();
        async move {
            let made = store.write(move |tx| {
                tx.execute_batch("CREATE TABLE IF NOT EXISTS backed_up (value INTEGER)")?;
                tx.execute("INSERT INTO backed_up VALUES (?1)", [value])?;
                Ok(())
            });
            made.await.unwrap();
        }
    };
    put(1).await;
    let snapshot = store.snapshot().unwrap();
    put(2).await;
    let to = dir.path().join("copy.db");
    let facts = snapshot.write_to(&to, &mut |_, _| true).unwrap();
    assert_eq!(facts.schema, Store::schema_known());
    let copy = rusqlite::Connection::open(&to).unwrap();
    let sum: i64 = copy
        .query_row("SELECT sum(value) FROM backed_up", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sum, 1);
    let off = store
        .snapshot()
        .unwrap()
        .write_to(&dir.path().join("off.db"), &mut |_, _| false);
    assert!(matches!(off, Err(SnapshotError::CalledOff)));
}

#[tokio::test]
async fn a_log_that_a_reader_held_open_is_cut_off_once_it_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let log = dir.path().join("errand.db-wal");
    let length = || std::fs::metadata(&log).unwrap().len();
    let reader = rusqlite::Connection::open(dir.path().join("errand.db")).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM sqlite_master")
        .unwrap();
    let mut rows = reader.prepare("SELECT name FROM sqlite_master").unwrap();
    let mut rows = rows.query([]).unwrap();
    rows.next().unwrap();
    for _ in 0..100 {
        store
            .write(|tx| {
                tx.execute_batch(
                    "CREATE TABLE IF NOT EXISTS bulk (x BLOB); INSERT INTO bulk VALUES (zeroblob(1 << 20))",
                )?;
                Ok(())
            })
            .await
            .unwrap();
    }
    assert!(length() > 96 << 20);
    store.shrink_log().unwrap();
    assert!(length() > 96 << 20, "who reads is not disturbed");
    drop(rows);
    reader.execute_batch("COMMIT").unwrap();
    // Another checkpoint may be under way at this moment.
    for _ in 0..100 {
        store.shrink_log().unwrap();
        if length() < 64 << 20 {
            return;
        }
    }
    panic!("the log has {} bytes still", length());
}

#[tokio::test]
async fn an_orderly_end_is_noted_and_holds_for_that_file_alone() {
    use super::whole::{self, Wholeness};
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("errand.db.closed");
    let store = Store::open(options(dir.path())).unwrap();
    store.is_opened(true);
    assert!(!mark.exists());
    drop(store);
    let noted = std::fs::read(&mark).unwrap();
    assert_eq!(whole::look(dir.path()), Wholeness::Whole);
    assert!(!mark.exists(), "the note goes with the start");
    // The same note beside a file that was changed since: it is checked, and found out.
    let database = dir.path().join("errand.db");
    let mut bytes = std::fs::read(&database).unwrap();
    for page in bytes.chunks_mut(4096).skip(1) {
        page[..24].fill(0xab);
    }
    std::fs::write(&database, bytes).unwrap();
    std::fs::write(&mark, noted).unwrap();
    assert!(matches!(whole::look(dir.path()), Wholeness::Damaged(_)));
}

#[tokio::test]
async fn a_store_that_others_hold_is_closed_in_order() {
    use super::whole::{self, Wholeness};
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(options(dir.path())).unwrap();
    store.is_opened(true);
    let held = store.clone();
    let (written, ()) = tokio::join!(store.write(|tx| insert(tx, 1)), store.close());
    assert!(
        written.is_ok() || written.as_ref().is_err_and(StoreError::is_passing),
        "{written:?}"
    );
    for _ in 0..2 {
        let refused = held.write(|tx| insert(tx, 2)).await.unwrap_err();
        assert!(refused.to_string().contains("is stopping"), "{refused}");
        assert!(held.check_read().await.is_err());
        assert!(held.check_writer().await.is_err());
        held.close().await;
    }
    copy_files(dir.path(), copy.path());
    drop(Store::open(options(copy.path())).unwrap());
    // The lock is held as long as the store is.
    assert!(matches!(
        Store::open(options(dir.path())),
        Err(OpenError::InUse(_))
    ));
    assert_eq!(whole::look(dir.path()), Wholeness::Whole);
    drop((store, held));
    let expected = i64::from(written.is_ok());
    assert_eq!(count(&open(dir.path())).await, expected);
}

#[tokio::test]
async fn a_store_that_is_closed_twice_at_once_is_closed_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    store.is_opened(true);
    tokio::join!(store.close(), store.close());
    assert!(dir.path().join("errand.db.closed").exists());
}

#[tokio::test]
async fn a_store_that_was_lost_is_not_said_to_be_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    store.is_opened(true);
    let mark = std::fs::read(dir.path().join("store.mark")).unwrap();
    store.lose("it was replaced");
    store.close().await;
    let kept = std::fs::read(dir.path().join("store.mark")).unwrap();
    assert_eq!(kept, mark);
    assert!(!dir.path().join("errand.db.closed").exists());
}

#[test]
fn a_database_of_another_program_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("errand.db");
    let conn = Connection::open(&file).unwrap();
    conn.execute_batch("CREATE TABLE other (a)").unwrap();
    drop(conn);
    assert!(matches!(
        Store::open(options(dir.path())).err(),
        Some(OpenError::Foreign(_))
    ));
    let conn = Connection::open(&file).unwrap();
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 1);
}

#[test]
fn the_lock_holds_when_its_file_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let lock = Store::lock(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("lock")).unwrap();
    assert!(matches!(
        Store::lock(dir.path()).err(),
        Some(OpenError::InUse(_))
    ));
    drop(lock);
    Store::lock(dir.path()).unwrap();
}
