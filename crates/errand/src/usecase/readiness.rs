//! Readiness: the checks behind `/readyz`.
//!
//! # Guarantees
//!
//! - One round of checks runs at a time, and its result is kept for [`KEPT_FOR`], so frequent requests cost almost
//!   nothing.
//! - Each check ends within [`TIME_MAX`], even if the checked resource hangs.
//!
//! To add a check, add it to [`Readiness::round`]. The error of a check is the message of the 503.

use std::borrow::Cow;
use std::time::Duration;

use errand_engine::EngineContext;
use errand_store::Trouble;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a result is kept. Probes usually come every few seconds.
const KEPT_FOR: Duration = Duration::from_millis(500);
/// Time limit of a check.
const TIME_MAX: Duration = Duration::from_secs(2);

/// The reason why the server is not ready.
pub(crate) type NotReady = Cow<'static, str>;

/// The last result.
#[derive(Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, Result<(), NotReady>)>>,
}

impl Readiness {
    /// Checks whether the server is ready for requests.
    pub(crate) async fn check(&self, engine: &EngineContext) -> Result<(), NotReady> {
        // Checked first and not cached, because stopping is final.
        if engine.draining.is_cancelled() {
            return Err("the server is stopping".into());
        }
        // Concurrent requests wait for the running round and share its result.
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < KEPT_FOR
        {
            return answer.clone();
        }
        let answer = Self::round(engine).await;
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn round(engine: &EngineContext) -> Result<(), NotReady> {
        // A problem that an earlier read or write has detected.
        if let Some(why) = engine.store.condition().why_not_ready() {
            return Err(why.into());
        }
        let (thread, disk, read, write) = tokio::join!(
            within(
                thread_is_free(),
                "no thread is free for file and database operations"
            ),
            within(disk_has_room(engine), "the disk does not respond"),
            within(
                read_works(engine),
                "the database does not respond to a read"
            ),
            within(writer_works(engine), "the database does not accept writes"),
        );
        thread.and(disk).and(read).and(write)
    }
}

/// Runs a check. It fails if it exceeds [`TIME_MAX`].
async fn within(
    check: impl Future<Output = Result<(), NotReady>>,
    too_slow: &'static str,
) -> Result<(), NotReady> {
    tokio::time::timeout(TIME_MAX, check)
        .await
        .unwrap_or_else(|_| Err(too_slow.into()))
}

/// Most requests need one of the runtime's threads for blocking operations.
async fn thread_is_free() -> Result<(), NotReady> {
    tokio::task::spawn_blocking(|| ())
        .await
        .map_err(|_| "the server is stopping".into())
}

/// Detects a full disk before a write fails.
async fn disk_has_room(engine: &EngineContext) -> Result<(), NotReady> {
    let dir = engine.store.dir().to_owned();
    let is_full = tokio::task::spawn_blocking(move || crate::watch::is_full(&dir));
    if is_full.await.unwrap_or(false) {
        return Err(Trouble::Full.to_string().into());
    }
    Ok(())
}

async fn read_works(engine: &EngineContext) -> Result<(), NotReady> {
    engine
        .store
        .check_read()
        .await
        .map_err(|error| format!("the database cannot be read: {error}").into())
}

async fn writer_works(engine: &EngineContext) -> Result<(), NotReady> {
    if *engine.store.poisoned().borrow() {
        return Err(
            "a write to the disk failed and its outcome is unknown: the server restarts".into(),
        );
    }
    engine
        .store
        .check_writer()
        .await
        .map_err(|error| format!("the database does not accept writes: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_has_failed() {
        let hangs = within(std::future::pending(), "it hangs");
        assert_eq!(hangs.await, Err(Cow::Borrowed("it hangs")));
        assert_eq!(within(async { Ok(()) }, "it hangs").await, Ok(()));
    }
}
