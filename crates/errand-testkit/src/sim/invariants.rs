//! The invariants of a simulation, each with a sentence, and the checks that need more than a line.
//!
//! Some are checked at the moment when something happens (a call begins, an answer is received, a webhook arrives), the
//! others when faults have stopped and everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use errand_core::event::EventKind;
use errand_core::id::{HumanRequestId, RunId};
use errand_core::policy;
use errand_core::retry::WEBHOOK_RETRY_WINDOW_MS;
use errand_core::run::{Event, Status, apply};
use errand_core::time::Timestamp;
use errand_core::webhook::DeliveryState;
use errand_core::wire::MessageBody;
use errand_store::model::{DeliveryRow, EventRow, RunView};
use errand_store::{AuditScope, Store};
use serde_json::Value;

use super::actions::TEAMS_RECEIVER;
use super::clients::{Heard, Request, Want, lets_run};
use super::family::tokens_of;
use super::forks::WantedFork;
use super::model::{is_task, read_by};
use super::network::is_part;
use super::receivers::url_of;
use super::tools::{Kind, exact, kind_of};
use super::world::{Origin, State, World};

listed! {
    /// A rule that must always hold. [`Invariant::sentence`] explains each. [`super::Sabotage`] has a defect for each.
    pub enum Invariant {
        NoSilentRepeat,
        OnlyApproved,
        NothingDenied,
        StopHolds,
        StartedOnce,
        MessageKept,
        MessageRead,
        OneAnswer,
        Answers,
        Lapses,
        WorkingTime,
        SameBytes,
        InOrder,
        Delivered,
        Transitions,
        NoGaps,
        OneResult,
        Fenced,
        NeverStuck,
        NoInternal,
        Starts,
        Stored,
        RunPerCall,
        SharedLimits,
        CountedOnce,
        WholeAnswers,
        ForkCopies,
    }
}

impl Invariant {
    /// The invariant as a sentence.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NoSilentRepeat => {
                "a call that is not idempotent begins once, and again only after a person's answer `not done, run it` or a look-up that found it not done"
            }
            Self::OnlyApproved => "a call that runs after an approval is exactly the approved one",
            Self::NothingDenied => "no call runs that the build or a person denied",
            Self::StopHolds => {
                "after a stop was answered, no tool call and no model turn begins until something resumes the run"
            }
            Self::StartedOnce => {
                "an accepted start is one run, however often it is repeated with its key; a refused start is none"
            }
            Self::MessageKept => "an accepted message is in the transcript exactly once",
            Self::MessageRead => "a run completes only after its model has read the last message",
            Self::OneAnswer => {
                "a human request accepts one answer, which the transcript shows; a second answer changes nothing"
            }
            Self::Answers => {
                "a client gets only responses that the contract allows, and the same response when it repeats a request"
            }
            Self::Lapses => {
                "a request expires at its deadline and not before, and `on_expire` decides what follows"
            }
            Self::WorkingTime => "no run gets more active time than its limit",
            Self::SameBytes => "a webhook has the same id and the same bytes at every attempt",
            Self::InOrder => {
                "the first attempts of a run's webhooks arrive in the order of its events"
            }
            Self::Delivered => {
                "each event with a webhook has a delivery that arrives, unless the receiver answered 410 or three days have passed"
            }
            Self::Transitions => "a status changes only as the transition table allows",
            Self::NoGaps => {
                "events and messages are numbered without gaps and agree with each other"
            }
            Self::OneResult => "each call has one id and one result",
            Self::Fenced => "a driver that has lost its claim commits nothing",
            Self::NeverStuck => {
                "once faults have stopped, every accepted run ends, and everything comes to rest"
            }
            Self::NoInternal => "no run fails because of an internal error",
            Self::Starts => "the program starts on the data that a crash left behind",
            Self::Stored => "the store's own invariants hold (`errand_store::Store::audit`)",
            Self::RunPerCall => {
                "a call of `run_assignment` starts one run, however often its driver is lost"
            }
            Self::SharedLimits => {
                "a run and those below it use no more tokens than the run's limit, apart from the turn that reaches it"
            }
            Self::CountedOnce => "the usage of a run contains no call of a model twice",
            Self::WholeAnswers => "no part of an answer that broke off is in the transcript",
            Self::ForkCopies => {
                "a fork begins with the messages of the other run, up to the one that was named"
            }
        }
    }
}

