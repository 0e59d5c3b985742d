//! The plan: runs of each kind, and the results they must have.
//!
//! Runs of every kind edit a file so that doing an edit twice is visible: `end` becomes `a end`, and a second time `a a
//! end`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::seeded::Seeded;

/// The file that every run edits.
const TALLY: &str = "/workspace/tally.txt";
/// The files of a run with uploads.
const SMALL: &str = "/workspace/in/small.txt";
const LARGE: &str = "/workspace/in/large.bin";
/// Maximum size of an upload by URL, in bytes: large enough that some uploads are interrupted.
const LARGE_BYTES_MAX: u64 = 384 * 1024;
/// Text of a run's second message.
pub(super) const SECOND_MESSAGE: &str = "second";
/// The question that runs ask, and its answer.
pub(super) const QUESTION: &str = "Which color?";
pub(super) const ANSWER: &str = "blue";
/// The event for the end of a run that completes.
const COMPLETED: &str = "run_completed";

/// FaultKind a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// Writes, edits and reads a file.
    Files,
    /// The same as `Files`, between two timers.
    Timer,
    /// A playbook step that asks for an approval.
    Approval,
    /// A tool call whose policy asks for an approval.
    Permission,
    /// A question.
    Question,
    /// Reads files that were uploaded before.
    Uploads,
    /// A message takes the place of an answer.
    Message,
    /// A message resumes a completed run.
    Resume,
    /// The client stops the run.
    Stop,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::Files,
        Self::Timer,
        Self::Approval,
        Self::Permission,
        Self::Question,
        Self::Uploads,
        Self::Message,
        Self::Resume,
        Self::Stop,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Timer => "timer",
            Self::Approval => "approval",
            Self::Permission => "permission",
            Self::Question => "question",
            Self::Uploads => "uploads",
            Self::Message => "message",
            Self::Resume => "resume",
            Self::Stop => "stop",
        }
    }

    /// The body of `POST /v1/agents`.
    pub(super) fn agent(self) -> Value {
        let edits = if self == Self::Permission {
            "ask"
        } else {
            "allow"
        };
        let config = json!({"version": "v2", "data": {
            "tools": {"write_file": "allow", "read_file": "allow", "edit_file": edits},
            "playbook": {"steps": self.steps()},
        }});
        json!({"name": self.name(), "build": {"name": self.name(), "config": config}})
    }

    fn steps(self) -> Value {
        let write = json!({"tool": "write_file", "with": {"path": TALLY, "content": "end"}});
        let edit = |word: &str| json!({"tool": "edit_file", "with": {"path": TALLY, "old": "end", "new": format!("{word} end")}});
        let read = json!({"tool": "read_file", "with": {"path": TALLY}, "as": "text"});
        let finish = json!({"finish": "{{ text }}"});
        let ask = json!({"ask": {"title": "A question", "questions": [
            {"question": QUESTION, "options": [{"label": "red"}, {"label": ANSWER}]},
        ]}, "as": "answers"});
        let with = |mut step: Value, key: &str, value: &str| {
            if let Some(step) = step.as_object_mut() {
                step.insert(key.to_owned(), value.into());
            }
            step
        };
        match self {
            Self::Files => {
                let each = json!({"for_each": ["a", "b", "c"], "steps": [edit("{{ item }}")]});
                json!([write, each, read, finish])
            }
            Self::Timer => {
                let wait = json!({"wait": "50ms"});
                json!([write, wait, edit("a"), wait, edit("b"), read, finish])
            }
            Self::Approval => {
                let approve = json!({"approve": {"title": "An approval"}, "as": "given"});
                let edit = edit("{{ 'yes' if given.approved else 'no' }}");
                json!([write, approve, edit, read, finish])
            }
            Self::Permission => {
                json!([write, with(edit("a"), "on_error", "continue"), read, finish])
            }
            Self::Question => {
                let edit = edit(&format!("{{{{ answers['{QUESTION}'] }}}}"));
                json!([write, ask, edit, read, finish])
            }
            Self::Uploads => {
                let take = json!({"tool": "read_file", "with": {"path": SMALL}, "as": "small"});
                let write = json!({"tool": "write_file", "with": {"path": TALLY, "content": "{{ small }} end"}});
                json!([take, write, edit("a"), read, finish])
            }
            Self::Message => json!([write, ask, edit("{{ message }}"), read, finish]),
            Self::Resume => {
                let first = with(write, "if", "{{ messages | length == 1 }}");
                json!([first, edit("{{ message }}"), read, finish])
            }
            Self::Stop => json!([write, edit("a"), {"wait": "1h"}, read, finish]),
        }
    }
}

