//! The command line.
//!
//! There are three kinds of commands:
//! - `serve`, `config`, `demo` and `selftest` run a server or describe its settings.
//! - `keys`, `users`, `teams`, `secrets`, `backup`, `restore` and `doctor` work on the server's machine, with its data
//!   directory ([`crate::admin`]).
//! - `agents`, `builds`, `connections`, `runs`, `sandboxes` and `webhooks` use the API ([`errand_client`]), with
//!   `ERRAND_API_KEY` and `ERRAND_URL`. Exceptions are `runs repair` and `webhooks secret`, which work with the data
//!   directory.
//!
//! Guarantees: results go to standard output, everything else to standard error ([`out`]). With `--json`, results are
//! the API's own JSON. The exit code is 0 on success, 1 on failure (the whole chain of causes is printed), and 2 if the
//! command line is invalid.

pub mod out;

mod agents;
mod answers;
mod api_error;
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
use errand_client::{Client, RetryPolicy, Warning};

use crate::config::{self as settings, Config, Flags};
use out::{Out, Style, display};

/// Base URL of the API, unless `ERRAND_URL` or `--url` sets another.
const URL_DEFAULT: &str = "http://127.0.0.1:8700";

/// Runs AI assignments for other programs.
#[derive(Debug, Parser)]
#[command(name = "errand", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server
    Serve(serve::Args),
    /// Show a complete run with one command: server, files, approval, webhook, result
    Demo(demo::Args),
    /// Test crash safety: kill a server repeatedly under load, and check that nothing is lost or done twice
    Selftest(selftest::Args),
    /// List all settings with value, source, default and unit
    Config(Flags),
    /// Back up all data of the server to a new directory (on the server's machine)
    ///
    /// The server can keep running. It writes the backup itself, so its user needs write access to DIR. Rows and files
    /// are from the same point in time. The master key is not included: keep a copy of it somewhere else.
    /// docs/backup.md explains how to schedule backups.
    Backup(backup::BackupArgs),
    /// Restore a backup to a data directory (on the server's machine)
    ///
    /// The whole backup is verified first. The data directory must not exist, or contain only master.key. Runs continue
    /// from the backup's point in time; docs/backup.md explains what that means for later actions.
    Restore(backup::RestoreArgs),
    /// Check the installation (on the server's machine)
    Doctor(doctor::Args),
    /// Create, list and delete API keys (on the server's machine)
    #[command(subcommand)]
    Keys(keys::Command),
    /// Manage users (on the server's machine)
    #[command(subcommand)]
    Users(users::Command),
    /// Create, list and rename teams (on the server's machine)
    #[command(subcommand)]
    Teams(teams::Command),
    /// Manage the team's webhooks, deliveries and signing secret
    #[command(subcommand)]
    Webhooks(webhooks::Command),
    /// Replace the key that encrypts secrets (on the server's machine)
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Create, list and delete agents
    #[command(subcommand)]
    Agents(agents::Command),
    /// Create, list and promote an agent's builds
    #[command(subcommand)]
    Builds(builds::Command),
    /// Show the team's connections, and set which of their tools are trusted
    #[command(subcommand)]
    Connections(connections::Command),
    /// Start runs, follow them, and answer their requests
    #[command(subcommand)]
    Runs(runs::Command),
    /// Upload and download files of sandboxes
    #[command(subcommand)]
    Sandboxes(sandboxes::Command),
}

/// Selects a server on this machine.
#[derive(Clone, Debug, Default, Args)]
struct LocalServer {
    /// Directory with all data of the server [default: ./errand-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Settings file [default: errand.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Selects a server by its API.
#[derive(Clone, Debug, Default, Args)]
struct RemoteServer {
    /// Base URL of the server [default: ERRAND_URL, or http://127.0.0.1:8700]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// What a command works with besides its arguments.
struct CommandContext {
    out: Out,
    /// Environment variables whose names begin with `ERRAND_`.
    env: BTreeMap<String, String>,
}

impl CommandContext {
    fn settings(&self, flags: &Flags) -> Result<Config> {
        let file = settings::read_file(flags, &self.env).context("invalid settings")?;
        settings::load(flags, &self.env, file.as_ref()).context("invalid settings")
    }

    fn settings_of(&self, place: &LocalServer) -> Result<Config> {
        let LocalServer { data_dir, config } = place.clone();
        self.settings(&Flags {
            listen: None,
            data_dir,
            config,
        })
    }

    fn client(&self, remote: &RemoteServer) -> Result<Client> {
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
        Ok(api_client(url, key)?)
    }
}

/// Calls are not repeated: a person sees an error at once, and repeats the command if that helps.
fn api_client(url: &str, key: &str) -> Result<Client, errand_client::Error> {
    Client::builder(url, key)
        .retry(RetryPolicy::never())
        .user_agent(concat!("errand/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Runs the command line. Errors have been printed when this returns.
///
/// # Errors
/// [`Failed`] if the command failed.
pub fn run(cli: Cli) -> Result<(), Failed> {
    let out = Out::new(cli.json);
    let result = settings::environment(std::env::vars_os())
        .context("invalid settings")
        .and_then(|env| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build();
            let runtime = runtime.context("the program's threads cannot be started")?;
            let surroundings = CommandContext { out, env };
            let result = runtime.block_on(Box::pin(dispatch(cli.command, &surroundings)));
            // A thread that is blocked reading from the terminal cannot be ended, so do not wait for it.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => Ok(()),
        // The reader of the output has closed it, like `head` does.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        Err(error) => {
            let text = api_error::chain_with_advice(error.as_ref());
            Out::new(cli.json).error(&text);
            Err(Failed)
        }
    }
}

/// The command failed, and the error was already printed.
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

async fn dispatch(command: Command, with: &CommandContext) -> Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args, with).await,
        Command::Demo(args) => demo::run(&args, with).await,
        Command::Selftest(args) => selftest::run(&args, with).await,
        Command::Config(flags) => config::run(&flags, with),
        Command::Backup(args) => backup::back_up(&args, with).await,
        Command::Restore(args) => backup::restore_backup(&args, with).await,
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
        Command::Sandboxes(command) => sandboxes::run(command, with).await,
    }
}

/// Prints the warnings about settings to standard error.
fn warn(with: &CommandContext, warnings: &[Warning]) -> Result<()> {
    for warning in warnings {
        let text = format!("{}: {}", warning.path, warning.message);
        let label = with.out.paint_note(Style::Yellow, "warning:");
        with.out.note(&format!("{label} {}", display(&text)))?;
    }
    Ok(())
}

/// The response has the wrong type for the request. Only another version of the server returns one.
fn unexpected_response() -> anyhow::Error {
    anyhow::anyhow!("the server gave another answer than was asked for; is it of this version?")
}
