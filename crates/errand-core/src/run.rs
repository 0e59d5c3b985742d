//! A run's status, and the one function that changes it.

use serde::{Deserialize, Serialize};

/// Where a run is. The seven words of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not begun, or resumed and not begun anew.
    Pending,
    /// Claimed; its first step is not done.
    Starting,
    /// At work, or on a timer.
    Running,
    /// A person is needed.
    Waiting,
    /// Ended well.
    Completed,
    /// Ended with an error.
    Failed,
    /// Stopped.
    Interrupted,
}

impl Status {
    /// All, in the order of a run's life.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Waiting,
        Self::Completed,
        Self::Failed,
        Self::Interrupted,
    ];

    /// The word of the wire, also stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }

    /// Reads [`Status::as_str`] back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// Completed, failed or interrupted.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Interrupted)
    }

    /// Ended, or waiting for a person: by itself it does nothing more.
    #[must_use]
    pub fn is_at_rest(self) -> bool {
        self.has_ended() || self == Self::Waiting
    }
}

/// Why a run failed: a stable code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// Such as `tool_failed`, `playbook_failed`, `limit_exceeded`, `step_timeout`, `sandbox_expired`.
    pub code: String,
    /// What happened, and what to do.
    pub message: String,
}

impl RunError {
    /// From a code and a sentence.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }
}

/// What happens to a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Event {
    /// A driver took it.
    Claimed,
    /// A step is committed.
    StepDone,
    /// The step asks a person.
    Asked,
    /// The pending request is answered by a person, or by its deadline.
    Answered,
    /// A message came from outside.
    Message,
    /// Somebody stops it.
    Stop,
    /// The step ends it well.
    Completed,
    /// The step, or a limit, ends it with an error.
    Failed,
    /// `retry`: goes on from the step that failed.
    Retry,
    /// Its driver is gone without a word.
    DriverLost,
}

impl Event {
    /// All, for the table.
    pub const ALL: [Self; 10] = [
        Self::Claimed,
        Self::StepDone,
        Self::Asked,
        Self::Answered,
        Self::Message,
        Self::Stop,
        Self::Completed,
        Self::Failed,
        Self::Retry,
        Self::DriverLost,
    ];
}

/// What follows from an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    /// The status afterwards.
    pub to: Status,
    /// The pending human request, and the calls that are open with it, are closed in the same transaction.
    pub closes_request: bool,
    /// It wants a driver.
    pub wakes: bool,
    /// Whoever drives it holds it no longer: its commits are refused from here on.
    pub fences: bool,
}

/// The event is not allowed in the status. It changes nothing: an answer, not a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a run that is {} takes no {event:?}", .status.as_str())]
pub struct Refused {
    /// Where the run is.
    pub status: Status,
    /// What was tried.
    pub event: Event,
}

/// The only place where a run's status changes: DESIGN's table.
///
/// # Errors
/// [`Refused`] names the status and the event.
pub fn apply(status: Status, event: Event) -> Result<Transition, Refused> {
    use Event as E;
    use Status as S;
    let stay = Transition {
        to: status,
        closes_request: false,
        wakes: false,
        fences: false,
    };
    let to = |to| Transition { to, ..stay };
    match (status, event) {
        (S::Pending, E::Claimed) => Ok(to(S::Starting)),
        // A driver that was lost before its first step: the next one starts it anew.
        (S::Starting | S::Running, E::Claimed) => Ok(stay),
        (S::Starting | S::Running, E::StepDone) => Ok(to(S::Running)),
        (S::Running, E::Asked) => Ok(Transition {
            fences: true,
            ..to(S::Waiting)
        }),
        (S::Waiting, E::Answered) => Ok(Transition {
            wakes: true,
            ..to(S::Running)
        }),

        (S::Pending | S::Starting | S::Running, E::Message) => Ok(stay),
        (S::Waiting, E::Message) => Ok(Transition {
            closes_request: true,
            wakes: true,
            ..to(S::Running)
        }),
        (S::Completed | S::Interrupted, E::Message) => Ok(Transition {
            wakes: true,
            ..to(S::Pending)
        }),
        (S::Failed, E::Message) => Ok(stay),

        (S::Pending | S::Starting | S::Running | S::Waiting, E::Stop) => Ok(Transition {
            closes_request: status == S::Waiting,
            fences: true,
            ..to(S::Interrupted)
        }),
        (S::Completed | S::Failed | S::Interrupted, E::Stop) => Ok(stay),

        (S::Starting | S::Running, E::Completed) => Ok(Transition {
            fences: true,
            ..to(S::Completed)
        }),
        (S::Pending | S::Starting | S::Running, E::Failed) => Ok(Transition {
            fences: true,
            ..to(S::Failed)
        }),
        // Only by `on_expire: fail`.
        (S::Waiting, E::Failed) => Ok(Transition {
            closes_request: true,
            ..to(S::Failed)
        }),

        (S::Failed, E::Retry) => Ok(Transition {
            wakes: true,
            ..to(S::Pending)
        }),
        (S::Starting | S::Running, E::DriverLost) => Ok(Transition {
            wakes: true,
            fences: true,
            ..stay
        }),

        (
            S::Pending,
            E::StepDone | E::Asked | E::Answered | E::Completed | E::Retry | E::DriverLost,
        )
        | (S::Starting, E::Asked | E::Answered | E::Retry)
        | (S::Running, E::Answered | E::Retry)
        | (
            S::Waiting,
            E::Claimed | E::StepDone | E::Asked | E::Completed | E::Retry | E::DriverLost,
        )
        | (
            S::Completed | S::Interrupted,
            E::Claimed
            | E::StepDone
            | E::Asked
            | E::Answered
            | E::Completed
            | E::Failed
            | E::Retry
            | E::DriverLost,
        )
        | (
            S::Failed,
            E::Claimed
            | E::StepDone
            | E::Asked
            | E::Answered
            | E::Completed
            | E::Failed
            | E::DriverLost,
        ) => Err(Refused { status, event }),
    }
}

#[cfg(test)]
#[path = "run/tests.rs"]
mod tests;
