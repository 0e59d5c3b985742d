//! The invariants: name, sentence, check.
//!
//! A check reports each violation once. What it cannot see, such as a transcript that cannot be read, is a finding of
//! another invariant.

use std::collections::{BTreeMap, BTreeSet};

use errand_core::author::By;
use errand_core::ledger::Ledger;
use errand_core::run::Status;
use errand_core::transcript::Body;

use super::AuditScope;
use super::history::{History, requests_in_order};
use super::stored::Stored;

/// Error codes of runs that were ended because their transcript could not be read. That is not a new finding.
const UNREADABLE: [&str; 2] = ["unreadable", "repaired"];

/// An invariant of a single run.
pub(super) struct OfRun {
    pub(super) name: &'static str,
    pub(super) sentence: &'static str,
    pub(super) check: fn(&Stored, &mut Vec<String>),
}

/// An invariant that is checked with one statement. Its rows contain a run's id or null, and what was found.
pub(super) struct OfStore {
    pub(super) name: &'static str,
    pub(super) sentence: &'static str,
    /// The scope in which it is checked, or both. Invariants that are also checked for each run are needed in one
    /// scope only.
    pub(super) scope: Option<AuditScope>,
    pub(super) sql: &'static str,
}

pub(super) const ROW_READS: (&str, &str) = (
    "a_run_can_be_read",
    "The row of a run can be read, and its parts are of the known words.",
);

pub(super) const HAS_A_REASON: (&str, &str) = (
    "an_open_run_has_a_reason",
    "A run that has not ended says what it waits for, and that will come: its driver of this start, a moment, a person's \
     answer, or a sandbox that another run uses or is leaving.",
);

pub(super) const OF_RUN: [OfRun; 21] = [
    OfRun {
        name: "a_transcript_can_be_read",
        sentence: "Each entry of a transcript can be read, but for runs that were ended because it cannot.",
        check: transcript_can_be_read,
    },
    OfRun {
        name: "an_ended_run_is_at_rest",
        sentence: "A run has a time of end if and only if it has ended; then it has no claim and awaits nothing.",
        check: ended_is_at_rest,
    },
    OfRun {
        name: "a_failed_run_says_why",
        sentence: "A run has an error if and only if it failed.",
        check: failed_says_why,
    },
    OfRun {
        name: "a_run_at_work_has_begun",
        sentence: "A run that is starting, running, waiting or completed has a time of its first start.",
        check: at_work_has_begun,
    },
    OfRun {
        name: "a_claim_is_of_this_start",
        sentence: "A claim is of this start of the program, of a run that is starting or running, with its time and the end of \
                   the working time; without a claim there is none of these.",
        check: claim_is_of_this_start,
    },
    OfRun {
        name: "waiting_is_one_open_request",
        sentence: "A run is waiting if and only if it has exactly one open human request, and its row names that one.",
        check: waiting_is_one_open_request,
    },
    OfRun {
        name: "positions_have_no_gap",
        sentence: "Entries have the positions 1, 2, 3, … up to the run's.",
        check: positions_have_no_gap,
    },
    OfRun {
        name: "shown_numbers_have_no_gap",
        sentence: "Messages, and no notes, have the numbers 1, 2, 3, … up to the run's.",
        check: shown_numbers_have_no_gap,
    },
    OfRun {
        name: "events_have_no_gap",
        sentence: "Events have the numbers 1, 2, 3, … up to the run's.",
        check: events_have_no_gap,
    },
    OfRun {
        name: "each_message_has_one_event",
        sentence: "There is one event `message.created` for each message, in their order.",
        check: each_message_has_one_event,
    },
    OfRun {
        name: "the_last_update_tells_the_status",
        sentence: "The last event `run.updated` tells the run's present status.",
        check: last_update_tells_the_status,
    },
    OfRun {
        name: "a_call_has_one_result",
        sentence: "Ids of calls are unique; a call has at most one result, which stands after it; a run that has ended has no \
                   call without a result.",
        check: call_has_one_result,
    },
    OfRun {
        name: "an_intent_belongs_to_an_open_call",
        sentence: "An intent stands after its call and before its result.",
        check: intent_belongs_to_an_open_call,
    },
    OfRun {
        name: "no_call_begins_twice_in_silence",
        sentence: "A call that neither reads, is idempotent, nor can be looked up begins a second time only after a person \
                   answered that it was not done, and gives a value only after it began.",
        check: no_call_begins_twice_in_silence,
    },
    OfRun {
        name: "a_response_closes_its_request_once",
        sentence: "At most one request is pending at a time, and a response closes the one that is.",
        check: response_closes_its_request_once,
    },
    OfRun {
        name: "request_rows_agree_with_the_transcript",
        sentence: "Each request of a transcript has its row, which says the same: what is asked, and whether and how it was \
                   closed.",
        check: request_rows_agree,
    },
    OfRun {
        name: "a_row_agrees_with_its_transcript",
        sentence: "What a transcript adds up to is what the run's row says: the newest message, whether a request is pending, \
                   and a last turn that begins no later than the first open call.",
        check: row_agrees_with_transcript,
    },
    OfRun {
        name: "a_completed_run_has_read_each_message",
        sentence: "The answer that ended a completed run stands after the newest message, and was decided with it.",
        check: completed_run_has_read_each_message,
    },
    OfRun {
        name: "events_are_delivered_once",
        sentence: "Each human request and each end has one delivery for each webhook address of the run, and at most one for \
                   each webhook of the team, and nothing else has one; one that is pending has a time when it is due, others \
                   have not, and attempts are numbered 1, 2, 3, ….",
        check: events_are_delivered_once,
    },
    OfRun {
        name: "a_run_is_of_one_team",
        sentence: "A run, its agent, build, sandbox, events and deliveries are of the same team.",
        check: run_is_of_one_team,
    },
    OfRun {
        name: "a_claimed_run_holds_its_sandbox",
        sentence: "A run that has a claim and a sandbox is the sandbox's owner, unless that has expired.",
        check: claimed_run_holds_its_sandbox,
    },
];

