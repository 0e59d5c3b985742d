//! The program `errand`.

use std::process::ExitCode;

use clap::Parser as _;
use errand::cli::{self, Cli};

fn main() -> ExitCode {
    // This must run first, while there is only one thread.
    if let Some(ended) = errand_sandbox::exec::run_helper(std::env::args_os()) {
        return ended;
    }
    if let Some(ended) = errand_engine::parse::run_parser(std::env::args_os()) {
        return ended;
    }
    if let Some(ended) = errand_engine::evaluate::run_evaluator(std::env::args_os()) {
        return ended;
    }
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => failed.into(),
    }
}
