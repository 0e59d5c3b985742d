//! The program under simulation: store and engine, which are started, crashed and restarted on one directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use errand_core::id::{AgentId, IdGen};
use errand_core::webhook::WebhookEvent;
use errand_engine::connect::Connections;
use errand_engine::deltas::Deltas;
use errand_engine::model::Models;
use errand_engine::sandboxes::Sandboxes;
use errand_engine::tool::Tools;
use errand_engine::{Engine, EngineContext, EngineOptions};
use errand_store::model::{NewAgent, NewBuild};
use errand_store::seal::MasterKey;
use errand_store::{DirLock, Idempotent, NewTeam, NewUser, NewWebhook, OpenOptions, Store, Trial};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Sabotage;
use super::actions::TEAMS_RECEIVER;
use super::clients::Wire;
use super::disk::SimDisk;
use super::model::{CHILD_TOOL, Script, SimModel};
use super::receivers::{SimNetwork, url_of};
use super::tools::{TOOLS, tools};
use super::world::{Agent, State, Team, World};

/// Maximum attempts to start while the disk fails.
const STARTS_MAX: u32 = 20;

/// The running program.
pub(crate) struct Program {
    pub(crate) store: Store,
    pub(crate) wire: Wire,
    pub(crate) draining: CancellationToken,
    engine: Engine,
}

impl Program {
    /// Starts on a directory and, like a supervisor, tries again while the disk fails.
    pub(crate) async fn start(
        world: &Arc<World>,
        dir: &Path,
        options: EngineOptions,
    ) -> Result<Self, String> {
        let mut last = String::new();
        for _ in 0..STARTS_MAX {
            match Self::try_start(world, dir, options).await {
                Ok(program) => return Ok(program),
                Err(error) => last = error,
            }
            world.note(&format!("the start failed: {last}"));
            // An operator frees space.
            world.state().disk.full = false;
        }
        Err(last)
    }

    async fn try_start(
        world: &Arc<World>,
        dir: &Path,
        options: EngineOptions,
    ) -> Result<Self, String> {
        let now = world.now();
        let mut seed = [0; 32];
        {
            let mut state = world.state();
            for eight in seed.chunks_mut(8) {
                eight.copy_from_slice(&state.random.next().to_be_bytes());
            }
        }
        let ids = Arc::new(IdGen::new(seed));
        let boot = ids.boot(now);
        let open = OpenOptions {
            dir: dir.to_owned(),
            boot,
            respond_base: "http://localhost".to_owned(),
            master_key: MasterKey::from_bytes([1; 32]),
            readers: 1,
            cache_kib: 1024,
        };
        let trial = Trial {
            faults: Some(Arc::new(SimDisk(Arc::clone(world)))),
            simulated: true,
            ..Trial::default()
        };
        let lock = acquire_lock(dir).await?;
        if world.sabotages(Sabotage::DamagesFile) && !world.state().teams.is_empty() {
            damage(dir).map_err(|error| error.to_string())?;
        }
        let store = Store::open_on_trial(open, lock, trial).map_err(|e| e.to_string())?;
        let draining = CancellationToken::new();
        let context = EngineContext {
            connections: Connections::none(store.clone(), world.clock.clone()),
            store: store.clone(),
            clock: world.clock.clone(),
            ids: Arc::clone(&ids),
            models: Models::default().with("sim", Arc::new(SimModel(Arc::clone(world)))),
            tools: Tools::builtin().with(tools(world)),
            deltas: Deltas::default(),
            sandboxes: Sandboxes::beneath(dir),
            parsers: errand_engine::parse::Parsers::new(None),
            post: Arc::new(SimNetwork(Arc::clone(world))),
            draining: draining.clone(),
        };
        let (engine, recovered) = Engine::start(context, options)
            .await
            .map_err(|e| e.to_string())?;
        world.note(&format!("started: {recovered:?}"));
        let wire = Wire {
            world: Arc::clone(world),
            store: store.clone(),
            ids,
        };
        Ok(Self {
            store,
            wire,
            draining,
            engine,
        })
    }

    /// Ends immediately; nothing is finished.
    pub(crate) fn crash(self) {
        self.engine.abort();
    }
}