/// A violated invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    /// The observation that violates it.
    pub detail: String,
    /// The last log lines before it.
    pub last: Vec<String>,
}

pub(crate) type Verdict = Result<(), (Invariant, String)>;

/// Whether a call that has just begun (and is counted already) was allowed to begin.
pub(crate) fn may_begin(
    state: &State,
    run: RunId,
    call_id: &str,
    name: &str,
    exact: &str,
) -> Verdict {
    let what = format!("{exact} ({call_id}) of {run}");
    if state.runs.get(&run).is_none_or(|run| run.halted) {
        return Err((Invariant::StopHolds, what));
    }
    match state.policy(run, name) {
        "deny" => return Err((Invariant::NothingDenied, what)),
        "ask" => approved(state, run, call_id, exact)?,
        _ => {}
    }
    if denied(state, run, call_id) {
        return Err((Invariant::NothingDenied, what));
    }
    let Some(call) = state.calls.get(&(run, exact.to_owned())) else {
        return Ok(());
    };
    let allowed = match kind_of(name) {
        Some(Kind::LooksUp) => 1 + call.found_undone,
        Some(Kind::TellsModel) => 1,
        Some(Kind::AsksPerson) => {
            let released = call.ids.iter().map(|id| releases(state, run, id));
            1 + released.sum::<u32>()
        }
        Some(Kind::Reads | Kind::Idempotent) | None => return Ok(()),
    };
    if call.begun > allowed {
        let detail = format!("{what} begun {} times, allowed: {allowed}", call.begun);
        return Err((Invariant::NoSilentRepeat, detail));
    }
    Ok(())
}

fn asks_about<'a>(
    state: &'a State,
    run: RunId,
    call_id: &str,
) -> impl Iterator<Item = HumanRequestId> + use<'a> {
    let asks = state.asks_by_call.get(&(run, call_id.to_owned()));
    asks.into_iter().flatten().copied()
}

fn answers_to(state: &State, ask: HumanRequestId) -> impl Iterator<Item = &Request> {
    let answers = state.answers.get(&ask).into_iter().flatten();
    answers.map(|number| &state.requests[*number])
}

fn says_yes(request: &Request) -> bool {
    let refused = matches!(request.heard, Some(Heard::Refused(_)));
    matches!(&request.want, Want::Answer { answer, .. } if !refused && lets_run(answer))
}

/// Whether a person may have approved exactly this call. An answer whose response was lost may have been accepted.
fn approved(state: &State, run: RunId, call_id: &str, what: &str) -> Verdict {
    let mut other = None;
    for ask in asks_about(state, run, call_id) {
        if !answers_to(state, ask).any(says_yes) {
            continue;
        }
        let call = state.asks[&ask].1.tool_call.as_ref();
        match call.map(|call| exact(&call.name, &call.arguments)) {
            Some(shown) if shown == what => return Ok(()),
            shown => other = Some(shown),
        }
    }
    let detail = match other {
        Some(shown) => format!("{what} ({call_id}) of {run} runs, but {shown:?} was approved"),
        None => format!("{what} ({call_id}) of {run} runs without an approval"),
    };
    Err((Invariant::OnlyApproved, detail))
}

/// Whether a person's denial of this call was accepted.
fn denied(state: &State, run: RunId, call_id: &str) -> bool {
    asks_about(state, run, call_id).any(|ask| {
        let is_approval = state.asks[&ask].1.digest.is_some()
            && matches!(state.asks[&ask].1.ask, errand_core::human::Ask::Approval);
        is_approval
            && answers_to(state, ask).any(|request| {
                matches!(request.heard, Some(Heard::Accepted(_))) && !says_yes(request)
            })
    })
}

