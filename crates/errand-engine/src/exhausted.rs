//! Repeats calls that failed because file descriptors, memory or processes ran out, until they succeed.
//!
//! A tool that gets such an error before it has changed anything reports it with [`note`] and may return any result.
//! [`patiently`], which wraps the tool, discards that result and calls the tool again after a pause. So no run fails
//! because of a temporary shortage. The wait ends when the run is taken from its driver or the server stops. Webhook
//! deliveries wait in the same way.
//!
//! The resources belong to the process, so waiting calls are counted per process, not per server.

use std::cell::Cell;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use errand_core::error_chain::{error_chain, is_exhausted};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

const PAUSE_MS: u64 = 250;

/// The number of waiting calls.
static WAITING: AtomicUsize = AtomicUsize::new(0);

tokio::task_local! {
    /// Whether the current call has reported a shortage.
    static IS_NOTED: Cell<bool>;
}

/// Reports an error of the current call if the error is a shortage. The call must not have changed anything. Returns
/// whether it was reported.
pub(crate) fn note(error: &(dyn Error + 'static)) -> bool {
    is_exhausted(error) && note_anyway(&error_chain(error))
}

/// Reports a shortage without looking at an error.
pub(crate) fn note_anyway(what: &str) -> bool {
    let noted = IS_NOTED.try_with(|noted| noted.set(true)).is_ok();
    if noted {
        tracing::debug!(what, "a call waits because a resource has run out");
    }
    noted
}

/// Makes a call, and repeats it as long as it reports a shortage. `None`: it was cancelled while it waited, and nothing
/// was done.
pub(crate) async fn patiently<T, F>(
    clock: &Clock,
    cancel: &CancellationToken,
    mut call: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = T>,
{
    let mut waits = None;
    loop {
        let called = IS_NOTED.scope(Cell::new(false), async {
            let answer = call().await;
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

/// Counts a waiting call. Only the first and the last one are logged.
struct Waits;

impl Waits {
    fn begin() -> Self {
        if WAITING.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "the server has run out of open files or memory: calls of runs and deliveries wait until some are free (`errand doctor` shows the limits)"
            );
        }
        Self
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if WAITING.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!("calls and deliveries no longer wait for open files or memory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes calls that fail with these error codes, and returns the number of calls.
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
    async fn a_call_is_repeated_until_it_succeeds() {
        let cancel = CancellationToken::new();
        assert_eq!(called(&[24, 12], &cancel, false).await, Some(3));
    }

    #[tokio::test]
    async fn a_cancelled_call_does_not_wait() {
        let cancel = CancellationToken::new();
        assert_eq!(called(&[12], &cancel, true).await, None);
    }

    #[tokio::test]
    async fn other_errors_are_returned() {
        let cancel = CancellationToken::new();
        assert_eq!(called(&[2], &cancel, false).await, Some(1));
    }
}
