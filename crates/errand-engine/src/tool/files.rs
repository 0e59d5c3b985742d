//! The tools for a run's files: `list_files`, `read_file`, `write_file`, `edit_file`, `search_files`.
//!
//! # Guarantees
//!
//! - A file tool accesses the run's sandbox and nothing else, never follows a link, and never blocks on a pipe
//!   (`errand-sandbox` ensures all three).
//! - An error begins with a stable code (module `error`).
//! - Written data is on disk before the result is returned.
//! - `edit_file` can be settled after a crash: its evidence holds digests of the file before and after the edit.
//!
//! # Non-goals
//!
//! Policies, shortening results for a model, and locking a file against a second writer.
//!
//! Each tool is a synchronous `FileTool`. `Blocking` adapts it to [`Tool`] and runs the file operations on a
//! blocking thread. A call that is cancelled before it starts fails with `not_run`, one that is cancelled while it
//! reads with `interrupted`. In both cases nothing was changed, and the engine may repeat the call.

pub(super) mod arguments;
mod document;
mod edit;
pub(super) mod error;
mod list;
mod read;
mod search;
mod write;

use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use errand_core::path::SandboxPath;
use errand_core::policy::{Hints, Settle};
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::Outcome;
use errand_sandbox::Root;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::error::CallError;
use super::{LookedUp, Tool, ToolContext};
use crate::parse::{self, ParseError, TeamParsers};

/// The file tools, in the order in which models see them.
#[must_use]
pub fn tools() -> Vec<Arc<dyn Tool>> {
    vec![
        Arc::new(Blocking::<list::ListFiles>::new()),
        Arc::new(Blocking::<read::ReadFile>::new()),
        Arc::new(Blocking::<write::WriteFile>::new()),
        Arc::new(Blocking::<edit::EditFile>::new()),
        Arc::new(Blocking::<search::SearchFiles>::new()),
    ]
}

/// The tool-specific part of a file tool. All methods block.
trait FileTool: Send + Sync + 'static {
    const NAME: &'static str;
    const DESCRIPTION: &'static str;
    type Arguments: DeserializeOwned + JsonSchema + Send + 'static;

    /// Implementations must check `aids.cancel` in loops that may take long.
    fn run(root: &Root, arguments: Self::Arguments, aids: &Aids) -> Result<Value, CallError>;

    /// See [`Tool::evidence`]. Called only for tools that settle by look-up.
    fn evidence(_root: &Root, _arguments: Self::Arguments) -> Result<Option<Value>, CallError> {
        Ok(None)
    }

    /// See [`Tool::look_up`]. `None`: the outcome cannot be determined.
    fn look_up(
        _root: &Root,
        _arguments: Self::Arguments,
        _evidence: Value,
    ) -> Result<Option<LookedUp>, CallError> {
        Ok(None)
    }
}

/// What a file tool may use besides the files.
struct Aids {
    cancel: CancellationToken,
    parsers: TeamParsers,
    /// The engine's runtime, used to wait for a parser.
    engine: Handle,
}

impl Aids {
    /// The text of a document. Blocks. `None` if the call was cancelled.
    fn text(&self, kind: parse::Kind, bytes: Vec<u8>) -> Option<Result<String, ParseError>> {
        let read = self.parsers.text(kind, bytes);
        self.engine.block_on(self.cancel.run_until_cancelled(read))
    }
}

/// Adapts a [`FileTool`] to [`Tool`].
struct Blocking<T>(PhantomData<T>);

impl<T: FileTool> Blocking<T> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

/// Runs `work` on a blocking thread. Evidence and look-ups ignore cancellation: they change nothing and are short, and
/// a look-up without an answer would be stored as an unknown outcome.
async fn on_a_thread<R: Send + 'static>(
    context: &ToolContext,
    tool: &'static str,
    work: impl FnOnce(&Root, &Aids) -> Result<R, CallError> + Send + 'static,
) -> Result<R, CallError> {
    let Some(workspace) = context.workspace.clone() else {
        return Err(CallError::NotRun);
    };
    let aids = Aids {
        cancel: context.cancel.clone(),
        parsers: context.parsers.clone(),
        engine: Handle::current(),
    };
    let span = tracing::Span::current();
    let work = move || {
        let _entered = span.entered();
        work(workspace.root()?, &aids)
    };
    let done = tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|source| Err(CallError::BrokeOff { source }));
    if let Err(error) = &done
        && !error.is_noted()
        && error.is_the_servers()
    {
        tracing::error!(run.id = %context.run, tool, kind = error.code().as_str(), cause = error.cause(), "a file operation in a sandbox failed on the server's side");
    }
    done
}

#[async_trait]
impl<T: FileTool> Tool for Blocking<T> {
    fn name(&self) -> &str {
        T::NAME
    }

    fn description(&self) -> &str {
        T::DESCRIPTION
    }

    fn hints(&self) -> Hints {
        arguments::hints_of(T::NAME)
    }

    fn in_sandbox(&self) -> bool {
        true
    }

    fn schema(&self) -> Value {
        arguments::schema_of::<T::Arguments>()
    }

    async fn evidence(
        &self,
        context: &ToolContext,
        arguments: &Map<String, Value>,
    ) -> Result<Option<Value>, ToolError> {
        if self.hints().settle != Settle::LookUp {
            return Ok(None);
        }
        let arguments =
            arguments::read::<T::Arguments>(arguments).map_err(|e| e.to_tool_error())?;
        on_a_thread(context, T::NAME, move |root, _| {
            T::evidence(root, arguments)
        })
        .await
        .map_err(|e| e.to_tool_error())
    }

    async fn run(&self, context: &ToolContext, arguments: Map<String, Value>) -> Outcome {
        let done = match arguments::read::<T::Arguments>(&arguments) {
            Ok(arguments) => {
                on_a_thread(context, T::NAME, move |root, aids| {
                    // The call may have been cancelled while it waited for a thread.
                    if aids.cancel.is_cancelled() {
                        return Err(CallError::NotRun);
                    }
                    T::run(root, arguments, aids)
                })
                .await
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(result) => Outcome::Result(result),
            Err(error) => Outcome::Error(error.to_tool_error()),
        }
    }

    async fn look_up(
        &self,
        context: &ToolContext,
        arguments: &Map<String, Value>,
        evidence: Option<&Value>,
    ) -> LookedUp {
        let unknown =
            |why: &str| LookedUp::Unknown(ToolError::new(ToolErrorCode::OutcomeUnknown, why));
        let Some(evidence) = evidence.cloned() else {
            return unknown(
                "the server restarted, and nothing was recorded that tells whether the call was done; check the files",
            );
        };
        let looked = match arguments::read::<T::Arguments>(arguments) {
            Ok(arguments) => {
                on_a_thread(context, T::NAME, move |root, _| {
                    T::look_up(root, arguments, evidence)
                })
                .await
            }
            Err(error) => Err(error),
        };
        match looked {
            Ok(Some(looked)) => looked,
            Ok(None) => unknown("the server restarted and the file has changed since; check it"),
            Err(error) => unknown(&format!(
                "the server restarted, and it cannot be determined whether the call was done ({})",
                error.to_tool_error()
            )),
        }
    }
}

/// Parses the argument `path`.
fn path_of(text: &str) -> Result<SandboxPath, CallError> {
    SandboxPath::parse(text).map_err(|source| CallError::Path { source })
}

#[cfg(test)]
mod tests;