/// How often a person may have answered `not done, run it` for this call.
fn releases(state: &State, run: RunId, call_id: &str) -> u32 {
    let asks = asks_about(state, run, call_id).filter(|ask| {
        matches!(
            state.asks[ask].1.ask,
            errand_core::human::Ask::Question { .. }
        ) && answers_to(state, *ask).any(says_yes)
    });
    u32::try_from(asks.count()).unwrap_or(u32::MAX)
}

/// Everything that is visible of a run.
pub(crate) struct Record {
    pub(crate) id: RunId,
    pub(crate) view: RunView,
    pub(crate) messages: Vec<MessageBody>,
    pub(crate) events: Vec<EventRow>,
    pub(crate) deliveries: Vec<DeliveryRow>,
}

/// Checks the store's own invariants, whenever it can be read.
pub(crate) async fn stored(world: &World, store: &Store) -> Verdict {
    match store.audit(AuditScope::All, world.now()).await {
        Ok(found) => match found.first() {
            None => Ok(()),
            Some(finding) => Err((
                Invariant::Stored,
                format!("{:?}: {}: {}", finding.run, finding.invariant, finding.what),
            )),
        },
        // The disk is full or the program has crashed; the check is repeated later.
        Err(error) if error.is_passing() => Ok(()),
        Err(error) => Err((Invariant::Stored, error.to_string())),
    }
}

/// Checks a run at any time.
pub(crate) fn of_run(state: &State, record: &Record) -> Verdict {
    events_without_gaps(record)?;
    statuses_by_the_table(record)?;
    one_result_for_each_call(record)?;
    users_messages(state, record)?;
    answers_shown(state, record)?;
    lapses(state, record)?;
    guarded(state, record)?;
    active_time(state, record)?;
    model_calls(state, record)?;
    deliveries_made(state, record)?;
    if let Some(error) = &record.view.run.error
        && ["internal", "unreadable", "build_unreadable"].contains(&error.code.as_str())
    {
        let detail = format!("{}: {}: {}", record.id, error.code, error.message);
        return Err((Invariant::NoInternal, detail));
    }
    Ok(())
}

/// Checks a run when everything is at rest: nothing that is due by the clock is overdue.
pub(crate) fn at_rest(now: Timestamp, record: &Record) -> Verdict {
    let view = &record.view;
    if let Some(request) = &view.pending
        && request.expires_at.is_some_and(|at| at <= now)
    {
        let detail = format!("{}: {request:?} is still pending", record.id);
        return Err((Invariant::Lapses, detail));
    }
    Ok(())
}

/// Checks a run at the end: it has ended, its model has read everything, and its webhooks have arrived.
pub(crate) fn at_the_end(state: &State, now: Timestamp, record: &Record) -> Verdict {
    let run = &record.view.run;
    if !run.status.has_ended() {
        return Err((Invariant::NeverStuck, format!("{:?}", record.view)));
    }
    if run.status == Status::Completed {
        let sent = record
            .messages
            .iter()
            .filter(|m| m.role == "user" && m.kind == "text");
        let last = (record.messages.iter().rev())
            .find(|m| m.role == "assistant" && m.kind == "text")
            .and_then(|m| read_by(m.text_content.as_deref().unwrap_or_default()));
        let sent = sent.count() as u64;
        if last != Some(sent) {
            let detail = format!("{}: {sent} messages, read: {last:?}", record.id);
            return Err((Invariant::MessageRead, detail));
        }
    }
    for delivery in &record.deliveries {
        arrived(state, now, record, delivery)?;
    }
    Ok(())
}

