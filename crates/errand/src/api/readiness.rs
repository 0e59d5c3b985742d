//! Whether the server can do what a request needs: a list of checks behind `/readyz`.
//!
//! Guarantees: one round of checks runs at a time and its answer is kept for [`KEPT_FOR`], so that however often anybody
//! asks, the checks cost next to nothing; a round ends within [`TIME_MAX`], also where what it looks at hangs.
//!
//! To add a check: one more entry in [`Readiness::round`]. A check returns the sentence that the 503 says.

use std::borrow::Cow;
use std::time::Duration;

use errand_store::Trouble;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::AppState;

/// How long an answer is kept. Probes come every few seconds; whoever asks more often gets the kept answer.
const KEPT_FOR: Duration = Duration::from_millis(500);
/// How long one check may take before what it looks at counts as not working.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Why the server is not ready.
pub(crate) type NotReady = Cow<'static, str>;

/// The kept answer.
#[derive(Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, Result<(), NotReady>)>>,
}

impl Readiness {
    /// Whether the server takes requests now; otherwise why not.
    pub(crate) async fn check(&self, app: &AppState) -> Result<(), NotReady> {
        // Not kept: it changes once, and for good.
        if app.draining.is_cancelled() {
            return Err("the server is stopping".into());
        }
        // Those that ask meanwhile wait for the round that is under way, and take its answer.
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < KEPT_FOR
        {
            return answer.clone();
        }
        let answer = Self::round(app).await;
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn round(app: &AppState) -> Result<(), NotReady> {
        // What a write or a read has found out already.
        if let Some(why) = app.store.condition().why_not_ready() {
            return Err(why.into());
        }
        let (thread, disk, read, write) = tokio::join!(
            within(
                thread_is_free(),
                "no thread is free for work on files and the database"
            ),
            within(disk_has_room(app), "the disk does not answer"),
            within(read_works(app), "the database does not answer a read"),
            within(writer_works(app), "the database does not take writes"),
        );
        thread.and(disk).and(read).and(write)
    }
}

/// A check that takes longer than [`TIME_MAX`] has failed.
async fn within(
    check: impl Future<Output = Result<(), NotReady>>,
    too_slow: &'static str,
) -> Result<(), NotReady> {
    tokio::time::timeout(TIME_MAX, check)
        .await
        .unwrap_or_else(|_| Err(too_slow.into()))
}

/// Most requests that touch files or read pages need one of the runtime's threads for blocking work.
async fn thread_is_free() -> Result<(), NotReady> {
    tokio::task::spawn_blocking(|| ())
        .await
        .map_err(|_| "the server is stopping".into())
}

/// A disk that no write has met yet.
async fn disk_has_room(app: &AppState) -> Result<(), NotReady> {
    let dir = app.store.dir().to_owned();
    let is_full = tokio::task::spawn_blocking(move || crate::watch::is_full(&dir));
    if is_full.await.unwrap_or(false) {
        return Err(Trouble::Full.to_string().into());
    }
    Ok(())
}

async fn read_works(app: &AppState) -> Result<(), NotReady> {
    app.store
        .check_read()
        .await
        .map_err(|error| format!("the database cannot be read: {error}").into())
}

async fn writer_works(app: &AppState) -> Result<(), NotReady> {
    if *app.store.poisoned().borrow() {
        return Err(
            "a write to the disk failed and its outcome is unknown: the server restarts".into(),
        );
    }
    app.store
        .check_writer()
        .await
        .map_err(|error| format!("the database does not take writes: {error}").into())
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