pub(super) const OF_STORE: [OfStore; 9] = [
    OfStore {
        name: "a_sandbox_serves_an_open_run",
        sentence: "The owner of a sandbox is a run on it that has not ended, or one whose driver is leaving it; a deleted \
                   sandbox has no owner.",
        scope: None,
        sql: "SELECT s.owner_run, 'sandbox ' || s.id || CASE
                  WHEN s.owner_run IS NULL THEN ' is being left, and has no owner'
                  WHEN r.id IS NULL THEN ' has an owner that does not exist'
                  WHEN s.deleted_at IS NOT NULL THEN ' is deleted and has an owner'
                  WHEN r.sandbox_id IS NOT s.id THEN ' has an owner that works on another sandbox'
                  ELSE ' has an owner that is ' || r.status END
              FROM sandboxes s LEFT JOIN runs r ON r.id = s.owner_run
              WHERE (s.owner_run IS NULL AND s.leaving IS NOT NULL)
                 OR (s.owner_run IS NOT NULL AND (r.id IS NULL OR s.deleted_at IS NOT NULL OR r.sandbox_id IS NOT s.id
                     OR (s.leaving IS NULL AND r.status IN ('completed', 'failed', 'interrupted'))))",
    },
    OfStore {
        name: "a_deleted_sandbox_takes_no_room",
        sentence: "A sandbox that is deleted has no bytes on record.",
        scope: None,
        sql: "SELECT NULL, 'sandbox ' || id || ' is deleted and has ' || bytes || ' bytes on record'
              FROM sandboxes INDEXED BY sandboxes_by_bytes WHERE bytes > 0 AND deleted_at IS NOT NULL",
    },
    OfStore {
        name: "a_request_row_has_its_entry",
        sentence: "A row of a human request belongs to an entry of its run's transcript.",
        scope: Some(AuditScope::All),
        sql: "SELECT h.run_id, 'request ' || json_extract(h.request, '$.id') || ' is in no transcript' FROM human_requests h
              WHERE json_valid(h.request) AND NOT EXISTS (
                  SELECT 1 FROM messages m WHERE m.run_id = h.run_id AND m.shown IS NOT NULL
                      AND instr(m.body, '\"human_request\"') > 0 AND instr(m.body, json_extract(h.request, '$.id')) > 0)",
    },
    OfStore {
        name: "a_team_has_an_owner",
        sentence: "Each team has at least one owner.",
        scope: None,
        sql: "SELECT NULL, 'team ' || t.name || ' has none' FROM teams t
              WHERE NOT EXISTS (SELECT 1 FROM memberships m WHERE m.team_id = t.id AND m.role = 'owner')",
    },
    OfStore {
        name: "an_ended_run_is_at_rest",
        sentence: "A run has a time of end if and only if it has ended; then it has no claim and awaits nothing.",
        scope: Some(AuditScope::Open),
        sql: "SELECT id, 'it is ' || status || ' and has a claim' FROM runs INDEXED BY runs_claimed
              WHERE claim_token IS NOT NULL AND status IN ('completed', 'failed', 'interrupted')",
    },
    OfStore {
        name: "an_ended_run_is_at_rest",
        sentence: "A run has a time of end if and only if it has ended; then it has no claim and awaits nothing.",
        scope: Some(AuditScope::Open),
        sql: "SELECT id, 'it is ' || status || ' and wants a driver' FROM runs INDEXED BY runs_wanting
              WHERE wake_at IS NOT NULL AND claim_token IS NULL AND status IN ('completed', 'failed', 'interrupted')",
    },
    OfStore {
        name: "waiting_is_one_open_request",
        sentence: "A run is waiting if and only if it has exactly one open human request, and its row names that one.",
        scope: Some(AuditScope::Open),
        sql: "SELECT r.id, 'it is ' || r.status || ' and has an open request'
              FROM human_requests h INDEXED BY human_requests_pending JOIN runs r ON r.id = h.run_id
              WHERE h.closed_at IS NULL AND r.status IN ('completed', 'failed', 'interrupted')",
    },
    OfStore {
        name: "events_are_delivered_once",
        sentence: "A delivery that is pending has a time when it is due.",
        scope: Some(AuditScope::Open),
        sql: "SELECT run_id, 'delivery ' || number || ' is pending and never due' FROM deliveries INDEXED BY deliveries_due
              WHERE state = 'pending' AND due_at IS NULL",
    },
    OfStore {
        name: "a_deleted_webhook_is_owed_nothing",
        sentence: "A webhook that is deleted has no delivery that is pending.",
        scope: None,
        sql: "SELECT d.run_id, 'delivery ' || d.number || ' is pending, and its webhook is deleted'
              FROM deliveries d INDEXED BY deliveries_due JOIN webhooks w ON w.id = d.webhook_id
              WHERE d.state = 'pending' AND w.deleted_at IS NOT NULL",
    },
];

