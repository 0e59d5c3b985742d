//! `errand runs repair`: repairs a damaged or stuck run, on the server's machine.

use anyhow::Result;
use clap::ArgGroup;

use super::{CommandContext, LocalServer, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, RepairWay, reach};

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("way").args(["resume", "fail", "fork"])))]
pub(super) struct Args {
    /// ID of the run
    run: String,
    /// Release the run from its driver and continue it from its transcript; retries a failed run [default]
    #[arg(long)]
    resume: bool,
    /// End the run as failed, even if its rows cannot be read
    #[arg(long)]
    fail: bool,
    /// Leave the run unchanged, start a new run from the readable part of its transcript, and print the new ID
    #[arg(long)]
    fork: bool,
    #[command(flatten)]
    place: LocalServer,
}

pub(super) async fn run(args: Args, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let way = match (args.fail, args.fork) {
        (true, _) => RepairWay::Fail,
        (_, true) => RepairWay::Fork,
        _ => RepairWay::Resume,
    };
    let request = AdminRequest::Repair { run: args.run, way };
    match reach::execute(&with.settings_of(&args.place)?, request).await? {
        AdminAnswer::Repaired { repaired } if out.json() => out.json_value(&repaired)?,
        AdminAnswer::Repaired { repaired } => {
            out.note(&repaired.sentence)?;
            if way == RepairWay::Fork {
                out.line(&repaired.run_id)?;
            }
        }
        _ => return Err(unexpected_response()),
    }
    Ok(())
}
