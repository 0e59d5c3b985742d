//! The measures: each in a file of its own, with its goals as data.

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

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// From the start of the process to the first 200 of /readyz
    ColdStart,
    /// Memory of a server that has nothing to do
    Idle,
    /// Durable steps a second, on the store itself
    Commits,
    /// Runs a second through the API, and how long one takes
    Throughput,
    /// The same with a million finished runs in the store
    History,
    /// A million runs that wait: memory, start, how late timers are
    Waiting,
    /// Cost of a step, and of a page, at 10,000 messages
    Transcript,
    /// Cost of a step of a model on the network, at 50, 200 and 800 messages
    ModelSteps,
    /// How long the web interface's pages take with 10,000 runs, and a run's with 2,000 messages
    Pages,
    /// A thousand open streams of events
    Streams,
    /// An upload of 5 GiB
    Uploads,
    /// What isolation costs a command, and fifty sandboxes at once
    Commands,
}

impl Measure {
    /// As `--only` takes it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// How it is measured, for the report.
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

/// What every measure is given.
pub(crate) struct Bench {
    /// The program to measure.
    pub(crate) binary: PathBuf,
    /// Where temporary directories are made.
    pub(crate) dir: PathBuf,
    /// Small: only to see that it works.
    pub(crate) quick: bool,
}

impl Bench {
    /// The full number, or the small one.
    pub(crate) fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// A directory that goes with its value.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new()
            .prefix("errand-bench-")
            .tempdir_in(&self.dir)?)
    }

    /// The disk as it is now.
    pub(crate) fn disk(&self) -> Result<Disk> {
        let scratch = self.scratch()?;
        Disk::measure(scratch.path(), self.quick)
    }

    /// A server on a directory.
    pub(crate) async fn serve(&self, dir: &Path) -> Result<Server> {
        Server::start(&self.binary, dir).await
    }

    /// A server on a new directory, with a key and a connection that has it.
    pub(crate) async fn first(&self, dir: &Path) -> Result<(Server, String, Client)> {
        let server = self.serve(dir).await?;
        let key = server.create_key(&self.binary, dir).await?;
        let client = Client::connect(server.address, &key).await?;
        Ok((server, key, client))
    }
}
