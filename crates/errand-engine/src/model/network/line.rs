//! How many calls a provider is given at once, and who is next.
//!
//! Promised: never more than so many; those that find no room wait without a driver, in the order in which they came, and
//! the dispatcher wakes whose turn it is as soon as there is room. So a provider that is slow, or silent, holds up the runs
//! that use it, and leaves the engine's places to the others.
//!
//! The lines are kept in memory alone: who waits looks again by itself after [`LOOK_AGAIN_MS`], also where nobody wakes it.
//! One that was woken and does not come (its run was stopped) holds its room for [`HELD_MS`] at most.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::RunId;
use errand_core::time::Timestamp;
use tokio::sync::Notify;

/// After how long who waits looks again without having been woken, in milliseconds.
pub(super) const LOOK_AGAIN_MS: u64 = 15_000;
/// How long room is kept for who was woken, in milliseconds.
const HELD_MS: u64 = 5_000;

/// A provider's name, and its address: a team's own is another one than the operator's.
type Key = (String, String);

/// The lines before all providers.
pub(super) struct Lines {
    most: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    lines: Mutex<HashMap<Key, Line>>,
    /// Rung when there is room for somebody who waits.
    freed: Notify,
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, HashMap<Key, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line: calls under way, and runs that wait for room.
#[derive(Default)]
struct Line {
    busy: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    run: RunId,
    /// Until when its room is kept, once it was woken.
    held_until: Option<Timestamp>,
}

impl Line {
    fn forget_the_late(&mut self, now: Timestamp) {
        self.waiting
            .retain(|waiting| waiting.held_until.is_none_or(|until| until > now));
    }

    /// Takes a run in, if it is its turn; else puts it in line.
    fn enters(&mut self, run: RunId, most: usize, now: Timestamp) -> bool {
        self.forget_the_late(now);
        let at = self.waiting.iter().position(|waiting| waiting.run == run);
        if at.unwrap_or(self.waiting.len()) < most.saturating_sub(self.busy) {
            self.waiting.retain(|waiting| waiting.run != run);
            self.busy += 1;
            return true;
        }
        if at.is_none() {
            self.waiting.push_back(Waiting {
                run,
                held_until: None,
            });
        }
        false
    }

    /// Those whose turn it is and who were not woken yet.
    fn turns(&mut self, most: usize, now: Timestamp) -> impl Iterator<Item = &mut Waiting> {
        self.forget_the_late(now);
        let free = most.saturating_sub(self.busy);
        let turns = self.waiting.iter_mut().take(free);
        turns.filter(|waiting| waiting.held_until.is_none())
    }
}

impl Lines {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            shared: Arc::default(),
        }
    }

    /// Room for one call. None: the run is in line.
    pub(super) fn enter(
        &self,
        (provider, endpoint): (&str, &str),
        run: RunId,
        now: Timestamp,
    ) -> Option<Room> {
        let key = (provider.to_owned(), endpoint.to_owned());
        let mut lines = self.shared.lines();
        let line = lines.entry(key.clone()).or_default();
        line.enters(run, self.most, now).then(|| Room {
            key,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Until room was given back that somebody waits for.
    pub(super) async fn freed(&self) {
        self.shared.freed.notified().await;
    }

    /// The runs whose turn it is and that were not woken yet.
    pub(super) fn turns(&self, now: Timestamp) -> Vec<RunId> {
        let mut lines = self.shared.lines();
        let turns = lines.values_mut().flat_map(|l| l.turns(self.most, now));
        turns.map(|waiting| waiting.run).collect()
    }

    /// A run was woken: its room is kept for a while.
    pub(super) fn woken(&self, run: RunId, now: Timestamp) {
        let mut lines = self.shared.lines();
        let all = lines.values_mut().flat_map(|line| line.waiting.iter_mut());
        for waiting in all.filter(|waiting| waiting.run == run) {
            waiting.held_until = Some(now.plus_ms(HELD_MS));
        }
    }

    /// A run waits no more: the next one has its turn.
    pub(super) fn forget(&self, run: RunId) {
        let mut lines = self.shared.lines();
        for line in lines.values_mut() {
            line.waiting.retain(|waiting| waiting.run != run);
        }
        self.shared.freed.notify_one();
    }
}

/// Room for one call, given back when it is dropped.
pub(super) struct Room {
    key: Key,
    shared: Arc<Shared>,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut lines = self.shared.lines();
        let Some(line) = lines.get_mut(&self.key) else {
            return;
        };
        line.busy = line.busy.saturating_sub(1);
        if !line.waiting.is_empty() {
            self.shared.freed.notify_one();
        } else if line.busy == 0 {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use errand_core::id::IdGen;

    use super::*;

    const AT: (&str, &str) = ("openai", "https://api.openai.com/v1/");

    #[test]
    fn as_many_as_may_are_let_in_and_the_others_in_order() {
        let (ids, now) = (IdGen::new([1; 32]), Timestamp::from_millis(0));
        let runs: Vec<RunId> = (0..4).map(|_| ids.run(now)).collect();
        let lines = Lines::new(2);
        let enter = |n: usize| lines.enter(AT, runs[n], now);
        let (one, two) = (enter(0).unwrap(), enter(1).unwrap());
        assert!(enter(2).is_none() && enter(3).is_none());
        assert!(lines.turns(now).is_empty());
        // Another provider, and the same one elsewhere, have lines of their own.
        assert!(lines.enter(("gemini", AT.1), runs[3], now).is_some());
        assert!(lines.enter((AT.0, "https://x/"), runs[3], now).is_some());
        drop(one);
        assert_eq!(lines.turns(now), [runs[2]]);
        assert!(enter(3).is_none(), "it is not its turn");
        lines.woken(runs[2], now);
        assert!(lines.turns(now).is_empty(), "each is woken once");
        let three = enter(2).unwrap();
        drop((two, three));
        assert_eq!(lines.turns(now), [runs[3]]);
        lines.woken(runs[3], now);
        // It does not come: after a while its room is another one's.
        let one = enter(0).unwrap();
        assert!(enter(1).is_none());
        let later = now.plus_ms(HELD_MS);
        assert_eq!(lines.turns(later), [runs[1]]);
        lines.forget(runs[1]);
        assert!(lines.turns(later).is_empty());
        assert!(lines.enter(AT, runs[2], later).is_some());
        drop(one);
    }
}
