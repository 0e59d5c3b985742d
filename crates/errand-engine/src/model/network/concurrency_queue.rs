//! Limits the concurrent calls per provider, and chooses the next waiting run.
//!
//! # Guarantees
//!
//! - A provider never has more than the maximum number of calls in flight.
//! - Runs without a permit wait without a driver. The dispatcher wakes the next one as soon as a permit is free.
//! - The next permit goes to the team with the fewest calls in flight, round-robin among equals
//!   ([`errand_core::fair`]); within a team, to the run that has waited the longest. A slow provider therefore delays
//!   only the runs that use it, and a team with many runs delays another team's call by one permit at most.
//!
//! # Non-goals
//!
//! Persistence: the queues are in memory only. A waiting run tries again after [`LOOK_AGAIN_MS`] even if nothing wakes
//! it. A run that was woken but does not come (it was stopped) holds its permit for at most [`HELD_MS`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::fair::Fair;
use errand_core::id::{RunId, TeamId};
use errand_core::time::Timestamp;
use tokio::sync::Notify;

/// The time after which a waiting run tries again without being woken, in milliseconds.
pub(super) const LOOK_AGAIN_MS: u64 = 15_000;
/// How long a permit is reserved for a run that was woken, in milliseconds.
const HELD_MS: u64 = 5_000;

/// A provider's name and address. The address is part of the key because a team may have its own server under the same
/// name.
type Key = (String, String);

/// The queues of all providers.
pub(super) struct ProviderQueues {
    most: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<HashMap<Key, Queue>>,
    /// Notified when a permit is free for a waiting run.
    freed: Notify,
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, HashMap<Key, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue of one provider: calls in flight, and waiting runs in order of arrival.
struct Queue {
    in_flight: usize,
    /// Calls in flight by team. It has no limit of its own: the number of permits is enforced by `in_flight`.
    teams: Fair<TeamId, ()>,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    team: TeamId,
    run: RunId,
    /// The end of the reservation, if the run was woken.
    held_until: Option<Timestamp>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            in_flight: 0,
            teams: Fair::new(usize::MAX),
            waiting: VecDeque::new(),
        }
    }
}

impl Queue {
    fn forget_the_late(&mut self, now: Timestamp) {
        self.waiting
            .retain(|waiting| waiting.held_until.is_none_or(|until| until > now));
    }

    /// Takes a permit if it is the run's turn; otherwise queues the run.
    fn enters(&mut self, (team, run): (TeamId, RunId), most: usize, now: Timestamp) -> bool {
        self.forget_the_late(now);
        if self.waiting.iter().all(|waiting| waiting.run != run) {
            self.waiting.push_back(Waiting {
                team,
                run,
                held_until: None,
            });
        }
        let was_woken = |waiting: &Waiting| waiting.run == run && waiting.held_until.is_some();
        if !self.waiting.iter().any(was_woken) && !self.next(most).contains(&run) {
            return false;
        }
        self.waiting.retain(|waiting| waiting.run != run);
        self.in_flight += 1;
        self.teams.take(&team, &());
        true
    }

    fn leaves(&mut self, team: TeamId) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.teams.release(&team, &());
    }

    /// The runs that get the permits that are neither taken nor reserved.
    fn next(&self, most: usize) -> Vec<RunId> {
        let (kept, mut waiting): (Vec<&Waiting>, Vec<&Waiting>) = self
            .waiting
            .iter()
            .partition(|waiting| waiting.held_until.is_some());
        let free = most.saturating_sub(self.in_flight + kept.len());
        if waiting.len() <= free {
            return waiting.iter().map(|waiting| waiting.run).collect();
        }
        let mut teams = self.teams.clone();
        kept.iter().for_each(|kept| teams.take(&kept.team, &()));
        let mut next = Vec::new();
        while next.len() < free
            && let Some(at) = teams.choose(waiting.iter().map(|waiting| (&waiting.team, &())))
        {
            let chosen = waiting.remove(at);
            teams.take(&chosen.team, &());
            next.push(chosen.run);
        }
        next
    }
}

