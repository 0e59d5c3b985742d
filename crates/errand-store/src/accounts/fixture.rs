//! Test fixture for this crate: a store in its own directory, with two teams.

use errand_core::id::{AgentId, ApiKeyId, BuildId, IdGen, RunId, SandboxId, TeamId, UserId};
use errand_core::time::Timestamp;
use rusqlite::params;

use super::{Bootstrap, NewTeam, NewUser};
use crate::crypto::seal::MasterKey;
use crate::db::sqlite::{OpenOptions, Store};
use crate::db::types::{Blob, Ms};
use crate::idempotency::{Idem, Idempotent, Outcome, StoredAnswer};

/// Webhook secret of the first team.
pub(crate) const SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A store with the team `default` and its owner, and another team with its own owner.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) ids: IdGen,
    pub(crate) now: Timestamp,
    pub(crate) team: TeamId,
    pub(crate) owner: UserId,
    pub(crate) other_team: TeamId,
    pub(crate) other_owner: UserId,
    /// Scope of [`Fixture::once`]. No row has this id.
    pub(crate) api_key: ApiKeyId,
    _dir: tempfile::TempDir,
}

/// A store without a team.
pub(crate) fn empty_store(ids: &IdGen, now: Timestamp) -> (Store, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions {
        dir: dir.path().to_owned(),
        boot: ids.boot(now),
        respond_base: "http://127.0.0.1".to_owned(),
        master_key: MasterKey::from_bytes([7; 32]),
        readers: 2,
        cache_kib: 2048,
    };
    (Store::open(options).unwrap(), dir)
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let ids = IdGen::new([1; 32]);
        let now = Timestamp::from_millis(1_800_000_000_000);
        let (store, dir) = empty_store(&ids, now);
        let (team, owner) = (ids.team(now), ids.user(now));
        store
            .bootstrap(Bootstrap {
                team,
                owner,
                secret: SECRET.to_owned(),
                now,
            })
            .await
            .unwrap();
        let (other_team, other_owner) = (ids.team(now), ids.user(now));
        let new = NewUser {
            id: other_owner,
            email: "other@example.com".to_owned(),
            now,
        };
        store.create_user(new).await.unwrap();
        let new = NewTeam {
            id: other_team,
            name: "other".to_owned(),
            owner: other_owner,
            secret: "whsec_other".to_owned(),
            now: now.plus_ms(1),
        };
        store.create_team(new).await.unwrap();
        let api_key = ids.api_key(now);
        Self {
            store,
            ids,
            now,
            team,
            owner,
            other_team,
            other_owner,
            api_key,
            _dir: dir,
        }
    }

    /// A recorded operation: `key` is the `Idempotency-Key`, `body` stands for the request's body.
    pub(crate) fn once<T: std::fmt::Debug>(&self, key: &str, body: u8) -> Idempotent<T> {
        let idem = Idem {
            api_key: self.api_key,
            method: "POST",
            path: "/v1/things".to_owned(),
            key: key.to_owned(),
            body_sha256: [body; 32],
        };
        Idempotent {
            idem: Some(idem),
            render: shown,
        }
    }

    /// Inserts an agent with one build directly.
    pub(crate) async fn agent_rows(&self, team: TeamId) -> (AgentId, BuildId) {
        let (agent, build, now) = (self.ids.agent(self.now), self.ids.build(self.now), self.now);
        self.store
            .write(move |tx| {
                let (a, b, t) = (Blob(agent.as_uuid()), Blob(build.as_uuid()), Blob(team.as_uuid()));
                tx.execute(
                    "INSERT INTO agents (id, team_id, name, created_at, updated_at) VALUES (?1, ?2, 'by hand', ?3, ?3)",
                    params![a, t, Ms(now)],
                )?;
                tx.execute(
                    "INSERT INTO builds (id, team_id, agent_id, number, name, config, created_at) VALUES (?1, ?2, ?3, 1, 'first', '{}', ?4)",
                    params![b, t, a, Ms(now)],
                )?;
                Ok(())
            })
            .await
            .unwrap();
        (agent, build)
    }

    /// Inserts a run directly: these tests are about what surrounds runs, not about their life cycle.
    pub(crate) async fn run_row(
        &self,
        team: TeamId,
        status: &'static str,
        sandbox: Option<&SandboxId>,
    ) -> RunId {
        let (agent, build) = self.agent_rows(team).await;
        let (run, now, sandbox) = (self.ids.run(self.now), self.now, sandbox.cloned());
        self.store
            .write(move |tx| {
                // Columns without a default, such as counters, positions and limits, get 0.
                let counters: Vec<String> = tx
                    .prepare(
                        "SELECT name FROM pragma_table_info('runs') WHERE \"notnull\" AND dflt_value IS NULL AND name NOT IN
                             ('id', 'team_id', 'agent_id', 'build_id', 'status', 'created_at', 'updated_at')",
                    )?
                    .query_map([], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let sql = format!(
                    "INSERT INTO runs (id, team_id, agent_id, build_id, status, sandbox_id, created_at, updated_at, {})
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7 {})",
                    counters.join(", "),
                    ", 0".repeat(counters.len())
                );
                tx.execute(
                    &sql,
                    params![
                        Blob(run.as_uuid()),
                        Blob(team.as_uuid()),
                        Blob(agent.as_uuid()),
                        Blob(build.as_uuid()),
                        status,
                        sandbox.as_ref().map(SandboxId::as_str),
                        Ms(now),
                    ],
                )?;
                Ok(())
            })
            .await
            .unwrap();
        run
    }

    /// Executes a statement for which there is no operation.
    pub(crate) async fn sql(&self, sql: &'static str) {
        self.store
            .write(move |tx| Ok(tx.execute_batch(sql)?))
            .await
            .unwrap();
    }

    /// Number of rows changed so far.
    pub(crate) async fn changes(&self) -> u64 {
        self.store.write(|tx| Ok(tx.total_changes())).await.unwrap()
    }
}

/// Recorded form of a result in these tests.
fn shown<T: std::fmt::Debug>(value: &T) -> StoredAnswer {
    StoredAnswer {
        status: 200,
        body: format!("{value:?}").into_bytes(),
    }
}

/// Asserts that the first answer was executed and the second is its byte-for-byte replay. Returns the first.
#[track_caller]
pub(crate) fn assert_replayed<T: std::fmt::Debug>(first: Outcome<T>, second: Outcome<T>) -> T {
    match (first, second) {
        (Outcome::Executed(value), Outcome::Replayed(stored)) => {
            assert_eq!(stored, shown(&value));
            value
        }
        other => panic!("not an answer and its replay: {other:?}"),
    }
}
