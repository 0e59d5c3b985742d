//! What is wrong, found in what was collected. Pure: the same evidence gives the same faults.

#[cfg(test)]
mod tests;
mod transcript;
mod webhooks;

use std::collections::{BTreeMap, BTreeSet};

use errand_core::wire::MessageBody;
use serde::Serialize;

use super::plan::{Expected, Kind};
use super::receiver::Delivery;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Something that was accepted or done is not there, or not as it was.
    Lost,
    /// Something happened or was told more than once.
    Repeated,
    /// Something that should go on does not.
    Stuck,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Fault {
    pub(super) what: What,
    /// Its id; empty where none was answered.
    pub(super) run: String,
    /// The run's number in the plan; none where the plan has no such run.
    pub(super) number: Option<u64>,
    pub(super) kind: Option<Kind>,
    /// A sentence.
    pub(super) why: String,
}

/// Everything that the check looks at.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    pub(super) runs: Vec<Record>,
    /// The ids of all runs, as `GET /v1/runs` lists them.
    pub(super) listed: Vec<String>,
    /// All webhooks that came.
    pub(super) deliveries: Vec<Delivery>,
}

/// One run of the plan.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) expected: Expected,
    /// The ids that were answered to its start.
    pub(super) ids: BTreeSet<String>,
    /// What a client could not do.
    pub(super) refused: Option<String>,
    /// What the API shows in the end; or why it does not.
    pub(super) seen: Result<Seen, String>,
}

/// A run as the API shows it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) status: String,
    /// Why it failed, if it did; what it waits for, if it does.
    pub(super) note: String,
    /// Whether a request is pending.
    pub(super) asks: bool,
    pub(super) messages: Vec<MessageBody>,
    /// `total` of the messages.
    pub(super) messages_total: u64,
    /// Its events, in the order of the stream; empty while it has not ended.
    pub(super) events: Vec<EventSeen>,
    /// Its files; `None`: not there.
    pub(super) files: BTreeMap<String, Option<String>>,
}

/// One event of the stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EventSeen {
    pub(super) number: u64,
    pub(super) kind: String,
    /// `id` of its object.
    pub(super) id: String,
    /// The run's status, for `run.updated`.
    pub(super) status: Option<String>,
}

impl Seen {
    fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "interrupted")
    }
}

/// All faults, by run.
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
            what: What::Repeated,
            run: String::new(),
            number: Some(number),
            kind: None,
            why: format!("{} webhooks of a run that nobody started", deliveries.len()),
        });
    }
    found.extend(listed(evidence));
    found
}

/// Where the findings on one run go.
struct Findings<'a> {
    record: &'a Record,
    found: &'a mut Vec<Fault>,
}

impl Findings<'_> {
    fn add(&mut self, what: What, why: impl Into<String>) {
        self.found.push(Fault {
            what,
            run: self.record.ids.first().cloned().unwrap_or_default(),
            number: Some(self.record.number),
            kind: Some(self.record.kind),
            why: why.into(),
        });
    }

    /// A count that is not as it should be: too few is lost, too many is repeated.
    fn count(&mut self, of: &str, there: usize, expected: usize) -> bool {
        let what = match there.cmp(&expected) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => What::Lost,
            std::cmp::Ordering::Greater => What::Repeated,
        };
        self.add(what, format!("{there} {of} in place of {expected}"));
        false
    }
}

fn run(record: &Record, deliveries: &[&Delivery], findings: &mut Findings<'_>) {
    if record.ids.is_empty() {
        let why = record.refused.as_deref();
        let why = why.unwrap_or("its start was not answered, or not tried before all stood still");
        return findings.add(What::Stuck, why);
    }
    if record.ids.len() > 1 {
        let ids: Vec<&str> = record.ids.iter().map(String::as_str).collect();
        let why = format!("one Idempotency-Key started several: {}", ids.join(", "));
        findings.add(What::Repeated, why);
    }
    let seen = match &record.seen {
        Ok(seen) => seen,
        Err(why) => return findings.add(What::Lost, format!("it cannot be read: {why}")),
    };
    if !seen.has_ended() {
        let status = &seen.status;
        findings.add(What::Stuck, format!("it is still {status}: {}", seen.note));
        return webhooks::check(seen, deliveries, findings);
    }
    if let Some(why) = &record.refused {
        findings.add(What::Lost, format!("a client was refused: {why}"));
    }
    if seen.asks {
        findings.add(What::Stuck, "it has ended, and a request is still pending");
    }
    if seen.status == record.expected.status {
        transcript::check(seen, findings);
        files(seen, findings);
    } else {
        let why = format!(
            "it is {} in place of {}: {}",
            seen.status, record.expected.status, seen.note
        );
        findings.add(What::Lost, why);
    }
    webhooks::check(seen, deliveries, findings);
}

fn files(seen: &Seen, findings: &mut Findings<'_>) {
    for (path, possible) in &findings.record.expected.files {
        let there = seen.files.get(path).cloned().flatten();
        if possible.contains(&there) {
            continue;
        }
        let longest = possible.iter().flatten().map(String::len).max();
        let is_more = there.as_ref().map(String::len) > longest;
        let what = if is_more { What::Repeated } else { What::Lost };
        let shown = |content: &Option<String>| {
            content
                .as_ref()
                .map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"))
        };
        let possible: Vec<String> = possible.iter().map(shown).collect();
        let why = format!(
            "{path} holds {} in place of {}",
            shown(&there),
            possible.join(" or ")
        );
        findings.add(what, why);
    }
}

/// The list of runs holds each accepted one exactly once, and no other.
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
                    What::Repeated,
                    id,
                    Some(record),
                    "the list of runs holds it more than once",
                ),
                None => fault(
                    What::Lost,
                    id,
                    Some(record),
                    "it was accepted, and the list of runs does not hold it",
                ),
            }
        }
    }
    for id in times.keys() {
        fault(
            What::Repeated,
            id,
            None,
            "the list of runs holds it, and no client was told of it",
        );
    }
    found
}
