//! `builtin/playbook`: a model that reads its next move from a list of steps instead of inferring it.
//!
//! Promised: the next move is a function of the steps and the transcript alone. Whatever was decided stays decided: a
//! recorded move carries its step's path and the newest message it read ([`Mark`]), and a walk that is fed the
//! transcript again comes to exactly the state it had. What a step costs does not grow with the transcript.
//!
//! Left out: carrying moves out, policy, timers, recovery. They are the engine's, and the same as for any other model.
//!
//! - [`Playbook::parse`] checks steps and compiles templates (`parse.rs`, `template.rs`).
//! - Templates that are not cheap (`cheap.rs`) are evaluated by an [`Evaluator`], in a process that can be killed.
//! - [`Walk`] is the cursor: it takes the transcript's entries and gives the next move (`walk.rs`). Between two moves it
//!   carries out the silent steps: `set`, the lists of `for_each`, what an `if` leaves out (`cursor.rs`).
//!
//! The rules that the steps' text leaves open:
//!
//! - Where the list ends, the run is completed with the text `Done.` ([`DONE_TEXT`]).
//! - `index` counts from 0. Each round of a `for_each` has names of its own, over those outside.
//! - A step's value: a tool's result, a request's answer, `set`'s names as an object, the list of a `for_each` (the value
//!   of each round's last step), else null.
//! - The templates of one `set` see the names as they were before it. A `set` that is left out changes none of its names.
//! - What a `for_each` goes through, and what `set` gives, is evaluated again after a restart. `run.sandbox_id` changes
//!   while a run works, so these (and the `if` of such steps) cannot use it; every other string can.
//! - `retry` forgets the move whose failure ended the run: it is decided and carried out anew.
//!
//! [`Mark`]: crate::transcript::Mark

mod bounds;
mod cheap;
mod cursor;
mod job;
mod json;
mod parse;
mod secrets;
mod template;
mod walk;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::human::OnExpire;
use template::{Expression, Node, Text};

pub use bounds::{ELIFS_MAX, TAG_TOKENS_MAX, TEMPLATE_TOKENS_MAX};
pub use job::{
    Evaluated, Evaluator, Failed, Form, Job, decode_job, decode_reply, encode_job, encode_reply,
};
pub use walk::Walk;

/// What a run says that comes to the end of its steps without a `finish`.
pub const DONE_TEXT: &str = "Done.";

/// Steps of a playbook, inner ones included: far above what a person reads.
pub const STEPS_MAX: usize = 1_000;

/// How deep `for_each` steps stand in each other.
pub const NESTING_MAX: usize = 16;

/// Fuel of all templates from one move to the next: a hundred full ones, about a second of work. It bounds a playbook
/// that computes without making a move.
pub const MOVE_FUEL: u64 = 100 * crate::limits::TEMPLATE_FUEL;

/// Bytes (roughly) of the values that `set` may make in one start: what a run holds in memory beside its transcript.
pub const SET_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Words that a playbook cannot give as names: they have their meaning already.
const RESERVED: [&str; 6] = ["message", "messages", "run", "item", "index", "secret"];

/// Steps, checked, with their templates ready to run. Shared in an `Arc`.
#[derive(Debug)]
pub struct Playbook {
    steps: Arc<[Step]>,
    secrets: BTreeSet<String>,
    asks: bool,
    light: bool,
}

/// A playbook that cannot be used: where, and what it takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct BadPlaybook {
    /// Such as `playbook.steps[2].with.path`.
    pub path: String,
    /// What it takes.
    pub message: String,
}

/// What the check needs to know of the build.
pub struct Known<'a> {
    /// Whether the build has a tool of this name; the error is a sentence that says why not.
    pub tool: &'a dyn Fn(&str) -> Result<(), String>,
    /// Whether people can be asked: a playbook with `approve` or `ask` needs it.
    pub human_in_the_loop: bool,
}

/// The template variable `run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFacts {
    /// The run's id.
    pub id: String,
    /// The id of its sandbox, once it has one.
    pub sandbox_id: Option<String>,
}

impl Playbook {
    /// Reads `{steps: [...]}` and checks it.
    ///
    /// # Errors
    /// [`BadPlaybook`] names the first place that is wrong.
    pub fn parse(value: &serde_json::Value, known: &Known<'_>) -> Result<Self, BadPlaybook> {
        parse::playbook(value, known)
    }

    /// Whether it has a step that asks a person.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// The tools that its steps call, each with the step's path.
    #[must_use]
    pub fn tools(&self) -> Vec<(&str, &str)> {
        fn of<'s>(steps: &'s [Step], found: &mut Vec<(&'s str, &'s str)>) {
            for step in steps {
                match &step.action {
                    Action::Tool { name, .. } => found.push((&step.path, name)),
                    Action::ForEach { steps, .. } => of(steps, found),
                    _ => {}
                }
            }
        }
        let mut found = Vec::new();
        of(&self.steps, &mut found);
        found
    }

    /// The names of the secrets that arguments of its steps have marks of.
    #[must_use]
    pub fn secrets(&self) -> &BTreeSet<String> {
        &self.secrets
    }

    /// Whether a move is decided in no time worth speaking of: no string computes, no steps are repeated.
    #[must_use]
    pub fn is_light(&self) -> bool {
        self.light
    }
}

/// One step.
#[derive(Debug)]
struct Step {
    /// Such as `playbook.steps[2]`.
    path: String,
    action: Action,
    /// The name that its value gets.
    gives: Option<Arc<str>>,
    only_if: Option<Condition>,
    /// Whether a failure becomes the value `{error}` instead of ending the run.
    continues_on_error: bool,
}

#[derive(Debug)]
enum Condition {
    Fixed(bool),
    /// Left out unless it is `true`: any other value leaves the step out, too.
    Expression(Expression),
}

#[derive(Debug)]
enum Action {
    Tool {
        name: String,
        with: Vec<(String, Node)>,
    },
    ForEach {
        list: Node,
        steps: Arc<[Step]>,
    },
    Set(Vec<(Arc<str>, Node)>),
    Approve(Request),
    Ask(Request, Vec<Question>),
    Say(Text),
    Wait(Text),
    Fail(Text),
    Finish(Text),
}

/// What `approve` and `ask` have in common.
#[derive(Debug)]
struct Request {
    title: Text,
    description: Option<Text>,
    expires_in: Option<Text>,
    on_expire: Option<OnExpire>,
}

/// A question whose texts are templates.
#[derive(Debug)]
struct Question {
    question: Text,
    header: Option<Text>,
    options: Vec<(Text, Option<Text>)>,
    multi_select: bool,
    free_text: bool,
}

#[cfg(test)]
mod tests;
