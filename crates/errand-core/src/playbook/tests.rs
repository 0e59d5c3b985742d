//! Each test drives a run manually. [`Drive::next`] compares every decision with that of a walk that is fed the whole
//! transcript again, as after a restart.

mod check;
mod hostile;
mod replay;
mod rules;
mod strings;

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Known, Playbook, RunFacts, Walk};
use crate::human::{Answer, HumanRequest, Resolution, check_answer};
use crate::id::{HumanRequestId, IdGen};
use crate::run::RunError;
use crate::time::Timestamp;
use crate::tool_error::ToolError;
use crate::transcript::{Body, Entry, Outcome, ToolCall};
use crate::turn::{MarkedMove, Move};

fn parse(steps: Value) -> Playbook {
    let known = Known {
        tool: &|_| Ok(()),
        human_in_the_loop: true,
    };
    Playbook::parse(&json!({ "steps": steps }), &known).unwrap()
}

/// A run driven manually: its decisions are recorded, and the test determines their outcomes.
struct Drive {
    playbook: Arc<Playbook>,
    walk: Walk,
    entries: Vec<Entry>,
    facts: RunFacts,
    ids: IdGen,
}

impl Drive {
    fn new(steps: Value) -> Self {
        Self::of(parse(steps))
    }

    fn of(playbook: Playbook) -> Self {
        let playbook = Arc::new(playbook);
        let facts = RunFacts {
            id: "run-1".to_owned(),
            sandbox_id: None,
        };
        Self {
            walk: Walk::new(Arc::clone(&playbook)),
            playbook,
            entries: Vec::new(),
            facts,
            ids: IdGen::new([1; 32]),
        }
    }

    /// Starts with a message.
    fn started(steps: Value, message: &str) -> Self {
        let mut drive = Self::new(steps);
        drive.user(message);
        drive
    }

    fn push(&mut self, body: Body) {
        let position = self.entries.len() as u64 + 1;
        let at = Timestamp::from_millis(1_000);
        let entry = Entry {
            position,
            id: self.ids.message(at),
            at,
            body,
        };
        self.walk.feed(&entry);
        self.entries.push(entry);
    }

    fn user(&mut self, text: &str) {
        self.push(Body::User {
            text: text.to_owned(),
            by: None,
            untrusted: false,
        });
    }

    /// A walk that is fed the whole transcript at once.
    fn fresh(&self) -> Walk {
        let mut walk = Walk::new(Arc::clone(&self.playbook));
        self.entries.iter().for_each(|entry| walk.feed(entry));
        walk
    }

    /// The decision, which must be the same if asked twice and after a restart.
    fn next(&mut self) -> MarkedMove {
        let decided = self.walk.next(&self.facts);
        assert_eq!(self.walk.next(&self.facts), decided, "asked twice");
        assert_eq!(self.fresh().next(&self.facts), decided, "after a restart");
        decided
    }

    /// Records a decision. Returns the call or the request that it opens.
    fn record(&mut self, decided: MarkedMove) -> Option<Open> {
        let MarkedMove { action, mark } = decided;
        match action {
            Move::Say { text } => self.push(Body::Assistant {
                text,
                ends: false,
                mark,
            }),
            Move::Finish { text } => self.push(Body::Assistant {
                text,
                ends: true,
                mark,
            }),
            Move::Wait { ms } => {
                let until = Timestamp::from_millis(1_000).plus_ms(ms);
                self.push(Body::Wait { until, mark });
                self.push(Body::Woke { until });
            }
            Move::Fail { code, message } => self.push(Body::Error {
                error: RunError::new(code, message),
                mark,
            }),
            Move::Call {
                name, arguments, ..
            } => {
                let id = format!("call-{}", self.entries.len());
                let call = ToolCall {
                    id: id.clone(),
                    name,
                    arguments,
                };
                self.push(Body::ToolCall { call, mark });
                return Some(Open::Call(id));
            }
            Move::Ask(draft) => {
                let now = Timestamp::from_millis(1_000);
                let request = HumanRequest::new(self.ids.human_request(now), *draft, now);
                self.push(Body::HumanRequest {
                    request: request.clone(),
                    mark,
                });
                return Some(Open::Request(Box::new(request)));
            }
        }
        None
    }

    fn settle(&mut self, call_id: &str, outcome: Outcome) {
        self.push(Body::ToolResult {
            call_id: call_id.to_owned(),
            name: "tool".to_owned(),
            outcome,
        });
    }

    fn resolve(&mut self, request_id: HumanRequestId, resolution: Resolution) {
        self.push(Body::HumanResponse {
            request_id,
            resolution,
            by: None,
        });
    }

    /// Expects a call, records it, and sets its result. Returns name and arguments.
    fn call(&mut self, outcome: Outcome) -> Value {
        let decided = self.next();
        let Move::Call {
            name, arguments, ..
        } = decided.action.clone()
        else {
            panic!("no call: {decided:?}")
        };
        let Some(Open::Call(id)) = self.record(decided) else {
            panic!()
        };
        self.settle(&id, outcome);
        json!([name, arguments])
    }

