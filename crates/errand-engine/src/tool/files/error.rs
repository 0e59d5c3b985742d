//! Errors of the file tools: a stable code and a message that says what to do.

use errand_core::path::{BadPath, SandboxPath};
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_sandbox::{EditError, FileError};

use crate::exhausted::{note, note_anyway};
use crate::parse::ParseError;

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::tool) enum CallError {
    /// An argument is missing, unknown, or has the wrong type.
    #[error("{0}")]
    Arguments(String),
    /// The argument `path` is not a path inside the sandbox.
    #[error("`path`")]
    Path {
        #[source]
        source: BadPath,
    },
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is larger than one call of `read_file` returns.
    #[error(
        "{path} has more than {limit_bytes} bytes: read it in parts, with `offset` (the first line, counted from 0) and `limit` (the number of lines)"
    )]
    FileTooLarge { path: SandboxPath, limit_bytes: u64 },
    /// The requested lines are larger than one call of `read_file` returns.
    #[error(
        "these lines of {path} have more than {limit_bytes} bytes: request fewer, with `offset` and `limit`; a single line larger than that cannot be read"
    )]
    PartTooLarge { path: SandboxPath, limit_bytes: u64 },
    /// A document or an image that cannot be read.
    #[error("{path}: {source}")]
    Document {
        path: SandboxPath,
        #[source]
        source: ParseError,
    },
    /// The text is larger than `write_file` accepts.
    #[error("`content` has more than {limit_bytes} bytes: write less, or several files")]
    ContentTooLarge { limit_bytes: u64 },
    /// The search stopped early. This is an error, because a list of lines could not show that it is incomplete.
    #[error(
        "the search in {path} stopped early, after {matches} matches: use a narrower `pattern`, or a `path` further down"
    )]
    SearchTooLarge { path: SandboxPath, matches: usize },
    /// Cancelled before it started.
    #[error("the run was stopped, or the server is shutting down: nothing was done")]
    NotRun,
    /// Cancelled while it was reading.
    #[error(
        "the run was stopped, or the server is shutting down: the call was cancelled, and nothing was changed"
    )]
    Interrupted,
    /// The worker thread panicked.
    #[error("the server failed within the tool: check the files to see whether anything was done")]
    BrokeOff {
        #[source]
        source: tokio::task::JoinError,
    },
}

impl CallError {
    /// The error that the call gets.
    pub(in crate::tool) fn to_tool_error(&self) -> ToolError {
        let mut message = self.to_string();
        if let Some(cause) = self.cause() {
            message = format!("{message}: {cause}");
        }
        ToolError::new(self.code(), message)
    }

    pub(super) fn code(&self) -> ToolErrorCode {
        match self {
            Self::Arguments(_) | Self::Path { .. } => ToolErrorCode::InvalidArguments,
            Self::File(error) => code_of(error),
            Self::Document { source, .. } => match source {
                ParseError::Size
                | ParseError::Pages
                | ParseError::Parts
                | ParseError::Inflated
                | ParseError::Text => ToolErrorCode::TooLarge,
                ParseError::NoText => ToolErrorCode::NoText,
                ParseError::Busy | ParseError::Exhausted => ToolErrorCode::Busy,
                ParseError::Unavailable => ToolErrorCode::Unavailable,
                ParseError::Encrypted
                | ParseError::Broken
                | ParseError::Failed
                | ParseError::TooSlow => ToolErrorCode::UnreadableDocument,
            },
            Self::FileTooLarge { .. }
            | Self::PartTooLarge { .. }
            | Self::ContentTooLarge { .. }
            | Self::SearchTooLarge { .. } => ToolErrorCode::TooLarge,
            Self::NotRun => ToolErrorCode::NotRun,
            Self::Interrupted => ToolErrorCode::Interrupted,
            Self::BrokeOff { .. } => ToolErrorCode::Internal,
        }
    }

    /// The source's message, if the error's own message is incomplete without it.
    pub(super) fn cause(&self) -> Option<String> {
        match self {
            Self::Path { source } => Some(source.to_string()),
            Self::File(FileError::Edit { source, .. }) => Some(source.to_string()),
            Self::File(FileError::BadPattern { source }) => Some(last_line(&source.to_string())),
            Self::File(FileError::Io { source, .. }) => Some(source.to_string()),
            // The message of a panic is only for the log.
            _ => None,
        }
    }

    /// Whether descriptors or memory ran out. If so, this is noted here, and the engine repeats the call when they are
    /// free.
    pub(super) fn is_noted(&self) -> bool {
        match self {
            Self::File(error @ FileError::Exhausted { .. }) => note(error),
            Self::Document {
                source: ParseError::Exhausted,
                ..
            } => note_anyway("a parser of documents cannot be started"),
            _ => false,
        }
    }

    /// Whether the failure concerns the operator rather than the caller.
    pub(super) fn is_the_servers(&self) -> bool {
        matches!(
            self,
            Self::BrokeOff { .. }
                | Self::File(
                    FileError::Io { .. }
                        | FileError::NoSpace { .. }
                        | FileError::SandboxMissing
                        | FileError::SandboxLost
                )
        )
    }
}

/// A new variant gets its own code, unless the caller would react in the same way.
fn code_of(error: &FileError) -> ToolErrorCode {
    match error {
        FileError::NotFound { .. } => ToolErrorCode::NotFound,
        FileError::NotADirectory { .. } => ToolErrorCode::NotADirectory,
        FileError::IsADirectory { .. } => ToolErrorCode::IsADirectory,
        FileError::NotARegularFile { .. } => ToolErrorCode::NotARegularFile,
        FileError::LinkInTheWay { .. } => ToolErrorCode::LinkInTheWay,
        FileError::OtherFileSystem { .. } => ToolErrorCode::OtherFileSystem,
        FileError::TooLarge { .. } => ToolErrorCode::TooLarge,
        FileError::SandboxFull { .. } | FileError::TeamFull { .. } => ToolErrorCode::SandboxFull,
        FileError::NotUtf8 { .. } => ToolErrorCode::NotUtf8,
        FileError::ReservedName { .. } => ToolErrorCode::ReservedName,
        FileError::NoPermission { .. } => ToolErrorCode::NoPermission,
        FileError::NoSpace { .. } => ToolErrorCode::NoSpace,
        FileError::Exhausted { .. } => ToolErrorCode::Unavailable,
        FileError::UploadBroken { .. } => ToolErrorCode::UploadBroken,
        FileError::SandboxMissing => ToolErrorCode::SandboxMissing,
        FileError::SandboxLost => ToolErrorCode::SandboxLost,
        FileError::BadPattern { .. } => ToolErrorCode::InvalidArguments,
        FileError::Edit { source, .. } => match source {
            EditError::EmptyOld => ToolErrorCode::InvalidArguments,
            EditError::NotFound => ToolErrorCode::OldNotFound,
            EditError::NotUnique => ToolErrorCode::OldNotUnique,
            EditError::TooLarge { .. } => ToolErrorCode::TooLarge,
        },
        FileError::Io { .. } => ToolErrorCode::IoError,
    }
}

/// The last line of the library's message. The lines before it draw the pattern with a marker.
fn last_line(text: &str) -> String {
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    let line = line.unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
