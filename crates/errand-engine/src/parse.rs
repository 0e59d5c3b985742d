//! Extracts the text of documents and pages (PDF, DOCX, XLSX, HTML). Each one is parsed in a child process, which is
//! this program started again.
//!
//! # Guarantees
//!
//! - A malicious document can only fail its own call, not the server, even if the parser overflows its stack, uses up
//!   its memory or never ends.
//! - The process limits its own processor time and memory before it reads a byte. It has no environment, no descriptor
//!   of the server and no privileges, and is killed at its time limit or when the call is cancelled.
//! - The number of parsers is limited, in total and per team.
//! - A parser's own error messages are never shown, because they may repeat the document's content.
//!
//! # Non-goals
//!
//! Scanned pages (a PDF of images has no text), formulas and styles.

mod child;
mod html;
mod office;
mod pdf;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use errand_core::id::TeamId;
use errand_core::limits::{DOCUMENT_BYTES_MAX, READ_FILE_BYTES_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::evaluate::{Evaluators, TeamEvaluators};
use crate::subprocess::{self, StartError, Started};

pub use child::run_parser;

/// Time limit of a parser, and of the wait for a free slot.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum number of parsers at the same time.
const PLACES: usize = 4;
/// Maximum number for one team, so that half of the slots are left to others.
const TEAM_PLACES: usize = PLACES / 2;
const TEXT_BYTES_MAX: usize = READ_FILE_BYTES_MAX as usize;
/// Maximum output that is read from a parser. A page's text may be longer than the part that a call returns.
const OUTPUT_BYTES_MAX: u64 = 2 * DOCUMENT_BYTES_MAX;
const _: () = assert!(OUTPUT_BYTES_MAX > READ_FILE_BYTES_MAX);

/// The format of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Returned page by page.
    Pdf,
    /// Returned as paragraphs.
    Docx,
    /// Returned as cells.
    Xlsx,
    /// A page in UTF-8, returned as Markdown.
    Html,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Pdf, Self::Docx, Self::Xlsx, Self::Html];

    /// The name on the parser's command line.
    fn word(self) -> &'static str {
        match self {
            Self::Pdf => "pdf",
            Self::Docx => "docx",
            Self::Xlsx => "xlsx",
            Self::Html => "html",
        }
    }
}

/// The reason why a document has no text. No message repeats the document's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("the document is too large: split it")]
    Size,
    #[error("the document has too many pages: split it")]
    Pages,
    /// The number of files in the archive.
    #[error("the document's archive contains too many files: split it")]
    Parts,
    /// The size of the archive's files after decompression.
    #[error("the document is too large after decompression: split it")]
    Inflated,
    /// The size of the extracted text.
    #[error("the document's text is too long: split it")]
    Text,
    #[error("the document is encrypted: use one without a password")]
    Encrypted,
    #[error("the document has no text: it is empty, damaged, or consists of images (a scan)")]
    NoText,
    #[error("the document cannot be read: it is corrupt, or not the type that its extension says")]
    Broken,
    /// The parser exceeded its limits or crashed.
    #[error("the document cannot be read: its parser exceeded its memory limit, or failed")]
    Failed,
    #[error("reading the document exceeded the time limit")]
    TooSlow,
    /// No slot became free in time.
    #[error("too many documents are being read at once: try again in a moment")]
    Busy,
    #[error(
        "documents cannot be read on this server: the parser process cannot be started; see the server's log"
    )]
    Unavailable,
    #[error("the server has run out of open files, memory or processes: try again in a moment")]
    Exhausted,
}

impl ParseError {
    /// The errors that a parser reports by its exit code, counted from [`child::FIRST_CODE`].
    const REPORTED: [Self; 8] = [
        Self::Size,
        Self::Pages,
        Self::Parts,
        Self::Inflated,
        Self::Text,
        Self::Encrypted,
        Self::Broken,
        Self::NoText,
    ];
}

/// Starts parser processes and limits their number. Cheap to clone.
#[derive(Clone)]
pub struct Parsers(Arc<Inner>);

struct Inner {
    evaluators: Evaluators,
    program: Option<PathBuf>,
    patience: Duration,
    places: Semaphore,
    teams: Mutex<HashMap<TeamId, Weak<Semaphore>>>,
}

impl Parsers {
    /// `program`: the path of this program, whose `main` must first call [`run_parser`]. `None`: no document can be
    /// read.
    #[must_use]
    pub fn new(program: Option<PathBuf>) -> Self {
        Self::with_patience(program, PATIENCE)
    }

