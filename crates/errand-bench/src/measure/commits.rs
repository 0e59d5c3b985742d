//! Durable steps per second, measured on the store itself.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use errand_core::id::{ClaimToken, IdGen, RunId, TeamId, UserId};
use errand_core::run::{RunSource, WaitReason};
use errand_core::transcript::{Body, NewEntry};
use errand_engine::clock::Clock;
use errand_store::model::{NewAgent, NewBuild, StartRun, StepCommit, StepEnd, Usage};
use errand_store::seal::MasterKey;
use errand_store::{Bootstrap, Idempotent, OpenOptions, Store};
use serde_json::json;

use super::Bench;
use crate::disk::sync_ms;
use crate::line::{Goal, Outcome};
use crate::server::own_cpu_seconds;
use crate::stats::Sorted;

/// Longer than any step takes.
const STEP_MS_MAX: u64 = 3_600_000;

/// Number of runs that commit at once.
const RUNS: usize = 256;
/// The lone run and the disk's syncs take turns, so that both see the disk in the same state.
const ROUNDS: usize = 10;
const SYNCS_FOR: Duration = Duration::from_millis(100);
/// Time between two steps of one run, such that all runs together make 15,000 steps per second.
const PACE: Duration = Duration::from_micros(256 * 1_000_000 / 15_000);
/// Size of the message that a step appends, in bytes.
const MESSAGE_BYTES: usize = 1024;

const RATE: Goal = Goal::at_least("Durable steps with 256 concurrent runs", "/s", 15_000.0);
const P50: Goal = Goal::informational("A step at that load, p50", "ms");
const P99: Goal = Goal::informational("A step at that load, p99", "ms");
const PACED_RATE: Goal = Goal::informational("Durable steps at a requested rate of 15,000/s", "/s");
const PACED_P50: Goal = Goal::informational("A step at a requested rate of 15,000/s, p50", "ms");
const PACED_P99: Goal = Goal::at_most("A step at a requested rate of 15,000/s, p99", "ms", 25.0);
const LONE: Goal = Goal::at_most(
    "A step of a single run, p50, in addition to the disk's own sync",
    "ms",
    1.0,
);

pub(super) const METHOD: &str = "The benchmark uses the store directly, in its own process. 256 claimed runs each commit one step after the other at full speed. A step is an entry of 1 KB with its event and the run's row; it is complete when it is on disk. Then all runs together commit 15,000 steps per second, and a step's time counts from when it was due. Then a single run commits steps, alternating with syncs of 8 KB on the same disk.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let dir = scratch.path().to_owned();
    let disk = bench.disk()?;
    let (many, lone) = (bench.size(600, 4), bench.size(500, 20));
    let rounds = bench.size(ROUNDS, 1);
    // A multi-threaded runtime, as in the server. This program's own has one thread.
    let taken = tokio::task::spawn_blocking(move || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let committer = Committer::open(&dir).await?;
                let paced = committer.steps(RUNS, many / 2, Some(PACE)).await?;
                let many = committer.steps(RUNS, many, None).await?;
                let (mut steps, mut syncs) = (Vec::new(), Vec::new());
                for _ in 0..rounds {
                    syncs.extend(sync_ms(&dir, SYNCS_FOR)?);
                    steps.extend(committer.lone_run_steps(lone).await?);
                }
                anyhow::Ok((many, paced, Sorted::of(steps), Sorted::of(syncs)))
            })
    });
    let (many, paced, lone, syncs) = taken.await??;
    let (rate, over) = (
        many.times.len() as f64 / many.seconds,
        lone.at(50.0) - syncs.at(50.0),
    );
    Ok(Outcome {
        figures: vec![
            RATE.with_value(rate).of_limit(
                "of the disk's syncs, one per step",
                rate / disk.fdatasync_per_s,
            ),
            P50.with_value(many.times.at(50.0)),
            P99.with_value(many.times.at(99.0)),
            PACED_RATE.with_value(paced.times.len() as f64 / paced.seconds),
            PACED_P50.with_value(paced.times.at(50.0)),
            PACED_P99.with_value(paced.times.at(99.0)),
            LONE.with_value(over).of_limit(
                "of its time is the disk's sync",
                syncs.at(50.0) / lone.at(50.0),
            ),
        ],
        disk,
        curves: vec![
            many.times.curve("a step with 256 runs"),
            paced.times.curve("a step at 15,000/s"),
            lone.curve("a step of a single run"),
        ],
        details: json!({
            "steps": many.times.len(),
            "cpu_us_per_step": (many.cpu_s * 1e6 / many.times.len() as f64).round(),
            "step_ms_max": many.times.at(100.0),
            "lone_ms_p50": lone.at(50.0),
            "sync_beside_ms_p50": syncs.at(50.0),
            "lone_ms_p99": lone.at(99.0),
        }),
        notes: Vec::new(),
    })
}

/// Result of a series of steps.
struct Series {
    seconds: f64,
    cpu_s: f64,
    times: Sorted,
}

/// A store with an agent, for committing steps.
#[derive(Clone)]
struct Committer {
    store: Store,
    ids: Arc<IdGen>,
    team: TeamId,
    user: UserId,
    agent: errand_core::id::AgentId,
}

