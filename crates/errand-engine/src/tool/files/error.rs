//! Errors of the file tools: a stable code and a message that says what to do.

use errand_core::path::{BadPath, SandboxPath};
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
    /// The error as the call gets it: `<code>: <message>`.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}: {self}", self.word());
        if let Some(cause) = self.cause() {
            text = format!("{text}: {cause}");
        }
        text
    }

    /// The stable code.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Arguments(_) | Self::Path { .. } => "invalid_arguments",
            Self::File(error) => word_of(error),
            Self::Document { source, .. } => match source {
                ParseError::Size
                | ParseError::Pages
                | ParseError::Parts
                | ParseError::Inflated
                | ParseError::Text => "too_large",
                ParseError::NoText => "no_text",
                ParseError::Busy | ParseError::Exhausted => "busy",
                ParseError::Unavailable => "unavailable",
                ParseError::Encrypted
                | ParseError::Broken
                | ParseError::Failed
                | ParseError::TooSlow => "unreadable_document",
            },
            Self::FileTooLarge { .. }
            | Self::PartTooLarge { .. }
            | Self::ContentTooLarge { .. }
            | Self::SearchTooLarge { .. } => "too_large",
            Self::NotRun => "not_run",
            Self::Interrupted => "interrupted",
            Self::BrokeOff { .. } => "internal",
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
                    FileError::Io { .. } | FileError::NoSpace { .. } | FileError::SandboxMissing
                )
        )
    }
}

/// These codes are part of the public interface and never change. A new variant gets its own code, unless the caller
/// would react in the same way.
fn word_of(error: &FileError) -> &'static str {
    match error {
        FileError::NotFound { .. } => "not_found",
        FileError::NotADirectory { .. } => "not_a_directory",
        FileError::IsADirectory { .. } => "is_a_directory",
        FileError::NotARegularFile { .. } => "not_a_regular_file",
        FileError::LinkInTheWay { .. } => "link_in_the_way",
        FileError::OtherFileSystem { .. } => "other_file_system",
        FileError::TooLarge { .. } => "too_large",
        FileError::SandboxFull { .. } | FileError::TeamFull { .. } => "sandbox_full",
        FileError::NotUtf8 { .. } => "not_utf8",
        FileError::ReservedName { .. } => "reserved_name",
        FileError::NoPermission { .. } => "no_permission",
        FileError::NoSpace { .. } => "no_space",
        FileError::Exhausted { .. } => "unavailable",
        FileError::UploadBroken { .. } => "upload_broken",
        FileError::SandboxMissing => "sandbox_missing",
        FileError::BadPattern { .. } => "invalid_arguments",
        FileError::Edit { source, .. } => match source {
            EditError::EmptyOld => "invalid_arguments",
            EditError::NotFound => "old_not_found",
            EditError::NotUnique => "old_not_unique",
            EditError::TooLarge { .. } => "too_large",
        },
        FileError::Io { .. } => "io_error",
    }
}

/// The last line of the library's message. The lines before it draw the pattern with a marker.
fn last_line(text: &str) -> String {
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    let line = line.unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
