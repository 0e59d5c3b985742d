//! `write_file`: creates or replaces a file.

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
    /// The path of the file, such as /workspace/reports/may.md. Missing directories are created.
    path: String,
    /// The complete text of the file.
    content: String,
}

impl FileTool for WriteFile {
    const NAME: &'static str = "write_file";
    const DESCRIPTION: &'static str = "Writes a text file in the sandbox and creates missing directories on its path. If the file exists, it is replaced completely.";
    type Arguments = Arguments;

    fn run(root: &Root, arguments: Arguments, _aids: &Aids) -> Result<Value, CallError> {
        let Arguments { path, content } = arguments;
        if means_directory(&path) {
            return Err(CallError::Arguments(
                "`path`: it is a directory: give the path of a file".to_owned(),
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
