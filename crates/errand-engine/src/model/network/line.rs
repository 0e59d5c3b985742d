//! How many calls a provider is given at once, and who is next.
//!
//! Guarantees: never more than the maximum. Those that find no room wait without a driver, and the dispatcher wakes whose
//! turn it is as soon as there is room. The next room goes to the team with the fewest calls in flight, among equals in
//! turn ([`errand_core::fair`]); within a team, to the run that has waited the longest. So a provider that is slow, or
//! silent, holds up the runs that use it, and leaves the engine's places to the others; and a team with many runs holds
//! another team's call up until one room is given back, and no longer.
//!
//! The lines are kept in memory alone: who waits looks again by itself after [`LOOK_AGAIN_MS`], also where nobody wakes it.
//! One that was woken and does not come (its run was stopped) holds its room for [`HELD_MS`] at most.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::fair::Fair;
use errand_core::id::{RunId, TeamId};
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

/// One line: calls in flight, and runs that wait for room, in order of arrival.
struct Line {
    in_flight: usize,
    /// Calls in flight by team. It has no reserve: how many rooms there are is counted here.
    teams: Fair<TeamId, ()>,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    team: TeamId,
    run: RunId,
    /// Until when its room is kept, once it was woken.
    held_until: Option<Timestamp>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            in_flight: 0,
            teams: Fair::new(usize::MAX),
            waiting: VecDeque::new(),
        }
    }
}

impl Line {
    fn forget_the_late(&mut self, now: Timestamp) {
        self.waiting
            .retain(|waiting| waiting.held_until.is_none_or(|until| until > now));
    }

    /// Gives a run its turn if the turn has come; otherwise the run waits.
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

    /// The runs that get the rooms that are neither taken nor kept for one that was woken.
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

impl Lines {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            shared: Arc::default(),
        }
    }

    /// Room for one call. `None`: the run waits for its turn.
    pub(super) fn enter(
        &self,
        (provider, endpoint): (&str, &str),
        (team, run): (TeamId, RunId),
        now: Timestamp,
    ) -> Option<Room> {
        let key = (provider.to_owned(), endpoint.to_owned());
        let mut lines = self.shared.lines();
        let line = lines.entry(key.clone()).or_default();
        line.enters((team, run), self.most, now).then(|| Room {
            key,
            team,
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
        lines.retain(|_, line| {
            line.forget_the_late(now);
            line.in_flight > 0 || !line.waiting.is_empty()
        });
        let turns = lines.values().flat_map(|line| line.next(self.most));
        turns.collect()
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
    team: TeamId,
    shared: Arc<Shared>,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut lines = self.shared.lines();
        let Some(line) = lines.get_mut(&self.key) else {
            return;
        };
        line.leaves(self.team);
        if !line.waiting.is_empty() {
            self.shared.freed.notify_one();
        } else if line.in_flight == 0 {
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
        let (lines, team) = (Lines::new(2), ids.team(now));
        let enter = |n: usize| lines.enter(AT, (team, runs[n]), now);
        let (one, two) = (enter(0).unwrap(), enter(1).unwrap());
        assert!(enter(2).is_none() && enter(3).is_none());
        assert!(lines.turns(now).is_empty());
        // Another provider, and the same one elsewhere, have lines of their own.
        let fourth = (team, runs[3]);
        assert!(lines.enter(("gemini", AT.1), fourth, now).is_some());
        assert!(lines.enter((AT.0, "https://x/"), fourth, now).is_some());
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
        assert!(lines.enter(AT, (team, runs[2]), later).is_some());
        drop(one);
    }
    #[test]
    fn many_runs_of_a_team_hold_up_another_team_for_one_turn() {
        let (ids, now) = (IdGen::new([1; 32]), Timestamp::from_millis(0));
        let lines = Lines::new(4);
        let (busy, other) = (ids.team(now), ids.team(now));
        let runs: Vec<RunId> = (0..63).map(|_| ids.run(now)).collect();
        let mut rooms: VecDeque<Room> = VecDeque::new();
        for run in &runs {
            rooms.extend(lines.enter(AT, (busy, *run), now));
        }
        assert_eq!(rooms.len(), 4);
        let single = ids.run(now);
        assert!(lines.enter(AT, (other, single), now).is_none());
        // The first room that is given back is the other team's, also where a run of the busy team asks first.
        drop(rooms.pop_front());
        assert!(lines.enter(AT, (busy, runs[0]), now).is_none());
        assert_eq!(lines.turns(now), [single]);
        lines.woken(single, now);
        let room = lines.enter(AT, (other, single), now).unwrap();
        // With nobody else waiting, the busy team has all rooms, in order of arrival.
        drop(room);
        drop(rooms.pop_front());
        assert_eq!(lines.turns(now), runs[4..6]);
        for run in &runs[4..6] {
            rooms.push_back(lines.enter(AT, (busy, *run), now).unwrap());
        }
        // Two teams that both have many runs get every second room.
        let others: Vec<RunId> = (0..4).map(|_| ids.run(now)).collect();
        for run in &others {
            assert!(lines.enter(AT, (other, *run), now).is_none());
        }
        drop(rooms);
        let expected = [others[0], others[1], runs[6], runs[7]];
        assert_eq!(sorted(lines.turns(now)), sorted(expected.to_vec()));
    }

    fn sorted(mut runs: Vec<RunId>) -> Vec<RunId> {
        runs.sort();
        runs
    }
}
