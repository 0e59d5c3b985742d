//! `run_assignment`: runs another assignment of the team as a tool.
//!
//! The engine starts the child run and waits for it without a driver (`drive::calls`). This module has only the tool's
//! name, description and schema, and parses the arguments.

use async_trait::async_trait;
use errand_core::policy::Hints;
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::Outcome;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::files::arguments::{hints_of, parse, schema_of};
use super::{Tool, ToolContext};

pub(crate) const NAME: &str = "run_assignment";

/// The description of the tool. Its calls are executed by the engine.
pub struct RunAssignment;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    /// The name or the id of the assignment.
    pub(crate) assignment: String,
    /// The message that its run begins with. Default: none.
    pub(crate) message: Option<String>,
}

/// Parses the arguments of a call.
///
/// # Errors
/// The error that becomes the result of the call.
pub(crate) fn arguments(given: &Map<String, Value>) -> Result<Arguments, ToolError> {
    parse(given)
}

#[async_trait]
impl Tool for RunAssignment {
    fn name(&self) -> &str {
        NAME
    }

    fn description(&self) -> &str {
        "Starts another assignment of the team and waits until its run has ended. Returns {run_id, status, text}: text is the run's last message."
    }

    fn hints(&self) -> Hints {
        hints_of(NAME)
    }

    fn schema(&self) -> Value {
        schema_of::<Arguments>()
    }

    async fn run(&self, _context: &ToolContext, _arguments: Map<String, Value>) -> Outcome {
        Outcome::error(
            ToolErrorCode::NotRun,
            "a run is started by the engine, not as a tool",
        )
    }
}
