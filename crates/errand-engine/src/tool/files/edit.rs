//! `edit_file`: replaces a passage of a file. A call in doubt after a crash can be settled.
//!
//! The evidence `{before, after, replaced}` holds SHA-256 digests of the file. If the file now has the digest `after`,
//! the edit was done; with `before`, it was not done; with any other digest, the file was changed since and the outcome
//! is unknown.

use errand_sandbox::{FileError, Root};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::CallError;
use super::{Aids, FileTool, path_of};
use crate::tool::LookedUp;

pub(super) struct EditFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    /// The path of the file, such as /workspace/notes.txt.
    path: String,
    /// The text to replace, exactly as it is in the file, including spaces and line breaks. It must occur once, unless `all` is true.
    old: String,
    /// The replacement text.
    new: String,
    /// Whether to replace every occurrence. Default: false.
    all: Option<bool>,
}

/// The evidence, stored with the intent of a call.
#[derive(Serialize, Deserialize)]
struct Evidence {
    before: String,
    after: String,
    replaced: usize,
}

impl FileTool for EditFile {
    const NAME: &'static str = "edit_file";
    const DESCRIPTION: &'static str = "Replaces a passage of a text file in the sandbox: replaces `old`, which must occur exactly once, with `new`. With `all`, replaces every occurrence.";
    type Arguments = Arguments;

    fn run(root: &Root, arguments: Arguments, _aids: &Aids) -> Result<Value, CallError> {
        let Arguments {
            path,
            old,
            new,
            all,
        } = arguments;
        let path = path_of(&path)?;
        let replaced = root.edit(&path, &old, &new, all.unwrap_or(false))?;
        Ok(json!({"path": path, "replaced": replaced}))
    }

    fn evidence(root: &Root, arguments: Arguments) -> Result<Option<Value>, CallError> {
        let Arguments {
            path,
            old,
            new,
            all,
        } = arguments;
        let edit = root.plan_edit(&path_of(&path)?, &old, &new, all.unwrap_or(false))?;
        Ok(Some(json!(Evidence {
            before: edit.digest_before,
            after: edit.digest_after,
            replaced: edit.replaced,
        })))
    }

    fn look_up(
        root: &Root,
        arguments: Arguments,
        evidence: Value,
    ) -> Result<Option<LookedUp>, CallError> {
        let path = path_of(&arguments.path)?;
        let Ok(evidence) = serde_json::from_value::<Evidence>(evidence) else {
            return Ok(None);
        };
        let now = match root.digest_of(&path) {
            Ok(digest) => digest,
            // The file was removed or replaced by something else since.
            Err(FileError::Io { op, path, source }) => {
                return Err(FileError::Io { op, path, source }.into());
            }
            Err(_) => return Ok(None),
        };
        // Checked first: if `old` equals `new`, both digests are the same, and nothing is left to do.
        if now == evidence.after {
            let result = json!({"path": path, "replaced": evidence.replaced});
            return Ok(Some(LookedUp::Done(result)));
        }
        Ok((now == evidence.before).then_some(LookedUp::NotDone))
    }
}
