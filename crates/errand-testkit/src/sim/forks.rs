//! Forks: how clients request them, and the invariant of a fork and its original.

use std::collections::BTreeMap;

use errand_core::id::{MessageId, RunId};
use errand_core::run::RunSource;
use errand_core::time::Timestamp;
use errand_core::wire::MessageBody;
use errand_store::model::PageQuery;
use errand_store::{ForkRun, Outcome, StoreError};

use super::Sabotage;
use super::actions::Simulation;
use super::clients::{Request, Want, Wire, started};
use super::invariants::{Invariant, Record, Verdict};
use super::receivers::url_of;
use super::world::{Origin, Run, State};

/// A fork that a client wants.
#[derive(Clone, Debug)]
pub(crate) struct WantedFork {
    /// The run to fork.
    pub(crate) of: RunId,
    /// The last message to copy. `None`: all.
    pub(crate) after: Option<MessageId>,
    /// The number of messages to copy; at least, if all are.
    pub(crate) copies: usize,
    /// The first message of the run to fork.
    pub(crate) first: MessageId,
    pub(crate) webhook: Option<usize>,
    /// Whether it continues with a message of its own.
    pub(crate) message: bool,
}

impl Simulation {
    /// A client forks a run after a message that it has seen.
    pub(crate) async fn fork_a_run(&self, receivers: usize) {
        let known = self.known_runs();
        if known.is_empty() || self.has_enough_runs() {
            return;
        }
        let (run, team) = {
            let mut state = self.world.state();
            let run = *state.random.pick(&known);
            let team = state.teams[state.agents[state.runs[&run].agent].team].id;
            (run, team)
        };
        let page = PageQuery {
            limit: u32::MAX,
            offset: 0,
        };
        let Ok(page) = self.program().store.messages(team, run, page).await else {
            return;
        };
        let id = |message: &MessageBody| MessageId::from_stored(message.id);
        let Some(first) = page.items.first().map(id) else {
            return;
        };
        let fork = {
            let random = &mut self.world.state().random;
            let last = random.index(page.items.len());
            let all = random.chance(200);
            WantedFork {
                of: run,
                after: (!all).then(|| id(&page.items[last])),
                copies: if all { page.items.len() } else { last + 1 },
                first,
                webhook: random.chance(400).then(|| random.index(receivers)),
                message: random.chance(700),
            }
        };
        self.send(Want::Fork(fork));
    }
}

impl Wire {
    pub(crate) async fn fork(
        &self,
        number: usize,
        fork: &WantedFork,
        key: Option<String>,
        now: Timestamp,
    ) -> Result<Option<RunId>, StoreError> {
        let id = self.ids.run(now);
        {
            let mut state = self.world.state();
            let (agent, caller) = (state.runs[&fork.of].agent, state.runs[&fork.of].caller);
            let run = Run {
                agent,
                origin: Origin::Request(number),
                caller,
                halted: false,
                wakes_sent: 0,
                wakes_open: 0,
            };
            state.runs.insert(id, run);
        }
        let (team, owner) = self.team_of(fork.of);
        let earlier = self.world.sabotages(Sabotage::ForksEarlier);
        let build = self.store.build_of_fork(team, fork.of, None).await?;
        let wanted = ForkRun {
            team,
            run: fork.of,
            id,
            after: if earlier {
                Some(fork.first)
            } else {
                fork.after
            },
            build: None,
            source: RunSource::Api,
            webhook_url: fork.webhook.map(url_of),
            human_request_webhook_url: None,
            message: fork
                .message
                .then(|| (self.ids.message(now), Request::text(number))),
            untrusted: false,
            by: owner.into(),
            api_key: None,
            sandbox: None,
            sandbox_ttl_ms: 3_600_000,
            expected_build: Some(build.usable()),
            now,
        };
        let once = self.once(key, "/fork", fork.of, started);
        Ok(match self.store.fork(wanted, once).await? {
            Outcome::Executed(view) => Some(RunId::from_stored(view.run.id)),
            Outcome::Replayed(answer) => String::from_utf8_lossy(&answer.body).parse().ok(),
        })
    }
}

impl State {
    /// The fork that a run is, if it is one.
    pub(crate) fn fork_of(&self, run: RunId) -> Option<&WantedFork> {
        let Origin::Request(number) = self.runs.get(&run)?.origin else {
            return None;
        };
        match &self.requests[number].want {
            Want::Fork(fork) => Some(fork),
            _ => None,
        }
    }
}

/// Checks that forks begin with the messages of their original.
pub(crate) fn copies(state: &State, records: &BTreeMap<RunId, Record>) -> Verdict {
    for (run, record) in records {
        let Some(fork) = state.fork_of(*run) else {
            continue;
        };
        let Some(original) = records.get(&fork.of) else {
            continue;
        };
        let of = |record: &Record| -> Vec<_> {
            let messages = record.messages.iter().take(fork.copies);
            messages.map(content).collect()
        };
        let (copied, there) = (of(record), of(original));
        if copied != there {
            let detail = format!(
                "{run} should begin as {}: {there:?}, but does: {copied:?}",
                fork.of
            );
            return Err((Invariant::ForkCopies, detail));
        }
    }
    Ok(())
}

/// The parts of a message that its copy has, too.
fn content(message: &MessageBody) -> String {
    let call = message.tool_call.as_ref();
    let result = message.tool_result.as_ref();
    let response = message.human_response.as_ref();
    format!(
        "{} {}: {:?} {:?} {:?} {:?} {:?}",
        message.role,
        message.kind,
        message.text_content,
        call.map(|call| (&call.id, &call.arguments)),
        result.map(|result| (&result.tool_call_id, &result.result, &result.error)),
        message.human_request.as_ref().map(|request| &request.title),
        response.map(|response| &response.response),
    )
}
