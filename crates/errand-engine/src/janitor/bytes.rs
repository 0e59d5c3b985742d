//! Measures the sizes of sandboxes and records them.
//!
//! # Guarantees
//!
//! The size of a sandbox is recorded within a minute after a change. After a start, every sandbox is measured once, in
//! portions. That corrects the record after a crash between a write and its record, and adds the records that earlier
//! versions did not keep.

use std::io;
use std::sync::{Mutex, PoisonError};

use errand_core::id::SandboxId;
use errand_sandbox::{Charged, FileError};

use super::{Janitor, RoundError, blocking};

/// Maximum number of sandboxes that one round of the sweep after a start measures.
const SWEPT_MAX: u32 = 500;
/// Maximum number of files and directories that one round visits. The sandbox that exceeds it is measured to its end.
const SWEPT_NAMES_MAX: u64 = 50_000;
/// Maximum number of records in one transaction.
const RECORDS_MAX: usize = 500;

/// Progress of the sweep after a start.
#[derive(Default)]
pub(super) struct Sweep(Mutex<Swept>);

#[derive(Clone, Default)]
enum Swept {
    #[default]
    Nothing,
    To(SandboxId),
    All,
}

impl Sweep {
    fn get(&self) -> Swept {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, swept: Swept) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = swept;
    }
}

impl Janitor {
    pub(super) async fn count_bytes(&self) -> Result<(), RoundError> {
        if !self.engine.sandboxes.are_counted() {
            return Ok(());
        }
        let swept = self.sweep().await;
        let sandboxes = self.engine.sandboxes.clone();
        let measured = blocking(move || sandboxes.measure_changed().map_err(of_file)).await;
        // The measured sandboxes are recorded even if others could not be measured.
        self.record().await?;
        swept?;
        Ok(measured?)
    }

    /// Measures the next portion of the sandboxes that existed at the start.
    async fn sweep(&self) -> Result<(), RoundError> {
        let after = match self.sweep.get() {
            Swept::Nothing => None,
            Swept::To(id) => Some(id),
            Swept::All => return Ok(()),
        };
        let store = &self.engine.store;
        let rows = store.recorded_sandboxes(after.clone(), SWEPT_MAX).await?;
        let is_last = rows.len() < SWEPT_MAX as usize;
        let (sandboxes, draining) = (self.engine.sandboxes.clone(), self.engine.draining.clone());
        let (swept, failed, lost) = blocking(move || {
            let mut lost = Vec::new();
            let (mut swept, mut failed) = (after.map_or(Swept::Nothing, Swept::To), Ok(()));
            let mut names = 0;
            for row in rows {
                if names > SWEPT_NAMES_MAX || draining.is_cancelled() {
                    return Ok((swept, failed, lost));
                }
                let charged = Charged {
                    team: row.team,
                    bytes: row.bytes,
                };
                // Its record stays, so that it is known to be lost until it is restored or deleted.
                if sandboxes.is_lost(&row.id, charged) {
                    lost.push(row.id.clone());
                    swept = Swept::To(row.id);
                    continue;
                }
                match sandboxes.measure(&row.id, charged) {
                    Ok(found) => names += found,
                    Err(error) => failed = failed.and(Err(of_file(error))),
                }
                swept = Swept::To(row.id);
            }
            Ok((if is_last { Swept::All } else { swept }, failed, lost))
        })
        .await?;
        if let Some(first) = lost.first() {
            tracing::error!(
                sandbox.id = %first,
                sandboxes = lost.len(),
                "the directories of sandboxes that held files are missing: restore them from a backup, or check that the \
                 right volume is mounted; `errand doctor` names them"
            );
        }
        self.sweep.set(swept);
        Ok(failed?)
    }

    async fn record(&self) -> Result<(), RoundError> {
        let unrecorded = self.engine.sandboxes.unrecorded();
        for some in unrecorded.chunks(RECORDS_MAX) {
            for (id, bytes) in self
                .engine
                .store
                .record_sandbox_bytes(some.to_vec())
                .await?
            {
                self.engine.sandboxes.has_recorded(&id, bytes);
            }
        }
        Ok(())
    }
}

fn of_file(error: FileError) -> io::Error {
    io::Error::other(error)
}