/// Overwrites the beginning of the database, and removes its log.
fn damage(dir: &Path) -> std::io::Result<()> {
    let file = dir.join("errand.db");
    let mut bytes = std::fs::read(&file)?;
    let header = bytes.len().min(4096);
    bytes[..header].fill(0);
    std::fs::write(&file, bytes)?;
    for log in ["errand.db-wal", "errand.db-shm"] {
        match std::fs::remove_file(dir.join(log)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Takes the directory's lock as soon as the tasks of the previous program have released it.
async fn acquire_lock(dir: &Path) -> Result<DirLock, String> {
    let mut last = String::new();
    for _ in 0..10_000 {
        match Store::lock(dir) {
            Ok(lock) => return Ok(lock),
            Err(error) => last = error.to_string(),
        }
        tokio::task::yield_now().await;
    }
    Err(format!("the previous program does not end: {last}"))
}

/// Creates random teams, agents and builds.
pub(crate) async fn create_teams_and_agents(world: &Arc<World>, program: &Program) {
    let now = world.now();
    let (store, ids) = (&program.store, &program.wire.ids);
    let teams = 1 + world.state().random.below(3);
    for number in 0..teams {
        let (id, owner) = (ids.team(now), ids.user(now));
        let email = format!("o{number}@sim.example");
        store
            .create_user(NewUser {
                id: owner,
                email,
                now,
            })
            .await
            .unwrap();
        store
            .create_team(NewTeam {
                id,
                name: format!("team{number}"),
                owner,
                secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw0123456789A=".to_owned(),
                now,
            })
            .await
            .unwrap();
        let webhook = NewWebhook {
            team: id,
            id: ids.webhook(now),
            url: url_of(TEAMS_RECEIVER),
            events: WebhookEvent::ALL.to_vec(),
            description: None,
            enabled: true,
            created_by: owner,
            now,
        };
        store
            .create_webhook(webhook, Idempotent::not_recorded())
            .await
            .unwrap();
        let key = ids.api_key(now);
        world.state().teams.push(Team { id, owner, key });
    }
    for number in 0..6 {
        let team = world
            .state()
            .random
            .index(usize::try_from(teams).unwrap_or(1));
        create_agent(world, program, number, team).await;
    }
}

async fn create_agent(world: &Arc<World>, program: &Program, number: usize, team: usize) {
    let now = world.now();
    let ids = &program.wire.ids;
    let (id, build) = (ids.agent(now), ids.build(now));
    let (agent, config, team) = {
        let mut state = world.state();
        let (agent, config) = draw_agent(world, &mut state, (number, id), team);
        (agent, config, state.teams[team])
    };
    let build = NewBuild {
        id: build,
        name: "build".to_owned(),
        description: None,
        config,
        created_by: team.owner,
        draft: false,
        warnings: Vec::new(),
    };
    let new = NewAgent {
        team: team.id,
        id,
        name: format!("agent{number}"),
        build: Some(build),
        created_by: team.owner,
        now,
    };
    program
        .store
        .create_agent(new, Idempotent::not_recorded())
        .await
        .unwrap();
    world.state().agents.push(agent);
}

/// Draws an agent and the config of its build. The config differs from the agent if the world has such a defect.
fn draw_agent(
    world: &World,
    state: &mut State,
    (number, id): (usize, AgentId),
    team: usize,
) -> (Agent, Value) {
    let earlier = state.agents.iter().filter(|other| other.team == team);
    let below: Vec<String> = earlier.map(|other| other.id.to_string()).collect();
    let random = &mut state.random;
    let script = Script::draw(random);
    let people = random.chance(850);
    let on_expire = *random.pick(&["deny", "fail", "continue"]);
    let mut policies = BTreeMap::new();
    for (name, _) in TOOLS {
        let word = random.weighted(&[(60, "allow"), (20, "ask"), (12, "guard"), (8, "deny")]);
        policies.insert(name, word);
    }
    let mut tools = tools_of(world, &policies);
    if people {
        tools["request_approval"] = json!("allow");
        tools["ask_human"] = json!("allow");
    }
    tools[CHILD_TOOL] = json!(random.pick(&["allow", "allow", "allow", "ask"]));
    let seconds = *random.pick(&[60, 600, 86_400]);
    let mut limits = json!({"seconds": seconds});
    if world.sabotages(Sabotage::GrantsMoreTime) {
        limits["seconds"] = json!(86_400);
    }
    if random.chance(200) {
        limits["steps"] = json!(3 + random.below(20));
    }
    let tokens = random.chance(450).then(|| 30 + random.below(80));
    if let Some(tokens) = tokens {
        let more = world.sabotages(Sabotage::GrantsMoreTokens);
        limits["tokens"] = json!(if more { tokens * 10 } else { tokens });
    }
    let expires_in = random
        .pick(&[json!(null), json!("90s"), json!("2h")])
        .clone();
    let config = json!({"version": "v2", "data": {
        "models": {"agent": {"model": format!("sim/{number}")}},
        "tools": tools,
        "limits": limits,
        "assignments": below,
        "human_in_the_loop": people,
        "human_requests": {"expires_in": expires_in, "on_expire": lapse_of(world, on_expire)},
    }});
    let agent = Agent {
        id,
        team,
        script,
        policies,
        on_expire,
        seconds,
        tokens,
    };
    (agent, config)
}

/// The policies as the program gets them.
fn tools_of(world: &World, policies: &BTreeMap<&'static str, &'static str>) -> Value {
    let mut tools = json!(policies);
    for (sabotage, ignored) in [
        (Sabotage::AllowsWhatShouldAsk, "ask"),
        (Sabotage::AllowsWhatIsDenied, "deny"),
    ] {
        for (name, word) in policies {
            if world.sabotages(sabotage) && *word == ignored {
                tools[*name] = json!("allow");
            }
        }
    }
    tools
}

/// The outcome of an expired request as the program gets it.
fn lapse_of(world: &World, word: &'static str) -> &'static str {
    match word {
        "fail" if world.sabotages(Sabotage::LapsesSilently) => "continue",
        word => word,
    }
}
