//! Ends a drive: fails a run whose driver cannot continue, and reports the late outcomes of a run that was taken away.
//!
//! # Guarantees
//!
//! The write is retried until it is on disk or the server ends. In the latter case the next start recovers the run.

use std::error::Error as StdError;

use errand_core::id::ClaimToken;
use errand_core::run::RunError;
use errand_store::StoreError;
use errand_store::model::{LateResults, ReadyRun};

use crate::context::EngineContext;
use crate::drive::DriveError;
use crate::store_retry::retry_while_unavailable;

/// Records how a drive ended, so that the run no longer needs this driver.
pub(crate) async fn finish_drive(
    engine: &EngineContext,
    ready: ReadyRun,
    claim: ClaimToken,
    drive: Result<(), DriveError>,
) {
    let finished = match drive {
        Ok(()) => return,
        Err(DriveError::Fenced(left)) => leave(engine, ready, claim, &left).await,
        Err(DriveError::Store(error)) if engine.is_ending() => {
            tracing::warn!(run.id = %ready.run, error = &error as &dyn StdError, "a drive was cut off; the run continues after the next start");
            return;
        }
        Err(DriveError::Fails(error)) => fail(engine, ready, claim, error).await,
        Err(DriveError::Store(error)) => {
            tracing::error!(run.id = %ready.run, error = &error as &dyn StdError, "the run cannot continue");
            fail(engine, ready, claim, internal()).await
        }
        Err(DriveError::Panicked) => fail(engine, ready, claim, internal()).await,
    };
    if let Err(error) = finished {
        tracing::error!(run.id = %ready.run, error = &error as &dyn StdError, "the end of a drive could not be recorded; the next start recovers the run");
    }
}

async fn fail(
    engine: &EngineContext,
    ready: ReadyRun,
    claim: ClaimToken,
    error: RunError,
) -> Result<(), StoreError> {
    retry_while_unavailable(engine, || {
        engine
            .store
            .fail_claimed(ready.run, claim, error.clone(), engine.clock.now())
    })
    .await?;
    // If the run was taken away before it could fail, its sandbox stays reserved until this driver reports.
    leave(engine, ready, claim, &LateResults::default()).await
}

async fn leave(
    engine: &EngineContext,
    ready: ReadyRun,
    claim: ClaimToken,
    left: &LateResults,
) -> Result<(), StoreError> {
    retry_while_unavailable(engine, || {
        engine
            .store
            .release_late(ready.run, claim, left.clone(), engine.clock.now())
    })
    .await
}

fn internal() -> RunError {
    RunError::new(
        "internal",
        "the server could not continue the run; its log says why. Retry the run after that is repaired",
    )
}
