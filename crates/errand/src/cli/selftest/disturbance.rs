//! The schedule of kills and pauses: how many, and after which steps of the work.

use anyhow::{Result, bail};

use super::progress::Progress;
use super::seeded::Seeded;
use super::server::{Server, Until};

/// One of this many kills hits the server while it is still recovering from the previous kill.
const EARLY_ONE_IN: u64 = 5;

/// A disturbance of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// SIGKILL and a new start. `early`: the next kill follows as soon as the new server listens.
    Kill { early: bool },
    /// SIGSTOP, a pause, SIGCONT.
    Pause,
}

/// A disturbance and the number of steps of progress at which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlannedDisturbance {
    at: u64,
    what: Disturbance,
}

/// Distributes disturbances over `steps`, each at a random place in its share.
pub(super) fn planned(seed: u64, kills: u64, pauses: u64, steps: u64) -> Vec<PlannedDisturbance> {
    let all = kills + pauses;
    let mut row = Seeded::new(seed, "trouble", 0);
    let (mut kills_left, mut planned): (u64, Vec<PlannedDisturbance>) = (kills, Vec::new());
    for n in 0..all {
        let share = |n: u64| 1 + n * steps.saturating_sub(1) / all;
        let (from, to) = (share(n), share(n + 1));
        let mut at = from + row.below(to - from);
        let is_kill = row.below(all - n) < kills_left;
        if is_kill {
            kills_left -= 1;
        }
        // An early kill moves the next disturbance, which must be a kill, to its own step.
        match planned.last_mut() {
            Some(last) if is_kill && row.one_in(EARLY_ONE_IN) => {
                if let Disturbance::Kill { early } = &mut last.what {
                    *early = true;
                    at = last.at;
                }
            }
            _ => {}
        }
        let what = if is_kill {
            Disturbance::Kill { early: false }
        } else {
            Disturbance::Pause
        };
        planned.push(PlannedDisturbance { at, what });
    }
    planned
}

/// Counts of the disturbances so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DisturbanceCounts {
    pub(super) kills: u64,
    pub(super) pauses: u64,
}

/// Applies all disturbances, each when its step is reached.
pub(super) async fn make(
    server: &mut Server,
    disturbances: &[PlannedDisturbance],
    progress: &Progress,
    made: &mut DisturbanceCounts,
) -> Result<()> {
    for due in disturbances {
        tokio::select! {
            () = progress.reaches(due.at) => {}
            why = server.ends() => bail!(why),
        }
        match due.what {
            Disturbance::Kill { early } => {
                server.kill().await?;
                made.kills += 1;
                let until = if early {
                    Until::Listening
                } else {
                    Until::Ready
                };
                server.start(until).await?;
            }
            Disturbance::Pause => {
                server.pause().await?;
                made.pauses += 1;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disturbances_are_spread_over_the_whole_work() {
        for (seed, kills, pauses, steps) in
            [(1, 50, 3, 900), (2, 3, 0, 10), (3, 0, 2, 5), (4, 40, 4, 7)]
        {
            let disturbances = planned(seed, kills, pauses, steps);
            let count = |wanted: fn(&Disturbance) -> bool| {
                disturbances.iter().filter(|due| wanted(&due.what)).count() as u64
            };
            assert_eq!(count(|what| *what != Disturbance::Pause), kills);
            assert_eq!(count(|what| *what == Disturbance::Pause), pauses);
            assert!(disturbances.iter().all(|due| (1..=steps).contains(&due.at)));
            assert!(disturbances.windows(2).all(|two| two[0].at <= two[1].at));
            for two in disturbances.windows(2) {
                if two[0].what == (Disturbance::Kill { early: true }) {
                    assert!(matches!(two[1].what, Disturbance::Kill { .. }));
                    assert_eq!(two[0].at, two[1].at);
                }
            }
            let last = disturbances.last().map(|due| due.what);
            assert_ne!(last, Some(Disturbance::Kill { early: true }));
        }
        let early = |due: &&PlannedDisturbance| due.what == Disturbance::Kill { early: true };
        assert!(planned(1, 50, 3, 900).iter().filter(early).count() > 0);
    }
}
