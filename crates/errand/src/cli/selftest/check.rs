//! Finds faults in the collected evidence. This is a pure function: the same evidence gives the same faults.

#[cfg(test)]
mod tests;
mod transcript;
mod webhooks;

use std::collections::{BTreeMap, BTreeSet};

use errand_core::wire::MessageBody;
use serde::Serialize;

use super::plan::{Expected, Kind};
use super::receiver::Delivery;

/// Kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FaultKind {
    /// Something accepted or done is missing or has changed.
    Lost,
    /// Something happened or was reported more than once.
    Repeated,
    /// Something that should continue does not.
    Stuck,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Fault {
    pub(super) what: FaultKind,
    /// ID of the run; empty if no response contained one.
    pub(super) run: String,
    /// Number of the run in the plan. `None` if the run is not in the plan.
    pub(super) number: Option<u64>,
    pub(super) kind: Option<Kind>,
    /// Explanation in one sentence.
    pub(super) why: String,
}

/// Everything that is checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    pub(super) runs: Vec<Record>,
    /// IDs of all runs in `GET /v1/runs`.
    pub(super) listed: Vec<String>,
    /// All received webhooks.
    pub(super) deliveries: Vec<Delivery>,
}

/// A run of the plan and everything known about it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) expected: Expected,
    /// IDs that the server returned for its start.
    pub(super) ids: BTreeSet<String>,
    /// The first refusal that a client got.
    pub(super) refused: Option<String>,
    /// The run as the API shows it in the end, or why it cannot be read.
    pub(super) seen: Result<ObservedRun, String>,
}

/// A run as the API shows it.
#[derive(Clone, Debug)]
pub(super) struct ObservedRun {
    pub(super) status: String,
    /// The error of a failed run, or what the run waits for.
    pub(super) note: String,
    /// Whether it has an open request.
    pub(super) asks: bool,
    pub(super) messages: Vec<MessageBody>,
    /// `total` of the messages.
    pub(super) messages_total: u64,
    /// Events in stream order; empty while the run has not ended.
    pub(super) events: Vec<ObservedEvent>,
    /// Files by path; `None` if a file does not exist.
    pub(super) files: BTreeMap<String, Option<String>>,
}

/// An event of the stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ObservedEvent {
    pub(super) number: u64,
    pub(super) kind: String,
    /// `id` of the event's object.
    pub(super) id: String,
    /// The run's status in `run.updated`.
    pub(super) status: Option<String>,
}

impl ObservedRun {
    fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "interrupted")
    }
}

/// All faults, ordered by run.
pub(super) fn faults(evidence: &Evidence) -> Vec<Fault> {
    let mut found = Vec::new();
    let mut by_run: BTreeMap<u64, Vec<&Delivery>> = BTreeMap::new();
    for delivery in &evidence.deliveries {
        by_run.entry(delivery.number).or_default().push(delivery);
    }
    for record in &evidence.runs {
        let deliveries = by_run.remove(&record.number).unwrap_or_default();
        let mut findings = Findings {
            record,
            found: &mut found,
        };
        run(record, &deliveries, &mut findings);
    }
    for (number, deliveries) in by_run {
        found.push(Fault {
            what: FaultKind::Repeated,
            run: String::new(),
            number: Some(number),
            kind: None,
            why: format!("{} webhooks of a run that nobody started", deliveries.len()),
        });
    }
    found.extend(listed(evidence));
    found
}

/// Collects the faults of one run.
struct Findings<'a> {
    record: &'a Record,
    found: &'a mut Vec<Fault>,
}

impl Findings<'_> {
    fn add(&mut self, what: FaultKind, why: impl Into<String>) {
        self.found.push(Fault {
            what,
            run: self.record.ids.first().cloned().unwrap_or_default(),
            number: Some(self.record.number),
            kind: Some(self.record.kind),
            why: why.into(),
        });
    }

    /// Compares a count: fewer than expected counts as lost, more as repeated.
    fn count(&mut self, of: &str, there: usize, expected: usize) -> bool {
        let what = match there.cmp(&expected) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => FaultKind::Lost,
            std::cmp::Ordering::Greater => FaultKind::Repeated,
        };
        self.add(what, format!("{there} {of}, expected {expected}"));
        false
    }
}

