//! The endpoint that lists all tools, with their schemas and availability.

use axum::Json as Answered;
use axum::extract::State;
use errand_engine::tool::Tool;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::auth::Caller;
use crate::state::AppState;

/// All built-in tools, sorted by name.
#[derive(Serialize, ToSchema)]
pub(crate) struct ToolList {
    tools: Vec<ToolLine>,
}

/// A tool.
#[derive(Serialize, ToSchema)]
struct ToolLine {
    /// The name by which builds refer to the tool.
    #[schema(example = "run_command")]
    name: String,
    /// One or two sentences.
    description: String,
    /// The JSON schema of the arguments.
    #[schema(value_type = Object)]
    schema: Value,
    hints: ToolHints,
    /// Whether the tool works on this server. A build may list an unavailable tool; its calls then fail with the
    /// reason.
    available: bool,
    /// The reason why the tool is unavailable, and how to change that.
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable_reason: Option<String>,
}

/// Properties of a tool: those of the Model Context Protocol, and some more.
#[derive(Serialize, ToSchema)]
struct ToolHints {
    /// It changes nothing.
    read_only: bool,
    /// It may delete or overwrite data.
    destructive: bool,
    /// Repeating a call has no additional effect.
    idempotent: bool,
    /// It reaches beyond the sandbox.
    open_world: bool,
    /// It asks a person.
    asks: bool,
    /// Its results are untrusted, so that guarded calls after it ask a person.
    untrusted: bool,
    /// Its results are private to the team. After a private and an untrusted result, guarded tools that read the open
    /// world ask a person too.
    private: bool,
}

/// Lists the tools of this server.
#[utoipa::path(get, path = "/v1/tools", tag = "Agents",
    responses((status = 200, description = "The tools that builds can use.", body = ToolList)))]
pub(crate) async fn list_tools(_caller: Caller, State(app): State<AppState>) -> Answered<ToolList> {
    let tools = app.tools.iter().map(|tool| line(tool.as_ref())).collect();
    Answered(ToolList { tools })
}

fn line(tool: &dyn Tool) -> ToolLine {
    let hints = tool.hints();
    let unavailable_reason = tool.unavailable();
    ToolLine {
        name: tool.name().to_owned(),
        description: tool.description().to_owned(),
        schema: tool.schema(),
        hints: ToolHints {
            read_only: hints.read_only,
            destructive: hints.destructive,
            idempotent: hints.idempotent,
            open_world: hints.open_world,
            asks: hints.asks,
            untrusted: hints.untrusted,
            private: hints.private,
        },
        available: unavailable_reason.is_none(),
        unavailable_reason,
    }
}
