use errand_core::id::IdGen;
use errand_core::time::Timestamp;
use rusqlite::params;

use super::*;

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
                "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'",
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
