//! File access of a model's turn: the initial list of files, the full text of cut results, and images.
//!
//! # Guarantees
//!
//! - Nothing here fails a turn. If a file cannot be written, the tool that later reads it reports that to the model.
//! - An image whose file was changed since the tool call is not shown.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use errand_core::display::one_line;
use errand_core::ledger::OPENING;
use errand_core::limits::IMAGE_BYTES_MAX;
use errand_core::path::SandboxPath;
use errand_sandbox::{FileError, Kind, Root, sha256_hex};

use super::conversation::{Conversation, Item};
use crate::sandboxes::Workspace;

/// Maximum number of files in the initial list.
const FILES_LISTED_MAX: usize = 200;
/// Maximum number of directories that are searched for the list.
const DIRECTORIES_MAX: usize = 200;
/// The engine's own directory, which the list leaves out.
const OWN: &str = ".errand";

async fn on_a_thread<R: Send + 'static>(
    workspace: Workspace,
    work: impl FnOnce(&Root) -> Result<R, FileError> + Send + 'static,
) -> Option<R> {
    let done = tokio::task::spawn_blocking(move || work(workspace.root()?)).await;
    match done {
        Ok(Ok(result)) => Some(result),
        Ok(Err(error)) => {
            // The error's message names the file, so only its source is logged.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(
                cause,
                "a file for a model's turn could not be read or written"
            );
            None
        }
        Err(error) => {
            tracing::error!(%error, "the thread for a turn's files panicked");
            None
        }
    }
}

/// The user message with which a run without a message begins.
pub(super) async fn opening(workspace: Option<Workspace>) -> String {
    let files = match workspace {
        Some(workspace) => on_a_thread(workspace, list).await,
        None => None,
    };
    match files {
        Some(files) if !files.is_empty() => {
            format!("{OPENING}\n\nFiles in /workspace:\n{}", files.join("\n"))
        }
        _ => OPENING.to_owned(),
    }
}

fn list(root: &Root) -> Result<Vec<String>, FileError> {
    let mut lines = Vec::new();
    let mut directories = VecDeque::from([SandboxPath::root()]);
    let mut looked_into = 0;
    while let Some(directory) = directories.pop_front() {
        looked_into += 1;
        if looked_into > DIRECTORIES_MAX || lines.len() >= FILES_LISTED_MAX {
            lines.push("- … and more: list_files shows them".to_owned());
            break;
        }
        for entry in root.list(&directory)?.entries {
            match entry.kind {
                Kind::File => {
                    let path = one_line(&entry.path);
                    lines.push(format!("- {path} ({} bytes)", entry.size_bytes));
                }
                Kind::Dir if entry.name == OWN => {}
                Kind::Dir => directories.extend(SandboxPath::parse(&entry.path).ok()),
            }
        }
    }
    lines.truncate(FILES_LISTED_MAX + 1);
    Ok(lines)
}

/// Writes the full text of cut results to files, unless the files exist.
pub(super) async fn write_results(conversation: &mut Conversation, workspace: Option<&Workspace>) {
    let unwritten = std::mem::take(&mut conversation.unwritten);
    let Some(workspace) = workspace.filter(|_| !unwritten.is_empty()) else {
        return;
    };
    let write = move |root: &Root| {
        for (path, text) in unwritten {
            let Ok(path) = SandboxPath::parse(&path) else {
                continue;
            };
            let is_there = root
                .open_file(&path)
                .is_ok_and(|file| file.size_bytes == text.len() as u64);
            if !is_there {
                root.write(&path, text.as_bytes())?;
            }
        }
        Ok(())
    };
    on_a_thread(workspace.clone(), write).await;
}

/// Reads the images of tool results that were not read yet.
pub(super) async fn read_images(conversation: &mut Conversation, workspace: Option<&Workspace>) {
    if !std::mem::take(&mut conversation.unread_images) {
        return;
    }
    for item in &mut conversation.items {
        let Item::Answer(answer) = item else {
            continue;
        };
        let results = answer.calls.iter_mut().filter_map(|c| c.result.as_mut());
        for image in results.filter_map(|result| result.image.as_mut()) {
            if std::mem::replace(&mut image.was_read, true) {
                continue;
            }
            let (Some(workspace), Ok(path)) = (workspace, SandboxPath::parse(&image.path)) else {
                continue;
            };
            let digest = image.sha256.clone();
            let read = move |root: &Root| {
                let bytes = root.read(&path, 0, IMAGE_BYTES_MAX)?;
                Ok((sha256_hex(&bytes) == digest).then(|| STANDARD.encode(&bytes)))
            };
            let data = on_a_thread(workspace.clone(), read).await.flatten();
            image.data = data.map(Arc::from);
        }
    }
}
