//! What always holds, each with its sentence; and the checks that need more than a glance.
//!
//! Some are held the moment something happens (a call begins, an answer is heard, a webhook comes); the rest when the
//! world is healed and everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use errand_core::id::{HumanRequestId, RunId};
use errand_core::policy;
use errand_core::retry::WEBHOOK_RETRY_WINDOW_MS;
use errand_core::run::{Event, Status, apply};
use errand_core::time::Timestamp;
use errand_core::wire::MessageBody;
use errand_store::model::{DeliveryRow, EventRow, RunView};
use errand_store::{AuditScope, Store};
use serde_json::Value;

use super::actions::TEAMS_RECEIVER;
use super::clients::{Heard, Request, Want, lets_run};
use super::model::read_by;
use super::receivers::url_of;
use super::tools::{Kind, exact, kind_of};
use super::world::{State, World};

/// What always holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// See [`Invariant::sentence`].
    NoSilentRepeat,
    /// See [`Invariant::sentence`].
    OnlyApproved,
    /// See [`Invariant::sentence`].
    NothingDenied,
    /// See [`Invariant::sentence`].
    StopHolds,
    /// See [`Invariant::sentence`].
    StartedOnce,
    /// See [`Invariant::sentence`].
    MessageKept,
    /// See [`Invariant::sentence`].
    MessageRead,
    /// See [`Invariant::sentence`].
    OneAnswer,
    /// See [`Invariant::sentence`].
    Answers,
    /// See [`Invariant::sentence`].
    Lapses,
    /// See [`Invariant::sentence`].
    WorkingTime,
    /// See [`Invariant::sentence`].
    SameBytes,
    /// See [`Invariant::sentence`].
    InOrder,
    /// See [`Invariant::sentence`].
    Delivered,
    /// See [`Invariant::sentence`].
    Transitions,
    /// See [`Invariant::sentence`].
    NoGaps,
    /// See [`Invariant::sentence`].
    OneResult,
    /// See [`Invariant::sentence`].
    Fenced,
    /// See [`Invariant::sentence`].
    NeverStuck,
    /// See [`Invariant::sentence`].
    NoInternal,
    /// See [`Invariant::sentence`].
    Starts,
    /// See [`Invariant::sentence`].
    Stored,
}

impl Invariant {
    /// What holds.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NoSilentRepeat => {
                "a call that is not idempotent begins once, and again only after a person's `not done, run it` or a look-up that found it undone"
            }
            Self::OnlyApproved => "what runs after an approval is exactly what was approved",
            Self::NothingDenied => "nothing runs that the build or a person denied",
            Self::StopHolds => {
                "after a stop was answered, no call of a tool and no turn of the model begins until something resumes the run"
            }
            Self::StartedOnce => {
                "a start that was accepted is one run, however often it was repeated under its key; one that was refused is none"
            }
            Self::MessageKept => "a message that was accepted is in the transcript once",
            Self::MessageRead => "a run completes only after its model has read its last message",
            Self::OneAnswer => {
                "a human request takes one answer, which the transcript shows; a second one changes nothing"
            }
            Self::Answers => {
                "a client gets an answer that the contract has, and a repetition the same"
            }
            Self::Lapses => {
                "a request lapses when its time has come and not before, and `on_expire` says what follows"
            }
            Self::WorkingTime => "no run works beyond its working time",
            Self::SameBytes => "a webhook has one id and the same bytes at every attempt",
            Self::InOrder => {
                "the first attempts of a run's webhooks come in the order of its events"
            }
            Self::Delivered => {
                "each event that wants a webhook has one, and it arrives, unless the receiver said 410 or three days are over"
            }
            Self::Transitions => "a status changes only as the table has it",
            Self::NoGaps => "events and messages have numbers without gaps, and tell the same",
            Self::OneResult => "each call has one id and one result",
            Self::Fenced => "a driver whose claim is gone commits nothing",
            Self::NeverStuck => {
                "once nothing is in its way, every run that was accepted ends, and everything comes to rest"
            }
            Self::NoInternal => "no run fails because the program could not go on",
            Self::Starts => "the program starts on what a crash has left",
            Self::Stored => "the store's own invariants hold (`errand_store::Store::audit`)",
        }
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What happened.
    pub detail: String,
    /// The last happenings before it.
    pub last: Vec<String>,
}

type Verdict = Result<(), (Invariant, String)>;

/// Whether a call that has just begun (and is counted) may have.
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

/// Whether a person may have said yes to exactly this call. An answer whose own answer was lost may count.
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
        Some(shown) => format!("{what} ({call_id}) of {run} runs; approved was {shown:?}"),
        None => format!("{what} ({call_id}) of {run} runs, and nobody approved it"),
    };
    Err((Invariant::OnlyApproved, detail))
}

/// Whether a person's no to this call was accepted.
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

/// How often a person may have said `not done, run it` of this call.
fn releases(state: &State, run: RunId, call_id: &str) -> u32 {
    let asks = asks_about(state, run, call_id).filter(|ask| {
        matches!(
            state.asks[ask].1.ask,
            errand_core::human::Ask::Question { .. }
        ) && answers_to(state, *ask).any(says_yes)
    });
    u32::try_from(asks.count()).unwrap_or(u32::MAX)
}

