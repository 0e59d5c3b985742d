//! Which tools there are, what each takes, and whether it can do anything on this server.

use axum::Json as Answered;
use axum::extract::State;
use errand_engine::tool::Tool;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::AppState;
use crate::api::auth::Caller;

/// All tools that a build can name, by name.
#[derive(Serialize, ToSchema)]
pub(crate) struct ToolList {
    tools: Vec<ToolLine>,
}

/// One tool.
#[derive(Serialize, ToSchema)]
struct ToolLine {
    /// As a build names it.
    #[schema(example = "run_command")]
    name: String,
    /// What it does, in a sentence or two.
    description: String,
    /// The JSON schema of its arguments.
    #[schema(value_type = Object)]
    schema: Value,
    hints: ToolHints,
    /// Whether it can do its work on this server. A build may name one that cannot; its calls then get the reason as
    /// their error.
    available: bool,
    /// Why it is not available, and what would change that.
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable_reason: Option<String>,
}

/// What a tool is, as the Model Context Protocol names it, and more.
#[derive(Serialize, ToSchema)]
struct ToolHints {
    /// It changes nothing.
    read_only: bool,
    /// It may remove or overwrite.
    destructive: bool,
    /// Twice is as good as once.
    idempotent: bool,
    /// It reaches beyond the sandbox.
    open_world: bool,
    /// It asks a person.
    asks: bool,
    /// What it returns comes from outside the team's trust: `guard` asks after it.
    untrusted: bool,
    /// What it returns must not leave the team: after it, and after something untrusted, `guard` asks for a tool that reads
    /// the open world, too.
    private: bool,
}

/// The tools of this server.
#[utoipa::path(get, path = "/v1/tools", tag = "Agents",
    responses((status = 200, description = "The tools that a build can name.", body = ToolList)))]
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
