//! The clock that every part is given.

use std::sync::Arc;
use std::time::Duration;

use errand_core::time::Timestamp;
use tokio::sync::watch;

/// The system's clock, or one that a test moves.
#[derive(Clone)]
pub enum Clock {
    /// The system's.
    System,
    /// Stands until it is advanced.
    Manual(Arc<ManualClock>),
}

/// A clock that stands until it is advanced.
pub struct ManualClock {
    now: watch::Sender<Timestamp>,
}

/// The longest sleep before the clock is looked at again: the system's may be set forward meanwhile.
const NAP: Duration = Duration::from_secs(30);

impl Clock {
    /// A clock that stands at `now`.
    #[must_use]
    pub fn manual(now: Timestamp) -> Self {
        Self::Manual(Arc::new(ManualClock {
            now: watch::Sender::new(now),
        }))
    }

    /// The time, in UTC, to the millisecond.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => system_now(),
            Self::Manual(clock) => *clock.now.borrow(),
        }
    }

    /// Moves a manual clock forward. The system's is left alone.
    pub fn advance(&self, by: Duration) {
        if let Self::Manual(clock) = self {
            let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            clock.now.send_modify(|now| *now = now.plus_ms(ms));
        }
    }

    /// Until the moment has come.
    pub async fn sleep_until(&self, moment: Timestamp) {
        match self {
            Self::System => loop {
                let left = Duration::from_millis(moment.ms_since(system_now()));
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(NAP)).await;
            },
            Self::Manual(clock) => {
                let mut now = clock.now.subscribe();
                // The sender lives as long as the clock does.
                let _ = now.wait_for(|now| *now >= moment).await;
            }
        }
    }

    /// For `ms` milliseconds.
    pub async fn sleep_ms(&self, ms: u64) {
        self.sleep_until(self.now().plus_ms(ms)).await;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the system's clock"
)]
fn system_now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
