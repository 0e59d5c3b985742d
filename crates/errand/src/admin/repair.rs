//! Repairs damaged or stuck runs of any team, for an operator.

use std::str::FromStr as _;

use errand_core::id::RunId;
use errand_core::run::{RunSource, Status, WaitReason};
use errand_core::time::Timestamp;
use errand_store::{Fork, Forked, Repaired, StoreError};
use serde::{Deserialize, Serialize};

use super::{Admin, AdminAnswer, AdminError};

/// The way in which a run is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairWay {
    /// The run continues according to its transcript.
    Resume,
    /// The run ends as failed.
    Fail,
    /// The run is not changed. A new run continues with the readable part of its transcript.
    Fork,
}

/// The result of a repair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairLine {
    /// The repaired run; for a fork, the new run.
    pub run_id: String,
    /// The current status.
    pub status: Status,
    /// The reason for waiting, as in `waiting_on.kind`. `None` if the run has ended.
    pub waits_for: Option<String>,
    /// A sentence about what was done.
    pub sentence: String,
}

impl Admin {
    /// Queues a failed run again, even a parked one.
    pub(super) async fn retry(&self, run: &str, now: Timestamp) -> Result<AdminAnswer, AdminError> {
        let id = RunId::from_str(run).map_err(|bad| AdminError::Bad(bad.to_string()))?;
        match self.store.retry_by_operator(id, now).await {
            Ok(status) => Ok(AdminAnswer::Repaired {
                repaired: RepairLine {
                    run_id: id.to_string(),
                    status,
                    waits_for: None,
                    sentence: "The run continues from the step that failed.".to_owned(),
                },
            }),
            Err(StoreError::NotFound) => Err(no_run(id)),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn repair(
        &self,
        run: &str,
        way: RepairWay,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        let id = RunId::from_str(run).map_err(|bad| AdminError::Bad(bad.to_string()))?;
        let repaired = match way {
            RepairWay::Resume => {
                let repaired = self.store.repair_resume(id, now).await;
                repaired.map(|repaired| line(id, resumed(&repaired), repaired))
            }
            RepairWay::Fail => {
                let repaired = self.store.repair_fail(id, now).await;
                repaired.map(|repaired| line(id, failed(&repaired), repaired))
            }
            RepairWay::Fork => {
                let fork = Fork {
                    run: id,
                    id: self.ids.run(now),
                    after: None,
                    build: None,
                    source: RunSource::Cli,
                    now,
                };
                self.store
                    .fork_run(fork)
                    .await
                    .map(|forked| new_line(id, forked))
            }
        };
        match repaired {
            Ok(repaired) => Ok(AdminAnswer::Repaired { repaired }),
            Err(StoreError::NotFound) => Err(no_run(id)),
            Err(error) => Err(error.into()),
        }
    }
}

fn no_run(id: RunId) -> AdminError {
    AdminError::Bad(format!(
        "there is no run {id}; `errand runs list` shows a team's runs"
    ))
}

fn line(run: RunId, sentence: String, repaired: Repaired) -> RepairLine {
    RepairLine {
        run_id: run.to_string(),
        status: repaired.status,
        waits_for: repaired.waits_for.map(|reason| reason.as_str().to_owned()),
        sentence,
    }
}

fn resumed(repaired: &Repaired) -> String {
    let before = if repaired.was_taken_away {
        "The run was taken from its driver. "
    } else {
        ""
    };
    let next = match repaired.waits_for {
        Some(WaitReason::Human) => "It waits for a person's answer to its request.",
        Some(WaitReason::Sandbox) if repaired.was_taken_away => {
            "It continues when that driver has released the sandbox; if it never does, a restart of the server ends it."
        }
        Some(WaitReason::Sandbox) => "It continues when the run that uses its sandbox has ended.",
        _ => "It continues as soon as a server has a free slot.",
    };
    format!("{before}{next}")
}

fn failed(repaired: &Repaired) -> String {
    if !repaired.is_changed {
        let status = repaired.status.as_str();
        return format!("The run had already ended ({status}) and was not changed.");
    }
    "The run has failed; `errand runs retry` continues it, `errand runs repair --fork` starts another run in its place.".to_owned()
}

fn new_line(old: RunId, forked: Forked) -> RepairLine {
    let Forked { run, taken, of } = forked;
    let files = if run.sandbox_id.is_some() {
        "with its sandbox"
    } else {
        "without its files"
    };
    RepairLine {
        run_id: run.id.to_string(),
        status: run.status,
        waits_for: run.waiting_on.map(|waiting| waiting.kind),
        sentence: format!(
            "A new run continues with {taken} of the {of} entries of run {old}, {files}; that run was not changed."
        ),
    }
}
