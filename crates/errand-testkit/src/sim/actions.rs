//! The main loop: a random action, some scheduler turns for everything else, the next action.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use errand_core::config::Left;
use errand_core::content::Content;
use errand_core::effective::CallerPolicies;
use errand_core::id::{ClaimToken, RunId};
use errand_core::run::{Status, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, NewEntry};
use errand_engine::EngineOptions;
use errand_engine::clock::Clock;
use errand_store::model::{PageQuery, RunFilter, StepCommit, StepEnd, Usage};
use errand_store::{Idempotent, StartChild, Store, StoreError};
use tempfile::TempDir;

use super::clients::{Heard, Tasks, Want, draw_answer};
use super::invariants::Invariant;
use super::program::{Program, create_teams_and_agents};
use super::receivers::Mode;
use super::world::{Agent, Origin, World, short};
use super::{Options, Outcome, Sabotage};

/// Deadline of a step, longer than any simulated one takes.
const STEP_MS_MAX: u64 = 86_400_000;

/// The start of every simulation's clock: 2026-11-23T09:30:00Z.
const BEGIN_MS: i64 = 1_795_426_200_000;
/// Maximum runs of a simulation. More would cost time at the end without new situations.
const RUNS_MAX: usize = 48;
const HOUR_MS: u64 = 3_600_000;
/// Number of receivers for the webhooks of runs.
const RECEIVERS: usize = 4;
/// An additional receiver for the webhooks of all teams. It never answers 410.
pub(crate) const TEAMS_RECEIVER: usize = RECEIVERS;

/// A running simulation.
pub(crate) struct Simulation {
    pub(crate) world: Arc<World>,
    pub(crate) tasks: Tasks,
    pub(crate) paused: Vec<Paused>,
    program: Option<Program>,
    options: EngineOptions,
    dir: TempDir,
    crashes: u64,
}

/// A driver that claimed a run and was suspended. It continues later, perhaps too late.
pub(crate) struct Paused {
    run: RunId,
    claim: ClaimToken,
}

/// An action of the main loop.
#[derive(Clone, Copy)]
enum Action {
    Start,
    Message,
    Stop,
    Retry,
    Answer,
    AnswerAgain,
    Repeat,
    CutOff,
    Release,
    Advance,
    NextMoment,
    SetBack,
    Fork,
    Crash,
    Drain,
    Full,
    Break,
    Receivers,
    Sandbox,
    PauseDriver,
    LateDriver,
    Look,
}

const ACTIONS: [(u64, Action); 22] = [
    (110, Action::Start),
    (90, Action::Message),
    (45, Action::Stop),
    (35, Action::Retry),
    (150, Action::Answer),
    (25, Action::AnswerAgain),
    (60, Action::Repeat),
    (30, Action::CutOff),
    (120, Action::Release),
    (120, Action::Advance),
    (50, Action::NextMoment),
    (6, Action::SetBack),
    (15, Action::Fork),
    (14, Action::Crash),
    (5, Action::Drain),
    (12, Action::Full),
    (7, Action::Break),
    (30, Action::Receivers),
    (10, Action::Sandbox),
    (10, Action::PauseDriver),
    (20, Action::LateDriver),
    (20, Action::Look),
];