/// Open runs without a reason; `?1` is this start. Waiting for something that can never happen is not a reason.
macro_rules! without_reason {
    ($what:literal) => {
        concat!(
            "SELECT ",
            $what,
            " FROM teams t CROSS JOIN runs r INDEXED BY runs_by_status
                  ON r.team_id = t.id AND r.status IN ('pending', 'starting', 'running', 'waiting')
              WHERE NOT (r.waiting_kind IS NOT NULL AND CASE
                  WHEN r.claim_token IS NOT NULL THEN r.claim_boot IS ?1 AND r.status IN ('starting', 'running')
                  WHEN r.status = 'waiting' THEN EXISTS (
                      SELECT 1 FROM human_requests h WHERE h.id = r.request_id AND h.run_id = r.id AND h.closed_at IS NULL)
                  WHEN r.wake_at IS NOT NULL THEN 1
                  WHEN r.waiting_kind = 'sandbox' THEN EXISTS (
                      SELECT 1 FROM sandboxes s LEFT JOIN runs o ON o.id = s.owner_run
                      WHERE s.id = r.sandbox_id AND (s.leaving IS NOT NULL
                          OR (o.id IS NOT r.id AND o.status NOT IN ('completed', 'failed', 'interrupted'))))
                  WHEN r.waiting_kind = 'child_run' THEN EXISTS (
                      SELECT 1 FROM child_runs c JOIN runs k ON k.id = c.child
                      WHERE c.parent = r.id AND k.status NOT IN ('completed', 'failed', 'interrupted'))
                  ELSE 0 END)"
        )
    };
}

