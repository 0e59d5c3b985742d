//! Breaks each guarantee in complete records. The check must find the break, and must find nothing in complete records.

use errand_core::wire::MessageBody;
use serde_json::{Value, json};

use super::*;
use crate::cli::selftest::plan::{Planned, planned};
use crate::cli::selftest::receiver::WebhookContent;

fn uuid(n: u64) -> String {
    format!("0193b0e2-0000-7000-8000-{n:012x}")
}

/// A message of this kind. A result belongs to the last call, an answer to the last request.
fn message(planned: &Planned, at: usize, kind: &str, is_last: bool) -> MessageBody {
    let id = planned.number * 1_000 + at as u64;
    let expected = planned.expected();
    let (call, request) = (
        format!("call{}", planned.number),
        uuid(planned.number + 500),
    );
    let mut texts = expected.texts.into_iter();
    let text = match at {
        0 => texts.next(),
        _ if is_last => expected.last,
        _ => texts.nth(1),
    };
    let is_users = at == 0 || (kind == "text" && !is_last);
    let mut body = json!({
        "id": uuid(id), "type": kind, "role": if is_users { "user" } else { "assistant" },
        "timestamp": "2026-11-23T09:30:00.123Z",
    });
    let more = match kind {
        "text" => json!({ "text_content": text }),
        "tool_call" => json!({"tool_call": {"id": call, "name": "edit_file"}}),
        "tool_result" => json!({"tool_result": {"tool_call_id": call, "result": "done"}}),
        "human_request" => json!({"human_request": {
            "id": request, "title": "", "description": null, "created_at": "2026-11-23T09:30:00.123Z",
            "type": "approval", "expires_at": null}}),
        _ => {
            json!({"human_response": {"request_id": request, "response": expected.responses.first()}})
        }
    };
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    serde_json::from_value(body).unwrap()
}

fn event(number: u64, kind: &str, id: &str, status: Option<&str>) -> ObservedEvent {
    ObservedEvent {
        number,
        kind: kind.to_owned(),
        id: id.to_owned(),
        status: status.map(str::to_owned),
    }
}

/// A correct run with one call and, if its kind asks, one request.
fn whole(planned: &Planned) -> (Record, Vec<Delivery>) {
    let mut expected = planned.expected();
    let asks = !expected.responses.is_empty();
    let mut shape = vec!["text", "tool_call", "tool_result"];
    if asks {
        shape.extend(["human_request", "human_response"]);
    }
    shape.push("text");
    let last = shape.len() - 1;
    let messages: Vec<MessageBody> = (0..=last)
        .map(|at| message(planned, at, shape[at], at == last))
        .collect();
    expected.shape = Some(shape);
    let (mut events, mut due) = (Vec::new(), Vec::new());
    for message in &messages {
        let next = events.len() as u64 + 1;
        events.push(event(
            next,
            "message.created",
            &message.id.to_string(),
            None,
        ));
        if message.human_request.is_some() {
            events.push(event(next + 1, "human_request.created", "", None));
            due.push((next + 1, "human_request"));
        }
    }
    let next = events.len() as u64 + 1;
    events.push(event(next, "run.updated", "", Some(expected.status)));
    due.push((next, "run_completed"));
    let run = uuid(planned.number + 900);
    let deliveries = due.into_iter().map(|(sequence, name)| {
        let id = uuid(planned.number * 1_000 + 700 + sequence);
        Delivery {
            number: planned.number,
            id: id.clone(),
            sha256: vec![1],
            taken: true,
            content: Ok(WebhookContent {
                id,
                run: run.clone(),
                event: name.to_owned(),
                sequence,
            }),
        }
    });
    let deliveries = deliveries.collect();
    let files = expected.files.iter();
    let files = files.map(|(path, possible)| (path.clone(), possible[0].clone()));
    let seen = ObservedRun {
        status: expected.status.to_owned(),
        note: String::new(),
        asks: false,
        messages_total: messages.len() as u64,
        messages,
        events,
        files: files.collect(),
    };
    let record = Record {
        number: planned.number,
        kind: planned.kind,
        expected,
        ids: [run].into(),
        refused: None,
        seen: Ok(seen),
    };
    (record, deliveries)
}

/// A run with files, one with an approval, one with uploads.
fn evidence() -> Evidence {
    let mut evidence = Evidence::default();
    for planned in planned(1, 9) {
        if matches!(planned.kind, Kind::Files | Kind::Approval | Kind::Uploads) {
            let (record, deliveries) = whole(&planned);
            evidence.listed.extend(record.ids.iter().cloned());
            evidence.runs.push(record);
            evidence.deliveries.extend(deliveries);
        }
    }
    evidence
}

impl Evidence {
    fn seen(&mut self, run: usize) -> &mut ObservedRun {
        self.runs[run].seen.as_mut().unwrap()
    }
}

/// Asserts that a change of correct evidence causes a fault of this kind, with this text, in a named run.
#[track_caller]
fn finds(what: FaultKind, says: &str, change: impl FnOnce(&mut Evidence)) {
    let mut evidence = evidence();
    change(&mut evidence);
    let faults = faults(&evidence);
    let found = faults
        .iter()
        .find(|fault| fault.what == what && fault.why.contains(says));
    assert!(
        found.is_some(),
        "{what:?} {says:?} is not among {faults:#?}"
    );
    assert!(!found.unwrap().run.is_empty() || found.unwrap().number.is_some());
}

#[test]
fn whole_evidence_has_no_faults() {
    assert_eq!(faults(&evidence()), []);
    // Delivering the same bytes again is permitted.
    let mut evidence = evidence();
    let again = evidence.deliveries[0].clone();
    evidence.deliveries[0].taken = false;
    evidence.deliveries.push(again);
    assert_eq!(faults(&evidence), []);
}

