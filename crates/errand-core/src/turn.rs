//! What a model decides: a turn of moves. The same for a playbook and for a network model.

use serde_json::{Map, Value};

use crate::human::RequestDraft;
use crate::transcript::Mark;

/// One thing that a model does.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// A message; the run goes on.
    Say {
        /// Its text.
        text: String,
    },
    /// A call of a tool.
    Call {
        /// The provider's id for it; none: the engine gives one.
        id: Option<String>,
        /// The tool's name.
        name: String,
        /// Its arguments.
        arguments: Map<String, Value>,
    },
    /// A human request of the model itself.
    Ask(Box<RequestDraft>),
    /// A durable pause.
    Wait {
        /// Milliseconds.
        ms: u64,
    },
    /// The last message: ends the run as completed.
    Finish {
        /// Its text.
        text: String,
    },
    /// Ends the run as failed.
    Fail {
        /// A stable code, such as `playbook_failed`.
        code: &'static str,
        /// A sentence.
        message: String,
    },
}

/// A move and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct MarkedMove {
    /// What is done.
    pub action: Move,
    /// For a playbook: the step's path and the message that was read.
    pub mark: Option<Mark>,
}
