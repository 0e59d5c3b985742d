//! Content that a run has read: which of it is untrusted, which is private, and where each piece came from.
//!
//! Untrusted content may contain instructions from outside the team; private content must not leave the team. A call
//! that changes something is guarded once untrusted content was read. A call that only reads the open world can leak
//! data through its arguments, so it is guarded once both kinds were read.
//!
//! # Guarantees
//!
//! Text from outside (a path, a command, a URL) stays data: it is kept in [`Read::item`], bounded in number and length,
//! and never becomes part of a sentence.

use serde::{Deserialize, Serialize};

use crate::id::RunId;
use crate::policy::Policy;
use crate::time::Timestamp;

/// Maximum reads kept of each kind. Beyond it, only the newest are kept.
const READS_MAX: usize = 8;
/// Maximum length of an item (a path, or the beginning of a command), in characters.
const ITEM_CHARS_MAX: usize = 300;
/// Maximum length of a call id, in characters. Providers use about 40.
const CALL_ID_CHARS_MAX: usize = 200;

/// One piece of content that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// The tool that read it. `message` for a message that was marked as untrusted, `start` for content that a run
    /// begins with.
    pub tool: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// The thing read, in the call's own words: a path, a command, a URL, or the arguments as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    pub at: Timestamp,
    /// The position of the entry that brought it, in the transcript of the run that read it. `None`: no entry shows it,
    /// or the record is older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// The run that read it, if it was one above this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
}

/// Truncates a text to `chars` characters and marks the cut with `…`.
fn truncate(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

impl Read {
    /// A read by the run itself. Truncates id and item to their bounds.
    #[must_use]
    pub fn new(tool: &str, call_id: Option<&str>, item: Option<&str>, at: Timestamp) -> Self {
        Self {
            tool: tool.to_owned(),
            call_id: call_id.map(|id| truncate(id, CALL_ID_CHARS_MAX)),
            item: item.map(|item| truncate(item, ITEM_CHARS_MAX)),
            at,
            position: None,
            run: None,
        }
    }

    /// Sets the position of the entry that shows it.
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

/// The newest reads of one kind, oldest first. Each source appears once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    pub last: Vec<Read>,
    /// An upper bound for the number of further sources.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Reads {
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.last.is_empty()
    }

    /// Adds a read. One from a source that is already listed replaces the earlier one.
    pub fn add(&mut self, read: Read) {
        if let Some(at) = self.last.iter().position(|r| r.is_same_source(&read)) {
            // Moves to the end, as the newest.
            self.last.remove(at);
        } else if self.last.len() >= READS_MAX {
            self.last.remove(0);
            self.more += 1;
        }
        self.last.push(read);
    }
}

/// The content that a run has read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Content that people outside the team may have written.
    #[serde(default, skip_serializing_if = "Reads::is_none")]
    pub untrusted: Reads,
    /// Content that must not leave the team: files of the sandbox, output of commands, results of closed connections.
    #[serde(default, skip_serializing_if = "Reads::is_none")]
    pub private: Reads,
}

impl Content {
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.untrusted.is_none() && self.private.is_none()
    }

    /// Adds a read to the untrusted content, the private content, or both.
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

    /// The content as a child run inherits it. `run`: this run.
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

    /// Adds the content that another run had read.
    pub fn take_over(&mut self, other: &Self) {
        for (own, others) in [
            (&mut self.untrusted, &other.untrusted),
            (&mut self.private, &other.private),
        ] {
            others.last.iter().for_each(|read| own.add(read.clone()));
            own.more += others.more;
        }
    }

    /// The reason for which a policy asks about a call. `sends`: the call only reads the open world, so that private
    /// content counts as well.
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

/// Why a policy asks about a call: data for people to judge by, which pages show as quoted text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The policy of the call: `ask` or `guard`.
    pub policy: Policy,
    /// The content that was read, newest last. The policy `ask` asks regardless of it; then the list only helps to
    /// judge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// An upper bound for the number of further sources.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// One source in a [`Reason`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    #[serde(flatten)]
    pub read: Read,
    /// People outside the team may have written it.
    #[serde(default)]
    pub untrusted: bool,
    /// It must not leave the team.
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
    fn only_the_newest_sources_are_kept() {
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
    fn a_reason_lists_only_what_counts_for_the_call() {
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
