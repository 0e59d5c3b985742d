//! The command line.
//!
//! Commands are of three kinds. `serve`, `config`, `demo` and `selftest` are the server. `keys`, `users`, `teams`, `backup`,
//! `restore` and `doctor` work on the server's own machine, on its data directory ([`crate::admin`]). `agents`, `builds`,
//! `connections`, `runs`, `sandboxes` and `webhooks` go through the API ([`crate::client`]), with `ERRAND_API_KEY` and `ERRAND_URL`; `runs repair` and
//! `webhooks secret` alone work on the data directory.
//!
//! Promised: results on standard output, everything else on standard error ([`out`]); with `--json` the API's own JSON;
//! exit code 0 where it went well, 1 where it did not, with the whole chain of causes, 2 where the command line itself
//! is wrong.

pub mod out;

mod agents;
mod answers;
mod assignment;
mod backup;
mod builds;
mod config;
mod connections;
mod demo;
mod doctor;
mod follow;
mod keys;
mod logging;
mod many_runs;
mod repair;
mod runs;
mod sandbox;
mod sandboxes;
mod secrets;
mod selftest;
mod serve;
mod teams;
mod terminal;
#[cfg(test)]
mod tests;
mod transcript;
mod users;
mod webhooks;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use errand_core::warning::Warning;

use crate::client::Client;
use crate::config::{self as settings, Config, Flags};
use out::{Out, Style, printable};

/// Where a server is looked for, unless `ERRAND_URL` or `--url` says otherwise.
const URL_DEFAULT: &str = "http://127.0.0.1:8700";

/// Runs AI assignments for other programs.
#[derive(Debug, Parser)]
#[command(name = "errand", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// Print JSON for programs in place of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server
    Serve(serve::Args),
    /// Show a whole run in one command: server, files, approval, webhook, result
    Demo(demo::Args),
    /// Kill a server of its own again and again under load, and check that nothing is lost or done twice
    Selftest(selftest::Args),
    /// List every setting with its value, origin, default and unit
    Config(Flags),
    /// Copy everything that the server keeps into a new directory, on the server's machine
    ///
    /// The server may be at work, and goes on; it makes the backup itself, so that its user must be able to write to DIR.
    /// Rows and files are of one point in time. The master key is left out: keep a copy of it somewhere else.
    /// docs/backup.md says how to schedule backups.
    Backup(backup::BackupArgs),
    /// Make a data directory out of a backup, on the server's machine
    ///
    /// All of the backup is verified first. The data directory must not exist, or hold nothing but master.key. Runs go on
    /// from the point in time of the backup; docs/backup.md says what that means for what happened since.
    Restore(backup::RestoreArgs),
    /// Look whether the server can do its work, on the server's machine
    Doctor(doctor::Args),
    /// Make, list and delete API keys, on the server's machine
    #[command(subcommand)]
    Keys(keys::Command),
    /// Let people in and shut them out, on the server's machine
    #[command(subcommand)]
    Users(users::Command),
    /// Make, list and rename teams, on the server's machine
    #[command(subcommand)]
    Teams(teams::Command),
    /// Webhooks of the team, their deliveries and their secret
    #[command(subcommand)]
    Webhooks(webhooks::Command),
    /// Replace the key that secrets are sealed under, on the server's machine
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Create, list and delete agents
    #[command(subcommand)]
    Agents(agents::Command),
    /// Create, list and promote an agent's builds
    #[command(subcommand)]
    Builds(builds::Command),
    /// Show the team's connections, and say which of their tools are trusted
    #[command(subcommand)]
    Connections(connections::Command),
    /// Start runs, follow them, answer what they ask
    #[command(subcommand)]
    Runs(runs::Command),
    /// What commands find in their sandboxes, on the server's machine
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    /// Put files into sandboxes and get them out
    #[command(subcommand)]
    Sandboxes(sandboxes::Command),
}

