//! Limits how slowly a request's body may arrive.
//!
//! # Guarantees
//!
//! - A body ends if no byte arrives for the idle timeout (30 s).
//! - A body that trickles ends too: in total, the client may keep the server waiting for twice the idle timeout, plus
//!   one second per KiB received.
//! - Only time in which the server waits for the client counts, so a slow disk does not end an upload. The clock is
//!   monotonic, so setting the system's clock does not either.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The minimum rate of a body, in bytes per second, beyond an allowance of twice the idle timeout.
const BYTES_PER_SECOND_MIN: u64 = 1024;

/// Measures the pace of one body.
pub(super) struct Pace {
    idle: Duration,
    bytes: u64,
    /// The total time spent waiting for bytes, without the current wait.
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

    /// Records that bytes arrived.
    pub(super) fn came(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if let Some(wait) = self.waiting.take() {
            self.waited = self.waited.saturating_add(wait.since.elapsed());
        }
    }

    /// Called when no byte is available. Ready when the client has exceeded its time.
    pub(super) fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let allowance = self.allowance();
        let wait = self.waiting.get_or_insert_with(|| Wait {
            since: Instant::now(),
            end: Box::pin(tokio::time::sleep(allowance)),
        });
        wait.end.as_mut().poll(context)
    }

    /// The time until the next byte must arrive.
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
    async fn a_trickle_ends_a_body_and_a_slow_connection_does_not() {
        // One byte every 29 s never exceeds the idle timeout, but exceeds the total.
        let mut pace = Pace::new(IDLE);
        let mut rounds = 0;
        while !stalls_within(&mut pace, Duration::from_secs(29)).await {
            pace.came(1);
            rounds += 1;
            assert!(rounds < 10);
        }
        assert_eq!(rounds, 2);
        // 29 KiB every 29 s can continue forever.
        let mut pace = Pace::new(IDLE);
        for _ in 0..1_000 {
            assert!(!stalls_within(&mut pace, Duration::from_secs(29)).await);
            pace.came(29 * 1024);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_s_own_time_does_not_count() {
        let mut pace = Pace::new(IDLE);
        for _ in 0..100 {
            pace.came(1);
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert!(!stalls_within(&mut pace, Duration::from_secs(29)).await);
    }
}