pub(super) const REASONLESS: &str = without_reason!(
    "r.id, 'it is ' || r.status || ' and ' || CASE WHEN r.waiting_kind IS NULL THEN 'does not say what it waits for'
         ELSE 'waits for ' || r.waiting_kind || ', which will not come' END"
);

/// Number of open runs without a reason.
pub(super) const WITHOUT_REASON: &str = without_reason!("count(*)");

/// Whether a run was ended because its rows could not be read.
fn is_quarantined(stored: &Stored) -> bool {
    let code = stored.row.error.as_ref().map(|error| error.code.as_str());
    stored.row.status == Status::Failed && code.is_some_and(|code| UNREADABLE.contains(&code))
}

fn transcript_can_be_read(stored: &Stored, wrong: &mut Vec<String>) {
    if is_quarantined(stored) {
        return;
    }
    let unreadable = stored.lines.iter().filter_map(|line| {
        let error = line.body.as_ref().err()?;
        Some(format!("entry {}: {error}", line.position))
    });
    wrong.extend(unreadable);
}

fn ended_is_at_rest(stored: &Stored, wrong: &mut Vec<String>) {
    let row = &stored.row;
    let status = row.status.as_str();
    if !row.status.has_ended() {
        if row.completed_at.is_some() {
            wrong.push(format!("it is {status} and has a time of end"));
        }
        return;
    }
    if row.completed_at.is_none() {
        wrong.push(format!("it is {status} and has no time of end"));
    }
    for (what, is_there) in [
        ("a claim", row.claim.is_some()),
        ("a time when it wants a driver", row.wake_at.is_some()),
        ("something it waits for", row.waiting_kind.is_some()),
    ] {
        if is_there {
            wrong.push(format!("it is {status} and has {what}"));
        }
    }
}

fn failed_says_why(stored: &Stored, wrong: &mut Vec<String>) {
    let row = &stored.row;
    if row.error.is_some() != (row.status == Status::Failed) {
        let has = if row.error.is_some() { "an" } else { "no" };
        wrong.push(format!("it is {} and has {has} error", row.status.as_str()));
    }
}

fn at_work_has_begun(stored: &Stored, wrong: &mut Vec<String>) {
    use Status::{Completed, Running, Starting, Waiting};
    let row = &stored.row;
    if matches!(row.status, Starting | Running | Waiting | Completed) && row.started_at.is_none() {
        wrong.push(format!("it is {} and never began", row.status.as_str()));
    }
}

fn claim_is_of_this_start(stored: &Stored, wrong: &mut Vec<String>) {
    let row = &stored.row;
    let parts = [
        ("its start", row.claim_boot.is_some()),
        ("its time", row.claimed_at.is_some()),
        ("an end of the working time", row.deadline.is_some()),
    ];
    for (what, is_there) in parts {
        if is_there != row.claim.is_some() {
            let claim = if is_there {
                "no claim and"
            } else {
                "a claim without"
            };
            wrong.push(format!("it has {claim} {what}"));
        }
    }
    if row.claim.is_none() {
        return;
    }
    if row.claim_boot.is_some_and(|boot| boot != stored.boot) {
        wrong.push("its claim is of another start".to_owned());
    }
    if !matches!(row.status, Status::Starting | Status::Running) && !row.status.has_ended() {
        wrong.push(format!("it is {} and has a claim", row.status.as_str()));
    }
}

