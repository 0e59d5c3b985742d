//! `read_file`: the text of a file or of some of its lines, the text of a document, or an image for models that accept
//! images.

use std::io::{self, BufRead, BufReader, Read};

use errand_core::limits::{DOCUMENT_BYTES_MAX, IMAGE_BYTES_MAX, READ_FILE_BYTES_MAX};
use errand_core::path::SandboxPath;
use errand_sandbox::{FileError, OpenFile, Root, sha256_hex};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::document::{self, Kind};
use super::error::CallError;
use super::{Aids, FileTool, path_of};
use crate::parse::ParseError;

pub(super) struct ReadFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    /// The path of the file, such as /workspace/notes.txt.
    path: String,
    /// The first line to return, counted from 0. Default: 0. Past the end, nothing is returned.
    offset: Option<u64>,
    /// The maximum number of lines to return. Default: all lines to the end.
    limit: Option<u64>,
    /// Whether to return the file's own bytes as text, even if it is a document (PDF, DOCX, XLSX, HTML) or an image.
    raw: Option<bool>,
}

impl FileTool for ReadFile {
    const NAME: &'static str = "read_file";
    const DESCRIPTION: &'static str = "Returns the text of a file in the sandbox, and nothing else: the whole file, or some of its lines by `offset` and `limit`. For a PDF, DOCX, XLSX or HTML file it returns the readable text, unless `raw` is true; a PNG, JPEG, GIF or WebP image is shown to you if you can see images. At most 4 MiB in one call; bytes that are not UTF-8 are replaced.";
    type Arguments = Arguments;

    fn run(root: &Root, arguments: Arguments, aids: &Aids) -> Result<Value, CallError> {
        let path = path_of(&arguments.path)?;
        let open = root.open_file(&path)?;
        let lines = Lines {
            offset: arguments.offset.unwrap_or(0),
            limit: arguments.limit,
        };
        if arguments.raw != Some(true) {
            let head = root.read(&path, 0, HEAD_BYTES)?;
            if let Some(kind) = document::kind(&path.to_string(), &head) {
                return read_document(root, aids, path, kind, &lines);
            }
        }
        let is_whole = arguments.offset.is_none() && arguments.limit.is_none();
        let limit_bytes = READ_FILE_BYTES_MAX;
        if is_whole && open.size_bytes > limit_bytes {
            return Err(CallError::FileTooLarge { path, limit_bytes });
        }
        let bytes = lines
            .read(open, limit_bytes, &|| aids.cancel.is_cancelled())
            .map_err(|stopped| stopped.explain(path, limit_bytes))?;
        Ok(Value::String(text(bytes)))
    }
}

/// The number of bytes at the start of a file from which its kind is detected.
const HEAD_BYTES: u64 = 16;

fn read_document(
    root: &Root,
    aids: &Aids,
    path: SandboxPath,
    kind: Kind,
    lines: &Lines,
) -> Result<Value, CallError> {
    let most = match kind {
        Kind::Image(_) => IMAGE_BYTES_MAX,
        Kind::Document(_) => DOCUMENT_BYTES_MAX,
    };
    let bytes = root.read(&path, 0, most + 1)?;
    let failed = |source| CallError::Document {
        path: path.clone(),
        source,
    };
    if bytes.len() as u64 > most {
        return Err(failed(ParseError::Size));
    }
    match kind {
        Kind::Image(media_type) => Ok(json!({"image": {
            "path": path.to_string(),
            "media_type": media_type,
            "size_bytes": bytes.len(),
            "sha256": sha256_hex(&bytes),
        }})),
        Kind::Document(kind) => {
            let parsed = aids.text(kind, bytes).ok_or(CallError::Interrupted)?;
            Ok(Value::String(lines.of_text(parsed.map_err(failed)?)))
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|not_utf8| String::from_utf8_lossy(not_utf8.as_bytes()).into_owned())
}

/// A range of lines.
struct Lines {
    offset: u64,
    limit: Option<u64>,
}

/// The reason why the lines were not read completely.
#[derive(Debug)]
enum Stopped {
    Cancelled,
    TooLarge,
    Failed(io::Error),
}

impl Stopped {
    fn explain(self, path: SandboxPath, limit_bytes: u64) -> CallError {
        match self {
            Self::Cancelled => CallError::Interrupted,
            Self::TooLarge => CallError::PartTooLarge { path, limit_bytes },
            Self::Failed(source) => CallError::File(FileError::Io {
                op: "read",
                path,
                source,
            }),
        }
    }
}

impl Lines {
    /// The lines of a text in memory.
    fn of_text(&self, text: String) -> String {
        if self.offset == 0 && self.limit.is_none() {
            return text;
        }
        let most = self
            .limit
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let skipped = usize::try_from(self.offset).unwrap_or(usize::MAX);
        text.split_inclusive('\n')
            .skip(skipped)
            .take(most)
            .collect()
    }

    /// Reads up to the size that the file had when it was opened, so that it terminates even if something keeps
    /// appending. Memory use is bounded by the returned bytes, not by the file's size.
    fn read(
        &self,
        open: OpenFile,
        bytes_max: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Stopped> {
        const PART_BYTES: usize = 64 * 1024;
        let end = self.limit.map(|limit| self.offset.saturating_add(limit));
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let mut reader = BufReader::with_capacity(PART_BYTES, open.file.take(open.size_bytes));
        let mut given = Vec::new();
        let mut line = 0;
        while end.is_none_or(|end| line < end) {
            if stop() {
                return Err(Stopped::Cancelled);
            }
            let part = match reader.fill_buf() {
                Ok([]) => break,
                Ok(part) => part,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stopped::Failed(error)),
            };
            let line_end = part.iter().position(|byte| *byte == b'\n');
            let used = line_end.map_or(part.len(), |at| at + 1);
            if line >= self.offset {
                if given.len() + used > bytes_max {
                    return Err(Stopped::TooLarge);
                }
                given.extend_from_slice(part.get(..used).unwrap_or_default());
            }
            reader.consume(used);
            if line_end.is_some() {
                line += 1;
            }
        }
        Ok(given)
    }
}
