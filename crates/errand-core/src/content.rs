//! Content that came into a run: what is untrusted, what is private, and where each was read.
//!
//! Untrusted content may hold instructions of a stranger; private content is what must not leave the team. A call that
//! changes something outside is guarded once untrusted content came; a call that only reads the open world sends what is
//! in its arguments, and is guarded once both came.
//!
//! Guarantee: text from outside (a path, a command, an address) stays data. It is kept as [`Read::item`], with bounds on
//! the number and the length, and is part of no sentence.

use serde::{Deserialize, Serialize};

use crate::id::RunId;
use crate::policy::Policy;
use crate::time::Timestamp;

/// Most reads that are kept of a kind; of more, the last ones.
const READS_MAX: usize = 8;
/// Most characters of an item: a path, or the beginning of a command.
const ITEM_CHARS_MAX: usize = 300;
/// Most characters of an id of a call: providers give some 40.
const CALL_ID_CHARS_MAX: usize = 200;

/// Content that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// The tool that brought it; `message` for a message that was marked as untrusted, `start` for what a run begins
    /// with.
    pub tool: String,
    /// The call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// What was read, in the words of the call: a path, a command, an address, or the arguments as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// When.
    pub at: Timestamp,
    /// The position of the entry with which it came, in the transcript of the run that read it. `None`: no entry shows it, or
    /// it was read before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// The run that read it, where it is not the run itself but one above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
}

/// A text that is longer is cut, and ends with `…` then.
fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

impl Read {
    /// A read of a call of the run itself, within the bounds.
    #[must_use]
    pub fn new(tool: &str, call_id: Option<&str>, item: Option<&str>, at: Timestamp) -> Self {
        Self {
            tool: tool.to_owned(),
            call_id: call_id.map(|id| cut(id, CALL_ID_CHARS_MAX)),
            item: item.map(|item| cut(item, ITEM_CHARS_MAX)),
            at,
            position: None,
            run: None,
        }
    }

    /// Adds the position of the entry that shows it.
    #[must_use]
    pub fn shown_at(self, position: u64) -> Self {
        Self {
            position: Some(position),
            ..self
        }
    }

    fn is_same_source(&self, other: &Self) -> bool {
        (&self.tool, &self.item, self.run) == (&other.tool, &other.item, other.run)
    }
}

/// The last reads of a kind, the newest last. Each source is there once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    /// The last ones.
    pub last: Vec<Read>,
    /// How many sources more there were, at most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Reads {
    /// Whether none came.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.last.is_empty()
    }

    /// Adds one.
    pub fn add(&mut self, read: Read) {
        if let Some(at) = self.last.iter().position(|r| r.is_same_source(&read)) {
            self.last.remove(at);
        } else if self.last.len() >= READS_MAX {
            self.last.remove(0);
            self.more += 1;
        }
        self.last.push(read);
    }
}

/// What came into a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// What strangers may have written.
    #[serde(default, skip_serializing_if = "Reads::is_none")]
    pub untrusted: Reads,
    /// What must not leave the team: files of the sandbox, output of commands, results of closed connections.
    #[serde(default, skip_serializing_if = "Reads::is_none")]
    pub private: Reads,
}