fn waiting_is_one_open_request(stored: &Stored, wrong: &mut Vec<String>) {
    let (row, open) = (&stored.row, stored.open_requests());
    let waits = row.status == Status::Waiting;
    if waits != (open.len() == 1) || open.len() > 1 {
        wrong.push(format!(
            "it is {} and has {} open requests",
            row.status.as_str(),
            open.len()
        ));
    }
    let named = if waits { open.first().copied() } else { None };
    if row.request != named {
        wrong.push(match row.request {
            Some(request) => format!("its row names request {request}, which is not the open one"),
            None => "its row does not name the open request".to_owned(),
        });
    }
}

/// Checks that the numbers are 1, 2, 3, … up to `last`. Returns the first deviation.
fn gap(numbers: impl IntoIterator<Item = u64>, last: u64) -> Option<String> {
    let mut expected = 0;
    for number in numbers {
        expected += 1;
        if number != expected {
            return Some(format!("{number} stands where {expected} should be"));
        }
    }
    (expected != last).then(|| format!("the last is {expected}, and the run's row says {last}"))
}

fn positions_have_no_gap(stored: &Stored, wrong: &mut Vec<String>) {
    let positions = stored.lines.iter().map(|line| line.position);
    wrong.extend(gap(positions, stored.row.position));
}

fn shown_numbers_have_no_gap(stored: &Stored, wrong: &mut Vec<String>) {
    let numbers = stored.lines.iter().filter_map(|line| line.shown);
    wrong.extend(gap(numbers, stored.row.shown));
    for line in &stored.lines {
        if let Ok(body) = &line.body
            && body.is_shown() != line.shown.is_some()
        {
            let what = if body.is_shown() {
                "message without"
            } else {
                "note with"
            };
            wrong.push(format!("entry {} is a {what} a number", line.position));
        }
    }
}

fn events_have_no_gap(stored: &Stored, wrong: &mut Vec<String>) {
    let numbers = stored.events.iter().map(|event| event.sequence);
    wrong.extend(gap(numbers, stored.row.sequence));
}

fn each_message_has_one_event(stored: &Stored, wrong: &mut Vec<String>) {
    let told = stored
        .events
        .iter()
        .filter(|event| event.kind == "message.created");
    let told: Vec<Option<u64>> = told.map(|event| event.position).collect();
    let shown = stored.lines.iter().filter(|line| line.shown.is_some());
    let shown: Vec<Option<u64>> = shown.map(|line| Some(line.position)).collect();
    if told == shown {
        return;
    }
    let differ = told
        .iter()
        .zip(&shown)
        .position(|(told, shown)| told != shown);
    let at = differ.unwrap_or(told.len().min(shown.len()));
    wrong.push(format!(
        "there are {} messages and {} events; they differ from message {} on",
        shown.len(),
        told.len(),
        at + 1
    ));
}

fn last_update_tells_the_status(stored: &Stored, wrong: &mut Vec<String>) {
    let mut updates = stored
        .events
        .iter()
        .filter(|event| event.kind == "run.updated");
    let told = updates
        .next_back()
        .and_then(|event| event.status.as_deref());
    let status = stored.row.status.as_str();
    if told != Some(status) && !is_quarantined(stored) {
        let told = told.unwrap_or("nothing");
        wrong.push(format!("it is {status}, and the last update tells {told}"));
    }
}

fn call_has_one_result(stored: &Stored, wrong: &mut Vec<String>) {
    let Some(history) = History::of(stored) else {
        return;
    };
    wrong.extend(history.wrong_calls.iter().cloned());
    if stored.row.status.has_ended() {
        let open = history.calls.iter().filter(|call| call.result.is_none());
        wrong.extend(open.map(|call| format!("call {} at {} has no result", call.id, call.at)));
    }
}

