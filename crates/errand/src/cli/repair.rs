//! `errand runs repair`: sets a damaged or stuck run right, on the server's machine.

use anyhow::Result;
use clap::ArgGroup;

use super::{Place, Surroundings, strange_answer};
use crate::admin::{AdminAnswer, AdminRequest, RepairWay, reach};

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("way").args(["resume", "fail", "fork"])))]
pub(super) struct Args {
    /// The run's id
    run: String,
    /// Take it from its driver and let it go on with what its transcript says; retries a failed run [default]
    #[arg(long)]
    resume: bool,
    /// End it as failed, whatever its rows are like
    #[arg(long)]
    fail: bool,
    /// Leave it, and let a new run go on with what can be read of it; prints the new run's id
    #[arg(long)]
    fork: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) async fn run(args: Args, with: &Surroundings) -> Result<()> {
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
        _ => return Err(strange_answer()),
    }
    Ok(())
}
