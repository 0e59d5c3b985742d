//! `list_files`: the entries of a directory, in the same form as in the API.

use errand_core::path::WORKSPACE;
use errand_sandbox::{Entry, Kind, Root};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::CallError;
use super::{Aids, FileTool, path_of};

pub(super) struct ListFiles;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    /// The directory, such as /workspace/reports. Default: /workspace.
    path: Option<String>,
}

impl FileTool for ListFiles {
    const NAME: &'static str = "list_files";
    const DESCRIPTION: &'static str = "Lists the files and directories in one directory of the sandbox, sorted by name, with their sizes. It does not list subdirectories.";
    type Arguments = Arguments;

    fn run(root: &Root, arguments: Arguments, _aids: &Aids) -> Result<Value, CallError> {
        let path = path_of(arguments.path.as_deref().unwrap_or(WORKSPACE))?;
        let listing = root.list(&path)?;
        let files: Vec<_> = listing.entries.into_iter().map(shown).collect();
        // Present only if the directory has more than 100,000 names.
        Ok(if listing.truncated {
            json!({"files": files, "truncated": true})
        } else {
            json!({"files": files})
        })
    }
}

fn shown(entry: Entry) -> Value {
    let kind = match entry.kind {
        Kind::File => "file",
        Kind::Dir => "dir",
    };
    json!({"name": entry.name, "path": entry.path, "type": kind, "size_bytes": entry.size_bytes})
}
