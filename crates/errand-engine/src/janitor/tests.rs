//! Single rounds on a real store and a real directory, with a manual clock.

use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use errand_core::id::{IdGen, SandboxId, TeamId};
use errand_store::seal::MasterKey;
use errand_store::{Idempotent, NewTeam, NewUser, OpenOptions, Store};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Clock;
use crate::connect::Connections;
use crate::deltas::Deltas;
use crate::model::Models;
use crate::net::{Bounds, Guard};
use crate::sandboxes::Sandboxes;
use crate::tool::Tools;
use crate::trash::TRASH_MS;

const HOUR: Duration = Duration::from_secs(3600);
const DAY_MS: u64 = TRASH_MS;

struct World {
    janitor: Janitor,
    team: TeamId,
    dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        Self::of_age(100 * DAY_MS).await
    }

    /// Starts with a store that was created `age_ms` ago.
    async fn of_age(age_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual("2026-11-23T09:30:00Z".parse().unwrap());
        let ids = Arc::new(IdGen::new([6; 32]));
        let now = clock.now();
        let options = OpenOptions {
            dir: dir.path().to_owned(),
            boot: ids.boot(Timestamp::from_millis(
                now.as_millis() - i64::try_from(age_ms).unwrap(),
            )),
            respond_base: "http://localhost".to_owned(),
            master_key: MasterKey::from_bytes([1; 32]),
            readers: 1,
            cache_kib: 256,
        };
        let store = Store::open(options).unwrap();
        let (team, owner) = (ids.team(now), ids.user(now));
        let email = "o@acme.example".to_owned();
        let user = NewUser {
            id: owner,
            email,
            now,
        };
        store.create_user(user).await.unwrap();
        let new = NewTeam {
            id: team,
            name: "acme".to_owned(),
            owner,
            secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw0123456789A=".to_owned(),
            now,
        };
        store.create_team(new).await.unwrap();
        let engine = EngineContext {
            connections: Connections::none(store.clone(), clock.clone()),
            store,
            clock,
            ids,
            models: Models::default(),
            tools: Tools::builtin(),
            deltas: Deltas::default(),
            sandboxes: Sandboxes::beneath(dir.path()),
            parsers: crate::parse::Parsers::new(None),
            post: Arc::new(Guard::webhooks(true).client(Bounds::WEBHOOK).unwrap()),
            draining: CancellationToken::new(),
        };
        let janitor = Janitor {
            engine,
            started: now,
            sweep: Sweep::default(),
        };
        Self { janitor, team, dir }
    }

    fn engine(&self) -> &EngineContext {
        &self.janitor.engine
    }

    /// Creates a sandbox with a row and a file that expires after `ttl_ms`.
    async fn sandbox(&self, ttl_ms: u64) -> SandboxId {
        let now = self.engine().clock.now();
        let id = self.engine().ids.sandbox(now);
        self.engine()
            .store
            .create_sandbox(
                self.team,
                id.clone(),
                now.plus_ms(ttl_ms),
                now,
                Idempotent::not_recorded(),
            )
            .await
            .unwrap();
        self.fill(&id);
        id
    }

    /// Creates a sandbox directory without a row.
    fn unknown_sandbox(&self) -> SandboxId {
        let id = self.engine().ids.sandbox(self.engine().clock.now());
        self.fill(&id);
        id
    }

    fn fill(&self, id: &SandboxId) {
        let path = errand_core::path::SandboxPath::parse("dir/file").unwrap();
        let root = self.engine().sandboxes.root(id, self.charged()).unwrap();
        root.write(&path, b"mine").unwrap();
    }

    fn charged(&self) -> Charged {
        Charged {
            team: self.team,
            bytes: 0,
        }
    }

    fn is_there(&self, id: &SandboxId) -> bool {
        self.engine().sandboxes.path_of(id).exists()
    }

    /// Makes an item `age` old.
    fn age(&self, path: &Path, age: Duration) {
        let now = u64::try_from(self.engine().clock.now().as_millis()).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(now) - age;
        File::open(path).unwrap().set_modified(at).unwrap();
    }

    fn unfinished(&self, name: &str, age: Duration) -> std::path::PathBuf {
        let path = self.engine().sandboxes.unfinished().unwrap().join(name);
        fs::write(&path, "half").unwrap();
        self.age(&path, age);
        path
    }

    /// The names in the trash, without their timestamps.
    fn trash(&self) -> Vec<String> {
        let mut names: Vec<String> = names_in(&self.dir.path().join("trash"))
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap()[25..].to_owned())
            .collect();
        names.sort();
        names
    }

    async fn round(&self) -> Moved {
        self.janitor.round().await.unwrap()
    }

    fn advance_ms(&self, ms: u64) {
        self.engine().clock.advance(Duration::from_millis(ms));
    }

    /// Continues like a new start of the server.
    fn restart(&mut self) {
        self.janitor.started = self.engine().clock.now();
    }
}

