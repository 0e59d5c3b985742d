//! The tools that ask a person: `request_approval` and `ask_human`.
//!
//! They are offered to models like any other, and never run: `errand_core::next` makes a human request of their calls,
//! and the answer is the call's result. What is here is their name, description and schema; the arguments are read by
//! `errand_core::human`, and a test holds the two together.

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::policy::Hints;
use errand_core::transcript::Outcome;
use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::files::arguments::{hints_of, schema_of};
use super::{Tool, ToolContext};

/// The asking tools, in the contract's order.
#[must_use]
pub fn tools() -> Vec<Arc<dyn Tool>> {
    vec![
        Arc::new(Asking {
            name: "request_approval",
            description: "Asks a person to approve or deny something, and waits for the answer. Gives {approved, reason?}. Do only what was approved.",
            schema: schema_of::<RequestApproval>,
        }),
        Arc::new(Asking {
            name: "ask_human",
            description: "Asks a person one or more questions, and waits for the answers. Gives an object with the answer under each question's text.",
            schema: schema_of::<AskHuman>,
        }),
    ]
}

struct Asking {
    name: &'static str,
    description: &'static str,
    schema: fn() -> Value,
}

#[async_trait]
impl Tool for Asking {
    fn name(&self) -> &str {
        self.name
    }

    fn description(&self) -> &str {
        self.description
    }

    fn hints(&self) -> Hints {
        hints_of(self.name)
    }

    fn schema(&self) -> Value {
        (self.schema)()
    }

    async fn run(&self, _context: &ToolContext, _arguments: Map<String, Value>) -> Outcome {
        Outcome::Error(format!(
            "not_run: {} asks a person, and its result is that person's answer; it cannot be carried out as a tool",
            self.name
        ))
    }
}

#[expect(
    dead_code,
    reason = "only its schema is used; errand-core reads the arguments"
)]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct RequestApproval {
    /// One line that says what is to be approved, such as "Pay 40 EUR to ACME?".
    title: String,
    /// What the person should know to decide.
    description: Option<String>,
    /// How long the person may take, such as 30m, 12h or 3d. Without it: for ever.
    expires_in: Option<String>,
    /// What follows when nobody answers in time. deny: it counts as not approved. fail: the run fails. continue: the result is {expired: true, approved: false}. Without it: deny.
    #[schemars(with = "OnExpire")]
    #[serde(default)]
    on_expire: Option<OnExpire>,
}

#[expect(
    dead_code,
    reason = "only its schema is used; errand-core reads the arguments"
)]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct AskHuman {
    /// One line that says what the questions are about.
    title: String,
    /// What the person should know to answer.
    description: Option<String>,
    /// The questions; no two with the same text.
    #[schemars(length(min = 1))]
    questions: Vec<Question>,
    /// How long the person may take, such as 30m, 12h or 3d. Without it: for ever.
    expires_in: Option<String>,
    /// What follows when nobody answers in time. deny: the call gets an error. fail: the run fails. continue: the result is {expired: true, approved: false}. Without it: deny.
    #[schemars(with = "OnExpire")]
    #[serde(default)]
    on_expire: Option<OnExpire>,
}

#[expect(
    dead_code,
    reason = "only its schema is used; errand-core reads the arguments"
)]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Question {
    /// The question. The answer is given under this text.
    question: String,
    /// A word or two to show above it.
    header: Option<String>,
    /// What may be chosen. Without it: any text.
    #[serde(default)]
    options: Vec<QuestionOption>,
    /// Whether several options may be chosen; the answer is then a list. Without it: false.
    #[serde(default)]
    multi_select: bool,
    /// Whether a text that is none of the options is accepted. Without it: true.
    #[schemars(with = "bool")]
    #[serde(default)]
    free_text: Option<bool>,
}

#[expect(
    dead_code,
    reason = "only its schema is used; errand-core reads the arguments"
)]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct QuestionOption {
    /// What is shown, and what the answer holds.
    label: String,
    /// A sentence more.
    description: Option<String>,
}

// No documents of the variants: with them the schema would be a choice of constants, which some providers refuse.
#[expect(
    dead_code,
    reason = "only its schema is used; errand-core reads the arguments"
)]
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case", inline)]
enum OnExpire {
    Deny,
    Fail,
    Continue,
}

#[cfg(test)]
mod tests;
