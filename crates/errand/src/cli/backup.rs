//! `errand backup` and `errand restore`: a data directory to another place, and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use errand_store::seal::MasterKey;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::out::{Out, Style};
use super::{Place, Surroundings, strange_answer};
use crate::admin::reach;
use crate::admin::{AdminAnswer, BackupLine};
use crate::backup::{Manifest, Progress, ProgressLine, restore, verify};
use crate::config::Config;

/// How often a terminal is told how far it has come.
const TOLD_EVERY: Duration = Duration::from_millis(250);
const MIB: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// Where the backup will be; nothing may be in it
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// The backup
    dir: PathBuf,
    /// Only verify the backup
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    place: Place,
}

/// A line on the terminal that says how far it has come; nothing where nobody watches.
struct Told(ProgressBar);

impl Told {
    fn begin(out: &Out) -> Result<Self> {
        let bar = if out.is_watched() {
            ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?)
        } else {
            ProgressBar::hidden()
        };
        bar.enable_steady_tick(TOLD_EVERY);
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
            format!("database: {} %", percent.unwrap_or(0))
        });
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub(super) async fn back_up(args: &BackupArgs, with: &Surroundings) -> Result<()> {
    let config = with.settings_of(&args.place)?;
    let dir = std::path::absolute(&args.dir).context("where is that?")?;
    let told = Told::begin(&with.out)?;
    let answer = reach::back_up(&config, &dir, &|line| told.say(line)).await?;
    drop(told);
    let AdminAnswer::BackedUp { backup } = answer else {
        return Err(strange_answer());
    };
    tell_backup(&backup, &with.out)
}

fn tell_backup(backup: &BackupLine, out: &Out) -> Result<()> {
    if out.json() {
        return Ok(out.json_value(backup)?);
    }
    out.line(&format!(
        "The backup in {} is whole: everything as it was at {}, {} sandboxes with files, {} MiB.",
        backup.dir.display(),
        backup.taken_at,
        backup.sandboxes,
        backup.bytes.div_ceil(MIB)
    ))?;
    out.note(&key_needed(&backup.master_key_ids))?;
    if !backup.command_was_running.is_empty() {
        let ids = backup.command_was_running.join(", ");
        out.note(&out.paint_note(Style::Yellow, &format!(
            "Commands were running for so long that the files of these sandboxes were saved meanwhile: {ids}. A restore \
             tells their runs that the command's outcome is unknown."
        )))?;
    }
    if backup.left_out > 0 {
        out.note(&format!(
            "{} things in sandboxes were left out: pipes, sockets, devices, unfinished writes, or paths that are too long.",
            backup.left_out
        ))?;
    }
    Ok(())
}

fn key_needed(ids: &[String]) -> String {
    match ids {
        [] => "No secret is in it, so that no master key is needed.".to_owned(),
        ids => format!(
            "The master key ({}) is NOT in the backup. Keep a copy of it somewhere else: without it nobody can open the \
             secrets in the backup.",
            ids.join(", ")
        ),
    }
}

pub(super) async fn bring_back(args: &RestoreArgs, with: &Surroundings) -> Result<()> {
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
    let told = Told::begin(out)?;
    let manifest = loop {
        tokio::select! {
            done = &mut work => break done.context("it was cut off")??,
            () = tokio::time::sleep(TOLD_EVERY) => told.say(&progress.line()),
        }
    };
    drop(told);
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
            "The backup in {} is whole and unchanged: everything as it was at {}.",
            args.dir.display(),
            manifest.taken_at
        ))?;
        return Ok(out.note(&key_needed(&manifest.master_key_ids))?);
    }
    tell_restored(&to, key.as_deref(), &manifest, out)
}

fn tell_restored(to: &Path, key: Option<&str>, manifest: &Manifest, out: &Out) -> Result<()> {
    out.line(&format!(
        "{} holds everything as it was at {}.",
        to.display(),
        manifest.taken_at
    ))?;
    let ids = manifest.master_key_ids.join(", ");
    let next = match fits(key, manifest) {
        _ if manifest.master_key_ids.is_empty() => {
            "Start the server with `errand serve`.".to_owned()
        }
        true => "The master key fits. Start the server with `errand serve`.".to_owned(),
        false => format!(
            "Before you start the server: put the master key {ids} into {}, with mode 0600, or into ERRAND_MASTER_KEY{}.",
            to.join("master.key").display(),
            key.map_or_else(String::new, |found| format!(
                " (the one that is there, {found}, is another)"
            ))
        ),
    };
    out.note(&next)?;
    out.note(
        "Runs that had not ended go on from that moment when the server starts: what they did outside since then is not \
         known to them and may be done again, and webhooks may be sent again under the same webhook-id. Keys, people and \
         sessions are as they were, too. docs/backup.md says more.",
    )?;
    Ok(())
}

/// The id of the master key that a server on the data directory would have, without making one.
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
