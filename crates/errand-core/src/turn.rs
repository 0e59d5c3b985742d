//! A model's decision: the moves of one turn. Playbooks and network models produce the same type.

use serde_json::{Map, Value};

use crate::human::RequestDraft;
use crate::transcript::Mark;

/// One move of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// Adds a message; the run continues.
    Say { text: String },
    /// Calls a tool.
    Call {
        /// The provider's id of the call. `None`: the engine generates one.
        id: Option<String>,
        name: String,
        arguments: Map<String, Value>,
    },
    /// A human request that the model makes directly, not through a tool.
    Ask(Box<RequestDraft>),
    /// Pauses the run until a durable timer is due.
    Wait { ms: u64 },
    /// The final message: ends the run as completed.
    Finish { text: String },
    /// Ends the run as failed.
    Fail {
        /// Stable error code, such as `playbook_failed`.
        code: &'static str,
        /// One sentence for people.
        message: String,
    },
}

/// A move together with its origin.
#[derive(Clone, Debug, PartialEq)]
pub struct MarkedMove {
    pub action: Move,
    /// For a playbook: the step's path and the newest message that the step had read. `None` for a network model.
    pub mark: Option<Mark>,
}
