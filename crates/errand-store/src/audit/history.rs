//! Reconstructs from a transcript what happened to each call and request, and what is out of order, for the audit.

use std::collections::HashMap;

use errand_core::author::By;
use errand_core::human::{HumanRequest, Origin, Resolution};
use errand_core::id::HumanRequestId;
use errand_core::ledger::{IN_DOUBT_QUESTION, NOT_DONE};
use errand_core::policy::{self, Settle};
use errand_core::transcript::{Body, Outcome};

use serde_json::Value;

use super::stored::Stored;

/// A call in a transcript.
pub(super) struct CallLine {
    pub(super) id: String,
    /// Position of the call.
    pub(super) at: u64,
    /// Position of its first result.
    pub(super) result: Option<u64>,
    /// How many times it began.
    begun: u32,
    /// How many times a person said that it was not done and should run.
    released: u32,
    /// Whether beginning it twice could have its effect twice.
    begins_once: bool,
}

/// All calls of a transcript.
#[derive(Default)]
pub(super) struct History {
    pub(super) calls: Vec<CallLine>,
    /// Duplicate ids, and results that are duplicates or belong to no call.
    pub(super) wrong_calls: Vec<String>,
    /// Intents that belong to no open call.
    pub(super) wrong_intents: Vec<String>,
    /// Calls that began again, or have a value, without the entry that must precede it.
    pub(super) silent: Vec<String>,
    /// Index into `calls` by id. If an id occurs several times, the last one.
    by_id: HashMap<String, usize>,
    doubts: Vec<(HumanRequestId, String)>,
}

impl History {
    /// Returns `None` if an entry cannot be read, because then the calls are not known.
    pub(super) fn of(stored: &Stored) -> Option<Self> {
        let mut history = Self::default();
        for line in &stored.lines {
            history.feed(line.position, line.body.as_ref().ok()?);
        }
        Some(history)
    }

    fn feed(&mut self, at: u64, body: &Body) {
        match body {
            Body::ToolCall { call, .. } => {
                let place = self.calls.len();
                if self.by_id.insert(call.id.clone(), place).is_some() {
                    self.wrong_calls
                        .push(format!("the id of call {} occurs twice", call.id));
                }
                self.calls.push(CallLine {
                    id: call.id.clone(),
                    at,
                    result: None,
                    begun: 0,
                    released: 0,
                    begins_once: begins_once(&call.name),
                });
            }
            Body::ToolResult {
                call_id, outcome, ..
            } => self.result(at, call_id, outcome),
            // Without an intent, a tool of a connection is only called if it just reads.
            Body::Source { call_id, .. } => {
                let place = self.by_id.get(call_id).copied();
                if let Some(call) = place.and_then(|place| self.calls.get_mut(place))
                    && call.begun == 0
                {
                    call.begins_once = false;
                }
            }
            Body::Intent {
                call_id, evidence, ..
            } => self.intent(at, call_id, evidence.as_ref()),
            Body::HumanRequest { request, .. } => {
                if let Origin::InDoubt { call_id, .. } = &request.origin {
                    self.doubts.push((request.id, call_id.clone()));
                }
            }
            Body::HumanResponse {
                request_id,
                resolution,
                ..
            } if releases(resolution) => {
                let doubt = self.doubts.iter().find(|(id, _)| id == request_id);
                let place = doubt.and_then(|(_, call_id)| self.by_id.get(call_id));
                if let Some(call) = place.and_then(|place| self.calls.get_mut(*place)) {
                    call.released += 1;
                }
            }
            _ => {}
        }
    }

    fn result(&mut self, at: u64, call_id: &str, outcome: &Outcome) {
        let place = self.by_id.get(call_id);
        let Some(call) = place.and_then(|place| self.calls.get_mut(*place)) else {
            self.wrong_calls
                .push(format!("the result at {at} has no call before it"));
            return;
        };
        if let Some(first) = call.result {
            self.wrong_calls
                .push(format!("call {call_id} has results at {first} and at {at}"));
            return;
        }
        call.result = Some(at);
        if call.begins_once && call.begun == 0 && matches!(outcome, Outcome::Result(_)) {
            self.silent.push(format!(
                "call {call_id} has a value at {at} but never began"
            ));
        }
    }

    fn intent(&mut self, at: u64, call_id: &str, evidence: Option<&Value>) {
        let place = self.by_id.get(call_id);
        let call = place.and_then(|place| self.calls.get_mut(*place));
        let Some(call) = call.filter(|call| call.result.is_none()) else {
            self.wrong_intents
                .push(format!("the intent at {at} belongs to no open call"));
            return;
        };
        // When the call began, its connection's server declared it to be idempotent.
        if evidence.is_some_and(|evidence| evidence.get("again") == Some(&Value::Bool(true))) {
            call.begins_once = false;
        }
        if call.begins_once && call.begun > call.released {
            self.silent.push(format!(
                "call {call_id} begins again at {at}, although nobody said that it was not done"
            ));
        }
        call.begun += 1;
    }
}

/// Whether beginning a call of this tool twice could have its effect twice. `true` for unknown tools.
fn begins_once(name: &str) -> bool {
    policy::builtin(name).is_none_or(|hints| {
        !(hints.read_only
            || hints.idempotent
            || matches!(hints.settle, Settle::LookUp | Settle::RunAgain))
    })
}

fn releases(resolution: &Resolution) -> bool {
    match resolution {
        Resolution::Answered { answers } => {
            answers
                .get(IN_DOUBT_QUESTION)
                .and_then(|word| word.as_str())
                == Some(NOT_DONE)
        }
        _ => false,
    }
}

/// A request, and how and by whom it was closed.
pub(super) type Asked<'a> = (&'a HumanRequest, Option<(&'a Resolution, &'a Option<By>)>);

/// The requests of a transcript, each with its first response.
pub(super) fn requests_in_order(stored: &Stored) -> Vec<Asked<'_>> {
    let mut asked: Vec<Asked<'_>> = Vec::new();
    for line in &stored.lines {
        match &line.body {
            Ok(Body::HumanRequest { request, .. }) => asked.push((request, None)),
            Ok(Body::HumanResponse {
                request_id,
                resolution,
                by,
            }) => {
                let request = asked
                    .iter_mut()
                    .find(|(request, closed)| request.id == *request_id && closed.is_none());
                if let Some((_, closed)) = request {
                    *closed = Some((resolution, by));
                }
            }
            _ => {}
        }
    }
    asked
}
