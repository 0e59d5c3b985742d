//! Text of documents: PDF, DOCX, XLSX and HTML; and images, as what a model that sees is shown.
//!
//! Promised: what is read is bounded before it is parsed (size of the file, size of what is compressed in it), while it is
//! parsed (pages, time) and after (size of the text); a parser that panics, or does not end, costs a call and no server.
//! Parsers work on a thread of their own, with room for documents that are nested deeply; so many at once, and no more.
//!
//! Left out: scans (a PDF of images has no text), formulas, styles, and ending a parser that does not end by itself: its
//! thread is left alone, and counts among those at work.

mod office;
#[cfg(test)]
mod tests;

use std::io::{Cursor, Read as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use errand_core::limits::{DOCUMENT_BYTES_MAX, DOCUMENT_PAGES_MAX, READ_FILE_BYTES_MAX};
use lopdf::{Document, LoadOptions};

/// Most bytes that what is compressed in a document may become.
const INFLATED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most bytes of the text.
const TEXT_BYTES_MAX: usize = READ_FILE_BYTES_MAX as usize;
/// How long a parser may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Stack of a parser's thread: documents may be nested deeply.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Parsers at work at once, those that nobody waits for any more among them.
const PARSERS_MAX: usize = 4;
/// Elements that may be open at once in a page; beyond, it is given as it is.
const HTML_DEPTH_MAX: usize = 10_000;

/// Parsers at work. What it counts are threads of this process.
static PARSERS: AtomicUsize = AtomicUsize::new(0);

/// What a file is, beside text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pdf,
    Docx,
    Xlsx,
    Html,
    /// An image, with its media type.
    Image(&'static str),
}

/// Why a document gives no text.
#[derive(Debug, thiserror::Error)]
pub(in crate::tool) enum DocumentError {
    #[error("the document holds more than can be read ({0}): split it")]
    TooLarge(&'static str),
    #[error("the document is encrypted: give one without a password")]
    Encrypted,
    #[error(
        "the document has no text: it is empty, damaged, or holds pictures of its pages (a scan)"
    )]
    NoText,
    #[error("the document cannot be read ({0})")]
    Broken(String),
    #[error("the document took longer than {} s to read", PATIENCE.as_secs())]
    TooSlow,
    #[error("too many documents are being read at once: try again in a moment")]
    Busy,
}

/// By its name and its first bytes. None: it is read as text.
pub(super) fn kind(name: &str, head: &[u8]) -> Option<Kind> {
    let ending = name.rsplit('.').next().unwrap_or_default();
    let ending = ending.to_ascii_lowercase();
    match head {
        _ if head.starts_with(b"%PDF-") => Some(Kind::Pdf),
        _ if head.starts_with(b"\x89PNG\r\n\x1a\n") => Some(Kind::Image("image/png")),
        _ if head.starts_with(b"\xff\xd8\xff") => Some(Kind::Image("image/jpeg")),
        _ if head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a") => {
            Some(Kind::Image("image/gif"))
        }
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some(Kind::Image("image/webp")),
        _ if head.starts_with(b"PK\x03\x04") => match ending.as_str() {
            "docx" => Some(Kind::Docx),
            "xlsx" | "xlsm" => Some(Kind::Xlsx),
            _ => None,
        },
        _ if matches!(ending.as_str(), "html" | "htm" | "xhtml") => Some(Kind::Html),
        _ => None,
    }
}

/// A place among the parsers at work; given back when it goes.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = PARSERS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
            (n < PARSERS_MAX).then_some(n + 1)
        });
        taken.ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        PARSERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The text of a document. Blocks. `bytes`: at most [`DOCUMENT_BYTES_MAX`] of them.
pub(super) fn text(kind: Kind, bytes: Vec<u8>) -> Result<String, DocumentError> {
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooLarge("its size"));
    }
    apart(PATIENCE, move || match kind {
        Kind::Pdf => pdf(&bytes),
        Kind::Docx => office::docx(bytes),
        Kind::Xlsx => office::xlsx(bytes),
        Kind::Html => html(&bytes),
        Kind::Image(_) => Ok(String::new()),
    })
}

/// Does something on a thread of its own, for so long.
fn apart(
    patience: Duration,
    work: impl FnOnce() -> Result<String, DocumentError> + Send + 'static,
) -> Result<String, DocumentError> {
    let place = Place::take().ok_or(DocumentError::Busy)?;
    let (done, result) = sync_channel(1);
    let started = std::thread::Builder::new()
        .name("document".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _place = place;
            // Nobody may be waiting any more.
            let _ = done.send(work());
        });
    if let Err(error) = started {
        return Err(DocumentError::Broken(error.to_string()));
    }
    match result.recv_timeout(patience) {
        Ok(done) => done,
        Err(RecvTimeoutError::Timeout) => Err(DocumentError::TooSlow),
        // The parser panicked: its end of the channel went with it.
        Err(RecvTimeoutError::Disconnected) => Err(broken("the parser failed")),
    }
}

fn broken(why: impl std::fmt::Display) -> DocumentError {
    DocumentError::Broken(why.to_string())
}

fn pdf(bytes: &[u8]) -> Result<String, DocumentError> {
    let inflated = usize::try_from(INFLATED_BYTES_MAX).unwrap_or(usize::MAX);
    let options = LoadOptions {
        max_decompressed_size: Some(inflated),
        ..LoadOptions::default()
    };
    let document = Document::load_mem_with_options(bytes, options).map_err(broken)?;
    if document.is_encrypted() {
        return Err(DocumentError::Encrypted);
    }
    let pages = document.get_pages();
    if pages.len() > DOCUMENT_PAGES_MAX {
        return Err(DocumentError::TooLarge("its pages"));
    }
    let mut text = String::new();
    for (at, number) in pages.keys().enumerate() {
        let page = document
            .extract_text_with_limit(&[*number], inflated)
            .map_err(broken)?;
        if at > 0 {
            text.push_str("\n\n");
        }
        text.push_str(page.trim_end());
        if text.len() > TEXT_BYTES_MAX {
            return Err(DocumentError::TooLarge("its text"));
        }
    }
    if text.trim().is_empty() {
        return Err(DocumentError::NoText);
    }
    Ok(text)
}

/// A page as Markdown.
fn html(bytes: &[u8]) -> Result<String, DocumentError> {
    let text = String::from_utf8_lossy(bytes);
    if depth(&text) > HTML_DEPTH_MAX {
        return Ok(text.into_owned());
    }
    htmd::HtmlToMarkdown::builder()
        .skip_tags(vec!["script", "style", "noscript", "template"])
        .build()
        .convert(&text)
        .map_err(broken)
}

/// How many elements may be open at once, at most: those that are never closed count as open.
fn depth(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'<' {
            continue;
        }
        match bytes.peek() {
            Some(b'/') => open = open.saturating_sub(1),
            Some(next) if next.is_ascii_alphabetic() => {
                open += 1;
                most = most.max(open);
            }
            _ => {}
        }
    }
    most
}

/// Reads a part of an archive, and refuses one that becomes too large. `left`: what may still come of all parts.
fn inflate(reader: impl std::io::Read, left: &mut u64) -> Result<Vec<u8>, DocumentError> {
    let mut bytes = Vec::new();
    let read = reader.take(*left + 1).read_to_end(&mut bytes);
    let read = read.map_err(broken)? as u64;
    *left = left
        .checked_sub(read)
        .ok_or(DocumentError::TooLarge("what is compressed in it"))?;
    Ok(bytes)
}

type Archive = zip::ZipArchive<Cursor<Vec<u8>>>;
