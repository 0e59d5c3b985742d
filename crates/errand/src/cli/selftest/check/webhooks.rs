//! Checks a run's webhooks: each event has one ID and the same bytes each time, each webhook was accepted, and none
//! exists without an event.

use std::collections::{BTreeMap, BTreeSet};

use super::{FaultKind, Findings, ObservedEvent, ObservedRun};
use crate::cli::selftest::receiver::{Delivery, WebhookContent};

/// Checks the webhooks of a run, whether or not it has ended.
pub(super) fn check(seen: &ObservedRun, deliveries: &[&Delivery], findings: &mut Findings<'_>) {
    let mut by_id: BTreeMap<&str, Vec<&Delivery>> = BTreeMap::new();
    for delivery in deliveries {
        by_id.entry(&delivery.id).or_default().push(delivery);
    }
    let mut events: BTreeMap<u64, (&str, &str)> = BTreeMap::new();
    for (id, deliveries) in &by_id {
        let Some(content) = one_event(id, deliveries, findings) else {
            continue;
        };
        if let Some((other, _)) = events.insert(content.sequence, (id, &content.event)) {
            let why = format!(
                "event {} has two webhook IDs: {other}, {id}",
                content.sequence
            );
            findings.add(FaultKind::Repeated, why);
        }
    }
    if !seen.has_ended() {
        return;
    }
    let names: Vec<&str> = events.values().map(|(_, name)| *name).collect();
    let expected = &findings.record.expected.webhooks;
    if seen.status == findings.record.expected.status
        && findings.count("webhook events", names.len(), expected.len())
        && names != *expected
    {
        let why = format!("its webhooks are {names:?}, expected {expected:?}");
        findings.add(FaultKind::Lost, why);
    }
    let came: BTreeSet<u64> = events.into_keys().collect();
    let due = due(&seen.events);
    if came != due {
        let why = format!("webhooks arrived for the events {came:?}, expected {due:?}");
        findings.add(FaultKind::Lost, why);
    }
}

/// Checks all deliveries of one webhook ID, and returns its content.
fn one_event<'d>(
    id: &str,
    deliveries: &[&'d Delivery],
    findings: &mut Findings<'_>,
) -> Option<&'d WebhookContent> {
    let first = deliveries.first()?;
    if deliveries.iter().any(|d| d.sha256 != first.sha256) {
        let why = format!("webhook {id} was delivered again with different bytes");
        findings.add(FaultKind::Repeated, why);
    }
    if !deliveries.iter().any(|d| d.taken) {
        let why = format!("webhook {id} was refused and not delivered again");
        findings.add(FaultKind::Stuck, why);
    }
    for delivery in deliveries {
        if let Err(why) = &delivery.content {
            findings.add(FaultKind::Lost, format!("webhook {id}: {why}"));
        }
    }
    let content = first.content.as_ref().ok()?;
    if content.id != id {
        let why = format!("webhook {id} contains the ID {}", content.id);
        findings.add(FaultKind::Lost, why);
    }
    if !findings.record.ids.contains(&content.run) {
        let why = format!("webhook {id} is for run {}", content.run);
        findings.add(FaultKind::Lost, why);
    }
    Some(content)
}

/// Numbers of the events that must have a webhook: each request and each end.
fn due(events: &[ObservedEvent]) -> BTreeSet<u64> {
    let ends = |event: &ObservedEvent| {
        let status = event.status.as_deref();
        event.kind == "run.updated"
            && matches!(status, Some("completed" | "failed" | "interrupted"))
    };
    let due = |event: &&ObservedEvent| event.kind == "human_request.created" || ends(event);
    events
        .iter()
        .filter(due)
        .map(|event| event.number)
        .collect()
}
