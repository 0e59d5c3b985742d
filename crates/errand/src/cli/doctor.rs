//! `errand doctor`: checks whether the server can work on this machine and with this data.
//!
//! If a server is running, it examines the data itself. A directory with another schema version is not opened, because
//! that would migrate it.

use std::path::Path;

use anyhow::{Result, bail};
use errand_core::error_chain::error_chain;
use errand_store::data_dir::{DataDirError, damage, expect_store};
use errand_store::{Schema, Store};
use serde_json::json;

use super::out::Style;
use super::{CommandContext, LocalServer};
use crate::admin::reach::{self, ReachError};
use crate::admin::{AdminAnswer, AdminRequest};
use crate::config::{Config, warnings};
use crate::doctor::{Check, Level, isolation, machine};
use crate::isolation::OWN_PROGRAM;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: LocalServer,
}

pub(super) async fn run(args: &Args, with: &CommandContext) -> Result<()> {
    let checks = match with.settings_of(&args.place) {
        Ok(config) => {
            let mut checks = settings(&config);
            checks.extend(of_data(&config).await);
            let isolated = crate::isolation::settings(&config, OWN_PROGRAM.into());
            checks.extend(isolation(isolated).await);
            checks
        }
        Err(error) => vec![Check::problem(
            "settings",
            error_chain(error.as_ref()),
            "correct them; `errand config` lists all settings",
        )],
    };
    print(&checks, with)?;
    match checks
        .iter()
        .filter(|check| check.level == Level::Problem)
        .count()
    {
        0 => Ok(()),
        1 => bail!("1 problem found"),
        problems => bail!("{problems} problems found"),
    }
}

fn settings(config: &Config) -> Vec<Check> {
    let doubtful = warnings(config);
    if doubtful.is_empty() {
        return vec![Check::ok("settings", "valid, without warnings")];
    }
    let check =
        |warning: String| Check::warning("settings", warning, "follow the advice in the message");
    doubtful.into_iter().map(check).collect()
}

/// Checks the data directory, through the running server or directly, and the machine.
async fn of_data(config: &Config) -> Vec<Check> {
    let dir = &config.server.data_dir;
    if let Err(error) = expect_store(dir) {
        let mut checks = vec![Check::problem(
            "store",
            error_chain(&error),
            "follow the advice in the message; `errand doctor` must use the data directory that the server was started with",
        )];
        checks.extend(machine(dir).await);
        return checks;
    }
    let found = match Store::schema(dir) {
        Ok(Some(schema)) if schema.found == schema.known => {
            match reach::execute(config, AdminRequest::Doctor).await {
                Ok(AdminAnswer::Examined { checks }) => {
                    let mut all = vec![Check::ok(
                        "store",
                        format!("opens, with the schema of this version ({})", schema.known),
                    )];
                    all.extend(checks);
                    return all;
                }
                Ok(_) => Check::problem(
                    "server",
                    "returned an unexpected response",
                    "use the errand program of the server's version",
                ),
                Err(error) => not_reached(dir, &error),
            }
        }
        Ok(Some(schema)) => other_schema(schema),
        Ok(None) => Check::problem(
            "store",
            "its database errand.db was removed during this check",
            "run `errand doctor` again",
        ),
        Err(error) => {
            let said = error_chain(&error);
            match DataDirError::of_opening(dir, error) {
                DataDirError::Damaged { .. } => Check::damaged("store", &said),
                _ => Check::problem("store", said, "make sure that the file is readable"),
            }
        }
    };
    let mut checks = vec![found];
    checks.extend(machine(dir).await);
    checks
}

/// The store cannot be opened, or a server does not answer, for example because its database is damaged.
fn not_reached(dir: &Path, error: &ReachError) -> Check {
    let found = match error {
        ReachError::DataDir(DataDirError::Damaged { found, .. }) => Some(found.clone()),
        ReachError::Held(_) => damage(dir),
        _ => None,
    };
    match found {
        Some(found) => Check::damaged("database file", &found),
        None => Check::problem(
            "store",
            error_chain(error),
            "follow the advice in the message; if a server uses the directory, see its log",
        ),
    }
}

fn other_schema(schema: Schema) -> Check {
    let Schema { found, known } = schema;
    if found > known {
        return Check::problem(
            "store",
            format!(
                "written by a newer version of errand: its schema is {found}, and this program knows {known}"
            ),
            "use that version of errand, or restore an earlier backup",
        );
    }
    Check::warning(
        "store",
        format!(
            "written by an older version of errand: its schema is {found}, and the next start upgrades it to {known}"
        ),
        "make a backup (`errand backup DIR`) before you start this version",
    )
}

fn print(checks: &[Check], with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let count = |level| checks.iter().filter(|check| check.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    if out.json() {
        out.json_value(&json!({ "checks": checks, "problems": problems, "warnings": warnings }))?;
        return Ok(());
    }
    out.table(
        &["check", "level", "found"],
        checks.iter().map(|check| {
            [
                check.check.clone(),
                check.level.as_str().to_owned(),
                check.found.clone(),
            ]
        }),
    )?;
    for check in checks {
        let Some(advice) = &check.advice else {
            continue;
        };
        let style = if check.level == Level::Problem {
            Style::Red
        } else {
            Style::Yellow
        };
        let what = out.paint_note(style, &format!("{}:", check.check));
        out.note(&format!("{what} {}", super::out::display(advice)))?;
    }
    Ok(())
}
