//! The parser process: `errand __parse KIND` reads a document from its standard input and writes its text.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use errand_core::limits::DOCUMENT_BYTES_MAX;
use errand_sandbox::exec::{Confinement, confine};

use super::{Kind, ParseError, text_of};

/// The hidden command that makes this program a parser.
pub(super) const PARSER_ARGUMENT: &str = "__parse";
/// The exit code of the first of [`ParseError::REPORTED`]. It differs from the codes that a failing program returns by
/// itself.
pub(super) const FIRST_CODE: u8 = 10;
/// The exit code of a parser that could not start or has panicked.
const FAILED: u8 = 9;
/// SIGXCPU, sent at the soft limit of processor time.
pub(super) const OUT_OF_TIME: i32 = 24;
/// SIGKILL, sent at the hard limit of processor time.
pub(super) const KILLED: i32 = 9;

/// Limits of a parser, far above what the largest permitted document needs.
const CONFINEMENT: Confinement = Confinement {
    cpu_seconds_max: 20,
    memory_bytes_max: 1 << 30,
};
/// Stack size of the parsing thread. Large, because documents may be deeply nested.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Runs the parser if the command line says so, and returns the exit code. Returns `None` for any other command line.
#[must_use]
pub fn run_parser<S: AsRef<OsStr>>(mut args: impl Iterator<Item = S>) -> Option<ExitCode> {
    if args.nth(1)?.as_ref() != PARSER_ARGUMENT {
        return None;
    }
    let kind = args.next().and_then(|word| {
        let of = |kind: &Kind| word.as_ref() == kind.word();
        Kind::ALL.into_iter().find(of)
    });
    let code = match kind.map(work) {
        Some(Ok(Ok(()))) => return Some(ExitCode::SUCCESS),
        Some(Ok(Err(error))) => {
            let index = ParseError::REPORTED
                .iter()
                .position(|reported| *reported == error);
            index
                .and_then(|index| u8::try_from(index).ok())
                .map_or(FAILED, |index| FIRST_CODE + index)
        }
        Some(Err(_)) | None => FAILED,
    };
    Some(ExitCode::from(code))
}

/// Parses standard input. The outer error is the process's, the inner one the document's.
fn work(kind: Kind) -> io::Result<Result<(), ParseError>> {
    confine(CONFINEMENT)?;
    let mut bytes = Vec::new();
    io::stdin()
        .take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Ok(Err(ParseError::Size));
    }
    let parsed = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || text_of(kind, bytes))?
        .join();
    match parsed {
        Ok(Ok(text)) => io::stdout().write_all(text.as_bytes()).map(Ok),
        Ok(Err(error)) => Ok(Err(error)),
        Err(_) => Err(io::Error::other("the parser panicked")),
    }
}
