//! Text of documents and pages: PDF, DOCX, XLSX and HTML, each parsed by a process of its own, which is this program,
//! started anew.
//!
//! Promised: whatever a document is, and whatever its parser does with it (overflow its stack, take all memory, not end),
//! it costs its call and no server. The process has bounds of processor time and memory before it reads a byte, no
//! environment, no descriptor of the server and no privilege; it is killed when its time is over or nobody waits any
//! more. So many are at work at once, and a team has no more than its share of them. A parser's own words about a
//! document, which may repeat what is in it, are not told.
//!
//! Left out: scans (a PDF of images has no text), formulas, styles.

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

/// How long a parser may take, and how long a call waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Parsers at work at once.
const PLACES: usize = 4;
/// The same for one team: half of them are left to the others.
const TEAM_PLACES: usize = PLACES / 2;
/// Most bytes of a document's text.
const TEXT_BYTES_MAX: usize = READ_FILE_BYTES_MAX as usize;
/// Most bytes that are taken from a parser: a page's text may be longer than what a call gives of it.
const OUTPUT_BYTES_MAX: u64 = 2 * DOCUMENT_BYTES_MAX;
const _: () = assert!(OUTPUT_BYTES_MAX > READ_FILE_BYTES_MAX);

/// What is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its text, page by page.
    Pdf,
    /// Its paragraphs.
    Docx,
    /// Its cells.
    Xlsx,
    /// A page in UTF-8: as Markdown.
    Html,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Pdf, Self::Docx, Self::Xlsx, Self::Html];

    /// The word for it on the parser's command line.
    fn word(self) -> &'static str {
        match self {
            Self::Pdf => "pdf",
            Self::Docx => "docx",
            Self::Xlsx => "xlsx",
            Self::Html => "html",
        }
    }
}

/// Why a document gives no text. None of it repeats what is in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Its size.
    #[error("the document holds more than can be read (its size): split it")]
    Size,
    /// Its pages.
    #[error("the document holds more than can be read (its pages): split it")]
    Pages,
    /// The parts of its archive.
    #[error("the document holds more than can be read (its parts): split it")]
    Parts,
    /// What its parts become.
    #[error("the document holds more than can be read (what is compressed in it): split it")]
    Inflated,
    /// Its text.
    #[error("the document holds more than can be read (its text): split it")]
    Text,
    /// It has a password.
    #[error("the document is encrypted: give one without a password")]
    Encrypted,
    /// It has none.
    #[error(
        "the document has no text: it is empty, damaged, or holds pictures of its pages (a scan)"
    )]
    NoText,
    /// It is no such document, or not a whole one.
    #[error("the document cannot be read: it is broken, or none of the kind that its name says")]
    Broken,
    /// Its parser was ended by its bounds, or failed.
    #[error(
        "the document cannot be read: its parser needed more memory than it may have, or failed"
    )]
    Failed,
    /// Its parser did not end in time.
    #[error("the document took longer to read than it may")]
    TooSlow,
    /// No turn came.
    #[error("too many documents are being read at once: try again in a moment")]
    Busy,
    /// No parser can be started.
    #[error(
        "documents cannot be read on this server: the program that parses them cannot be started; the log of the server says why"
    )]
    Unavailable,
    /// Descriptors, memory or processes have run out.
    #[error("the server has run out of open files, memory or processes: try again in a moment")]
    Exhausted,
}

impl ParseError {
    /// Those that a parser tells by the code that it ends with, counted from [`child::FIRST_CODE`].
    const TOLD: [Self; 8] = [
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

/// Starts parsers. Cheap to clone.
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
    /// `program`: this one, which must call [`run_parser`] first of all. None: no document can be read.
    #[must_use]
    pub fn new(program: Option<PathBuf>) -> Self {
        Self::with_patience(program, PATIENCE)
    }

    /// The same with another time for one parser, and for a turn.
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

    /// What evaluates templates and schemas for a team, with the same program.
    #[must_use]
    pub fn evaluators(&self, team: TeamId) -> TeamEvaluators {
        self.0.evaluators.of(team)
    }

    /// For a team, which has its share.
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

/// A team's parsers.
#[derive(Clone)]
pub struct TeamParsers {
    all: Parsers,
    places: Arc<Semaphore>,
}

impl TeamParsers {
    /// The text of a document of at most [`DOCUMENT_BYTES_MAX`] bytes. Who stops waiting ends the parser.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub async fn text(&self, kind: Kind, bytes: Vec<u8>) -> Result<String, ParseError> {
        let all = &self.all.0;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(ParseError::Size);
        }
        let turn = async {
            // The team's own first: who waits for it takes nobody else's place.
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

/// Gives a parser its document and takes the text. The parser is killed here if it has not ended.
async fn parse(parser: Started, bytes: Vec<u8>) -> Result<String, ParseError> {
    let Started {
        mut child,
        mut stdin,
        stdout,
    } = parser;
    let give = async move {
        // One that does not read to the end says why by the code that it ends with.
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
        Ok(ended) => Err(told(ended)),
        Err(_) => Err(ParseError::Failed),
    }
}

/// What a parser's end says.
fn told(ended: ExitStatus) -> ParseError {
    use std::os::unix::process::ExitStatusExt as _;
    let error = ended
        .code()
        .and_then(|code| usize::try_from(code).ok())
        .and_then(|code| code.checked_sub(usize::from(child::FIRST_CODE)))
        .and_then(|index| ParseError::TOLD.get(index).copied());
    match (error, ended.signal()) {
        (Some(error), _) => error,
        // Of the processor's time, and the kernel's last word on it.
        (None, Some(signal)) if signal == child::OUT_OF_TIME || signal == child::KILLED => {
            ParseError::TooSlow
        }
        _ => ParseError::Failed,
    }
}

/// The text of a document, in this process: what a parser does.
fn text_of(kind: Kind, bytes: Vec<u8>) -> Result<String, ParseError> {
    match kind {
        Kind::Pdf => pdf::text(&bytes),
        Kind::Docx => office::docx(bytes),
        Kind::Xlsx => office::xlsx(bytes),
        Kind::Html => Ok(html::of(&String::from_utf8_lossy(&bytes))),
    }
}
