//! How slowly a request's body may come.
//!
//! Guarantees: a body that brings no byte for the idle timeout (30 s) ends, and so does one that trickles: over its whole
//! length the client may keep the server waiting for twice the idle timeout, and one second more for each KiB that came.
//! Only the time that the server waits for the client counts: a slow disk is not the client's fault. Time is monotonic,
//! so a clock that is set does not end an upload.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The slowest body that is read to its end, in bytes per second, beside twice the idle timeout.
const BYTES_PER_SECOND_MIN: u64 = 1024;

/// Watches the pace of one body.
pub(super) struct Pace {
    idle: Duration,
    bytes: u64,
    /// How long the server has waited for bytes, without the wait that is under way.
    waited: Duration,
    waiting: Option<Wait>,
}

struct Wait {
    since: Instant,
    end: Pin<Box<Sleep>>,
}

impl Pace {
    pub(super) fn new(idle: Duration) -> Self {
        Self {
            idle,
            bytes: 0,
            waited: Duration::ZERO,
            waiting: None,
        }
    }

    /// Bytes came.
    pub(super) fn came(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if let Some(wait) = self.waiting.take() {
            self.waited = self.waited.saturating_add(wait.since.elapsed());
        }
    }

    /// No byte is there. Ready once the client has kept the server waiting for too long.
    pub(super) fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let allowance = self.allowance();
        let wait = self.waiting.get_or_insert_with(|| Wait {
            since: Instant::now(),
            end: Box::pin(tokio::time::sleep(allowance)),
        });
        wait.end.as_mut().poll(context)
    }

    /// How long the next byte may take.
    fn allowance(&self) -> Duration {
        let total = self
            .idle
            .saturating_mul(2)
            .saturating_add(Duration::from_secs(self.bytes / BYTES_PER_SECOND_MIN));
        total.saturating_sub(self.waited).min(self.idle)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    async fn stalls_within(pace: &mut Pace, within: Duration) -> bool {
        tokio::time::timeout(within, poll_fn(|context| pace.poll_too_slow(context)))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_body() {
        let mut pace = Pace::new(IDLE);
        assert!(!stalls_within(&mut pace, Duration::from_secs(29)).await);
        assert!(stalls_within(&mut pace, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_ends_a_body_and_a_slow_line_does_not() {
        // One byte in 29 s: never idle, and over after the total.
        let mut pace = Pace::new(IDLE);
        let mut rounds = 0;
        while !stalls_within(&mut pace, Duration::from_secs(29)).await {
            pace.came(1);
            rounds += 1;
            assert!(rounds < 10);
        }
        assert_eq!(rounds, 2);
        // 29 KiB in 29 s go on for as long as they like.
        let mut pace = Pace::new(IDLE);
        for _ in 0..1_000 {
            assert!(!stalls_within(&mut pace, Duration::from_secs(29)).await);
            pace.came(29 * 1024);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_the_server_takes_does_not_count() {
        let mut pace = Pace::new(IDLE);
        for _ in 0..100 {
            pace.came(1);
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert!(!stalls_within(&mut pace, Duration::from_secs(29)).await);
    }
}
