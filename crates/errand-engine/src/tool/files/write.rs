//! `write_file`: a file with this text, in place of one that is there.

use errand_core::limits::WRITE_FILE_BYTES_MAX;
use errand_core::path::means_directory;
use errand_sandbox::Root;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::CallError;
use super::{Aids, FileTool, path_of};

pub(super) struct WriteFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    /// The file, such as /workspace/reports/may.md. Directories that are missing are made.
    path: String,
    /// The whole text of the file.
    content: String,
}

impl FileTool for WriteFile {
    const NAME: &'static str = "write_file";
    const DESCRIPTION: &'static str = "Writes a text file in the sandbox, with the directories that lead to it. A file that is there already is replaced as a whole.";
    type Arguments = Arguments;

    fn run(root: &Root, arguments: Arguments, _aids: &Aids) -> Result<Value, CallError> {
        let Arguments { path, content } = arguments;
        if means_directory(&path) {
            return Err(CallError::Arguments(
                "`path`: it names a directory: give the path of a file".to_owned(),
            ));
        }
        let path = path_of(&path)?;
        let size_bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if size_bytes > WRITE_FILE_BYTES_MAX {
            return Err(CallError::ContentTooLarge {
                limit_bytes: WRITE_FILE_BYTES_MAX,
            });
        }
        root.write(&path, content.as_bytes())?;
        Ok(json!({"path": path, "size_bytes": size_bytes}))
    }
}