impl Committer {
    async fn open(dir: &Path) -> Result<Self> {
        let (ids, now) = (Arc::new(IdGen::new([7; 32])), Clock::System.now());
        // With the server's defaults.
        let store = Store::open(OpenOptions {
            dir: dir.to_owned(),
            boot: ids.boot(now),
            respond_base: "http://127.0.0.1".to_owned(),
            master_key: MasterKey::from_bytes([7; 32]),
            readers: 4,
            cache_kib: 2048,
        })?;
        let first = store
            .bootstrap(Bootstrap {
                team: ids.team(now),
                owner: ids.user(now),
                secret: "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
                now,
            })
            .await?;
        let steps = json!([{"finish": "Done."}]);
        let build = NewBuild {
            id: ids.build(now),
            name: "bench".to_owned(),
            description: None,
            config: json!({"version": "v2", "data": {"playbook": {"steps": steps}}}),
            created_by: first.owner,
            draft: false,
            warnings: Vec::new(),
        };
        let agent = ids.agent(now);
        let new = NewAgent {
            team: first.team,
            id: agent,
            name: "bench".to_owned(),
            build: Some(build),
            created_by: first.owner,
            now,
        };
        store.create_agent(new, Idempotent::not_recorded()).await?;
        Ok(Self {
            store,
            ids,
            team: first.team,
            user: first.owner,
            agent,
        })
    }

    /// Runs commit `each` steps each, all at once. `pace` is the time between two steps of a run, which begin on
    /// schedule even if the previous one was early or late.
    async fn steps(&self, runs: usize, each: usize, pace: Option<Duration>) -> Result<Series> {
        let (mut tasks, mut claimed) = (tokio::task::JoinSet::new(), Vec::with_capacity(runs));
        for _ in 0..runs {
            claimed.push(self.claim_new_run().await?);
        }
        let (begin, cpu) = (Instant::now(), own_cpu_seconds()?);
        for (nth, (run, claim)) in claimed.into_iter().enumerate() {
            // Spread the runs evenly over one interval.
            let due = pace.map(|pace| (begin + pace * u32::try_from(nth).unwrap_or(0) / 256, pace));
            tasks.spawn(self.clone().commit_steps(run, claim, each, due));
        }
        let mut times = Vec::with_capacity(runs * each);
        while let Some(done) = tasks.join_next().await {
            times.extend(done??);
        }
        Ok(Series {
            seconds: begin.elapsed().as_secs_f64(),
            cpu_s: own_cpu_seconds()? - cpu,
            times: Sorted::of(times),
        })
    }

    /// Times of the steps of a single run, in ms.
    async fn lone_run_steps(&self, steps: usize) -> Result<Vec<f64>> {
        let (run, claim) = self.claim_new_run().await?;
        self.clone().commit_steps(run, claim, steps, None).await
    }

    /// Starts a run and claims it.
    async fn claim_new_run(&self) -> Result<(RunId, ClaimToken)> {
        let now = Clock::System.now();
        let build = self.store.live_build(self.team, self.agent).await?;
        let start = StartRun {
            team: self.team,
            id: self.ids.run(now),
            agent: self.agent,
            source: RunSource::Api,
            sandbox: None,
            webhook_url: None,
            human_request_webhook_url: None,
            untrusted: false,
            message: None,
            by: self.user.into(),
            sandbox_ttl_ms: 86_400_000,
            api_key: None,
            expected_build: Some(build.usable()),
            now,
        };
        self.store
            .start_run(start, Idempotent::not_recorded())
            .await?;
        let tokens = vec![self.ids.claim_token(now)];
        let taken = self
            .store
            .claim(tokens, None, now.plus_ms(STEP_MS_MAX), now)
            .await?;
        taken
            .runs
            .first()
            .map(|claimed| (claimed.ready.run, claimed.claim))
            .context("the run was not claimed")
    }

    /// Times of the commits, in ms. `due`: when the first one begins, and the pace of the following ones.
    async fn commit_steps(
        self,
        run: RunId,
        claim: ClaimToken,
        each: usize,
        due: Option<(Instant, Duration)>,
    ) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(each);
        let mut known = 0;
        for step in 1..=each as u64 {
            let now = Clock::System.now();
            let entry = NewEntry {
                id: self.ids.message(now),
                body: Body::Assistant {
                    text: "x".repeat(MESSAGE_BYTES),
                    ends: false,
                    mark: None,
                },
            };
            let commit = StepCommit {
                run,
                claim,
                step,
                known,
                entries: vec![entry],
                end: StepEnd::Go {
                    doing: WaitReason::Model,
                    who: None,
                },
                usage: Usage::default(),
                sandbox: None,
                sandbox_bytes: None,
                turn: true,
                step_deadline: now.plus_ms(STEP_MS_MAX),
                now,
            };
            let mut begin = Instant::now();
            if let Some((first, pace)) = due {
                begin = first + pace * u32::try_from(step - 1)?;
                tokio::time::sleep_until(begin.into()).await;
            }
            let committed = self.store.commit_step(commit).await?;
            times.push(begin.elapsed().as_secs_f64() * 1000.0);
            known += committed.entries.len() as u64;
        }
        Ok(times)
    }
}