impl Simulation {
    /// Creates a world and starts the program in it.
    pub(crate) async fn new(options: Options) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(BEGIN_MS));
        let world = World::new(options, clock);
        let places = {
            let mut state = world.state();
            state.receivers = vec![Mode::Answers(200); RECEIVERS + 1];
            1 + state.random.index(5)
        };
        let engine = EngineOptions {
            max_concurrent_runs: places,
            step_seconds_max: 86_400,
            max_concurrent_deliveries: 3,
            cleans_up: false,
        };
        let mut simulation = Self {
            world,
            tasks: Tasks::default(),
            paused: Vec::new(),
            program: None,
            options: engine,
            dir: directory(),
            crashes: 0,
        };
        simulation.start().await;
        if let Some(program) = &simulation.program {
            create_teams_and_agents(&simulation.world, program).await;
        }
        simulation
    }

    pub(crate) fn program(&self) -> &Program {
        self.program.as_ref().expect("a program that runs")
    }

    /// Whether the program runs and no invariant is violated.
    pub(crate) fn can_continue(&self) -> bool {
        self.program.is_some() && self.world.state().violation.is_none()
    }

    /// Performs the configured number of actions, or stops at the first violation.
    pub(crate) async fn act(&mut self) {
        for _ in 0..self.world.options.actions {
            if !self.can_continue() {
                return;
            }
            let action = self.world.state().random.weighted(&ACTIONS);
            self.perform(action).await;
            let turns = {
                let random = &mut self.world.state().random;
                // Usually few, so that actions meet unfinished steps; sometimes so many that everything comes to rest.
                if random.chance(100) {
                    60
                } else {
                    random.below(9)
                }
            };
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            self.start_again_where_poisoned().await;
        }
    }

    /// Restarts the program if its store was closed after a failed commit.
    pub(crate) async fn start_again_where_poisoned(&mut self) {
        let poisoned = self
            .program
            .as_ref()
            .is_some_and(|program| *program.store.poisoned().borrow());
        if poisoned {
            self.crash().await;
        }
    }

    /// Crashes and restarts the program. All clients are disconnected.
    pub(crate) async fn crash(&mut self) {
        self.world.note("crash");
        self.crashes += 1;
        self.tasks.cut_all();
        if let Some(program) = self.program.take() {
            program.crash();
        }
        self.start().await;
    }

    async fn start(&mut self) {
        match Program::start(&self.world, self.dir.path(), self.options).await {
            Ok(program) => self.program = Some(program),
            Err(error) => self.world.broken(Invariant::Starts, error),
        }
    }

    /// The result of the simulation.
    pub(crate) fn outcome(mut self) -> Outcome {
        self.tasks.cut_all();
        if let Some(program) = self.program.take() {
            program.crash();
        }
        let mut state = self.world.state();
        let violation = state.violation.take();
        let runs = (state.requests.iter())
            .filter(|r| matches!(r.heard, Some(Heard::Accepted(Some(_)))))
            .count();
        Outcome {
            steps: state.commits,
            runs: runs as u64,
            crashes: self.crashes,
            seen: std::mem::take(&mut state.seen),
            digest: state.digest(),
            violation,
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Start => self.start_a_run(),
            Action::Message => self.to_a_run(|run| Want::Message { run }),
            Action::Stop => self.to_a_run(|run| Want::Stop { run }),
            Action::Retry => {
                let failed = self.runs_of(vec![Status::Failed]).await;
                self.to_one_of(&failed, |run| Want::Retry { run });
            }
            Action::Answer => self.answer().await,
            Action::AnswerAgain => self.answer_again(),
            Action::Repeat => self.repeat_one(),
            Action::CutOff => {
                let mut random = self.world.state().random.clone();
                if self.tasks.cut_one(&mut random) {
                    self.world.note("a client is disconnected");
                    self.world.state().saw("answer lost");
                }
                self.world.state().random = random;
            }
            Action::Release => {
                self.world.release_one();
            }
            Action::Advance => self.advance(),
            Action::NextMoment => {
                self.to_the_next_moment().await;
            }
            Action::SetBack => {
                let ms = self.world.state().random.below(600_000);
                let now = self.world.now().as_millis();
                let back = Timestamp::from_millis(now - i64::try_from(ms).unwrap_or(0));
                self.world.note("the clock is set back");
                self.world.set_clock(back);
            }
            Action::Fork => self.fork_a_run(RECEIVERS).await,
            Action::Crash => self.crash().await,
            Action::Drain => self.drain().await,
            Action::Full => {
                let mut state = self.world.state();
                state.disk.full = !state.disk.full && state.random.chance(500);
            }
            Action::Break => {
                let mut state = self.world.state();
                let (after, written) = (state.random.below(12), state.random.chance(500));
                state.disk.breaks = Some((after, written));
            }
            Action::Receivers => self.change_a_receiver(),
            Action::Sandbox => self.sandbox().await,
            Action::PauseDriver => self.pause_a_driver().await,
            Action::LateDriver => self.late_driver().await,
            Action::Look => self.look().await,
        }
    }

    /// Sends a new request; sometimes twice at once with the same key.
    pub(crate) fn send(&self, want: Want) {
        let (with_key, twice) = {
            let random = &mut self.world.state().random;
            (random.chance(750), random.chance(120))
        };
        let wire = &self.program().wire;
        let number = wire.request(want, with_key);
        self.tasks.add(wire.send(number));
        if with_key && twice {
            self.tasks.add(wire.send(number));
        }
    }

    /// Whether no more runs should be started.
    pub(crate) fn has_enough_runs(&self) -> bool {
        let state = self.world.state();
        let starts =
            |r: &&super::clients::Request| matches!(r.want, Want::Start { .. } | Want::Fork(_));
        state.requests.iter().filter(starts).count() >= RUNS_MAX
    }

    fn start_a_run(&self) {
        let want = {
            if self.has_enough_runs() {
                return;
            }
            let mut state = self.world.state();
            let agents = state.agents.len();
            let agent = state.random.index(agents);
            let team = state.agents[agent].team;
            let sandboxes: Vec<_> = (state.sandboxes.iter())
                .filter(|(of, _)| *of == team)
                .map(|(_, sandbox)| sandbox.clone())
                .collect();
            let random = &mut state.random;
            let receiver = |random: &mut super::random::Random, permille| {
                random.chance(permille).then(|| random.index(RECEIVERS))
            };
            Want::Start {
                agent,
                sandbox: (!sandboxes.is_empty() && random.chance(500))
                    .then(|| random.pick(&sandboxes).clone()),
                webhook: receiver(random, 600),
                human_webhook: receiver(random, 200),
                message: random.chance(900),
            }
        };
        self.send(want);
    }

    fn to_a_run(&self, want: impl FnOnce(RunId) -> Want) {
        let known = self.known_runs();
        self.to_one_of(&known, want);
    }

    fn to_one_of(&self, runs: &[RunId], want: impl FnOnce(RunId) -> Want) {
        if !runs.is_empty() {
            let run = *self.world.state().random.pick(runs);
            self.send(want(run));
        }
    }

    /// The runs whose start was accepted, in the order of the requests, and then the child runs.
    pub(crate) fn known_runs(&self) -> Vec<RunId> {
        let state = self.world.state();
        let heard = state.requests.iter().map(|request| &request.heard);
        let started = heard.filter_map(|heard| match heard {
            Some(Heard::Accepted(run)) => *run,
            _ => None,
        });
        let children = state
            .runs
            .iter()
            .filter(|(_, run)| run.origin == Origin::Call);
        started.chain(children.map(|(id, _)| *id)).collect()
    }

    /// The runs of all teams with one of these statuses; if empty, all runs.
    pub(crate) async fn runs_of(&self, statuses: Vec<Status>) -> Vec<RunId> {
        let teams = self.world.state().teams.clone();
        let mut all = Vec::new();
        for team in teams {
            let filter = RunFilter {
                statuses: statuses.clone(),
                ..RunFilter::default()
            };
            let page = PageQuery {
                limit: 1000,
                offset: 0,
            };
            match self.program().store.list_runs(team.id, filter, page).await {
                Ok(page) => {
                    let mut state = self.world.state();
                    for run in &page.items {
                        let id = RunId::from_stored(run.id);
                        all.push(id);
                        let agent = |agent: &Agent| agent.id.as_uuid() == run.agent_id;
                        if run.source.is_none()
                            && let Some(agent) = state.agents.iter().position(agent)
                        {
                            state.meet_child(id, agent, None);
                        }
                    }
                }
                Err(error) => self.world.broken(Invariant::Answers, error.to_string()),
            }
        }
        // Includes runs whose start no client got a response to: people see them in the list.
        all
    }

    /// A person looks at a waiting run and usually answers; sometimes twice at once.
    async fn answer(&self) {
        let waiting = self.runs_of(vec![Status::Waiting]).await;
        if waiting.is_empty() {
            return;
        }
        let run = *self.world.state().random.pick(&waiting);
        let times = {
            let random = &mut self.world.state().random;
            random.weighted(&[(10, 0), (75, 1), (15, 2)])
        };
        self.answer_run(run, times).await;
    }

    /// Sends this many answers to the pending request of a run.
    pub(crate) async fn answer_run(&self, run: RunId, times: u32) {
        let team = {
            let state = self.world.state();
            state.teams[state.agents[state.runs[&run].agent].team].id
        };
        let Ok(view) = self.program().store.run(team, run).await else {
            return;
        };
        let Some(request) = view.pending else {
            return;
        };
        {
            let mut state = self.world.state();
            if let Some(call) = request.call_id()
                && !state.asks.contains_key(&request.id)
            {
                let key = (run, call.to_owned());
                state.asks_by_call.entry(key).or_default().push(request.id);
            }
            state.asks.insert(request.id, (run, request.clone()));
        }
        for _ in 0..times {
            let (path, answer, word) = {
                let mut state = self.world.state();
                let (answer, word) = draw_answer(&mut state.random, &request);
                let caller = state.runs[&run].caller;
                // People see the request at the run that started this one, too.
                let path = caller.filter(|_| state.runs[&run].origin == Origin::Call);
                let path = path.filter(|_| state.random.chance(500));
                if path.is_some() {
                    state.saw("answered at the caller");
                }
                (path.unwrap_or(run), answer, word)
            };
            self.send(Want::Answer {
                run: path,
                request: request.id,
                answer,
                word,
            });
        }
    }

    /// A person answers a request that was seen some time ago.
    fn answer_again(&self) {
        let want = {
            let mut state = self.world.state();
            let seen: Vec<_> = state.asks.keys().copied().collect();
            if seen.is_empty() {
                return;
            }
            let id = *state.random.pick(&seen);
            let (run, request) = state.asks[&id].clone();
            let (answer, word) = draw_answer(&mut state.random, &request);
            Want::Answer {
                run,
                request: id,
                answer,
                word,
            }
        };
        self.send(want);
    }

    /// A client without a response repeats its request; sometimes one that has a response.
    fn repeat_one(&self) {
        let mut numbers = self.unheard();
        {
            let mut state = self.world.state();
            if state.random.chance(300) {
                let latest = state.latest;
                let all = state.requests.iter().enumerate();
                let known = all.filter(|(_, request)| request.may_be_forgotten(latest));
                numbers = known.map(|(number, _)| number).collect();
            }
        }
        if !numbers.is_empty() {
            let number = *self.world.state().random.pick(&numbers);
            self.tasks.add(self.program().wire.send(number));
        }
    }

    /// Requests whose clients have no response and will repeat them.
    pub(crate) fn unheard(&self) -> Vec<usize> {
        let state = self.world.state();
        let latest = state.latest;
        (state.requests.iter().enumerate())
            .filter(|(_, request)| request.wants_repeating(latest))
            .map(|(number, _)| number)
            .collect()
    }

    fn advance(&self) {
        let ms = {
            let random = &mut self.world.state().random;
            let up_to = random.weighted(&[
                (20, 300),
                (35, 2_000),
                (25, 30_000),
                (15, 300_000),
                (3, 7_200_000),
            ]);
            1 + random.below(up_to)
        };
        let to = self.world.now().plus_ms(ms);
        self.world.set_clock(to);
    }

    /// Moves the clock to the next time at which something is due; returns false if there is none.
    pub(crate) async fn to_the_next_moment(&self) -> bool {
        let now = self.world.now();
        let store = &self.program().store;
        let moments = [
            store.next_moment(now).await,
            store.next_delivery_at(now).await,
        ];
        let next = moments.into_iter().filter_map(Result::ok).flatten().min();
        if let Some(next) = next {
            // A request does not take days: its idempotency record would have expired when it arrives.
            let open = self.world.state().requests.iter().any(|r| r.open > 0);
            let last = if open { now.plus_ms(HOUR_MS) } else { next };
            self.world.set_clock(next.min(last).max(now));
        }
        next.is_some()
    }

    /// Drains the program as in an orderly shutdown, but with little time for work in progress.
    async fn drain(&mut self) {
        self.world.note("the program drains");
        self.world.state().saw("drained");
        self.program().draining.cancel();
        let turns = self.world.state().random.below(60);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        self.crash().await;
    }

    fn change_a_receiver(&self) {
        let mut state = self.world.state();
        let receiver = state.random.index(RECEIVERS + 1);
        let mode = state.random.weighted(&[
            (45, Mode::Answers(200)),
            (15, Mode::Answers(500)),
            (3, Mode::Answers(410)),
            (15, Mode::Slow),
            (10, Mode::TooLate),
            (12, Mode::Dead),
        ]);
        state.receivers[receiver] = match mode {
            // It would disable the team's webhook, so that later deliveries would depend on timing.
            Mode::Answers(410) if receiver == TEAMS_RECEIVER => Mode::Dead,
            mode => mode,
        };
    }

    async fn sandbox(&self) {
        let now = self.world.now();
        let (number, team) = {
            let mut state = self.world.state();
            let teams = state.teams.len();
            let number = state.random.index(teams);
            (number, state.teams[number])
        };
        let program = self.program();
        let id = program.wire.ids.sandbox(now);
        let expires = now.plus_ms(24 * HOUR_MS);
        let made = (program.store)
            .create_sandbox(
                team.id,
                id.clone(),
                expires,
                now,
                Idempotent::not_recorded(),
            )
            .await;
        if made.is_ok() {
            self.world.state().sandboxes.push((number, id));
        }
    }

    /// Claims a run like a driver, and suspends that driver.
    async fn pause_a_driver(&mut self) {
        let now = self.world.now();
        let program = self.program();
        let claim = program.wire.ids.claim_token(now);
        let claims = program
            .store
            .claim(vec![claim], None, now.plus_ms(STEP_MS_MAX), now)
            .await;
        for claimed in claims.map(|claims| claims.runs).unwrap_or_default() {
            let run = claimed.ready.run;
            self.world
                .note(&format!("a driver claimed {} and is suspended", short(run)));
            self.paused.push(Paused { run, claim });
        }
    }

    /// A suspended driver continues: it releases the run, or its commit is rejected.
    pub(crate) async fn late_driver(&mut self) {
        if self.paused.is_empty() {
            return;
        }
        let index = self.world.state().random.index(self.paused.len());
        let paused = self.paused.swap_remove(index);
        let back = self.come_back(&paused).await;
        if back.is_err_and(|error| error.is_passing()) {
            self.paused.push(paused);
        }
    }

    async fn come_back(&self, paused: &Paused) -> Result<(), StoreError> {
        let store = &self.program().store;
        let now = self.world.now();
        let what = short(paused.run);
        let held = match store.driven_run(paused.run, paused.claim).await {
            Ok(driven) => Some(driven.step),
            Err(StoreError::Fenced) => None,
            Err(error) => return Err(error),
        };
        let mut step = StepCommit {
            run: paused.run,
            claim: paused.claim,
            step: held.unwrap_or(0) + 1,
            known: u64::MAX,
            entries: Vec::new(),
            end: StepEnd::Release,
            usage: Usage::default(),
            sandbox: None,
            sandbox_bytes: None,
            turn: false,
            step_deadline: now.plus_ms(STEP_MS_MAX),
            now,
        };
        let keeps = self.world.sabotages(Sabotage::KeepsClaims);
        if keeps {
            step.end = StepEnd::Go {
                doing: WaitReason::Tool,
                who: None,
            };
        }
        if self.world.sabotages(Sabotage::InventsIntents) {
            step.entries.push(NewEntry {
                id: self.program().wire.ids.message(now),
                body: Body::Intent {
                    call_id: "invented".to_owned(),
                    claim: paused.claim,
                    evidence: None,
                },
            });
        }
        if self.world.sabotages(Sabotage::StartsUncalledRuns) {
            step.end = self.uncalled_run(store, paused.run).await?;
        }
        let first = store.commit_step(step.clone()).await;
        step.step += u64::from(keeps);
        self.world.note(&format!(
            "a late driver of {what}, held: {}, released: {}",
            held.is_some(),
            first.is_ok()
        ));
        self.world.state().saw(if first.is_ok() {
            "late driver: gave back"
        } else {
            "late driver: refused"
        });
        match (held, first) {
            (_, Err(why)) if why.is_passing() => return Err(why),
            // A driver that still holds the claim may release the run, unless the claim was revoked in the meantime.
            (Some(_), Ok(_)) | (_, Err(StoreError::Fenced)) => {}
            (held, answer) => {
                let detail = format!("{what}: held {held:?}, answer {answer:?}");
                self.world.broken(Invariant::Fenced, detail);
            }
        }
        match store.commit_step(step).await {
            Err(StoreError::Fenced) => {}
            Err(why) if why.is_passing() => return Err(why),
            answer => {
                let detail = format!("{what}: a step was accepted twice: {answer:?}");
                self.world.broken(Invariant::Fenced, detail);
            }
        }
        store
            .release_late(paused.run, paused.claim, Vec::new(), now)
            .await
    }

    /// A child run that no call has asked for.
    async fn uncalled_run(&self, store: &Store, caller: RunId) -> Result<StepEnd, StoreError> {
        let (team, agent) = {
            let state = self.world.state();
            let agent = &state.agents[state.runs[&caller].agent];
            (state.teams[agent.team].id, agent.id)
        };
        let build = store.live_build(team, agent).await?;
        let now = self.world.now();
        let ids = &self.program().wire.ids;
        Ok(StepEnd::Child(Box::new(StartChild {
            call_id: "uncalled".to_owned(),
            id: ids.run(now),
            assignment: agent.to_string(),
            allowed: vec![agent],
            message: Some((ids.message(now), "task that nobody gave".to_owned())),
            content: Content::default(),
            policies: CallerPolicies::default(),
            left: Left::default(),
            expected_build: Some(build.usable()),
            human_in_the_loop: true,
        })))
    }

    /// Reads a random run and checks it.
    async fn look(&self) {
        let known = self.known_runs();
        if known.is_empty() {
            return;
        }
        let run = *self.world.state().random.pick(&known);
        self.check_run(run).await;
    }
}

/// A directory that is removed with the simulation; in memory if the machine supports that.
fn directory() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("errand-simulation-");
    builder
        .tempdir_in(memory)
        .or_else(|_| builder.tempdir())
        .expect("a temporary directory")
}

/// The step by which the clock moves while everything comes to rest.
pub(crate) const SECOND: Duration = Duration::from_secs(1);