/// A planned run.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Starts at 0.
    pub(super) number: u64,
    pub(super) kind: Kind,
    /// Approved or denied; stopped immediately or once its timer waits.
    pub(super) choice: bool,
    /// Whether two concurrent requests with the same key start it.
    pub(super) twice: bool,
    seed: u64,
}

/// Plans `runs` runs, of each kind in turn.
pub(super) fn planned(seed: u64, runs: u64) -> Vec<Planned> {
    let kinds = Kind::ALL.iter().cycle();
    let planned = (0..runs).zip(kinds).map(|(number, kind)| {
        let mut row = Seeded::new(seed, "run", number);
        Planned {
            number,
            kind: *kind,
            choice: row.one_in(2),
            twice: row.one_in(3),
            seed,
        }
    });
    planned.collect()
}

/// A file that is uploaded before the run.
pub(super) struct Upload {
    pub(super) path: &'static str,
    pub(super) bytes: Vec<u8>,
    /// Whether it is uploaded by upload URL, or directly.
    pub(super) by_url: bool,
}

/// The result that a run must have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expected {
    pub(super) status: &'static str,
    /// Texts of the user's messages, in order.
    pub(super) texts: Vec<String>,
    /// Kinds of all messages in order. `None` if they depend on when the run was stopped.
    pub(super) shape: Option<Vec<&'static str>>,
    /// Text of the last message. `None` for the same reason.
    pub(super) last: Option<String>,
    /// Answers to the requests, in order.
    pub(super) responses: Vec<String>,
    /// Names of the webhook events, in order.
    pub(super) webhooks: Vec<&'static str>,
    /// Possible contents of each file. `None` means that the file may not exist.
    pub(super) files: BTreeMap<String, Vec<Option<String>>>,
}

impl Planned {
    /// The first message of the run.
    pub(super) fn message(&self) -> String {
        format!("run{}", self.number)
    }

    pub(super) fn uploads(&self) -> Vec<Upload> {
        if self.kind != Kind::Uploads {
            return Vec::new();
        }
        let mut row = Seeded::new(self.seed, "upload", self.number);
        let length = 1 + row.below(LARGE_BYTES_MAX);
        let small = Upload {
            path: SMALL,
            bytes: self.message().into_bytes(),
            by_url: false,
        };
        let large = Upload {
            path: LARGE,
            bytes: row.bytes(usize::try_from(length).unwrap_or(1)),
            by_url: true,
        };
        vec![small, large]
    }

    /// Steps of progress that the run makes, including webhooks.
    pub(super) fn steps(&self) -> u64 {
        let uploads = if self.kind == Kind::Uploads { 2 } else { 0 };
        let of_clients = match self.kind {
            Kind::Files | Kind::Timer | Kind::Uploads => 2,
            Kind::Approval | Kind::Permission | Kind::Question | Kind::Message | Kind::Stop => 3,
            Kind::Resume => 4,
        };
        of_clients + uploads + self.expected().webhooks.len() as u64
    }

