//! `read_file`: a file's text, whole or some of its lines.

use std::io::{self, BufRead, BufReader, Read};

use errand_core::limits::READ_FILE_BYTES_MAX;
use errand_core::path::SandboxPath;
use errand_sandbox::{FileError, OpenFile, Root};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::error::CallError;
use super::{FileTool, path_of};

pub(super) struct ReadFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    /// The file, such as /workspace/notes.txt.
    path: String,
    /// The first line to give, counted from 0. Without it: from the beginning. Beyond the end nothing is given.
    offset: Option<u64>,
    /// The most lines to give. Without it: to the end.
    limit: Option<u64>,
}

impl FileTool for ReadFile {
    const NAME: &'static str = "read_file";
    const DESCRIPTION: &'static str = "Gives the text of a file in the sandbox, and nothing else: the whole file, or some of its lines by `offset` and `limit`. At most 4 MiB in one call; bytes that are not UTF-8 are replaced.";
    type Arguments = Arguments;

    fn run(
        root: &Root,
        arguments: Arguments,
        cancel: &CancellationToken,
    ) -> Result<Value, CallError> {
        let path = path_of(&arguments.path)?;
        let open = root.open_file(&path)?;
        let lines = Lines {
            offset: arguments.offset.unwrap_or(0),
            limit: arguments.limit,
        };
        let is_whole = arguments.offset.is_none() && arguments.limit.is_none();
        let limit_bytes = READ_FILE_BYTES_MAX;
        if is_whole && open.size_bytes > limit_bytes {
            return Err(CallError::FileTooLarge { path, limit_bytes });
        }
        let bytes = lines
            .read(open, limit_bytes, &|| cancel.is_cancelled())
            .map_err(|stopped| stopped.explain(path, limit_bytes))?;
        Ok(Value::String(text(bytes)))
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|not_utf8| String::from_utf8_lossy(not_utf8.as_bytes()).into_owned())
}

/// Which lines.
struct Lines {
    offset: u64,
    limit: Option<u64>,
}

/// Why the lines were not read to their end.
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
    /// Reads as far as the file went when it was opened, so that one that somebody goes on appending to has an end.
    /// Holds no more than the bytes that it gives, however large the file is.
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