fn intent_belongs_to_an_open_call(stored: &Stored, wrong: &mut Vec<String>) {
    if let Some(history) = History::of(stored) {
        wrong.extend(history.wrong_intents);
    }
}

fn no_call_begins_twice_in_silence(stored: &Stored, wrong: &mut Vec<String>) {
    if let Some(history) = History::of(stored) {
        wrong.extend(history.silent);
    }
}

fn response_closes_its_request_once(stored: &Stored, wrong: &mut Vec<String>) {
    let (mut pending, mut asked) = (None, Vec::new());
    for line in &stored.lines {
        match &line.body {
            Ok(Body::HumanRequest { request, .. }) => {
                if asked.contains(&request.id) {
                    wrong.push(format!("request {} is asked twice", request.id));
                }
                if let Some(before) = pending.replace(request.id) {
                    wrong.push(format!(
                        "request {} is asked while {before} is pending",
                        request.id
                    ));
                }
                asked.push(request.id);
            }
            Ok(Body::HumanResponse { request_id, .. }) if pending.take() != Some(*request_id) => {
                wrong.push(format!(
                    "the response at {} closes request {request_id}, which is not pending",
                    line.position
                ));
            }
            _ => {}
        }
    }
}

fn request_rows_agree(stored: &Stored, wrong: &mut Vec<String>) {
    let asked = requests_in_order(stored);
    for (request, response) in &asked {
        let id = request.id;
        let mut differs = |what: &str| wrong.push(format!("request {id}: {what}"));
        let Some(line) = stored.requests.get(&id).filter(|line| line.is_of_run) else {
            differs("it has no row");
            continue;
        };
        if line.request.as_ref() != Ok(*request) || line.expires_at != request.expires_at {
            differs("its row asks something else");
        }
        if line.is_open != response.is_none() || line.resolution.is_some() == line.is_open {
            differs("it is closed in one of row and transcript alone");
        } else if let Some((resolution, by)) = response
            && (line.resolution != Some(Ok((*resolution).clone()))
                || line.by != by.as_ref().map(|by| by.user)
                || line.key != by.as_ref().and_then(By::key_id))
        {
            differs("its row is closed otherwise than in the transcript");
        }
    }
    for id in stored.open_requests() {
        if stored.entries().is_some() && !asked.iter().any(|(request, _)| request.id == id) {
            wrong.push(format!(
                "request {id}: its row is open, and the transcript does not have it"
            ));
        }
    }
}

fn row_agrees_with_transcript(stored: &Stored, wrong: &mut Vec<String>) {
    let (Some(entries), row) = (stored.entries(), &stored.row) else {
        return;
    };
    let ledger = Ledger::of(&entries);
    if ledger.newest_user != row.newest_user {
        wrong.push(format!(
            "the newest message is at {}, and the row says {}",
            ledger.newest_user, row.newest_user
        ));
    }
    if ledger.request.is_some() != (row.status == Status::Waiting) {
        let pending = if ledger.request.is_some() { "a" } else { "no" };
        wrong.push(format!(
            "it is {}, and {pending} request is pending in the transcript",
            row.status.as_str()
        ));
    }
    let open = ledger.open.front().and_then(|open| {
        entries.iter().find(
            |entry| matches!(&entry.body, Body::ToolCall { call, .. } if call.id == open.call.id),
        )
    });
    if let Some(first) = open.filter(|first| row.turn > first.position) {
        wrong.push(format!(
            "its last turn begins at {}, after the open call at {}",
            row.turn, first.position
        ));
    }
}

fn completed_run_has_read_each_message(stored: &Stored, wrong: &mut Vec<String>) {
    let row = &stored.row;
    if row.status != Status::Completed {
        return;
    }
    let ending = stored.lines.iter().rev().find_map(|line| match &line.body {
        Ok(Body::Assistant {
            ends: true, mark, ..
        }) => Some((line.position, mark.as_ref().map(|mark| mark.message))),
        _ => None,
    });
    match ending {
        None => wrong.push("no answer ended it".to_owned()),
        Some((at, read)) if at < row.newest_user || read.is_some_and(|to| to < row.newest_user) => {
            wrong.push(format!(
                "the answer at {at} ended it without the message at {}",
                row.newest_user
            ));
        }
        Some(_) => {}
    }
}

