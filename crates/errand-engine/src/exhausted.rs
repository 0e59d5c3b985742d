//! Descriptors, memory or processes that have run out: what a call needed them for is done again until they are there.
//!
//! A tool that meets such an error before it has changed anything says so with [`note`] and answers as it likes;
//! [`patiently`], around the tool, drops that answer and calls it again after a pause. So no run fails because the machine
//! is short of something for a while. The wait ends when the run is taken from its driver or the server stops. Deliveries
//! of webhooks wait in the same way.
//!
//! What is short is the process's, not a server's: how many wait is counted for the process.

use std::cell::Cell;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use errand_core::cause::{chain, is_exhausted};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How long until it is tried again.
const PAUSE_MS: u64 = 250;

/// Calls that wait.
static WAITING: AtomicUsize = AtomicUsize::new(0);

tokio::task_local! {
    /// Whether the call that is made now has met such an error.
    static IS_NOTED: Cell<bool>;
}

/// Notes an error of the call that is made now, where it says that something has run out. Nothing may have been changed by
/// the call. True where it was noted.
pub(crate) fn note(error: &(dyn Error + 'static)) -> bool {
    is_exhausted(error) && note_anyway(&chain(error))
}

/// Notes it whatever the error is.
pub(crate) fn note_anyway(what: &str) -> bool {
    let noted = IS_NOTED.try_with(|noted| noted.set(true)).is_ok();
    if noted {
        tracing::debug!(what, "a call waits until there is more");
    }
    noted
}

/// Makes a call, and makes it again as long as it notes that something has run out. None: it was given up while it
/// waited, and nothing was done.
pub(crate) async fn patiently<T, F>(
    clock: &Clock,
    cancel: &CancellationToken,
    mut act: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = T>,
{
    let mut waits = None;
    loop {
        let called = IS_NOTED.scope(Cell::new(false), async {
            let answer = act().await;
            (answer, IS_NOTED.with(Cell::get))
        });
        match called.await {
            (answer, false) => return Some(answer),
            (_, true) => {
                waits.get_or_insert_with(Waits::begin);
                cancel.run_until_cancelled(clock.sleep_ms(PAUSE_MS)).await?;
            }
        }
    }
}

/// A call that waits: the first one and the last one are logged.
struct Waits;

impl Waits {
    fn begin() -> Self {
        if WAITING.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "the server has run out of open files or memory: calls of runs and deliveries wait until there is more (`errand doctor` shows the limits)"
            );
        }
        Self
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if WAITING.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!("no call and no delivery waits for open files or memory any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes calls that fail with these errors, then answers how many were made.
    async fn called(failures: &[i32], cancel: &CancellationToken, cancels: bool) -> Option<usize> {
        let calls = Cell::new(0);
        let clock = Clock::System;
        let call = || {
            let failure = failures.get(calls.get()).copied();
            calls.set(calls.get() + 1);
            if cancels {
                cancel.cancel();
            }
            let count = calls.get();
            async move {
                if let Some(code) = failure {
                    note(&std::io::Error::from_raw_os_error(code));
                }
                count
            }
        };
        patiently(&clock, cancel, call).await
    }

    #[tokio::test]
    async fn a_call_is_made_again_until_there_is_what_it_needs() {
        let cancel = CancellationToken::new();
        assert_eq!(called(&[24, 12], &cancel, false).await, Some(3));
    }

    #[tokio::test]
    async fn who_stops_does_not_wait() {
        let cancel = CancellationToken::new();
        assert_eq!(called(&[12], &cancel, true).await, None);
    }

    #[tokio::test]
    async fn other_errors_are_answers() {
        let cancel = CancellationToken::new();
        assert_eq!(called(&[2], &cancel, false).await, Some(1));
    }
}