/// A run as everybody can read it.
pub(crate) struct Record {
    pub(crate) id: RunId,
    pub(crate) view: RunView,
    pub(crate) messages: Vec<MessageBody>,
    pub(crate) events: Vec<EventRow>,
    pub(crate) deliveries: Vec<DeliveryRow>,
}

/// What holds of all that is stored, whenever the store can be read.
pub(crate) async fn stored(world: &World, store: &Store) -> Verdict {
    match store.audit(AuditScope::All, world.now()).await {
        Ok(found) => match found.first() {
            None => Ok(()),
            Some(finding) => Err((
                Invariant::Stored,
                format!("{:?}: {}: {}", finding.run, finding.invariant, finding.what),
            )),
        },
        // The disk is full, or the program has crashed: asked again later.
        Err(error) if error.is_passing() => Ok(()),
        Err(error) => Err((Invariant::Stored, error.to_string())),
    }
}

/// What holds of a run at any time.
pub(crate) fn of_run(state: &State, record: &Record) -> Verdict {
    events_without_gaps(record)?;
    statuses_by_the_table(record)?;
    one_result_for_each_call(record)?;
    users_messages(state, record)?;
    answers_shown(state, record)?;
    lapses(state, record)?;
    guarded(state, record)?;
    deliveries_made(state, record)?;
    if let Some(error) = &record.view.run.error
        && ["internal", "unreadable", "build_unreadable"].contains(&error.code.as_str())
    {
        let detail = format!("{}: {}: {}", record.id, error.code, error.message);
        return Err((Invariant::NoInternal, detail));
    }
    Ok(())
}

/// What holds of a run when all is at rest: nothing that the clock does is overdue.
pub(crate) fn at_rest(now: Timestamp, record: &Record) -> Verdict {
    let view = &record.view;
    if let Some(request) = &view.pending
        && request.expires_at.is_some_and(|at| at <= now)
    {
        let detail = format!("{}: {request:?} is still pending", record.id);
        return Err((Invariant::Lapses, detail));
    }
    if let Some(waiting) = &view.run.waiting_on
        && ["start", "model", "tool"].contains(&waiting.kind.as_str())
        && waiting.deadline.is_some_and(|at| at <= now)
    {
        let detail = format!("{}: {waiting:?}", record.id);
        return Err((Invariant::WorkingTime, detail));
    }
    Ok(())
}

/// What holds of a run at the end: it has ended, has read all, and its webhooks have arrived.
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
            return gap(format!("event {} stands at {}", event.seq, index + 1));
        }
    }
    let told: Vec<&Value> = (record.events.iter())
        .filter(|event| event.kind == "message.created")
        .map(|event| &event.data["id"])
        .collect();
    let there: Vec<Value> = (record.messages.iter())
        .map(|message| Value::String(message.id.to_string()))
        .collect();
    if told != there.iter().collect::<Vec<_>>() {
        return gap(format!("{} events of {} messages", told.len(), there.len()));
    }
    let mut open = None;
    for event in &record.events {
        match (event.kind.as_str(), &open) {
            ("human_request.created", None) => open = Some(event.data["id"].clone()),
            ("human_request.closed", Some(id)) if *id == event.data["id"] => open = None,
            ("human_request.created" | "human_request.closed", _) => {
                return gap(format!("event {} does not follow on {open:?}", event.seq));
            }
            _ => {}
        }
    }
    Ok(())
}

fn statuses_by_the_table(record: &Record) -> Verdict {
    let mut before: Option<Status> = None;
    for event in record.events.iter().filter(|e| e.kind == "run.updated") {
        let status = event.data["status"].as_str().and_then(Status::parse);
        let allowed = match (before, status) {
            (_, None) => false,
            (None, Some(first)) => first == Status::Pending,
            (Some(before), Some(status)) => leads(before, status),
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
            "{}: last told {before:?}: {:?}",
            record.id, record.view.run.status
        );
        return Err((Invariant::Transitions, detail));
    }
    Ok(())
}