fn events_without_gaps(record: &Record) -> Verdict {
    let gap = |detail: String| Err((Invariant::NoGaps, format!("{}: {detail}", record.id)));
    for (index, event) in record.events.iter().enumerate() {
        if event.seq != index as u64 + 1 {
            return gap(format!("event {} has position {}", event.seq, index + 1));
        }
    }
    let announced: Vec<&Value> = (record.events.iter())
        .filter(|event| event.kind == EventKind::MessageCreated)
        .map(|event| &event.data["id"])
        .collect();
    let there: Vec<Value> = (record.messages.iter())
        .map(|message| Value::String(message.id.to_string()))
        .collect();
    if announced != there.iter().collect::<Vec<_>>() {
        return gap(format!(
            "{} events of {} messages",
            announced.len(),
            there.len()
        ));
    }
    let mut open = None;
    for event in &record.events {
        match (event.kind, &open) {
            (EventKind::HumanRequestCreated, None) => open = Some(event.data["id"].clone()),
            (EventKind::HumanRequestClosed, Some(id)) if *id == event.data["id"] => open = None,
            (EventKind::HumanRequestCreated | EventKind::HumanRequestClosed, _) => {
                return gap(format!(
                    "event {} does not match the open request {open:?}",
                    event.seq
                ));
            }
            (EventKind::RunUpdated | EventKind::MessageCreated, _) => {}
        }
    }
    Ok(())
}

fn statuses_by_the_table(record: &Record) -> Verdict {
    let mut before: Option<Status> = None;
    for event in record
        .events
        .iter()
        .filter(|e| e.kind == EventKind::RunUpdated)
    {
        let status = event.data["status"].as_str().and_then(Status::parse);
        let allowed = match (before, status) {
            (_, None) => false,
            (None, Some(first)) => first == Status::Pending,
            (Some(before), Some(status)) => is_allowed_change(before, status),
        };
        if !allowed {
            let detail = format!(
                "{}: event {}: {before:?} to {status:?}",
                record.id, event.seq
            );
            return Err((Invariant::Transitions, detail));
        }
        before = status;
    }
    if before != Some(record.view.run.status) {
        let detail = format!(
            "{}: the last event says {before:?}, the run {:?}",
            record.id, record.view.run.status
        );
        return Err((Invariant::Transitions, detail));
    }
    Ok(())
}

/// Whether one commit can lead from one status to another: an event of the table, or a step and the event that ends it.
fn is_allowed_change(from: Status, to: Status) -> bool {
    let after = |from: Status, event| apply(from, event).ok().map(|t| t.to);
    let ends = [Event::Asked, Event::Completed, Event::Failed];
    from == to
        || Event::ALL
            .iter()
            .any(|event| after(from, *event) == Some(to))
        || after(from, Event::StepDone)
            .is_some_and(|step| ends.iter().any(|event| after(step, *event) == Some(to)))
}

fn one_result_for_each_call(record: &Record) -> Verdict {
    let (mut calls, mut results) = (BTreeSet::new(), BTreeSet::new());
    for message in &record.messages {
        if let Some(call) = &message.tool_call
            && !calls.insert(call.id.as_str())
        {
            let detail = format!("{}: call {} occurs twice", record.id, call.id);
            return Err((Invariant::OneResult, detail));
        }
        if let Some(result) = &message.tool_result {
            let id = result.tool_call_id.as_str();
            if !calls.contains(id) || !results.insert(id) {
                let detail = format!("{}: an unexpected result of {id}", record.id);
                return Err((Invariant::OneResult, detail));
            }
        }
    }
    let open: Vec<_> = calls.difference(&results).collect();
    if record.view.run.status.has_ended() && !open.is_empty() {
        let detail = format!("{}: has ended without results of {open:?}", record.id);
        return Err((Invariant::OneResult, detail));
    }
    Ok(())
}