fn events_are_delivered_once(stored: &Stored, wrong: &mut Vec<String>) {
    let row = &stored.row;
    let urls = |both: bool| {
        let human = row.human_webhook_url.as_deref().filter(|_| both);
        let human = human.filter(|url| Some(*url) != row.webhook_url.as_deref());
        row.webhook_url.as_deref().into_iter().chain(human)
    };
    let mut due: BTreeMap<(String, u64, &str), u32> = BTreeMap::new();
    let mut events = BTreeSet::new();
    for event in &stored.events {
        let status = event.status.as_deref().and_then(Status::parse);
        let (name, both) = match (event.kind.as_str(), status) {
            ("human_request.created", _) => ("human_request".to_owned(), true),
            ("run.updated", Some(status)) if status.has_ended() => {
                (format!("run_{}", status.as_str()), false)
            }
            _ => continue,
        };
        events.insert((name.clone(), event.sequence));
        due.extend(urls(both).map(|url| ((name.clone(), event.sequence, url), 0)));
    }
    let mut to_webhooks = BTreeSet::new();
    for line in &stored.deliveries {
        let told = format!(
            "delivery of {} {} to {}",
            line.event, line.sequence, line.url
        );
        let event = (line.event.clone(), line.sequence);
        let of_run = due.get_mut(&(line.event.clone(), line.sequence, line.url.as_str()));
        match (line.webhook, of_run) {
            (None, Some(times)) => *times += 1,
            (None, None) => wrong.push(format!("{told}: there is no such event and address")),
            (Some(_), _) if !events.contains(&event) => {
                wrong.push(format!("{told}: there is no such event"));
            }
            (Some(webhook), _) => {
                if !to_webhooks.insert((webhook, event)) {
                    wrong.push(format!("{told}: webhook {webhook} has it twice"));
                }
            }
        }
        if line.is_due != (line.state == "pending") {
            let due = if line.is_due { "due" } else { "never due" };
            wrong.push(format!("{told}: it is {} and {due}", line.state));
        }
        if let Some(gap) = gap(line.recorded.iter().copied(), line.attempts) {
            wrong.push(format!("{told}: of its attempts {gap}"));
        }
    }
    let others = due.iter().filter(|(_, times)| **times != 1);
    wrong.extend(others.map(|((name, sequence, url), times)| {
        format!("{name} {sequence} has {times} deliveries to {url}")
    }));
}

fn run_is_of_one_team(stored: &Stored, wrong: &mut Vec<String>) {
    let mut differs = |what: &str| wrong.push(what.to_owned());
    if !stored.is_of_one_team {
        differs("its agent and build do not belong together");
    }
    if stored.events.iter().any(|event| !event.is_of_team) {
        differs("an event is another team's");
    }
    if stored.deliveries.iter().any(|line| !line.is_of_team) {
        differs("a delivery is another team's");
    }
    match &stored.sandbox {
        None if stored.row.sandbox.is_some() => differs("its sandbox has no row"),
        Some(sandbox) if !sandbox.is_of_team => differs("its sandbox is another team's"),
        _ => {}
    }
}

fn claimed_run_holds_its_sandbox(stored: &Stored, wrong: &mut Vec<String>) {
    let (row, Some(sandbox)) = (&stored.row, &stored.sandbox) else {
        return;
    };
    // A sandbox that had expired before the run was claimed is not taken, and the driver finds that out.
    let is_gone = sandbox.is_deleted || sandbox.expires_at <= stored.now;
    if row.claim.is_some() && sandbox.owner != Some(row.id) && !is_gone {
        wrong.push("it has a claim and is not the owner of its sandbox".to_owned());
    }
}