#[test]
fn a_lost_run_is_found() {
    finds(
        FaultKind::Lost,
        "the list of runs does not contain it",
        |e| {
            e.listed.remove(0);
        },
    );
    finds(FaultKind::Lost, "cannot be read", |e| {
        e.runs[0].seen = Err("404".to_owned());
    });
    finds(
        FaultKind::Lost,
        "its status is failed, expected completed",
        |e| {
            e.seen(0).status = "failed".to_owned();
        },
    );
    finds(FaultKind::Lost, "a client was refused", |e| {
        e.runs[0].refused = Some("400".to_owned());
    });
}

#[test]
fn a_run_that_is_there_twice_is_found() {
    finds(
        FaultKind::Repeated,
        "one Idempotency-Key started several",
        |e| {
            e.runs[0].ids.insert(uuid(77));
        },
    );
    finds(FaultKind::Repeated, "more than once", |e| {
        let again = e.listed[0].clone();
        e.listed.push(again);
    });
    finds(FaultKind::Repeated, "no client received its ID", |e| {
        e.listed.push(uuid(77));
    });
}

#[test]
fn a_run_that_never_ends_is_found() {
    finds(FaultKind::Stuck, "it is still running", |e| {
        e.seen(0).status = "running".to_owned();
    });
    finds(FaultKind::Stuck, "a request is still open", |e| {
        e.seen(1).asks = true;
    });
    finds(FaultKind::Stuck, "its start got no response", |e| {
        e.runs[0].ids.clear();
    });
}

#[test]
fn a_doubled_effect_is_found() {
    let tally = "/workspace/tally.txt".to_owned();
    finds(FaultKind::Repeated, "a a b c end", |e| {
        let twice = Some("a a b c end".to_owned());
        e.seen(0).files.insert(tally.clone(), twice);
    });
    finds(FaultKind::Lost, "a c end", |e| {
        let missing = Some("a c end".to_owned());
        e.seen(0).files.insert(tally.clone(), missing);
    });
    finds(FaultKind::Lost, "contains nothing", |e| {
        e.seen(2)
            .files
            .insert("/workspace/in/large.bin".to_owned(), None);
    });
}

#[test]
fn a_hole_or_a_repeat_in_a_transcript_is_found() {
    finds(FaultKind::Lost, " messages, expected", |e| {
        e.seen(0).messages.remove(1);
    });
    finds(FaultKind::Repeated, "results of call", |e| {
        let again = e.seen(0).messages[2].clone();
        e.seen(0).messages.insert(3, again);
    });
    finds(FaultKind::Lost, "results of call", |e| {
        e.seen(0).messages.remove(2);
    });
    finds(FaultKind::Repeated, "answers to request", |e| {
        let again = e.seen(1).messages[4].clone();
        e.seen(1).messages.insert(5, again);
    });
    finds(FaultKind::Lost, "its answers are", |e| {
        let answer = e.seen(1).messages[4].human_response.as_mut();
        answer.unwrap().response = Some("another".to_owned());
    });
    finds(FaultKind::Lost, "the user's messages are", |e| {
        e.seen(0).messages[0].text_content = Some("another".to_owned());
    });
    finds(FaultKind::Lost, "not in order", |e| {
        e.seen(0).messages[1].timestamp = "2026-11-23T09:31:00.000Z".parse().unwrap();
    });
}

#[test]
fn a_gap_or_a_repeat_in_the_events_is_found() {
    finds(
        FaultKind::Lost,
        "found event 3 where event 2 should be",
        |e| {
            e.seen(0).events.remove(1);
        },
    );
    finds(
        FaultKind::Repeated,
        "found event 2 where event 3 should be",
        |e| {
            let again = e.seen(0).events[1].clone();
            e.seen(0).events.insert(2, again);
        },
    );
    finds(FaultKind::Lost, "other messages", |e| {
        e.seen(0).events[0].id = uuid(77);
    });
}

#[test]
fn a_webhook_that_is_lost_doubled_or_changed_is_found() {
    finds(FaultKind::Lost, "webhook events", |e| {
        e.deliveries.remove(0);
    });
    finds(FaultKind::Repeated, "has two webhook IDs", |e| {
        let mut again = e.deliveries[0].clone();
        again.id = uuid(77);
        e.deliveries.push(again);
    });
    finds(FaultKind::Repeated, "different bytes", |e| {
        let mut again = e.deliveries[0].clone();
        again.sha256 = vec![2];
        e.deliveries.push(again);
    });
    finds(FaultKind::Stuck, "not delivered again", |e| {
        e.deliveries[0].taken = false;
    });
    finds(FaultKind::Lost, "its signature is invalid", |e| {
        e.deliveries[0].content = Err("its signature is invalid".to_owned());
    });
    finds(FaultKind::Lost, "webhooks arrived for the events", |e| {
        if let Ok(content) = &mut e.deliveries[0].content {
            content.sequence += 1;
        }
    });
    finds(FaultKind::Repeated, "a run that nobody started", |e| {
        let mut strange = e.deliveries[0].clone();
        strange.number = 77;
        e.deliveries.push(strange);
    });
}

#[test]
fn a_fault_is_printed_for_programs_with_its_run() {
    let mut evidence = evidence();
    evidence.listed.remove(0);
    let printed: Value = serde_json::to_value(faults(&evidence)).unwrap();
    assert_eq!(printed[0]["what"], "lost");
    assert_eq!(printed[0]["kind"], "files");
    assert_eq!(printed[0]["run"], json!(evidence.runs[0].ids.first()));
}