/// For commands on the server's machine: which server.
#[derive(Clone, Debug, Default, Args)]
struct Place {
    /// Directory that holds everything the server keeps [default: ./errand-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Settings file [default: errand.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// For commands that go through the API: which server.
#[derive(Clone, Debug, Default, Args)]
struct Remote {
    /// The server's address [default: ERRAND_URL, else http://127.0.0.1:8700]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// What a command works with beside its arguments.
struct Surroundings {
    out: Out,
    /// The variables whose names begin with `ERRAND_`.
    env: BTreeMap<String, String>,
}

impl Surroundings {
    fn settings(&self, flags: &Flags) -> Result<Config> {
        let file = settings::read_file(flags, &self.env).context("the settings are wrong")?;
        settings::load(flags, &self.env, file.as_ref()).context("the settings are wrong")
    }

    fn settings_of(&self, place: &Place) -> Result<Config> {
        let Place { data_dir, config } = place.clone();
        self.settings(&Flags {
            listen: None,
            data_dir,
            config,
        })
    }

    fn client(&self, remote: &Remote) -> Result<Client> {
        let set = |name: &str| {
            self.env
                .get(name)
                .filter(|value| !value.is_empty())
                .map(String::as_str)
        };
        let url = remote
            .url
            .as_deref()
            .or_else(|| set("ERRAND_URL"))
            .unwrap_or(URL_DEFAULT);
        let key = set("ERRAND_API_KEY").context(
            "ERRAND_API_KEY is not set; on the server's machine, \
             `export ERRAND_API_KEY=$(errand keys create --name NAME)` makes a key",
        )?;
        Ok(Client::new(url, key)?)
    }
}

/// Does what the command line asks for. What went wrong has been printed when this returns.
///
/// # Errors
/// [`Failed`], where it did not go well.
pub fn run(cli: Cli) -> Result<(), Failed> {
    let out = Out::new(cli.json);
    let result = settings::environment(std::env::vars_os())
        .context("the settings are wrong")
        .and_then(|env| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build();
            let runtime = runtime.context("the program's threads cannot be started")?;
            let surroundings = Surroundings { out, env };
            let result = runtime.block_on(Box::pin(dispatch(cli.command, &surroundings)));
            // A thread that reads from a terminal cannot be ended; nobody waits for it.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => Ok(()),
        // Whoever read the output has enough of it, as `head` does.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        Err(error) => {
            Out::new(cli.json).error(error.as_ref());
            Err(Failed)
        }
    }
}

/// It did not go well, and that has been said.
#[derive(Debug)]
pub struct Failed;

impl From<Failed> for std::process::ExitCode {
    fn from(_: Failed) -> Self {
        Self::FAILURE
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn dispatch(command: Command, with: &Surroundings) -> Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args, with).await,
        Command::Demo(args) => demo::run(&args, with).await,
        Command::Selftest(args) => selftest::run(&args, with).await,
        Command::Config(flags) => config::run(&flags, with),
        Command::Backup(args) => backup::back_up(&args, with).await,
        Command::Restore(args) => backup::bring_back(&args, with).await,
        Command::Doctor(args) => doctor::run(&args, with).await,
        Command::Keys(command) => keys::run(command, with).await,
        Command::Teams(command) => teams::run(command, with).await,
        Command::Users(command) => users::run(command, with).await,
        Command::Webhooks(command) => webhooks::run(command, with).await,
        Command::Secrets(command) => secrets::run(&command, with).await,
        Command::Agents(command) => agents::run(command, with).await,
        Command::Builds(command) => builds::run(command, with).await,
        Command::Connections(command) => connections::run(command, with).await,
        Command::Runs(command) => runs::run(command, with).await,
        Command::Sandbox(command) => sandbox::run(&command, with).await,
        Command::Sandboxes(command) => sandboxes::run(command, with).await,
    }
}

/// Prints on standard error what the server warns of.
fn warn(with: &Surroundings, warnings: &[Warning]) -> Result<()> {
    for warning in warnings {
        let text = format!("{}: {}", warning.path, warning.message);
        let label = with.out.paint_note(Style::Yellow, "warning:");
        with.out.note(&format!("{label} {}", printable(&text)))?;
    }
    Ok(())
}

/// Refuses an answer that is not of the request's kind, which the same program on both sides never gives.
fn strange_answer() -> anyhow::Error {
    anyhow::anyhow!("the server gave another answer than was asked for; is it of this version?")
}