    /// Same as [`Parsers::new`] with other time limits, for tests.
    #[must_use]
    pub fn with_patience(program: Option<PathBuf>, patience: Duration) -> Self {
        Self(Arc::new(Inner {
            evaluators: Evaluators::new(program.clone()),
            program,
            patience,
            places: Semaphore::new(PLACES),
            teams: Mutex::default(),
        }))
    }

    /// The evaluators for a team's templates and schemas, which use the same program.
    #[must_use]
    pub fn evaluators(&self, team: TeamId) -> TeamEvaluators {
        self.0.evaluators.of(team)
    }

    /// The parsers with the limits of a team.
    #[must_use]
    pub fn of(&self, team: TeamId) -> TeamParsers {
        let mut teams = self.0.teams.lock().unwrap_or_else(PoisonError::into_inner);
        teams.retain(|_, places| places.strong_count() > 0);
        let places = teams.get(&team).and_then(Weak::upgrade);
        let places = places.unwrap_or_else(|| {
            let places = Arc::new(Semaphore::new(TEAM_PLACES));
            teams.insert(team, Arc::downgrade(&places));
            places
        });
        TeamParsers {
            all: self.clone(),
            places,
        }
    }
}

/// The parsers as one team may use them. Cheap to clone.
#[derive(Clone)]
pub struct TeamParsers {
    all: Parsers,
    places: Arc<Semaphore>,
}

impl TeamParsers {
    /// The text of a document of at most [`DOCUMENT_BYTES_MAX`] bytes. Dropping the future kills the parser.
    ///
    /// # Errors
    /// [`ParseError`] says what to do.
    pub async fn text(&self, kind: Kind, bytes: Vec<u8>) -> Result<String, ParseError> {
        let all = &self.all.0;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(ParseError::Size);
        }
        let turn = async {
            // The team's permit comes first, so that a waiting team does not occupy a global permit.
            let own = self.places.acquire().await.ok();
            (own, all.places.acquire().await.ok())
        };
        let Ok(_places) = timeout(all.patience, turn).await else {
            return Err(ParseError::Busy);
        };
        let parser = start(all.program.as_deref(), kind)?;
        timeout(all.patience, parse(parser, bytes))
            .await
            .unwrap_or(Err(ParseError::TooSlow))
    }
}

fn start(program: Option<&Path>, kind: Kind) -> Result<Started, ParseError> {
    let arguments = [child::PARSER_ARGUMENT, kind.word()];
    subprocess::start(program, &arguments, "parses documents").map_err(|error| match error {
        StartError::Exhausted => ParseError::Exhausted,
        StartError::Unavailable => ParseError::Unavailable,
    })
}

/// Sends a document to a parser and reads the text. If this future is dropped, the parser is killed.
async fn parse(parser: Started, bytes: Vec<u8>) -> Result<String, ParseError> {
    let Started {
        mut child,
        mut stdin,
        stdout,
    } = parser;
    let give = async move {
        // A write error is ignored: a parser that stops reading reports the reason by its exit code.
        let _ = stdin.write_all(&bytes).await;
    };
    let take = async move {
        let mut text = Vec::new();
        let mut bounded = stdout.take(OUTPUT_BYTES_MAX + 1);
        bounded.read_to_end(&mut text).await.map(|_| text)
    };
    let ((), text) = tokio::join!(give, take);
    let text = text.map_err(|_| ParseError::Failed)?;
    if text.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(ParseError::Text);
    }
    match child.wait().await {
        Ok(ended) if ended.success() => String::from_utf8(text).map_err(|_| ParseError::Failed),
        Ok(ended) => Err(error_of_exit(ended)),
        Err(_) => Err(ParseError::Failed),
    }
}

/// Converts a parser's exit status to an error.
fn error_of_exit(ended: ExitStatus) -> ParseError {
    use std::os::unix::process::ExitStatusExt as _;
    let error = ended
        .code()
        .and_then(|code| usize::try_from(code).ok())
        .and_then(|code| code.checked_sub(usize::from(child::FIRST_CODE)))
        .and_then(|index| ParseError::REPORTED.get(index).copied());
    match (error, ended.signal()) {
        (Some(error), _) => error,
        // SIGXCPU at the soft limit of processor time, SIGKILL at the hard limit.
        (None, Some(signal)) if signal == child::OUT_OF_TIME || signal == child::KILLED => {
            ParseError::TooSlow
        }
        _ => ParseError::Failed,
    }
}

/// Parses a document in this process. Called only in the parser process.
fn text_of(kind: Kind, bytes: Vec<u8>) -> Result<String, ParseError> {
    match kind {
        Kind::Pdf => pdf::text(&bytes),
        Kind::Docx => office::docx(bytes),
        Kind::Xlsx => office::xlsx(bytes),
        Kind::Html => Ok(html::of(&String::from_utf8_lossy(&bytes))),
    }
}