/// Checks that each accepted message exists once, and that every message was sent by a client.
fn users_messages(state: &State, record: &Record) -> Verdict {
    let mut there: BTreeMap<&str, u32> = BTreeMap::new();
    for message in &record.messages {
        if message.role == "user" && message.kind == "text" {
            *there
                .entry(message.text_content.as_deref().unwrap_or_default())
                .or_default() += 1;
        }
    }
    let origin = state.runs.get(&record.id).map(|run| run.origin);
    if origin == Some(Origin::Call) {
        // The call's message.
        let tasks: Vec<_> = there.iter().filter(|(text, _)| is_task(text)).collect();
        if tasks.iter().map(|(_, count)| **count).sum::<u32>() != 1 {
            let detail = format!("{}: messages of the call: {tasks:?}", record.id);
            return Err((Invariant::MessageKept, detail));
        }
        there.retain(|text, _| !is_task(text));
    }
    for (number, request) in state.requests.iter().enumerate() {
        let to_this = match &request.want {
            Want::Message { run } => *run == record.id,
            Want::Start { message, .. } | Want::Fork(WantedFork { message, .. }) => {
                *message && origin == Some(Origin::Request(number))
            }
            Want::Answer { .. } | Want::Stop { .. } | Want::Retry { .. } => false,
        };
        if !to_this {
            continue;
        }
        let count = there.remove(Request::text(number).as_str()).unwrap_or(0);
        let fits = match (&request.heard, &request.want) {
            // The run exists, so its first message must exist, too.
            (_, Want::Start { .. } | Want::Fork(_)) | (Some(Heard::Accepted(_)), _) => count == 1,
            // A refusal is not recorded: a later attempt may have been accepted, and its response lost.
            (Some(Heard::Refused(_)), _) => count <= u32::from(request.answered < request.tries),
            (None, _) => count <= 1,
        };
        if !fits {
            let detail = format!(
                "{}: message {number} ({:?}) exists {count} times",
                record.id, request.heard
            );
            return Err((Invariant::MessageKept, detail));
        }
    }
    // Those that a fork has copied are compared with the original.
    let is_copied = state.fork_of(record.id).is_some() && there.values().all(|count| *count == 1);
    if there.is_empty() || is_copied {
        return Ok(());
    }
    let detail = format!("{}: {there:?} were not sent by any client", record.id);
    Err((Invariant::MessageKept, detail))
}

/// Checks that the transcript shows the accepted answer of each request.
fn answers_shown(state: &State, record: &Record) -> Verdict {
    let mut shown: BTreeMap<String, Option<&str>> = BTreeMap::new();
    for message in &record.messages {
        if let Some(response) = &message.human_response {
            let id = response.request_id.to_string();
            if shown.insert(id, response.response.as_deref()).is_some() {
                let detail = format!("{}: {} has two answers", record.id, response.request_id);
                return Err((Invariant::OneAnswer, detail));
            }
        }
    }
    for (ask, _) in state.asks.iter().filter(|(_, (run, _))| *run == record.id) {
        for answer in answers_to(state, *ask) {
            let (Some(Heard::Accepted(_)), Want::Answer { word, .. }) =
                (&answer.heard, &answer.want)
            else {
                continue;
            };
            let there = shown.get(&ask.to_string()).copied().flatten();
            if there != Some(word.as_str()) {
                let detail = format!(
                    "{}: {ask} was answered {word:?}, shown: {there:?}",
                    record.id
                );
                return Err((Invariant::OneAnswer, detail));
            }
        }
    }
    Ok(())
}

/// Checks that requests expire in time and not before, that `fail` ends the run, and that late answers are rejected.
fn lapses(state: &State, record: &Record) -> Verdict {
    let default =
        (state.runs.get(&record.id)).map_or("deny", |run| state.agents[run.agent].on_expire);
    let mut asked = BTreeMap::new();
    for (index, message) in record.messages.iter().enumerate() {
        if let Some(request) = &message.human_request {
            asked.insert(request.id, request);
        }
        let Some(response) = &message.human_response else {
            continue;
        };
        let Some(request) = asked.get(&response.request_id) else {
            let detail = format!("{}: an answer without a request: {response:?}", record.id);
            return Err((Invariant::Lapses, detail));
        };
        let over = request.expires_at.is_some_and(|at| at <= message.timestamp);
        let expired = response.response.as_deref() == Some("expired");
        let answered = answers_to(state, HumanRequestId::from_stored(request.id))
            .any(|answer| matches!(answer.heard, Some(Heard::Accepted(_))));
        if (expired && !over) || (answered && over) {
            let detail = format!("{}: {request:?} at {}", record.id, message.timestamp);
            return Err((Invariant::Lapses, detail));
        }
        // A request for more than a limit is denied when it expires, regardless of the build's default: the next step
        // fails the run, unless a message arrived first.
        let asks_for_more = request.title.starts_with("Continue ");
        let default = if asks_for_more { "deny" } else { default };
        let on_expire = (request.title.strip_suffix(')'))
            .and_then(|title| title.rsplit_once(" ("))
            .map_or(default, |(_, word)| word);
        // A fork may end its copy here, and continue otherwise.
        let is_copied = state
            .fork_of(record.id)
            .is_some_and(|fork| fork.after.is_none() || fork.copies > index);
        let mut after = record.messages.iter().skip(index + 1);
        let next = after.find(|message| message.kind != "tool_result");
        let fails = expired && on_expire == "fail" && !is_copied;
        if fails && next.is_none_or(|next| next.kind != "error") {
            let detail = format!("{}: {request:?} expired, followed by {next:?}", record.id);
            return Err((Invariant::Lapses, detail));
        }
    }
    Ok(())
}