#[test]
fn young_items_and_items_of_this_start_stay() {
    let at = |text: &str| -> Timestamp { text.parse().unwrap() };
    let started = at("2026-11-23T09:30:00.000Z");
    for (changed, now, expected) in [
        // Exactly an hour old, and of an earlier start.
        ("2026-11-23T09:00:00.000Z", "2026-11-23T10:00:00.000Z", true),
        (
            "2026-11-23T09:00:00.001Z",
            "2026-11-23T10:00:00.000Z",
            false,
        ),
        ("2026-11-23T09:29:59.999Z", "2026-11-25T00:00:00.000Z", true),
        // Of this start, although it is old.
        (
            "2026-11-23T09:30:00.000Z",
            "2027-11-23T09:30:00.000Z",
            false,
        ),
        (
            "2026-11-23T12:00:00.000Z",
            "2026-11-25T00:00:00.000Z",
            false,
        ),
        // After the clock was set back, its time is in the future.
        (
            "2026-11-23T09:00:00.000Z",
            "2026-11-23T08:00:00.000Z",
            false,
        ),
    ] {
        assert_eq!(
            is_left_over(
                at(changed),
                Ages {
                    store: at("2020-01-01T00:00:00.000Z"),
                    start: started,
                    now: at(now)
                }
            ),
            expected,
            "{changed} at {now}"
        );
    }
}

#[tokio::test]
async fn an_expired_sandbox_goes_to_the_trash_for_a_day() {
    let world = World::start().await;
    let (short, long) = (world.sandbox(1000).await, world.sandbox(10 * DAY_MS).await);
    assert_eq!(world.round().await, Moved::default());
    world.advance_ms(1000);
    let moved = world.round().await;
    assert_eq!((moved.expired, moved.deleted), (1, 0));
    assert_eq!(world.trash(), [short.as_str()]);
    assert!(world.is_there(&long) && !world.is_there(&short));
    world.advance_ms(DAY_MS - 1);
    assert_eq!(world.round().await, Moved::default());
    assert_eq!(world.trash(), [short.as_str()]);
    world.advance_ms(1);
    world.round().await;
    assert!(world.trash().is_empty());
    assert!(world.is_there(&long));
}

/// The row is deleted in a transaction of its own. The process dies before the move, during the removal, or both.
#[tokio::test]
async fn a_later_round_finishes_an_interrupted_one() {
    let mut world = World::start().await;
    let id = world.sandbox(1000).await;
    world.advance_ms(1000);
    let now = world.engine().clock.now();
    let marked = world.engine().store.mark_sandbox_deleted(&id, now).await;
    assert_eq!(marked.unwrap().unwrap().id, id);
    // A crash. The directory is moved although it is young, because its row is deleted and nothing will use it.
    world.restart();
    assert_eq!(world.round().await.deleted, 1);
    assert_eq!(world.trash(), [id.as_str()]);
    assert!(!world.is_there(&id));
    // A day later the removal is interrupted: a part is gone, and the rest is still in the trash under its timestamp.
    world.advance_ms(DAY_MS);
    let in_trash = names_in(&world.dir.path().join("trash")).unwrap();
    fs::remove_file(in_trash[0].join("dir/file")).unwrap();
    world.restart();
    world.round().await;
    assert!(world.trash().is_empty());
    assert!(world.engine().sandboxes.list().unwrap().is_empty());
}

