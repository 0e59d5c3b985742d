//! A run, as the API describes it.

use serde::Deserialize;

use crate::author::Author;
use crate::id::{AgentId, BuildId, RunId, SandboxId};
use crate::names::names;
use crate::time::Timestamp;

names! {
    /// The status of a run.
    RunStatus {
        /// Queued.
        Pending = "pending",
        /// Claimed; its first step is not finished.
        Starting = "starting",
        /// At work, or waiting for a timer.
        Running = "running",
        /// Waiting for a person.
        Waiting = "waiting",
        /// Ended successfully.
        Completed = "completed",
        /// Ended with an error.
        Failed = "failed",
        /// Stopped.
        Interrupted = "interrupted",
    }

    /// How a run was started.
    RunSource {
        /// With the API.
        Api = "api",
        /// In the web interface.
        Web = "web",
        /// By a schedule.
        Schedule = "schedule",
        /// With MCP.
        Mcp = "mcp",
        /// From the command line.
        Cli = "cli",
    }

    /// The thing that a run waits for.
    WaitKind {
        /// A person.
        Human = "human",
        /// A point in time.
        Timer = "timer",
        /// A free slot.
        Place = "place",
        /// A sandbox that another run uses.
        Sandbox = "sandbox",
        /// A model.
        Model = "model",
        /// A tool.
        Tool = "tool",
        /// A run that this run started.
        ChildRun = "child_run",
        /// The next attempt of something that failed temporarily.
        Retry = "retry",
        /// The start of a queued run.
        Start = "start",
    }
}

impl RunStatus {
    /// Whether the run has ended: it is completed, failed or interrupted. A message can resume a completed or
    /// interrupted run, and a retry a failed one.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Interrupted)
    }
}

/// One execution of a build.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Run {
    /// The run's id.
    pub id: RunId,
    /// The agent that the run executes.
    pub agent_id: AgentId,
    /// The agent's build that was live when the run started.
    pub build_id: BuildId,
    /// The status at the time of the response.
    pub status: RunStatus,
    /// How the run was started, if the server knows it.
    pub source: Option<RunSource>,
    /// The run's sandbox. `None` until it needs one.
    pub sandbox_id: Option<SandboxId>,
    /// When it first started.
    pub started_at: Option<Timestamp>,
    /// When it ended. `None` again if a message resumed it.
    pub completed_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Whether its build may ask people.
    pub human_in_the_loop_enabled: bool,
    /// The beginning of its first message.
    pub title: Option<String>,
    /// Why it failed.
    pub error: Option<RunError>,
    /// Its usage so far.
    #[serde(default)]
    pub usage: Usage,
    /// Why it is not working right now.
    pub waiting_on: Option<WaitingOn>,
    /// The author of its start.
    pub author: Option<Author>,
    /// The current name of the agent. Only in lists.
    pub agent_name: Option<String>,
    /// The run's number, counted from 1 for each agent. Only in lists.
    pub run_number: Option<u64>,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RunError {
    /// A stable word for programs, such as `limit_exceeded`.
    pub code: String,
    /// A description of the problem and the remedy, for people.
    pub message: String,
}

/// The steps, tokens, costs and seconds of a run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Model calls plus tool calls.
    pub steps: u64,
    /// Calls of models.
    pub model_calls: u64,
    /// Calls of tools.
    pub tool_calls: u64,
    /// Tokens sent to models, including cached ones.
    pub input_tokens: u64,
    /// How many of the input tokens came from the provider's cache.
    pub cached_tokens: u64,
    /// Tokens received from models.
    pub output_tokens: u64,
    /// US dollars. `None` if the price of some tokens is unknown.
    pub cost_usd: Option<f64>,
    /// US dollars of the tokens whose price is known, if the price of others is unknown.
    pub cost_known_usd: Option<f64>,
    /// Tokens whose price is unknown.
    pub cost_unknown_tokens: u64,
    /// Whether some tokens are estimated, because a provider did not report them.
    pub estimated: bool,
    /// Active time, in seconds.
    pub seconds: f64,
    /// How many of these seconds the run waited for models.
    pub model_seconds: f64,
}

/// Why a run that has not ended is not working right now.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct WaitingOn {
    /// The thing that it waits for.
    pub kind: WaitKind,
    /// The person or thing that it waits for, such as a tool.
    pub who: Option<String>,
    /// When the wait began.
    pub since: Timestamp,
    /// When the wait ends at the latest.
    pub deadline: Option<Timestamp>,
    /// The next thing that happens, as a sentence for people.
    pub next: String,
}
