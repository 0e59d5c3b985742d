//! `builtin/playbook`: a model that reads its next move from a list of steps instead of inferring it.
//!
//! # Guarantees
//!
//! - The next move is a function of the steps and the transcript alone.
//! - Decisions are final: a recorded move carries its step's path and the newest message that it had read ([`Mark`]),
//!   and a walk that is fed the transcript again reaches exactly the same state.
//! - The cost of a step does not grow with the transcript.
//!
//! # Non-goals
//!
//! Executing moves, policies, timers and recovery. The engine does that, as for any other model.
//!
//! # Structure
//!
//! - [`Playbook::parse`] checks steps and compiles templates (`parse.rs`, `template.rs`).
//! - Templates that are not cheap (`cheap.rs`) are evaluated by an [`Evaluator`], in a process that can be killed.
//! - [`Walk`] is fed the transcript's entries and returns the next move (`walk.rs`). Between two moves it executes
//!   the silent steps: `set`, the lists of `for_each`, and steps that an `if` skips (`cursor.rs`).
//!
//! # Rules that the format of the steps does not show
//!
//! - At the end of the list, the run completes with the text `Done.` ([`DONE_TEXT`]).
//! - `index` counts from 0. Each iteration of a `for_each` has its own names, which hide those outside.
//! - The value of a step is a tool's result, a request's answer, `set`'s names as an object, or the list of a
//!   `for_each` (the value of each iteration's last step), otherwise null.
//! - All templates of one `set` see the names as they were before it. A skipped `set` changes none of its names.
//! - The list of a `for_each` and the values of `set` are evaluated again after a restart. `run.sandbox_id` changes
//!   while a run works, so these (and the `if` of such steps) cannot use it; every other string can.
//! - `retry` discards the move whose failure ended the run: it is decided and executed again.
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

/// The final message of a run that reaches the end of its steps without a `finish`.
pub const DONE_TEXT: &str = "Done.";

/// Maximum steps of a playbook, including nested ones: far above what a person can read.
pub const STEPS_MAX: usize = 1_000;

/// Maximum nesting of `for_each` steps.
pub const NESTING_MAX: usize = 16;

/// Fuel of all templates between two actions: enough for a hundred that use all of theirs, about a second of work. It
/// bounds a playbook that computes without acting.
pub const MOVE_FUEL: u64 = 100 * crate::limits::TEMPLATE_FUEL;

/// Approximate bytes of the values that `set` may create from one start to the end: a run holds them in memory next to
/// its transcript.
pub const SET_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Names with a fixed meaning, which a playbook cannot assign.
const RESERVED: [&str; 6] = ["message", "messages", "run", "item", "index", "secret"];

/// A checked playbook with compiled templates. Immutable, so that runs share it in an `Arc`.
#[derive(Debug)]
pub struct Playbook {
    steps: Arc<[Step]>,
    secrets: BTreeSet<String>,
    asks: bool,
    light: bool,
}

/// A playbook that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct BadPlaybook {
    /// The key that is wrong, such as `playbook.steps[2].with.path`.
    pub path: String,
    /// The problem, or the expected form.
    pub message: String,
}

/// The facts about the build that the check needs.
pub struct Known<'a> {
    /// Checks that the build has a tool of this name. The error says why not.
    pub tool: &'a dyn Fn(&str) -> Result<(), String>,
    /// Whether people can be asked. Required by `approve` and `ask`.
    pub human_in_the_loop: bool,
}

/// The template variable `run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFacts {
    pub id: String,
    /// `None` until the run needs a sandbox.
    pub sandbox_id: Option<String>,
}

impl Playbook {
    /// Parses and checks `{steps: [...]}`.
    ///
    /// # Errors
    /// [`BadPlaybook`] for the first key that is wrong.
    pub fn parse(value: &serde_json::Value, known: &Known<'_>) -> Result<Self, BadPlaybook> {
        parse::playbook(value, known)
    }

    /// Whether a step asks a person.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// The tools that the steps call, as (step's path, tool's name).
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

    /// The names of the secrets that the arguments of its steps refer to.
    #[must_use]
    pub fn secrets(&self) -> &BTreeSet<String> {
        &self.secrets
    }

    /// Whether each move is decided in negligible time: no template computes, and no steps are repeated.
    #[must_use]
    pub fn is_light(&self) -> bool {
        self.light
    }
}

#[derive(Debug)]
struct Step {
    /// Such as `playbook.steps[2]`.
    path: String,
    action: Action,
    /// The name that its value is assigned to (`as`).
    assigns_to: Option<Arc<str>>,
    only_if: Option<Condition>,
    /// Whether a failure becomes the value `{error}` instead of ending the run.
    continues_on_error: bool,
}

#[derive(Debug)]
enum Condition {
    Fixed(bool),
    /// The step is skipped unless the value is exactly `true`.
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

/// The common part of `approve` and `ask`.
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
