//! The clock. It is passed to every part, so that tests control the time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use errand_core::time::Timestamp;
use tokio::sync::oneshot;

/// The system's clock, or a manual clock that a test moves.
#[derive(Clone)]
pub enum Clock {
    System,
    /// Moves only by [`Clock::advance`] and [`Clock::set`].
    Manual(Arc<ManualClock>),
}

/// The state of a manual clock. Sleepers are woken in the order of their wake-up times.
pub struct ManualClock {
    state: Mutex<Standing>,
}

struct Standing {
    now: Timestamp,
    /// By wake-up time, then in the order of arrival.
    sleepers: BTreeMap<(Timestamp, u64), oneshot::Sender<()>>,
    came: u64,
}

impl ManualClock {
    fn state(&self) -> MutexGuard<'_, Standing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maximum sleep before the clock is read again, because the system's clock may be set forward meanwhile.
const NAP: Duration = Duration::from_secs(30);

impl Clock {
    /// A manual clock that starts at `now`.
    #[must_use]
    pub fn manual(now: Timestamp) -> Self {
        Self::Manual(Arc::new(ManualClock {
            state: Mutex::new(Standing {
                now,
                sleepers: BTreeMap::new(),
                came: 0,
            }),
        }))
    }

    /// The current time with a resolution of a millisecond.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => system_now(),
            Self::Manual(clock) => clock.state().now,
        }
    }

    /// Moves a manual clock forward. Does nothing to the system's clock.
    pub fn advance(&self, by: Duration) {
        if let Self::Manual(clock) = self {
            let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            let to = clock.state().now.plus_ms(ms);
            self.set(to);
        }
    }

    /// Sets a manual clock, forward or back. Does nothing to the system's clock.
    pub fn set(&self, to: Timestamp) {
        if let Self::Manual(clock) = self {
            let mut state = clock.state();
            state.now = to;
            let later = state.sleepers.split_off(&(to, u64::MAX));
            for sleeper in std::mem::replace(&mut state.sleepers, later).into_values() {
                // The sleeping task may be gone.
                let _ = sleeper.send(());
            }
        }
    }

    #[must_use]
    pub fn is_the_systems(&self) -> bool {
        matches!(self, Self::System)
    }

    /// The next wake-up time of a sleeper of a manual clock. `None` if there is none, and for the system's clock.
    #[must_use]
    pub fn next_waking(&self) -> Option<Timestamp> {
        match self {
            Self::System => None,
            Self::Manual(clock) => {
                let state = clock.state();
                let mut asleep = state.sleepers.iter().filter(|(_, s)| !s.is_closed());
                asleep.next().map(|((moment, _), _)| *moment)
            }
        }
    }

    /// Sleeps until a moment.
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
                let woken = {
                    let mut state = clock.state();
                    if state.now >= moment {
                        return;
                    }
                    let (wake, woken) = oneshot::channel();
                    // Remove sleepers whose tasks are gone, so that they do not accumulate.
                    state.sleepers.retain(|_, sleeper| !sleeper.is_closed());
                    state.came += 1;
                    let came = state.came;
                    state.sleepers.insert((moment, came), wake);
                    woken
                };
                // The clock lives as long as this call.
                let _ = woken.await;
            }
        }
    }

    /// Sleeps until a moment; without one, never returns.
    pub(crate) async fn sleep_until_some(&self, moment: Option<Timestamp>) {
        match moment {
            Some(moment) => self.sleep_until(moment).await,
            None => std::future::pending().await,
        }
    }

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
