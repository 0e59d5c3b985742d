//! The tools that ask a person: `request_approval` and `ask_human`.
//!
//! Models see them like any other tool, but they are never executed: `errand_core::next` turns their calls into human
//! requests, and the answer becomes the result of the call. This module has only their names, descriptions and schemas.
//! `errand_core::human` parses the arguments, and a test compares it with the schemas.

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::policy::Hints;
use errand_core::tool_error::ToolErrorCode;
use errand_core::transcript::Outcome;
use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::files::arguments::{hints_of, schema_of};
use super::{Tool, ToolContext};

/// The tools that ask a person, in the order in which models see them.
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
        let message = format!(
            "{} asks a person, and its result is that person's answer; it cannot be executed as a tool",
            self.name
        );
        Outcome::error(ToolErrorCode::NotRun, message)
    }
}

#[expect(
    dead_code,
    reason = "only its schema is used; errand-core reads the arguments"
)]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct RequestApproval {
    /// One line that says what needs approval, such as "Pay 40 EUR to ACME?".
    title: String,
    /// What the person needs to know to decide.
    description: Option<String>,
    /// How long the person may take, such as 30m, 12h or 3d. Default: no limit.
    expires_in: Option<String>,
    /// What happens if the person does not answer in time. deny: it counts as not approved. fail: the run fails. continue: the result is {expired: true, approved: false}. Default: deny.
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
    /// What the person needs to know to answer.
    description: Option<String>,
    /// The questions; each must have a different text.
    #[schemars(length(min = 1))]
    questions: Vec<Question>,
    /// How long the person may take, such as 30m, 12h or 3d. Default: no limit.
    expires_in: Option<String>,
    /// What happens if the person does not answer in time. deny: the call gets an error. fail: the run fails. continue: the result is {expired: true, approved: false}. Default: deny.
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
    /// The question. Its text is the key of the answer.
    question: String,
    /// One or two words to show above the question.
    header: Option<String>,
    /// The options to choose from. Default: any text is accepted.
    #[serde(default)]
    options: Vec<QuestionOption>,
    /// Whether several options may be chosen; the answer is then a list. Default: false.
    #[serde(default)]
    multi_select: bool,
    /// Whether a text that is not one of the options is accepted. Default: true.
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
    /// The text of the option, which is also the answer.
    label: String,
    /// One more sentence about the option.
    description: Option<String>,
}

// The variants have no doc comments: schemars would turn them into a `oneOf` of constants, which some providers refuse.
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
