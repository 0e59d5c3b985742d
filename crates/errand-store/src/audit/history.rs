//! What a transcript says of its calls and requests, for the audit: what became of each, and what is out of order.

use std::collections::HashMap;

use errand_core::author::By;
use errand_core::human::{HumanRequest, Origin, Resolution};
use errand_core::id::HumanRequestId;
use errand_core::ledger::{IN_DOUBT_QUESTION, NOT_DONE};
use errand_core::policy::{self, Settle};
use errand_core::transcript::{Body, Outcome};

use serde_json::Value;

use super::stored::Stored;

/// One call of a transcript.
pub(super) struct CallLine {
    pub(super) id: String,
    /// Its position.
    pub(super) at: u64,
    /// The position of its first result.
    pub(super) result: Option<u64>,
    /// How often it began.
    begun: u32,
    /// How often a person said that it was not done and is to run.
    released: u32,
    /// Whether beginning it twice may do something twice.
    begins_once: bool,
}

/// All calls of a transcript.
#[derive(Default)]
pub(super) struct History {
    pub(super) calls: Vec<CallLine>,
    /// Ids that are not unique, results that are one too many or belong to nothing.
    pub(super) wrong_calls: Vec<String>,
    /// Intents that belong to no open call.
    pub(super) wrong_intents: Vec<String>,
    /// Calls that began again, or have a value, without what that takes.
    pub(super) silent: Vec<String>,
    /// Where in `calls` the call of an id is, the last one where there are several.
    by_id: HashMap<String, usize>,
    doubts: Vec<(HumanRequestId, String)>,
}

impl History {
    /// None where an entry cannot be read: the calls of such a transcript are not known.
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
                        .push(format!("the id of call {} is there twice", call.id));
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
            // Without an intent a connection's tool is called only where it reads.
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
                "call {call_id} has a value at {at} and never began"
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
        // The server of a connection said, when the call began, that twice is as good as once.
        if evidence.is_some_and(|evidence| evidence.get("again") == Some(&Value::Bool(true))) {
            call.begins_once = false;
        }
        if call.begins_once && call.begun > call.released {
            self.silent.push(format!(
                "call {call_id} begins again at {at}, and nobody said that it was not done"
            ));
        }
        call.begun += 1;
    }
}

/// Whether beginning a call of this tool twice may do something twice. Of a tool that is not known: yes.
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
