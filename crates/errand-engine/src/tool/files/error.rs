//! What a call of a file tool can come to, but a result: a stable word, and a sentence that says what to do.

use errand_core::path::{BadPath, SandboxPath};
use errand_sandbox::{EditError, FileError};

use crate::exhausted::{note, note_anyway};
use crate::parse::ParseError;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(in crate::tool) enum CallError {
    /// An argument is missing, unknown, or of the wrong kind.
    #[error("{0}")]
    Arguments(String),
    /// The argument `path` names no place in the sandbox.
    #[error("`path`")]
    Path {
        #[source]
        source: BadPath,
    },
    /// The file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// More than a call of `read_file` gives.
    #[error(
        "{path} holds more than {limit_bytes} bytes: read it in parts, with `offset` (the first line, counted from 0) and `limit` (the most lines)"
    )]
    FileTooLarge { path: SandboxPath, limit_bytes: u64 },
    /// The same of a part.
    #[error(
        "these lines of {path} hold more than {limit_bytes} bytes: ask for fewer, with `offset` and `limit`; a single line larger than that cannot be read"
    )]
    PartTooLarge { path: SandboxPath, limit_bytes: u64 },
    /// A document or an image that gives nothing.
    #[error("{path}: {source}")]
    Document {
        path: SandboxPath,
        #[source]
        source: ParseError,
    },
    /// More text than `write_file` takes.
    #[error("`content` has more than {limit_bytes} bytes: write less, or several files")]
    ContentTooLarge { limit_bytes: u64 },
    /// A search that would have been given in part only, which a list of lines cannot say.
    #[error(
        "the search beneath {path} ended before it had seen everything, at {matches} lines found: use a narrower `pattern`, or a `path` further down"
    )]
    SearchTooLarge { path: SandboxPath, matches: usize },
    /// Cancelled before it began.
    #[error("the run was stopped, or the server stops: nothing was done")]
    NotRun,
    /// Cancelled while it read.
    #[error(
        "the run was stopped, or the server stops: the call was broken off, and nothing was changed"
    )]
    Interrupted,
    /// The thread that did the work is gone.
    #[error("the server failed within the tool: look at the files, whether anything was done")]
    BrokeOff {
        #[source]
        source: tokio::task::JoinError,
    },
}

impl CallError {
    /// What the call gets: `<word>: <sentence>`.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}: {self}", self.word());
        if let Some(cause) = self.cause() {
            text = format!("{text}: {cause}");
        }
        text
    }

    /// The stable word that programs tell errors by.
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

    /// The cause, where the sentence is not whole without it.
    pub(super) fn cause(&self) -> Option<String> {
        match self {
            Self::Path { source } => Some(source.to_string()),
            Self::File(FileError::Edit { source, .. }) => Some(source.to_string()),
            Self::File(FileError::BadPattern { source }) => Some(last_line(&source.to_string())),
            Self::File(FileError::Io { source, .. }) => Some(source.to_string()),
            // What a panic says is for the log alone.
            _ => None,
        }
    }

    /// Whether the call is made again once there is what it needs, which is noted here: descriptors or memory.
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

    /// Whether it is the operator's business, not the caller's.
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

/// Part of the wire: a word is never changed, and a new variant gets its own, unless a caller can do the same about it.
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

/// The library draws the pattern with a mark beneath it, and says what is wrong in the last line.
fn last_line(text: &str) -> String {
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    let line = line.unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
