//! Checks a run's transcript and events: complete, in order, nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use errand_core::wire::MessageBody;

use super::{FaultKind, Findings, ObservedEvent, ObservedRun};

/// Checks a run that ended as expected.
pub(super) fn check(seen: &ObservedRun, findings: &mut Findings<'_>) {
    messages(seen, findings);
    calls(&seen.messages, findings);
    requests(&seen.messages, findings);
    events(&seen.events, findings);
    announced_messages(seen, findings);
}

fn messages(seen: &ObservedRun, findings: &mut Findings<'_>) {
    let all = &seen.messages;
    let total = usize::try_from(seen.messages_total).unwrap_or(usize::MAX);
    findings.count("messages on its transcript pages", all.len(), total);
    let ids: BTreeSet<_> = all.iter().map(|message| message.id).collect();
    if ids.len() < all.len() {
        findings.add(FaultKind::Repeated, "two messages have the same ID");
    }
    if all.windows(2).any(|two| match two {
        [first, second] => first.timestamp > second.timestamp,
        _ => false,
    }) {
        findings.add(FaultKind::Lost, "its messages are not in order");
    }
    let expected = &findings.record.expected;
    let texts: Vec<&str> = all
        .iter()
        .filter(|message| (message.role.as_str(), message.kind.as_str()) == ("user", "text"))
        .filter_map(|message| message.text_content.as_deref())
        .collect();
    if findings.count("user messages", texts.len(), expected.texts.len()) && texts != expected.texts
    {
        findings.add(
            FaultKind::Lost,
            format!(
                "the user's messages are {texts:?}, expected {:?}",
                expected.texts
            ),
        );
    }
    if let Some(shape) = &expected.shape {
        let kinds: Vec<&str> = all.iter().map(|message| message.kind.as_str()).collect();
        if findings.count("messages", kinds.len(), shape.len()) && kinds != *shape {
            findings.add(
                FaultKind::Lost,
                format!("its messages are {kinds:?}, expected {shape:?}"),
            );
        }
    }
    let last = all.last().and_then(|message| message.text_content.as_ref());
    if let Some(expected) = &expected.last
        && last != Some(expected)
    {
        let what = if last.map(String::len) > Some(expected.len()) {
            FaultKind::Repeated
        } else {
            FaultKind::Lost
        };
        let why = format!("its last message is {last:?}, expected {expected:?}");
        findings.add(what, why);
    }
}

/// Each call has exactly one result, which follows it.
fn calls(messages: &[MessageBody], findings: &mut Findings<'_>) {
    let mut results: BTreeMap<&str, u32> = BTreeMap::new();
    for message in messages {
        if let Some(call) = &message.tool_call
            && results.insert(&call.id, 0).is_some()
        {
            findings.add(
                FaultKind::Repeated,
                format!("the call {} occurs twice", call.id),
            );
        }
        if let Some(result) = &message.tool_result {
            match results.get_mut(result.tool_call_id.as_str()) {
                Some(times) => *times += 1,
                None => findings.add(
                    FaultKind::Lost,
                    format!("a result without a call {}", result.tool_call_id),
                ),
            }
        }
    }
    for (call, times) in results {
        findings.count(&format!("results of call {call}"), times as usize, 1);
    }
}

/// Each request has exactly one answer, the one that the client gave.
fn requests(messages: &[MessageBody], findings: &mut Findings<'_>) {
    let mut answers: BTreeMap<_, u32> = BTreeMap::new();
    let mut responses = Vec::new();
    for message in messages {
        if let Some(request) = &message.human_request {
            answers.entry(request.id).or_default();
        }
        if let Some(response) = &message.human_response {
            *answers.entry(response.request_id).or_default() += 1;
            responses.push(response.response.clone().unwrap_or_default());
        }
    }
    for (request, times) in answers {
        findings.count(&format!("answers to request {request}"), times as usize, 1);
    }
    let expected = &findings.record.expected.responses;
    if findings.count("answers", responses.len(), expected.len()) && responses != *expected {
        let why = format!("its answers are {responses:?}, expected {expected:?}");
        findings.add(FaultKind::Lost, why);
    }
}

/// Events are numbered from 1 without gaps.
fn events(events: &[ObservedEvent], findings: &mut Findings<'_>) {
    if events.is_empty() {
        findings.add(FaultKind::Lost, "it has no events");
    }
    for (expected, ObservedEvent { number, .. }) in (1..).zip(events) {
        if *number != expected {
            let what = if *number < expected {
                FaultKind::Repeated
            } else {
                FaultKind::Lost
            };
            let why = format!("found event {number} where event {expected} should be");
            return findings.add(what, why);
        }
    }
}

/// The events announce each message once, in order.
fn announced_messages(seen: &ObservedRun, findings: &mut Findings<'_>) {
    let texts = seen
        .events
        .iter()
        .filter(|event| event.kind == "message.created");
    let texts: Vec<&str> = texts.map(|event| event.id.as_str()).collect();
    let there: Vec<String> = seen.messages.iter().map(|m| m.id.to_string()).collect();
    if findings.count("messages in its events", texts.len(), there.len()) && texts != there {
        findings.add(
            FaultKind::Lost,
            "its events announce other messages than its transcript contains",
        );
    }
}