    pub(super) fn expected(&self) -> Expected {
        let tally = self.tally();
        let mut files: BTreeMap<_, _> = self
            .uploads()
            .iter()
            .map(|upload| (upload.path.to_owned(), vec![Some(content(&upload.bytes))]))
            .collect();
        let tallies = match self.kind {
            Kind::Stop => vec![None, Some("end".to_owned()), Some(tally.clone())],
            _ => vec![Some(tally.clone())],
        };
        files.insert(TALLY.to_owned(), tallies);
        let mut texts = vec![self.message()];
        if matches!(self.kind, Kind::Message | Kind::Resume) {
            texts.push(SECOND_MESSAGE.to_owned());
        }
        let stopped = self.kind == Kind::Stop;
        Expected {
            status: if stopped { "interrupted" } else { "completed" },
            texts,
            shape: (!stopped).then(|| self.shape()),
            last: (!stopped).then_some(tally),
            responses: self.responses(),
            webhooks: self.webhooks(),
            files,
        }
    }

    /// Final content of the edited file.
    fn tally(&self) -> String {
        let words = match self.kind {
            Kind::Files => "a b c ".to_owned(),
            Kind::Timer => "a b ".to_owned(),
            Kind::Approval if self.choice => "yes ".to_owned(),
            Kind::Approval => "no ".to_owned(),
            Kind::Permission if !self.choice => String::new(),
            Kind::Permission | Kind::Stop => "a ".to_owned(),
            Kind::Question => format!("{ANSWER} "),
            Kind::Uploads => format!("{} a ", self.message()),
            Kind::Message => format!("{SECOND_MESSAGE} "),
            Kind::Resume => format!("{} {SECOND_MESSAGE} ", self.message()),
        };
        format!("{words}end")
    }

    fn responses(&self) -> Vec<String> {
        let word = if self.choice { "approved" } else { "denied" };
        match self.kind {
            Kind::Approval | Kind::Permission => vec![word.to_owned()],
            Kind::Question => vec![json!({ QUESTION: ANSWER }).to_string()],
            Kind::Message => vec![SECOND_MESSAGE.to_owned()],
            _ => Vec::new(),
        }
    }

    fn webhooks(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Files | Kind::Timer | Kind::Uploads => vec![COMPLETED],
            Kind::Approval | Kind::Permission | Kind::Question | Kind::Message => {
                vec!["human_request", COMPLETED]
            }
            Kind::Resume => vec![COMPLETED, COMPLETED],
            Kind::Stop => vec!["run_interrupted"],
        }
    }

    fn shape(&self) -> Vec<&'static str> {
        let (call, result) = ("tool_call", "tool_result");
        let (request, response) = ("human_request", "human_response");
        match self.kind {
            Kind::Files => [&["text"][..], &[call, result].repeat(5), &["text"]].concat(),
            Kind::Timer | Kind::Uploads => {
                [&["text"][..], &[call, result].repeat(4), &["text"]].concat()
            }
            Kind::Approval | Kind::Question => vec![
                "text", call, result, request, response, call, result, call, result, "text",
            ],
            Kind::Message => vec![
                "text", call, result, request, response, "text", call, result, call, result, "text",
            ],
            Kind::Permission => vec![
                "text", call, result, call, request, response, result, call, result, "text",
            ],
            Kind::Resume => vec![
                "text", call, result, call, result, call, result, "text", "text", call, result,
                call, result, "text",
            ],
            Kind::Stop => Vec::new(),
        }
    }
}

/// A file's content for messages: the text if it is short, otherwise its length and digest.
pub(super) fn content(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 200;
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= SHOWN_BYTES_MAX => text.to_owned(),
        _ => {
            let digest = hex::encode(Sha256::digest(bytes));
            format!("{} bytes, sha256 {digest}", bytes.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_takes_part_and_a_seed_repeats_the_plan() {
        let plan = planned(3, 2 * Kind::ALL.len() as u64);
        for kind in Kind::ALL {
            assert_eq!(plan.iter().filter(|run| run.kind == kind).count(), 2);
        }
        assert_eq!(format!("{plan:?}"), format!("{:?}", planned(3, 18)));
        assert_ne!(format!("{plan:?}"), format!("{:?}", planned(4, 18)));
    }

    #[test]
    fn a_long_content_is_shown_by_its_digest() {
        assert_eq!(content(b"a end"), "a end");
        assert!(content(&[0xff; 3]).starts_with("3 bytes, sha256 "));
        assert_ne!(content(&[b'x'; 300]), content(&[b'y'; 300]));
    }
}
