//! Child runs: what the world knows of them, and the invariants of a run together with the runs that it started.

use std::collections::BTreeMap;

use errand_core::id::{AgentId, RunId};

use super::invariants::{Invariant, Record, Verdict};
use super::model::CHILD_TOOL;
use super::world::{Origin, Run, State};

/// Tokens by which a turn may exceed a limit: the limit is checked before each turn.
const TURN_TOKENS: u64 = 15;

impl State {
    /// Registers a child run when it is first seen, and its caller when that is first known.
    pub(crate) fn meet_child(&mut self, run: RunId, agent: usize, caller: Option<RunId>) {
        let caller_is_halted = caller
            .and_then(|caller| self.runs.get(&caller))
            .is_some_and(|caller| caller.halted);
        let known = self.runs.entry(run).or_insert_with(|| Run {
            agent,
            origin: Origin::Call,
            caller: None,
            // Nobody can have resumed a run that nobody has seen.
            halted: caller_is_halted,
            wakes_sent: 0,
            wakes_open: 0,
        });
        known.caller = known.caller.or(caller);
    }

    /// The agents whose runs an agent may start: the earlier ones of its team.
    pub(crate) fn may_start(&self, agent: usize) -> Vec<AgentId> {
        let of_team = self.agents.get(agent).map(|agent| agent.team);
        (self.agents.iter().take(agent))
            .filter(|other| Some(other.team) == of_team)
            .map(|other| other.id)
            .collect()
    }

    /// The runs that a run started, at all depths.
    pub(crate) fn below(&self, run: RunId) -> Vec<RunId> {
        self.below_where(run, |_| true)
    }

    /// The runs that a stop of a run stops: itself, and those below it. A child run that a client has resumed may not
    /// be awaited any more.
    pub(crate) fn stopped_with(&self, run: RunId) -> Vec<RunId> {
        let below = self.below_where(run, |child| child.wakes_sent == 0);
        std::iter::once(run).chain(below).collect()
    }

    fn below_where(&self, run: RunId, counts: impl Fn(&Run) -> bool) -> Vec<RunId> {
        let mut all: Vec<RunId> = Vec::new();
        let mut next = vec![run];
        while let Some(caller) = next.pop() {
            let children = self.runs.iter().filter(|(_, of)| {
                of.origin == Origin::Call && of.caller == Some(caller) && counts(of)
            });
            let children: Vec<RunId> = children.map(|(id, _)| *id).collect();
            next.extend(&children);
            all.extend(children);
        }
        all
    }

    /// The policy for a tool in a run: the strictest of its agent and of those whose runs led to it.
    pub(crate) fn policy(&self, run: RunId, tool: &str) -> &'static str {
        const STRICTEST_FIRST: [&str; 3] = ["deny", "ask", "guard"];
        let mut words = Vec::new();
        let mut next = Some(run);
        while let Some(known) = next.and_then(|run| self.runs.get(&run)) {
            let policies = &self.agents[known.agent].policies;
            words.push(policies.get(tool).copied().unwrap_or("deny"));
            next = known.caller;
        }
        let strictest = STRICTEST_FIRST
            .into_iter()
            .find(|word| words.contains(word));
        match strictest {
            Some(word) => word,
            None if words.is_empty() => "deny",
            None => "allow",
        }
    }

    /// Counts tokens of a call of a run's model.
    pub(crate) fn spent(&mut self, run: RunId, tokens: u64) {
        *self.tokens.entry(run).or_default() += tokens;
    }
}

/// Checks that each call started at most one run, and that runs keep to the limits of their callers.
pub(crate) fn families(state: &State, records: &BTreeMap<RunId, Record>) -> Verdict {
    for (run, record) in records {
        one_run_for_each_call(state, *run, record)?;
        shared_limit(state, *run, records)?;
    }
    Ok(())
}

fn one_run_for_each_call(state: &State, run: RunId, record: &Record) -> Verdict {
    let calls = record.messages.iter().filter(|message| {
        let call = message.tool_call.as_ref();
        call.is_some_and(|call| call.name == CHILD_TOOL)
    });
    let children = state
        .runs
        .values()
        .filter(|child| child.origin == Origin::Call && child.caller == Some(run));
    let (calls, children) = (calls.count(), children.count());
    if children > calls {
        let detail = format!("{run}: {calls} calls started {children} runs");
        return Err((Invariant::RunPerCall, detail));
    }
    Ok(())
}

fn shared_limit(state: &State, run: RunId, records: &BTreeMap<RunId, Record>) -> Verdict {
    let Some(limit) = state
        .runs
        .get(&run)
        .and_then(|known| state.agents[known.agent].tokens)
    else {
        return Ok(());
    };
    let below = state.below(run);
    // A child run that a client resumes has the limit that was left when it was started.
    let resumed = below.iter().any(|run| state.runs[run].wakes_sent > 0);
    if resumed {
        return Ok(());
    }
    let family: Vec<&Record> = std::iter::once(&run)
        .chain(&below)
        .filter_map(|run| records.get(run))
        .collect();
    let used: u64 = family.iter().map(|record| tokens_of(record)).sum();
    let granted: u64 = family.iter().map(|record| grants(record)).sum();
    // Calls of models that gave no answer are counted afterwards.
    let most = limit * (1 + granted) + TURN_TOKENS * (family.len() as u64 + lost(state, &family));
    if used > most {
        let detail = format!(
            "{run} and {} runs below it used {used} tokens, allowed: {limit}, extended {granted} times",
            below.len()
        );
        return Err((Invariant::SharedLimits, detail));
    }
    Ok(())
}

pub(crate) fn tokens_of(record: &Record) -> u64 {
    let usage = &record.view.run.usage;
    usage.input_tokens + usage.output_tokens
}

/// Model calls of these runs without an answer that counts.
fn lost(state: &State, family: &[&Record]) -> u64 {
    let of = |record: &&Record| {
        let given = state.tokens.get(&record.id).copied().unwrap_or_default();
        let answered = record.view.run.usage.model_calls * TURN_TOKENS;
        given.saturating_sub(answered).div_ceil(TURN_TOKENS)
    };
    family.iter().map(of).sum()
}

/// How often a person has extended the run's limit of tokens.
fn grants(record: &Record) -> u64 {
    let asked = record.messages.iter().filter_map(|message| {
        let request = message.human_request.as_ref()?;
        (request.title == "Continue beyond the limit of tokens?").then(|| request.id.to_string())
    });
    let asked: Vec<String> = asked.collect();
    let granted = record.messages.iter().filter(|message| {
        message.human_response.as_ref().is_some_and(|response| {
            response.response.as_deref() == Some("approved")
                && asked.contains(&response.request_id.to_string())
        })
    });
    granted.count() as u64
}

/// Whether a child run has used up what was left to its caller, so that it had to ask a person or failed.
pub(crate) fn is_at_limit_of_caller(record: &Record) -> bool {
    let requests = record.messages.iter().filter_map(|message| {
        let request = message.human_request.as_ref()?;
        request.description.as_deref()
    });
    let error = record.view.run.error.as_ref();
    requests
        .chain(error.map(|error| error.message.as_str()))
        .any(|text| text.contains("limits.tokens of the run that started it"))
}