impl Content {
    /// Whether neither came.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.untrusted.is_none() && self.private.is_none()
    }

    /// Adds a read of what is untrusted, private or both.
    pub fn add(&mut self, read: Read, untrusted: bool, private: bool) {
        if untrusted && private {
            self.untrusted.add(read.clone());
            self.private.add(read);
        } else if untrusted {
            self.untrusted.add(read);
        } else if private {
            self.private.add(read);
        }
    }

    /// What a run that this one starts has read with it. `run`: this one.
    #[must_use]
    pub fn handed_on(&self, run: RunId) -> Self {
        let of = |reads: &Reads| Reads {
            last: reads
                .last
                .iter()
                .map(|read| Read {
                    run: read.run.or(Some(run)),
                    ..read.clone()
                })
                .collect(),
            more: reads.more,
        };
        Self {
            untrusted: of(&self.untrusted),
            private: of(&self.private),
        }
    }

    /// Takes over what another run had read.
    pub fn take_over(&mut self, other: &Self) {
        for (own, others) in [
            (&mut self.untrusted, &other.untrusted),
            (&mut self.private, &other.private),
        ] {
            others.last.iter().for_each(|read| own.add(read.clone()));
            own.more += others.more;
        }
    }

    /// Why a call is asked for by its policy. `sends`: it is one that only reads the open world, so that what is private
    /// counts as well.
    #[must_use]
    pub fn reason(&self, policy: Policy, sends: bool) -> Reason {
        let mut sources: Vec<Source> = Vec::new();
        let private = sends.then_some(&self.private);
        let all = (self.untrusted.last.iter().map(|read| (read, true))).chain(
            private
                .into_iter()
                .flat_map(|reads| reads.last.iter().map(|read| (read, false))),
        );
        for (read, untrusted) in all {
            match sources.iter_mut().find(|s| s.read.is_same_source(read)) {
                Some(known) => known.private |= !untrusted,
                None => sources.push(Source {
                    private: !untrusted || self.private.last.iter().any(|r| r.is_same_source(read)),
                    untrusted,
                    read: read.clone(),
                }),
            }
        }
        sources.sort_by_key(|source| source.read.at);
        Reason {
            policy,
            sources,
            more: self.untrusted.more + private.map_or(0, |reads| reads.more),
        }
    }
}

/// Why a policy asks for a call: data, for people to judge and for pages to show as quoted text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The policy of the call: `ask` or `guard`.
    pub policy: Policy,
    /// What was read, the newest last. A policy `ask` asks whatever was read; that is there to judge by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// How many sources more there were, at most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// One source of a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What was read.
    #[serde(flatten)]
    pub read: Read,
    /// Whether strangers may have written it.
    #[serde(default)]
    pub untrusted: bool,
    /// Whether it must not leave the team.
    #[serde(default)]
    pub private: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(item: &str) -> Read {
        Read::new("read_file", Some("c"), Some(item), Timestamp::default())
    }

    #[test]
    fn the_last_sources_are_kept_within_bounds() {
        let mut content = Content::default();
        for n in 0..20 {
            content.add(read(&format!("/workspace/{n}")), true, true);
        }
        content.add(read("/workspace/15"), true, true);
        let items: Vec<_> = (content.untrusted.last.iter())
            .map(|read| read.item.clone().unwrap())
            .collect();
        assert_eq!(items.len(), 8);
        assert_eq!(items.last().unwrap(), "/workspace/15");
        assert_eq!(content.untrusted.more, 12);

        let long = Read::new(
            "run_command",
            Some(&"i".repeat(9_000)),
            Some(&"ü".repeat(9_000)),
            Timestamp::default(),
        );
        assert!(long.item.unwrap().len() < 1_000 && long.call_id.unwrap().len() < 1_000);
    }

    #[test]
    fn a_reason_names_what_counts_for_the_call() {
        let mut content = Content::default();
        content.add(
            Read::new(
                "fetch_url",
                None,
                Some("https://a.example/"),
                Timestamp::default(),
            ),
            true,
            false,
        );
        content.add(read("/workspace/a"), true, true);
        content.add(
            Read::new("crm__find", None, None, Timestamp::default()),
            false,
            true,
        );
        let tools = |sends| -> Vec<(String, bool, bool)> {
            let reason = content.reason(Policy::Guard, sends);
            let of = |s: Source| (s.read.tool, s.untrusted, s.private);
            reason.sources.into_iter().map(of).collect()
        };
        let page = ("fetch_url".to_owned(), true, false);
        let file = ("read_file".to_owned(), true, true);
        assert_eq!(tools(false), [page.clone(), file.clone()]);
        assert_eq!(
            tools(true),
            [page, file, ("crm__find".to_owned(), false, true)]
        );
    }
}
