//! Follow-ups: changes of other runs that a change of one run requires.
//!
//! [`Change`](super::change::Change) only records follow-ups. [`settle`](super::settle) executes them, in the same
//! transaction, after the row of the run that caused them is written. So a follow-up always finds that run in its new
//! state, and a change never touches the row of another run.

use errand_core::id::{RunId, TeamId};

/// Something that must happen to another run in the same transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FollowUp {
    /// A sandbox was released: hand it over to the run that has waited for it longest.
    HandOverSandbox { sandbox: String, released_by: RunId },
    /// A run has ended: stop the child runs that it was waiting for.
    StopChildren { parent: RunId, team: TeamId },
    /// A run has ended: queue the run that waits for it.
    WakeCaller { child: RunId },
    /// A run asks a person: notify those who watch its callers, which show the request too.
    NotifyCallers { child: RunId },
}
