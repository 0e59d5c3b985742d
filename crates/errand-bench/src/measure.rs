//! The measures, one file each, with their goals as constants.

mod cold_start;
mod commands;
mod commits;
mod history;
mod idle;
mod model_steps;
mod pages;
mod streams;
mod throughput;
mod transcript;
mod uploads;
mod waiting;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use tempfile::TempDir;

use crate::disk::Disk;
use crate::http::Client;
use crate::line::{Measured, Outcome};
use crate::server::Server;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// From the start of the process to the first 200 of /readyz
    ColdStart,
    /// Memory of a server that has nothing to do
    Idle,
    /// Durable steps per second, measured on the store itself
    Commits,
    /// Runs per second through the API, and how long one takes
    Throughput,
    /// Runs per second with a million finished runs in the store
    History,
    /// A million waiting runs: memory, start, lateness of timers
    Waiting,
    /// Cost of a step, and of a page, at 10,000 messages
    Transcript,
    /// Cost of a step with a network model, at 50, 200 and 800 messages
    ModelSteps,
    /// Time of the web interface's pages with 10,000 runs, and of a run's page with 2,000 messages
    Pages,
    /// A thousand open event streams
    Streams,
    /// An upload of 5 GiB
    Uploads,
    /// Cost of isolation for a command, and fifty sandboxes at once
    Commands,
}

impl Measure {
    /// Its name, as in `--only`.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// Description of the method, for the report.
    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::ColdStart => cold_start::METHOD,
            Self::Idle => idle::METHOD,
            Self::Commits => commits::METHOD,
            Self::Throughput => throughput::METHOD,
            Self::History => history::METHOD,
            Self::Waiting => waiting::METHOD,
            Self::Transcript => transcript::METHOD,
            Self::ModelSteps => model_steps::METHOD,
            Self::Pages => pages::METHOD,
            Self::Streams => streams::METHOD,
            Self::Uploads => uploads::METHOD,
            Self::Commands => commands::METHOD,
        }
    }

    pub(crate) async fn take(self, bench: &Bench) -> Result<Measured> {
        let outcome = self.outcome(bench).await?;
        Ok(Measured {
            measure: self.name(),
            quick: bench.quick,
            outcome,
        })
    }

    async fn outcome(self, bench: &Bench) -> Result<Outcome> {
        match self {
            Self::ColdStart => cold_start::measure(bench).await,
            Self::Idle => idle::measure(bench).await,
            Self::Commits => commits::measure(bench).await,
            Self::Throughput => throughput::measure(bench).await,
            Self::History => history::measure(bench).await,
            Self::Waiting => waiting::measure(bench).await,
            Self::Transcript => transcript::measure(bench).await,
            Self::ModelSteps => model_steps::measure(bench).await,
            Self::Pages => pages::measure(bench).await,
            Self::Streams => streams::measure(bench).await,
            Self::Uploads => uploads::measure(bench).await,
            Self::Commands => commands::measure(bench).await,
        }
    }
}

/// Parameters of every measure.
pub(crate) struct Bench {
    pub(crate) binary: PathBuf,
    /// Directory for temporary directories.
    pub(crate) dir: PathBuf,
    /// Whether to measure with small numbers, only to check that it works.
    pub(crate) quick: bool,
}

impl Bench {
    /// The full number, or the small one for a quick measure.
    pub(crate) fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Creates a directory that is removed when the value is dropped.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new()
            .prefix("errand-bench-")
            .tempdir_in(&self.dir)?)
    }

    /// Measures the disk.
    pub(crate) fn disk(&self) -> Result<Disk> {
        let scratch = self.scratch()?;
        Disk::measure(scratch.path(), self.quick)
    }

    /// Starts a server on a directory.
    pub(crate) async fn serve(&self, dir: &Path) -> Result<Server> {
        Server::start(&self.binary, dir).await
    }

    /// Starts a server on a new directory, and connects with a new API key.
    pub(crate) async fn first(&self, dir: &Path) -> Result<(Server, String, Client)> {
        let server = self.serve(dir).await?;
        let key = server.create_key(&self.binary, dir).await?;
        let client = Client::connect(server.address, &key).await?;
        Ok((server, key, client))
    }
}
