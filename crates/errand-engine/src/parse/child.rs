//! The parser's process: `errand __parse KIND`, with the document on its standard input.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use errand_core::limits::DOCUMENT_BYTES_MAX;
use errand_sandbox::exec::{Confinement, confine};

use super::{Kind, ParseError, text_of};

/// The word on the command line that makes the program a parser.
pub(super) const PARSER_ARGUMENT: &str = "__parse";
/// The code of the first of [`ParseError::TOLD`]: apart from those that a program ends with by itself.
pub(super) const FIRST_CODE: u8 = 10;
/// The code of a parser that has not begun, or has panicked.
const FAILED: u8 = 9;
/// The signals by which the kernel ends what has used up its processor time.
pub(super) const OUT_OF_TIME: i32 = 24;
/// See [`OUT_OF_TIME`].
pub(super) const KILLED: i32 = 9;

/// What a parser may take: far above what a document of the largest size needs.
const CONFINEMENT: Confinement = Confinement {
    cpu_seconds_max: 20,
    memory_bytes_max: 1 << 30,
};
/// Stack of the thread that parses: documents may be nested deeply.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Is the parser, if the command line says so. Returns only if it does not, or with what the process is to end with.
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
            let index = ParseError::TOLD.iter().position(|told| *told == error);
            index
                .and_then(|index| u8::try_from(index).ok())
                .map_or(FAILED, |index| FIRST_CODE + index)
        }
        Some(Err(_)) | None => FAILED,
    };
    Some(ExitCode::from(code))
}

/// The outer error: of this process. The inner one: of the document.
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