fn run(record: &Record, deliveries: &[&Delivery], findings: &mut Findings<'_>) {
    if record.ids.is_empty() {
        let why = record.refused.as_deref();
        let why = why
            .unwrap_or("its start got no response, or was not attempted before the test stalled");
        return findings.add(FaultKind::Stuck, why);
    }
    if record.ids.len() > 1 {
        let ids: Vec<&str> = record.ids.iter().map(String::as_str).collect();
        let why = format!(
            "one Idempotency-Key started several runs: {}",
            ids.join(", ")
        );
        findings.add(FaultKind::Repeated, why);
    }
    let seen = match &record.seen {
        Ok(seen) => seen,
        Err(why) => return findings.add(FaultKind::Lost, format!("it cannot be read: {why}")),
    };
    if !seen.has_ended() {
        let status = &seen.status;
        findings.add(
            FaultKind::Stuck,
            format!("it is still {status}: {}", seen.note),
        );
        return webhooks::check(seen, deliveries, findings);
    }
    if let Some(why) = &record.refused {
        findings.add(FaultKind::Lost, format!("a client was refused: {why}"));
    }
    if seen.asks {
        findings.add(
            FaultKind::Stuck,
            "it has ended, but a request is still open",
        );
    }
    if seen.status == record.expected.status {
        transcript::check(seen, findings);
        files(seen, findings);
    } else {
        let why = format!(
            "its status is {}, expected {}: {}",
            seen.status, record.expected.status, seen.note
        );
        findings.add(FaultKind::Lost, why);
    }
    webhooks::check(seen, deliveries, findings);
}

fn files(seen: &ObservedRun, findings: &mut Findings<'_>) {
    for (path, possible) in &findings.record.expected.files {
        let there = seen.files.get(path).cloned().flatten();
        if possible.contains(&there) {
            continue;
        }
        let longest = possible.iter().flatten().map(String::len).max();
        let is_more = there.as_ref().map(String::len) > longest;
        let what = if is_more {
            FaultKind::Repeated
        } else {
            FaultKind::Lost
        };
        let shown = |content: &Option<String>| {
            content
                .as_ref()
                .map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"))
        };
        let possible: Vec<String> = possible.iter().map(shown).collect();
        let why = format!(
            "{path} contains {}, expected {}",
            shown(&there),
            possible.join(" or ")
        );
        findings.add(what, why);
    }
}

/// Checks that the list of runs contains each accepted run exactly once, and no others.
fn listed(evidence: &Evidence) -> Vec<Fault> {
    let mut times: BTreeMap<&str, u64> = BTreeMap::new();
    for id in &evidence.listed {
        *times.entry(id).or_default() += 1;
    }
    let mut found = Vec::new();
    let mut fault = |what, run: &str, record: Option<&Record>, why: &str| {
        found.push(Fault {
            what,
            run: run.to_owned(),
            number: record.map(|record| record.number),
            kind: record.map(|record| record.kind),
            why: why.to_owned(),
        });
    };
    for record in &evidence.runs {
        for id in &record.ids {
            match times.remove(id.as_str()) {
                Some(1) => {}
                Some(_) => fault(
                    FaultKind::Repeated,
                    id,
                    Some(record),
                    "the list of runs contains it more than once",
                ),
                None => fault(
                    FaultKind::Lost,
                    id,
                    Some(record),
                    "it was accepted, but the list of runs does not contain it",
                ),
            }
        }
    }
    for id in times.keys() {
        fault(
            FaultKind::Repeated,
            id,
            None,
            "the list of runs contains it, but no client received its ID",
        );
    }
    found
}