#[tokio::test]
async fn old_unknown_directories_go_to_the_trash() {
    let mut world = World::start().await;
    let known = world.sandbox(10 * DAY_MS).await;
    let (old, young, ours) = (
        world.unknown_sandbox(),
        world.unknown_sandbox(),
        world.unknown_sandbox(),
    );
    let path = |id: &SandboxId| world.engine().sandboxes.path_of(id);
    world.age(&path(&known), 9 * HOUR);
    world.age(&path(&old), HOUR);
    world.age(&path(&young), HOUR - Duration::from_millis(1));
    world.age(&path(&ours), Duration::ZERO);
    // Files of other programs are not touched, either.
    let other = world.engine().sandboxes.dir().join("lost+found");
    fs::create_dir(&other).unwrap();
    world.age(&other, 9 * HOUR);
    assert_eq!(world.round().await.unknown, 1);
    assert_eq!(world.trash(), [old.as_str()]);
    world.advance_ms(DAY_MS / 2);
    assert_eq!(world.round().await.unknown, 1);
    assert!(
        world.is_there(&ours),
        "what was changed since this start stays as long as it lasts"
    );
    world.restart();
    assert_eq!(world.round().await.unknown, 1);
    assert!(world.is_there(&known) && other.exists());
    assert_eq!(
        world
            .engine()
            .sandboxes
            .root(&known, world.charged())
            .unwrap()
            .usage()
            .unwrap()
            .files,
        1
    );
}

#[tokio::test]
async fn directories_older_than_the_store_stay() {
    let hour_ms = 3_600_000;
    let mut world = World::of_age(2 * hour_ms).await;
    let (before, since) = (world.unknown_sandbox(), world.unknown_sandbox());
    let path = |id: &SandboxId| world.engine().sandboxes.path_of(id);
    world.age(&path(&before), 3 * HOUR);
    world.age(&path(&since), HOUR);
    let unfinished = world.unfinished(".errand-tmp-7-1", 3 * HOUR);
    assert_eq!(world.round().await.unknown, 1);
    assert_eq!(world.trash(), [since.as_str()]);
    world.advance_ms(30 * DAY_MS);
    world.restart();
    world.round().await;
    assert!(world.is_there(&before) && unfinished.exists());
}

#[tokio::test]
async fn interrupted_writes_go_and_current_writes_stay() {
    let world = World::start().await;
    let left = world.unfinished(".errand-tmp-7-1", HOUR);
    let spool = world.unfinished(".tmpAbCdEf", 2 * HOUR);
    let young = world.unfinished(".errand-tmp-7-2", HOUR / 2);
    let key = world.dir.path().join("master.key.0011223344556677.new");
    fs::write(&key, "half").unwrap();
    world.age(&key, HOUR);
    let of_store: Vec<_> = ["errand.db", "lock"]
        .map(|name| world.dir.path().join(name))
        .into();
    for path in &of_store {
        world.age(path, 100 * HOUR);
    }
    assert_eq!(world.round().await.unfinished, 3);
    assert!(!left.exists() && !spool.exists() && !key.exists());
    assert!(young.exists() && of_store.iter().all(|path| path.exists()));
    // A write that began after this start is in progress, however long it takes.
    let now = world.unfinished(".errand-tmp-7-3", Duration::ZERO);
    world.advance_ms(DAY_MS * 3);
    assert_eq!(world.round().await.unfinished, 1);
    assert!(now.exists() && !young.exists());
    assert_eq!(
        world.trash(),
        [".errand-tmp-7-2"],
        "the others' day is over"
    );
}

#[tokio::test]
async fn one_immovable_item_does_not_stop_a_round() {
    let world = World::start().await;
    let id = world.sandbox(1000).await;
    // A file with the name of the trash directory makes each move fail.
    fs::write(world.dir.path().join("trash"), "in the way").unwrap();
    world.advance_ms(1000);
    let failed = world.janitor.round().await.unwrap_err();
    assert!(matches!(failed, RoundError::Disk(_)), "{failed}");
    assert!(world.is_there(&id), "it is where it was");
    let now = world.engine().clock.now();
    let row = world.engine().store.sandbox(world.team, &id, now).await;
    assert!(row.is_err(), "and yet it is no sandbox any more");
    fs::remove_file(world.dir.path().join("trash")).unwrap();
    assert_eq!(world.round().await.deleted, 1);
    assert_eq!(world.trash(), [id.as_str()]);
}