/// Whether one change leads from a status to another: an event of the table, or a step and what it ends with.
fn leads(from: Status, to: Status) -> bool {
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
            let detail = format!("{}: call {} is there twice", record.id, call.id);
            return Err((Invariant::OneResult, detail));
        }
        if let Some(result) = &message.tool_result {
            let id = result.tool_call_id.as_str();
            if !calls.contains(id) || !results.insert(id) {
                let detail = format!("{}: a result of {id} that is not its one", record.id);
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

/// Each message that was accepted is there once, and none that nobody sent.
fn users_messages(state: &State, record: &Record) -> Verdict {
    let mut there: BTreeMap<&str, u32> = BTreeMap::new();
    for message in &record.messages {
        if message.role == "user" && message.kind == "text" {
            *there
                .entry(message.text_content.as_deref().unwrap_or_default())
                .or_default() += 1;
        }
    }
    let start = state.runs.get(&record.id).map(|run| run.start);
    for (number, request) in state.requests.iter().enumerate() {
        let to_this = match &request.want {
            Want::Message { run } => *run == record.id,
            Want::Start { message, .. } => *message && start == Some(number),
            Want::Answer { .. } | Want::Stop { .. } | Want::Retry { .. } => false,
        };
        if !to_this {
            continue;
        }
        let count = there.remove(Request::text(number).as_str()).unwrap_or(0);
        let fits = match (&request.heard, &request.want) {
            // The run is there, so its first message must be.
            (_, Want::Start { .. }) | (Some(Heard::Accepted(_)), _) => count == 1,
            // A refusal is not recorded: a later try may have been taken, and its answer lost.
            (Some(Heard::Refused(_)), _) => count <= u32::from(request.answered < request.tries),
            (None, _) => count <= 1,
        };
        if !fits {
            let detail = format!(
                "{}: message {number} ({:?}) is there {count} times",
                record.id, request.heard
            );
            return Err((Invariant::MessageKept, detail));
        }
    }
    if there.is_empty() {
        return Ok(());
    }
    let detail = format!("{}: {there:?} were sent by nobody", record.id);
    Err((Invariant::MessageKept, detail))
}

/// The answer that was accepted is the one that the transcript shows.
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

/// Requests lapse in time, and not before; those with `fail` end the run; no answer is taken after its time.
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
            let detail = format!("{}: an answer to nothing: {response:?}", record.id);
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
        // What asks for more than a limit is denied when it lapses, whatever the build says: the next step then fails
        // the run, unless a message came before it.
        let asks_for_more = request.title.starts_with("Go on beyond the limit of ");
        let default = if asks_for_more { "deny" } else { default };
        let on_expire = (request.title.strip_suffix(')'))
            .and_then(|title| title.rsplit_once(" ("))
            .map_or(default, |(_, word)| word);
        let mut after = record.messages.iter().skip(index + 1);
        let next = after.find(|message| message.kind != "tool_result");
        if expired && on_expire == "fail" && next.is_none_or(|next| next.kind != "error") {
            let detail = format!("{}: {request:?} lapsed, then came {next:?}", record.id);
            return Err((Invariant::Lapses, detail));
        }
    }
    Ok(())
}

/// Where a tool is guarded, and untrusted content had come in before it was called, a person approved the call.
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

/// Each end and each human request has its webhooks, and nothing else has.
fn deliveries_made(state: &State, record: &Record) -> Verdict {
    let Some(Want::Start {
        webhook,
        human_webhook,
        ..
    }) = (state.runs.get(&record.id)).map(|run| &state.requests[run.start].want)
    else {
        return Ok(());
    };
    // The run's own address, and the webhook of its team.
    let urls: BTreeSet<String> = (webhook.iter().copied())
        .chain([TEAMS_RECEIVER])
        .map(url_of)
        .collect();
    let mut asked = urls.clone();
    asked.extend(human_webhook.iter().map(|n| url_of(*n)));
    let mut wanted = BTreeSet::new();
    let mut before = Status::Pending;
    for event in &record.events {
        let (name, to) = match event.kind.as_str() {
            "human_request.created" => ("human_request", &asked),
            "run.updated" => {
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
    let detail = format!("{}: wanted {wanted:?}, made {made:?}", record.id);
    Err((Invariant::Delivered, detail))
}

/// A webhook has arrived, or is given up for a reason that counts.
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
    let fits = match delivery.state.as_str() {
        "delivered" => heard.contains(&Some(200)),
        "gone" => heard.contains(&Some(410)),
        "exhausted" => state.latest.ms_since(made_at) >= WEBHOOK_RETRY_WINDOW_MS,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let detail = format!("{}: {delivery:?}; receivers heard {heard:?}", record.id);
    Err((Invariant::Delivered, detail))
}

/// Starts that were accepted are one run each; those that were refused are none.
pub(crate) fn starts(state: &State, there: &[RunId]) -> Verdict {
    let mut by_start: BTreeMap<usize, Vec<RunId>> = BTreeMap::new();
    for run in there {
        let Some(known) = state.runs.get(run) else {
            return Err((
                Invariant::StartedOnce,
                format!("{run} was started by nobody"),
            ));
        };
        by_start.entry(known.start).or_default().push(*run);
    }
    for (number, request) in state.requests.iter().enumerate() {
        if !matches!(request.want, Want::Start { .. }) {
            continue;
        }
        let made = by_start.remove(&number).unwrap_or_default();
        let fits = match &request.heard {
            Some(Heard::Accepted(run)) => made.len() == 1 && made.first() == run.as_ref(),
            // A refusal is not recorded: a later try may have been taken, and its answer lost.
            Some(Heard::Refused(_)) => made.len() <= usize::from(request.answered < request.tries),
            None => made.len() <= 1,
        };
        if !fits {
            let detail = format!("start {number} heard {:?}, made {made:?}", request.heard);
            return Err((Invariant::StartedOnce, detail));
        }
    }
    Ok(())
}
