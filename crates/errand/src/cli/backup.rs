//! `errand backup` and `errand restore`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use errand_store::seal::MasterKey;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::out::{Out, Style};
use super::{CommandContext, LocalServer, unexpected_response};
use crate::admin::reach;
use crate::admin::{AdminAnswer, BackupLine};
use crate::backup::{Manifest, Progress, ProgressLine, restore, verify};
use crate::config::Config;

/// Interval between updates of the progress line.
const UPDATE_INTERVAL: Duration = Duration::from_millis(250);
const MIB: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// New or empty directory for the backup
    dir: PathBuf,
    #[command(flatten)]
    place: LocalServer,
}

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// Directory of the backup
    dir: PathBuf,
    /// Only verify the backup
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    place: LocalServer,
}

/// Progress line on a terminal; hidden if standard error is not one.
struct ProgressNote(ProgressBar);

impl ProgressNote {
    fn begin(out: &Out) -> Result<Self> {
        let bar = if out.is_watched() {
            ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?)
        } else {
            ProgressBar::hidden()
        };
        bar.enable_steady_tick(UPDATE_INTERVAL);
        Ok(Self(bar))
    }

    fn say(&self, line: &ProgressLine) {
        let ProgressLine {
            pages,
            pages_all,
            files,
            files_all,
            bytes,
        } = *line;
        let mib = bytes / MIB;
        self.0.set_message(if files_all > 0 {
            format!("{files} of {files_all} archives, {mib} MiB")
        } else {
            let percent = pages.saturating_mul(100).checked_div(pages_all);
            format!("database: {}%", percent.unwrap_or(0))
        });
    }
}

impl Drop for ProgressNote {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub(super) async fn back_up(args: &BackupArgs, with: &CommandContext) -> Result<()> {
    let config = with.settings_of(&args.place)?;
    let dir = std::path::absolute(&args.dir).context("the path cannot be resolved")?;
    let note = ProgressNote::begin(&with.out)?;
    let answer = reach::back_up(&config, &dir, &|line| note.say(line)).await?;
    drop(note);
    let AdminAnswer::BackedUp { backup } = answer else {
        return Err(unexpected_response());
    };
    print_backup(&backup, &with.out)
}

fn print_backup(backup: &BackupLine, out: &Out) -> Result<()> {
    if out.json() {
        return Ok(out.json_value(backup)?);
    }
    out.line(&format!(
        "The backup in {} is complete: the state of {}, {} sandboxes with files, {} MiB.",
        backup.dir.display(),
        backup.taken_at,
        backup.sandboxes,
        backup.bytes.div_ceil(MIB)
    ))?;
    out.note(&key_needed(&backup.master_key_ids))?;
    if !backup.command_was_running.is_empty() {
        let ids = backup.command_was_running.join(", ");
        out.note(&out.paint_note(Style::Yellow, &format!(
            "Long-running commands were still active while the files of these sandboxes were saved: {ids}. After a restore, \
             their runs learn that the command's outcome is unknown."
        )))?;
    }
    if backup.left_out > 0 {
        out.note(&format!(
            "{} entries in sandboxes were skipped: pipes, sockets, devices, unfinished writes, or paths that are too long.",
            backup.left_out
        ))?;
    }
    Ok(())
}

fn key_needed(ids: &[String]) -> String {
    match ids {
        [] => "It contains no secrets, so no master key is needed.".to_owned(),
        ids => format!(
            "The master key ({}) is NOT in the backup. Keep a copy of it somewhere else: without it, the secrets \
             in the backup cannot be decrypted.",
            ids.join(", ")
        ),
    }
}

pub(super) async fn restore_backup(args: &RestoreArgs, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let config = with.settings_of(&args.place)?;
    let (from, to) = (args.dir.clone(), config.server.data_dir.clone());
    let (progress, only_check) = (Arc::new(Progress::default()), args.check);
    let work = {
        let (progress, to) = (Arc::clone(&progress), to.clone());
        tokio::task::spawn_blocking(move || {
            if only_check {
                verify(&from, &progress)
            } else {
                restore(&from, &to, &progress).map(|restored| restored.manifest)
            }
        })
    };
    tokio::pin!(work);
    let note = ProgressNote::begin(out)?;
    let manifest = loop {
        tokio::select! {
            done = &mut work => break done.context("the operation was interrupted")??,
            () = tokio::time::sleep(UPDATE_INTERVAL) => note.say(&progress.line()),
        }
    };
    drop(note);
    let key = key_of(&config);
    if out.json() {
        return Ok(out.json_value(&json!({
            "checked": true,
            "restored": !only_check,
            "data_dir": to,
            "taken_at": manifest.taken_at,
            "schema": manifest.schema,
            "master_key_ids": manifest.master_key_ids,
            "master_key_fits": fits(key.as_deref(), &manifest),
        }))?);
    }
    if only_check {
        out.line(&format!(
            "The backup in {} is complete and unchanged: the state of {}.",
            args.dir.display(),
            manifest.taken_at
        ))?;
        return Ok(out.note(&key_needed(&manifest.master_key_ids))?);
    }
    print_restored(&to, key.as_deref(), &manifest, out)
}

fn print_restored(to: &Path, key: Option<&str>, manifest: &Manifest, out: &Out) -> Result<()> {
    out.line(&format!(
        "{} now contains the state of {}.",
        to.display(),
        manifest.taken_at
    ))?;
    let ids = manifest.master_key_ids.join(", ");
    let next = match fits(key, manifest) {
        _ if manifest.master_key_ids.is_empty() => {
            "Start the server with `errand serve`.".to_owned()
        }
        true => "The master key matches. Start the server with `errand serve`.".to_owned(),
        false => format!(
            "Before you start the server, put the master key {ids} in {}, with mode 0600, or in ERRAND_MASTER_KEY{}.",
            to.join("master.key").display(),
            key.map_or_else(String::new, |found| format!(
                " (the present key, {found}, does not match)"
            ))
        ),
    };
    out.note(&next)?;
    out.note(
        "When the server starts, active runs continue from that point in time. They do not know what they did in the outside \
         world since then and may do it again, and webhooks may be sent again with the same webhook-id. API keys, users and \
         sessions are also as they were. See docs/backup.md.",
    )?;
    Ok(())
}

/// The ID of the present master key, without creating a key.
fn key_of(config: &Config) -> Option<String> {
    if let Some(key) = crate::app::master_key_of(config) {
        return Some(key.id());
    }
    let text = std::fs::read_to_string(config.server.data_dir.join("master.key")).ok()?;
    MasterKey::from_text(&text).ok().map(|key| key.id())
}

fn fits(key: Option<&str>, manifest: &Manifest) -> bool {
    let ids = &manifest.master_key_ids;
    ids.is_empty() || key.is_some_and(|key| ids.iter().any(|id| id == key))
}
