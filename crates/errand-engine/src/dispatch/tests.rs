//! The engine on a real store, without the API.

use std::sync::Arc;

use errand_core::id::{IdGen, RunId, TeamId, UserId};
use errand_core::run::{RunSource, Status};
use errand_store::model::{NewAgent, NewBuild, PageQuery, RunView, StartRun};
use errand_store::seal::MasterKey;
use errand_store::{Idempotent, NewTeam, NewUser, OpenOptions, Store};
use serde_json::{Value, json};

use super::*;
use crate::clock::Clock;
use crate::connect::Connections;
use crate::deltas::Deltas;
use crate::net::{Bounds, Guard};
use crate::sandboxes::Sandboxes;
use crate::tool::Tools;

const OPTIONS: EngineOptions = EngineOptions {
    max_concurrent_runs: 4,
    step_seconds_max: 3600,
    max_concurrent_deliveries: 4,
    cleans_up: true,
};

struct World {
    context: EngineContext,
    engine: Engine,
    team: TeamId,
    owner: UserId,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Timestamp::from_millis(1_000_000));
        let ids = Arc::new(IdGen::new([5; 32]));
        let now = clock.now();
        let options = OpenOptions {
            dir: dir.path().to_owned(),
            boot: ids.boot(now),
            respond_base: "http://localhost".to_owned(),
            master_key: MasterKey::from_bytes([1; 32]),
            readers: 2,
            cache_kib: 2048,
        };
        let store = Store::open(options).unwrap();
        let (team, owner) = (ids.team(now), ids.user(now));
        store
            .create_user(NewUser {
                id: owner,
                email: "o@acme.example".to_owned(),
                now,
            })
            .await
            .unwrap();
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw0123456789A=".to_owned();
        store
            .create_team(NewTeam {
                id: team,
                name: "acme".to_owned(),
                owner,
                secret,
                now,
            })
            .await
            .unwrap();
        let context = EngineContext {
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
        let (engine, _) = Engine::start(context.clone(), OPTIONS).await.unwrap();
        Self {
            context,
            engine,
            team,
            owner,
            _dir: dir,
        }
    }

    async fn run(&self, steps: Value) -> RunId {
        let now = self.context.clock.now();
        let (agent, build, run) = (
            self.context.ids.agent(now),
            self.context.ids.build(now),
            self.context.ids.run(now),
        );
        let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}}});
        let build = NewBuild {
            id: build,
            name: "b".to_owned(),
            description: None,
            config,
            created_by: self.owner,
            draft: false,
            warnings: Vec::new(),
        };
        let new = NewAgent {
            team: self.team,
            id: agent,
            name: "a".to_owned(),
            build: Some(build),
            created_by: self.owner,
            now,
        };
        self.context
            .store
            .create_agent(new, Idempotent::not_recorded())
            .await
            .unwrap();
        let live = self
            .context
            .store
            .live_build(self.team, agent)
            .await
            .unwrap();
        let start = StartRun {
            team: self.team,
            id: run,
            agent,
            source: RunSource::Api,
            sandbox: None,
            webhook_url: None,
            human_request_webhook_url: None,
            untrusted: false,
            message: Some((self.context.ids.message(now), "hello".to_owned())),
            by: self.owner.into(),
            sandbox_ttl_ms: 1_000_000,
            api_key: None,
            expected_build: Some(live.usable()),
            now,
        };
        self.context
            .store
            .start_run(start, Idempotent::not_recorded())
            .await
            .unwrap();
        run
    }

    async fn settled(&self, run: RunId) -> RunView {
        let settled = async {
            while self
                .context
                .store
                .busy(self.context.clock.now())
                .await
                .unwrap()
                .is_some()
            {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), settled)
            .await
            .is_err()
        {
            let busy = self
                .context
                .store
                .busy(self.context.clock.now())
                .await
                .unwrap();
            panic!(
                "not settled: {busy:?} {:#?}",
                self.context.store.run(self.team, run).await.unwrap()
            );
        }
        self.context.store.run(self.team, run).await.unwrap()
    }
}

#[tokio::test]
async fn a_playbook_runs_on_a_real_store() {
    let world = World::start().await;
    let run = world
        .run(json!([
            {"tool": "write_file", "with": {"path": "a.txt", "content": "{{ message }}"}},
            {"tool": "edit_file", "with": {"path": "a.txt", "old": "hello", "new": "bye"}},
            {"wait": "1h"},
            {"tool": "read_file", "with": {"path": "a.txt"}, "as": "text"},
            {"finish": "{{ text }}"}
        ]))
        .await;
    let view = world.settled(run).await;
    assert_eq!(view.run.status, Status::Running, "{view:#?}");
    assert_eq!(view.run.waiting_on.unwrap().kind, "timer");
    world.context.clock.advance(Duration::from_secs(3600));
    let view = world.settled(run).await;
    assert_eq!(view.run.status, Status::Completed, "{view:#?}");
    let messages = world
        .context
        .store
        .messages(
            world.team,
            run,
            PageQuery {
                limit: 50,
                offset: 0,
            },
        )
        .await
        .unwrap();
    assert_eq!(
        messages.items.last().unwrap().text_content.as_deref(),
        Some("bye")
    );
    assert_eq!(messages.total, 8);
    world.engine.shut_down(Duration::from_secs(5)).await;
}

/// The end of another run may wake the dispatcher when a timer is due and the sleep until it has not ended yet.
#[tokio::test]
async fn each_round_claims_what_is_due() {
    let world = World::start().await;
    let run = world
        .run(json!([{"wait": "1h"}, {"finish": "on time"}]))
        .await;
    world.settled(run).await;
    world.engine.shut_down(Duration::from_secs(5)).await;
    let (mut context, cancel) = (world.context, CancellationToken::new());
    context.draining = CancellationToken::new();
    let now = context.clock.now();
    let mut dispatcher = Dispatcher::new(&context, &cancel, OPTIONS, None, now);
    dispatcher.round().await.unwrap();
    assert_eq!(dispatcher.drives.len(), 0);
    assert!(!dispatcher.more && dispatcher.moment.is_some());
    context.clock.advance(Duration::from_secs(3600));
    dispatcher.round().await.unwrap();
    assert_eq!(dispatcher.drives.len(), 1);
    dispatcher.drives.join_next().await.unwrap().unwrap();
    let view = context.store.run(world.team, run).await.unwrap();
    assert_eq!(view.run.status, Status::Completed, "{view:#?}");
}
