//! `search_files`: finds lines that match a regular expression.

use errand_core::path::WORKSPACE;
use errand_sandbox::{Match, Root, SearchLimits};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::CallError;
use super::{Aids, FileTool, path_of};

pub(super) struct SearchFiles;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    /// A regular expression, matched within each line. Start it with (?i) to ignore case. No look-around, no back-references.
    pattern: String,
    /// The directory to search, including subdirectories, or a single file. Default: /workspace.
    path: Option<String>,
}

impl FileTool for SearchFiles {
    const NAME: &'static str = "search_files";
    const DESCRIPTION: &'static str = "Searches text files in the sandbox for a regular expression. Returns a list of {path, line, text}, sorted by path and line, with lines counted from 1 and each cut after 500 characters. Files that are larger than 10 MiB or contain NUL bytes are skipped; more than 1000 lines found is an error.";
    type Arguments = Arguments;

    fn run(root: &Root, arguments: Arguments, aids: &Aids) -> Result<Value, CallError> {
        let path = path_of(arguments.path.as_deref().unwrap_or(WORKSPACE))?;
        let limits = SearchLimits::default();
        let found = root.search(&path, &arguments.pattern, &limits, &|| {
            aids.cancel.is_cancelled()
        })?;
        if found.truncated {
            return Err(if aids.cancel.is_cancelled() {
                CallError::Interrupted
            } else {
                CallError::SearchTooLarge {
                    path,
                    matches: found.matches.len(),
                }
            });
        }
        Ok(found.matches.iter().map(shown).collect())
    }
}

fn shown(found: &Match) -> Value {
    json!({"path": found.path, "line": found.line, "text": found.text})
}
