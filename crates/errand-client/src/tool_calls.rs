//! Calls of tools and their results.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ToolCall {
    /// The call's id; unique within the run.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments.
    pub arguments: Option<Map<String, Value>>,
}

/// The result or the error of a call.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ToolResult {
    /// The call's id.
    pub tool_call_id: String,
    /// A string, or any other JSON value if the tool returns structured results.
    pub result: Option<Value>,
    /// The error. It begins with a stable word and a colon, such as `denied:`.
    pub error: Option<String>,
}