/// Checks that usage is counted once, and that answers that broke off are not in the transcript.
fn model_calls(state: &State, record: &Record) -> Verdict {
    let (used, given) = (tokens_of(record), state.tokens.get(&record.id));
    if used > given.copied().unwrap_or_default() {
        let detail = format!("{}: {used} tokens used, given: {given:?}", record.id);
        return Err((Invariant::CountedOnce, detail));
    }
    let mut texts = record
        .messages
        .iter()
        .filter_map(|m| m.text_content.as_ref());
    match texts.find(|text| is_part(text)) {
        Some(text) => Err((Invariant::WholeAnswers, format!("{}: {text}", record.id))),
        None => Ok(()),
    }
}

/// Checks that a run's present step must end before the run is active for longer than its limit.
fn active_time(state: &State, record: &Record) -> Verdict {
    let Some(known) = state.runs.get(&record.id) else {
        return Ok(());
    };
    let limit_ms = state.agents[known.agent].seconds * 1000;
    // The claim may be of a time before the clock was set back.
    let last = state.latest.plus_ms(limit_ms);
    let waiting = record.view.run.waiting_on.as_ref();
    let works = waiting.filter(|on| ["start", "model", "tool"].contains(&on.kind.as_str()));
    match works.and_then(|on| on.deadline) {
        Some(deadline) if deadline > last => {
            let detail = format!("{}: {waiting:?}, limit: {limit_ms} ms", record.id);
            Err((Invariant::WorkingTime, detail))
        }
        _ => Ok(()),
    }
}

/// Checks that a guarded call after untrusted content was approved by a person.
fn guarded(state: &State, record: &Record) -> Verdict {
    let mut names = BTreeMap::new();
    let mut tainted = false;
    for message in &record.messages {
        if let Some(call) = &message.tool_call {
            names.insert(call.id.as_str(), call.name.as_str());
            let arguments = call.arguments.clone().unwrap_or_default();
            let exact = exact(&call.name, &arguments);
            let begun = state.calls.get(&(record.id, exact.clone()));
            if tainted
                && state.policy(record.id, &call.name) == "guard"
                && begun.is_some_and(|call| call.begun > 0)
            {
                approved(state, record.id, &call.id, &exact)?;
            }
        }
        if let Some(result) = &message.tool_result
            && result.result.is_some()
        {
            let name = names.get(result.tool_call_id.as_str()).copied();
            tainted |=
                name.is_some_and(|name| policy::builtin(name).is_none_or(|hints| hints.untrusted));
        }
    }
    Ok(())
}

/// The receivers of a run's events, and of its human requests only. `None` if that is not known.
fn receivers_of(state: &State, run: RunId) -> Option<(Option<usize>, Option<usize>)> {
    let known = state.runs.get(&run)?;
    let Origin::Request(number) = known.origin else {
        // The people that a caller asks are also asked by the runs that it starts.
        let (webhook, human_webhook) = receivers_of(state, known.caller?)?;
        return Some((None, human_webhook.or(webhook)));
    };
    match &state.requests[number].want {
        Want::Start {
            webhook,
            human_webhook,
            ..
        } => Some((*webhook, *human_webhook)),
        Want::Fork(fork) => Some((fork.webhook, None)),
        Want::Message { .. } | Want::Answer { .. } | Want::Stop { .. } | Want::Retry { .. } => None,
    }
}

