//! Limits how many readers one team uses at the same time.
//!
//! # Guarantees
//!
//! One team uses at most half of the readers at the same time, so that a read of another team waits for at most one read
//! before it. The reads of one team are executed in the order in which they arrive.
//!
//! Memory: one entry for each team that reads or waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::TeamId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits the reads of each team. Cheap to clone.
#[derive(Clone)]
pub(super) struct TeamTurns {
    each: usize,
    teams: Arc<Mutex<HashMap<TeamId, Arc<Semaphore>>>>,
}

/// One read of a team. It ends when this is dropped.
pub(super) struct TeamTurn {
    turns: TeamTurns,
    team: TeamId,
    permit: Option<OwnedSemaphorePermit>,
}

impl TeamTurns {
    /// Creates the turns for a pool of `readers` connections.
    pub(super) fn at(readers: usize) -> Self {
        Self {
            each: (readers / 2).max(1),
            teams: Arc::default(),
        }
    }

    /// Waits until the team may read.
    pub(super) async fn take(&self, team: TeamId) -> TeamTurn {
        let places = {
            let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
            let places = teams
                .entry(team)
                .or_insert_with(|| Arc::new(Semaphore::new(self.each)));
            Arc::clone(places)
        };
        // Created before the wait, so that a canceled caller leaves no entry behind.
        let mut turn = TeamTurn {
            turns: self.clone(),
            team,
            permit: None,
        };
        // The semaphore is never closed.
        turn.permit = places.acquire_owned().await.ok();
        turn
    }
}

impl Drop for TeamTurn {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut teams = self
            .turns
            .teams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Every other read that waits or runs holds the semaphore, too.
        let is_last = teams
            .get(&self.team)
            .is_some_and(|places| Arc::strong_count(places) == 1);
        if is_last {
            teams.remove(&self.team);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(n: u128) -> TeamId {
        TeamId::from_stored(uuid::Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn one_team_has_at_most_half_of_the_readers() {
        let turns = TeamTurns::at(4);
        let first = turns.take(team(1)).await;
        let second = turns.take(team(1)).await;
        let mut third = Box::pin(turns.take(team(1)));
        assert!(futures::poll!(&mut third).is_pending());
        let other = turns.take(team(2)).await;
        drop(first);
        let third = third.await;
        drop((second, third, other));
        assert!(turns.teams.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn whoever_gives_up_leaves_nothing() {
        let turns = TeamTurns::at(1);
        let first = turns.take(team(1)).await;
        let mut second = Box::pin(turns.take(team(1)));
        assert!(futures::poll!(&mut second).is_pending());
        drop(second);
        drop(first);
        assert!(turns.teams.lock().unwrap().is_empty());
    }
}
