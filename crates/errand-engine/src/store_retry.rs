//! Retries of store operations that fail for now, for example because the disk is full.
//!
//! # Guarantees
//!
//! An operation is retried until it succeeds, fails for good, or the server ends. Without this, a disk that is full at
//! the wrong moment would leave a run with a claim that no driver holds.

use errand_store::StoreError;

use crate::context::EngineContext;

/// Pause between two attempts, in milliseconds. Disk space is freed by a person or a job, not within microseconds.
const RETRY_PAUSE_MS: u64 = 500;

/// Repeats a store operation for as long as it fails with an error that passes by itself. Such a failure has written
/// nothing, so a repetition is safe.
///
/// # Errors
///
/// The last error, if it is permanent or if the server ends meanwhile; in the latter case the next start recovers.
pub(crate) async fn retry_while_unavailable<T, F>(
    engine: &EngineContext,
    operation: impl Fn() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match operation().await {
            // The store logs the cause once, so this is no warning.
            Err(error) if error.is_passing() && !engine.is_ending() => {
                tracing::debug!(%error, "the store is unavailable; trying again");
                engine.clock.sleep_ms(RETRY_PAUSE_MS).await;
            }
            result => return result,
        }
    }
}
