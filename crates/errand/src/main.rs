//! The program `errand`.

use std::process::ExitCode;

use clap::Parser as _;
use errand::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => failed.into(),
    }
}
