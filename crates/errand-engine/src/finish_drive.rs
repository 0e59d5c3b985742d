//! What follows a drive: a run that its driver cannot go on with fails, one that was taken away is left in order.
//!
//! Promised: it is tried until it is on disk, or the server ends (then the next start does it). Otherwise a full disk at
//! the wrong moment would leave a run claimed by nobody.

use std::error::Error as StdError;

use errand_core::id::ClaimToken;
use errand_core::run::RunError;
use errand_store::StoreError;
use errand_store::model::{Left, ReadyRun};

use crate::dispatch::Parts;
use crate::drive::DriveError;

/// How long before a write is tried again that the disk had no room for.
const NO_ROOM_PAUSE_MS: u64 = 500;

/// Repeats a write, or a read, that the store cannot take now: nothing of it was done, and later it may go. The last
/// answer, where the server ends meanwhile.
pub(crate) async fn persist<T, F>(parts: &Parts, act: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match act().await {
            // What is in the way is logged by the store, once.
            Err(error) if error.is_passing() && !ends(parts) => {
                tracing::debug!(%error, "the store cannot take a write; trying again");
                parts.clock.sleep_ms(NO_ROOM_PAUSE_MS).await;
            }
            answer => return answer,
        }
    }
}

fn ends(parts: &Parts) -> bool {
    parts.draining.is_cancelled() || *parts.store.poisoned().borrow()
}

/// Brings a run whose drive has ended to where it does not need this driver any more.
pub(crate) async fn conclude(
    parts: &Parts,
    ready: ReadyRun,
    claim: ClaimToken,
    drive: Result<(), DriveError>,
) {
    let concluded = match drive {
        Ok(()) => return,
        Err(DriveError::Fenced(left)) => leave(parts, ready, claim, &left).await,
        Err(DriveError::Store(error)) if ends(parts) => {
            tracing::warn!(run.id = %ready.run, error = &error as &dyn StdError, "a drive was cut off; it goes on after the next start");
            return;
        }
        Err(DriveError::Fails(error)) => fail(parts, ready, claim, error).await,
        Err(DriveError::Store(error)) => {
            tracing::error!(run.id = %ready.run, error = &error as &dyn StdError, "a run cannot be driven");
            fail(parts, ready, claim, internal()).await
        }
        Err(DriveError::Panicked) => fail(parts, ready, claim, internal()).await,
    };
    if let Err(error) = concluded {
        tracing::error!(run.id = %ready.run, error = &error as &dyn StdError, "a drive could not be concluded; the next start does it");
    }
}

async fn fail(
    parts: &Parts,
    ready: ReadyRun,
    claim: ClaimToken,
    error: RunError,
) -> Result<(), StoreError> {
    persist(parts, || {
        parts
            .store
            .fail_claimed(ready.run, claim, error.clone(), parts.clock.now())
    })
    .await?;
    // Where the run was taken away before it could fail, its sandbox waits for this driver to leave.
    leave(parts, ready, claim, &Left::default()).await
}

async fn leave(
    parts: &Parts,
    ready: ReadyRun,
    claim: ClaimToken,
    left: &Left,
) -> Result<(), StoreError> {
    persist(parts, || {
        parts
            .store
            .leave(ready.run, claim, left.clone(), parts.clock.now())
    })
    .await
}

fn internal() -> RunError {
    RunError::new(
        "internal",
        "the server could not go on with the run; its log says why. Retry it when that is mended",
    )
}