/// Checks that each end and each human request has its deliveries, and that there are no others.
fn deliveries_made(state: &State, record: &Record) -> Verdict {
    let Some((webhook, human_webhook)) = receivers_of(state, record.id) else {
        return Ok(());
    };
    // The run's own URL, and the team's webhook.
    let urls: BTreeSet<String> = (webhook.into_iter())
        .chain([TEAMS_RECEIVER])
        .map(url_of)
        .collect();
    let mut asked = urls.clone();
    asked.extend(human_webhook.map(url_of));
    let mut wanted = BTreeSet::new();
    let mut before = Status::Pending;
    for event in &record.events {
        let (name, to) = match event.kind {
            EventKind::HumanRequestCreated => ("human_request", &asked),
            EventKind::RunUpdated => {
                let status = event.data["status"].as_str().and_then(Status::parse);
                let was = before;
                before = status.unwrap_or(was);
                match status.filter(|status| *status != was) {
                    Some(Status::Completed) => ("run_completed", &urls),
                    Some(Status::Failed) => ("run_failed", &urls),
                    Some(Status::Interrupted) => ("run_interrupted", &urls),
                    _ => continue,
                }
            }
            _ => continue,
        };
        wanted.extend(
            to.iter()
                .map(|url| (event.seq, name.to_owned(), url.clone())),
        );
    }
    let made: BTreeSet<_> = (record.deliveries.iter())
        .map(|d| (d.sequence, d.event.clone(), d.url.clone()))
        .collect();
    if made == wanted && made.len() == record.deliveries.len() {
        return Ok(());
    }
    let detail = format!("{}: expected {wanted:?}, found {made:?}", record.id);
    Err((Invariant::Delivered, detail))
}

/// Checks that a webhook has arrived, or was given up for a valid reason.
fn arrived(state: &State, now: Timestamp, record: &Record, delivery: &DeliveryRow) -> Verdict {
    let id = delivery.id.to_string();
    let heard: Vec<Option<u16>> = (state.receipts.iter())
        .filter(|receipt| receipt.id == id && receipt.url == delivery.url)
        .map(|receipt| receipt.answered)
        .collect();
    let made_at = (record.events.get(
        usize::try_from(delivery.sequence)
            .unwrap_or(0)
            .wrapping_sub(1),
    ))
    .map_or(now, |event| event.created_at);
    let fits = match delivery.state {
        DeliveryState::Delivered => heard.contains(&Some(200)),
        DeliveryState::Gone => heard.contains(&Some(410)),
        DeliveryState::Exhausted => state.latest.ms_since(made_at) >= WEBHOOK_RETRY_WINDOW_MS,
        DeliveryState::Pending | DeliveryState::Dropped => false,
    };
    if fits {
        return Ok(());
    }
    let detail = format!(
        "{}: {delivery:?}; the receivers answered {heard:?}",
        record.id
    );
    Err((Invariant::Delivered, detail))
}

/// Checks that accepted starts are one run each, and refused starts none.
pub(crate) fn starts(state: &State, there: &[RunId]) -> Verdict {
    let mut by_start: BTreeMap<usize, Vec<RunId>> = BTreeMap::new();
    for run in there {
        let Some(known) = state.runs.get(run) else {
            return Err((
                Invariant::StartedOnce,
                format!("{run} was not started by any client"),
            ));
        };
        if let Origin::Request(number) = known.origin {
            by_start.entry(number).or_default().push(*run);
        }
    }
    for (number, request) in state.requests.iter().enumerate() {
        if !matches!(request.want, Want::Start { .. } | Want::Fork(_)) {
            continue;
        }
        let made = by_start.remove(&number).unwrap_or_default();
        let fits = match &request.heard {
            Some(Heard::Accepted(run)) => made.len() == 1 && made.first() == run.as_ref(),
            // A refusal is not recorded: a later attempt may have been accepted, and its response lost.
            Some(Heard::Refused(_)) => made.len() <= usize::from(request.answered < request.tries),
            None => made.len() <= 1,
        };
        if !fits {
            let detail = format!(
                "start {number} got {:?} and created {made:?}",
                request.heard
            );
            return Err((Invariant::StartedOnce, detail));
        }
    }
    Ok(())
}