    /// Expects a request, records it, and closes it as `close` says. Returns it.
    fn asked(&mut self, close: impl FnOnce(&HumanRequest) -> Resolution) -> HumanRequest {
        let decided = self.next();
        let Some(Open::Request(request)) = self.record(decided.clone()) else {
            panic!("no request: {decided:?}")
        };
        let resolution = close(&request);
        self.resolve(request.id, resolution);
        *request
    }

    /// Expects a message, records it, and returns its text.
    fn said(&mut self) -> String {
        let decided = self.next();
        let Move::Say { text } = decided.action.clone() else {
            panic!("no message: {decided:?}")
        };
        self.record(decided);
        text
    }

    /// Expects the end, records it, and returns its text.
    fn finished(&mut self) -> String {
        let decided = self.next();
        let Move::Finish { text } = decided.action.clone() else {
            panic!("no end: {decided:?}")
        };
        self.record(decided);
        text
    }

    /// Expects a failure, records it, and returns code and message.
    fn failed(&mut self) -> (String, String) {
        let decided = self.next();
        let Move::Fail { code, message } = decided.action.clone() else {
            panic!("no failure: {decided:?}")
        };
        self.record(decided);
        (code.to_owned(), message)
    }

    fn path(&mut self) -> String {
        self.next().mark.unwrap().path
    }
}

/// A move that waits for its outcome.
enum Open {
    Call(String),
    Request(Box<HumanRequest>),
}

fn ok(value: Value) -> Outcome {
    Outcome::Result(value)
}

fn error(text: &str) -> Outcome {
    Outcome::Error(ToolError::from_text(text))
}

fn answer(request: &HumanRequest, answer: Answer) -> Resolution {
    check_answer(&request.ask, answer).unwrap()
}

fn approve(approved: bool) -> impl FnOnce(&HumanRequest) -> Resolution {
    move |request| {
        answer(
            request,
            Answer::Approval {
                approved,
                reason: None,
            },
        )
    }
}

fn answers(value: Value) -> impl FnOnce(&HumanRequest) -> Resolution {
    move |request| answer(request, Answer::Answers(value.as_object().unwrap().clone()))
}

fn invoices() -> Value {
    json!([
        {"tool": "read_file", "with": {"path": "/workspace/invoices.csv"}, "as": "csv"},
        {"for_each": "{{ csv | lines | slice(1) }}", "steps": [{"say": "{{ index }}: {{ item }}"}]},
        {"set": {"total": "{{ csv | lines | slice(1) | length * 100 }}"}},
        {"approve": {"title": "Pay {{ total }} EUR?", "description": "..."}, "as": "payment", "if": "{{ total > 1000 }}"},
        {"ask": {"title": "Which account?", "questions": [{
            "question": "Which account?", "header": "Account", "options": [{"label": "A"}, {"label": "B"}], "multi_select": false,
        }]}, "as": "answers"},
        {"say": "Half way."},
        {"wait": "30s"},
        {"fail": "No such account", "if": "{{ answers['Which account?'] not in ['A', 'B'] }}"},
        {"finish": "Paid {{ total }} EUR from {{ answers['Which account?'] }}."},
    ])
}

#[test]
fn the_documented_playbook_runs() {
    let mut drive = Drive::started(invoices(), "Pay them");
    assert_eq!(
        drive.call(ok(json!("id,name\n1,Ada\n2,Bob\n"))),
        json!(["read_file", {"path": "/workspace/invoices.csv"}])
    );
    assert_eq!(drive.path(), "1[0].0");
    assert_eq!(drive.said(), "0: 1,Ada");
    assert_eq!(drive.path(), "1[1].0");
    assert_eq!(drive.said(), "1: 2,Bob");
    // 200 is not above 1,000, so the approval is skipped.
    assert_eq!(drive.path(), "4");
    let request = drive.asked(answers(json!({"Which account?": "B"})));
    assert_eq!(request.title, "Which account?");
    assert_eq!(drive.said(), "Half way.");
    let wait = drive.next();
    assert_eq!(wait.action, Move::Wait { ms: 30_000 });
    drive.record(wait);
    assert_eq!(drive.finished(), "Paid 200 EUR from B.");
}

#[test]
fn the_documented_playbook_asks_and_fails() {
    let mut drive = Drive::started(invoices(), "Pay them");
    let lines: String = (0..12).map(|n| format!("{n}\n")).collect();
    drive.call(ok(json!(lines)));
    for _ in 0..11 {
        drive.said();
    }
    assert_eq!(drive.asked(approve(false)).title, "Pay 1100 EUR?");
    drive.asked(answers(json!({"Which account?": "C"})));
    assert_eq!(drive.said(), "Half way.");
    let wait = drive.next();
    drive.record(wait);
    assert_eq!(drive.path(), "7");
    assert_eq!(
        drive.failed(),
        ("playbook_failed".to_owned(), "No such account".to_owned())
    );
}