impl ProviderQueues {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            shared: Arc::default(),
        }
    }

    /// A permit for one call. `None`: the run is queued.
    pub(super) fn enter(
        &self,
        (provider, endpoint): (&str, &str),
        (team, run): (TeamId, RunId),
        now: Timestamp,
    ) -> Option<Permit> {
        let key = (provider.to_owned(), endpoint.to_owned());
        let mut queues = self.shared.queues();
        let queue = queues.entry(key.clone()).or_default();
        queue.enters((team, run), self.most, now).then(|| Permit {
            key,
            team,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Completes when a permit is free for a waiting run.
    pub(super) async fn freed(&self) {
        self.shared.freed.notified().await;
    }

    /// The runs that can get a permit and were not woken yet.
    pub(super) fn turns(&self, now: Timestamp) -> Vec<RunId> {
        let mut queues = self.shared.queues();
        queues.retain(|_, queue| {
            queue.forget_the_late(now);
            queue.in_flight > 0 || !queue.waiting.is_empty()
        });
        let turns = queues.values().flat_map(|queue| queue.next(self.most));
        turns.collect()
    }

    /// Reserves a permit for a run that was woken.
    pub(super) fn woken(&self, run: RunId, now: Timestamp) {
        let mut queues = self.shared.queues();
        let all = queues
            .values_mut()
            .flat_map(|queue| queue.waiting.iter_mut());
        for waiting in all.filter(|waiting| waiting.run == run) {
            waiting.held_until = Some(now.plus_ms(HELD_MS));
        }
    }

    /// Removes a run that no longer waits, so that the next one gets its turn.
    pub(super) fn forget(&self, run: RunId) {
        let mut queues = self.shared.queues();
        for queue in queues.values_mut() {
            queue.waiting.retain(|waiting| waiting.run != run);
        }
        self.shared.freed.notify_one();
    }
}

/// A permit for one call, returned on drop.
pub(super) struct Permit {
    key: Key,
    team: TeamId,
    shared: Arc<Shared>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut queues = self.shared.queues();
        let Some(queue) = queues.get_mut(&self.key) else {
            return;
        };
        queue.leaves(self.team);
        if !queue.waiting.is_empty() {
            self.shared.freed.notify_one();
        } else if queue.in_flight == 0 {
            queues.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use errand_core::id::IdGen;

    use super::*;

    const AT: (&str, &str) = ("openai", "https://api.openai.com/v1/");

    #[test]
    fn runs_beyond_the_limit_wait_in_order() {
        let (ids, now) = (IdGen::new([1; 32]), Timestamp::from_millis(0));
        let runs: Vec<RunId> = (0..4).map(|_| ids.run(now)).collect();
        let (queues, team) = (ProviderQueues::new(2), ids.team(now));
        let enter = |n: usize| queues.enter(AT, (team, runs[n]), now);
        let (one, two) = (enter(0).unwrap(), enter(1).unwrap());
        assert!(enter(2).is_none() && enter(3).is_none());
        assert!(queues.turns(now).is_empty());
        // Another provider, and the same one at another address, have their own queues.
        let fourth = (team, runs[3]);
        assert!(queues.enter(("gemini", AT.1), fourth, now).is_some());
        assert!(queues.enter((AT.0, "https://x/"), fourth, now).is_some());
        drop(one);
        assert_eq!(queues.turns(now), [runs[2]]);
        assert!(enter(3).is_none(), "it is not its turn");
        queues.woken(runs[2], now);
        assert!(queues.turns(now).is_empty(), "each is woken once");
        let three = enter(2).unwrap();
        drop((two, three));
        assert_eq!(queues.turns(now), [runs[3]]);
        queues.woken(runs[3], now);
        // Run 3 does not come: after HELD_MS its permit goes to another run.
        let one = enter(0).unwrap();
        assert!(enter(1).is_none());
        let later = now.plus_ms(HELD_MS);
        assert_eq!(queues.turns(later), [runs[1]]);
        queues.forget(runs[1]);
        assert!(queues.turns(later).is_empty());
        assert!(queues.enter(AT, (team, runs[2]), later).is_some());
        drop(one);
    }
    #[test]
    fn a_busy_team_delays_another_by_one_permit() {
        let (ids, now) = (IdGen::new([1; 32]), Timestamp::from_millis(0));
        let queues = ProviderQueues::new(4);
        let (busy, other) = (ids.team(now), ids.team(now));
        let runs: Vec<RunId> = (0..63).map(|_| ids.run(now)).collect();
        let mut permits: VecDeque<Permit> = VecDeque::new();
        for run in &runs {
            permits.extend(queues.enter(AT, (busy, *run), now));
        }
        assert_eq!(permits.len(), 4);
        let single = ids.run(now);
        assert!(queues.enter(AT, (other, single), now).is_none());
        // The first returned permit goes to the other team, even if a run of the busy team asks first.
        drop(permits.pop_front());
        assert!(queues.enter(AT, (busy, runs[0]), now).is_none());
        assert_eq!(queues.turns(now), [single]);
        queues.woken(single, now);
        let permit = queues.enter(AT, (other, single), now).unwrap();
        // If no other team waits, the busy team gets all permits, in order of arrival.
        drop(permit);
        drop(permits.pop_front());
        assert_eq!(queues.turns(now), runs[4..6]);
        for run in &runs[4..6] {
            permits.push_back(queues.enter(AT, (busy, *run), now).unwrap());
        }
        // Two teams that both have many runs alternate.
        let others: Vec<RunId> = (0..4).map(|_| ids.run(now)).collect();
        for run in &others {
            assert!(queues.enter(AT, (other, *run), now).is_none());
        }
        drop(permits);
        let expected = [others[0], others[1], runs[6], runs[7]];
        assert_eq!(sorted(queues.turns(now)), sorted(expected.to_vec()));
    }

    fn sorted(mut runs: Vec<RunId>) -> Vec<RunId> {
        runs.sort();
        runs
    }
}
