use std::path::Path;

use errand_core::id::{IdGen, TeamId, UserId};
use errand_core::time::Timestamp;

use super::*;
use crate::accounts::Bootstrap;
use crate::db::sqlite::OpenOptions;
use crate::idempotency::Idempotent;
use crate::integrations::secrets::SetSecret;
use crate::model::PutProvider;

const WEBHOOK_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const VALUE: &str = "a value that is long enough";

fn open(dir: &Path, key: MasterKey) -> Store {
    let now = Timestamp::from_millis(1_800_000_000_000);
    Store::open(OpenOptions {
        dir: dir.to_owned(),
        boot: IdGen::new([1; 32]).boot(now),
        respond_base: "http://127.0.0.1".to_owned(),
        master_key: key,
        readers: 1,
        cache_kib: 2048,
    })
    .unwrap()
}

fn open_file(dir: &Path) -> Store {
    open(
        dir,
        MasterKey::load_or_create(&dir.join("master.key")).unwrap(),
    )
}

/// Creates a team with its webhook secret and one secret.
async fn filled(store: &Store) -> TeamId {
    let (ids, now) = (
        IdGen::new([2; 32]),
        Timestamp::from_millis(1_800_000_000_000),
    );
    let (team, owner) = (ids.team(now), ids.user(now));
    store
        .bootstrap(Bootstrap {
            team,
            owner,
            secret: WEBHOOK_SECRET.to_owned(),
            now,
        })
        .await
        .unwrap();
    set(store, team, owner, "TOKEN").await;
    let provider = PutProvider {
        team,
        name: "mine".to_owned(),
        kind: "openai".to_owned(),
        base_url: None,
        key: Some(VALUE.to_owned()),
        now,
    };
    let put = store
        .put_provider(provider, Idempotent::not_recorded())
        .await;
    put.unwrap().executed().unwrap();
    team
}

async fn set(store: &Store, team: TeamId, by: UserId, name: &str) {
    let new = SetSecret {
        team,
        name: name.to_owned(),
        value: VALUE.to_owned(),
        by,
        now: Timestamp::from_millis(1_800_000_000_000),
    };
    store
        .set_secret(new, Idempotent::not_recorded())
        .await
        .unwrap()
        .executed()
        .unwrap();
}

async fn all_open(store: &Store, team: TeamId) {
    assert_eq!(store.webhook_secret(team).await.unwrap(), WEBHOOK_SECRET);
    let secrets = store.open_secrets(team).await.unwrap();
    assert_eq!(secrets, [("TOKEN".to_owned(), VALUE.to_owned())]);
    let provider = store.provider_setting(team, "mine").await.unwrap().unwrap();
    assert_eq!(provider.key.as_deref(), Some(VALUE));
}

async fn is_under_the_current_key(store: &Store) -> bool {
    let current = store.keys().current();
    store
        .read(move |conn| {
            for place in SEALED {
                if rows(conn, place)?.iter().any(|row| !current.sealed(&row.2)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn a_rotation_seals_everything_under_a_new_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_file(dir.path());
    let team = filled(&store).await;
    let before = store.master_key().id();
    let rotated = store.rotate_master_key(None).await.unwrap();
    assert_eq!((rotated.secrets, rotated.lost), (3, 0));
    assert_ne!(rotated.key_id, before);
    // The running store continues with the new key, and the next start with the key from the file.
    all_open(&store, team).await;
    assert!(is_under_the_current_key(&store).await);
    drop(store);
    assert!(!dir.path().join("master.key.next").exists());
    let store = open_file(dir.path());
    assert_eq!(store.master_key().id(), rotated.key_id);
    all_open(&store, team).await;
    // A key can be rotated again and again.
    store.rotate_master_key(None).await.unwrap();
    all_open(&store, team).await;
}

#[tokio::test]
async fn a_rotation_that_is_cut_off_anywhere_is_ended_by_the_next_start() {
    for cut in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("master.key");
        let store = open_file(dir.path());
        let team = filled(&store).await;
        // The new key is on disk, and nothing is sealed under it yet.
        let next = Arc::new(MasterKey::bring_in(&file).unwrap());
        let key_id = next.id();
        if cut > 0 {
            // A secret is set while the write of the rotation waits for its turn.
            store.keys().add(next);
            let by = UserId::from_stored(Uuid::nil());
            let by = store
                .read(|conn| {
                    Ok(conn.query_row("SELECT id FROM users", [], |r| {
                        r.get::<_, crate::db::types::Blob>(0)
                    })?)
                })
                .await
                .map_or(by, |id| UserId::from_stored(id.0));
            set(&store, team, by, "TOKEN").await;
        }
        if cut > 1 {
            // Everything is sealed again, and the key file is not replaced yet.
            store
                .write(move |tx| seal_anew(tx, tx.keys()))
                .await
                .unwrap();
        }
        drop(store);
        let store = open_file(dir.path());
        assert_eq!(store.master_key().id(), key_id, "cut {cut}");
        all_open(&store, team).await;
        assert!(is_under_the_current_key(&store).await);
        drop(store);
        assert!(!dir.path().join("master.key.next").exists());
        all_open(&open_file(dir.path()), team).await;
    }
}

#[tokio::test]
async fn a_key_of_the_environment_is_replaced_by_one_that_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), MasterKey::from_bytes([1; 32]));
    let team = filled(&store).await;
    assert!(matches!(
        store.rotate_master_key(None).await,
        Err(StoreError::Refused(_))
    ));
    let same = store
        .rotate_master_key(Some(MasterKey::from_bytes([1; 32])))
        .await;
    assert!(matches!(same, Err(StoreError::Refused(_))));
    store
        .rotate_master_key(Some(MasterKey::from_bytes([2; 32])))
        .await
        .unwrap();
    drop(store);
    all_open(&open(dir.path(), MasterKey::from_bytes([2; 32])), team).await;
}

#[test]
fn everything_that_the_schema_calls_sealed_is_sealed_anew() {
    let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/sqlite");
    let mut found = Vec::new();
    for file in std::fs::read_dir(migrations).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let mut table = String::new();
        for line in text.lines().map(str::trim) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("CREATE"), Some("TABLE"), Some(name)) => name.clone_into(&mut table),
                (Some("ALTER"), Some("TABLE"), Some(name)) => name.clone_into(&mut table),
                _ => {}
            }
            if line.contains("-- sealed") {
                let column = line.trim_start_matches("ADD COLUMN ");
                let column = column.split_whitespace().next().unwrap();
                found.push(format!("{table}.{column}"));
            }
        }
    }
    let mut known: Vec<_> = SEALED
        .iter()
        .map(|place| format!("{}.{}", place.table, place.column))
        .collect();
    found.sort();
    known.sort();
    assert_eq!(found, known);
}
