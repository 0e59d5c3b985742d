//! The status of a run, and the one function that changes it.
//!
//! # Guarantees
//!
//! Every change of a status goes through [`apply`], which is pure and total. Its table is a snapshot in the tests.

use serde::{Deserialize, Serialize};

use crate::wire_enum::wire_enum;

wire_enum! {
    /// The reason why a run that has not ended waits, as in `waiting_on.kind`.
    WaitReason {
        /// A person's answer.
        Human = "human",
        /// The time at which it continues by itself.
        Timer = "timer",
        /// Its model can be asked again.
        Retry = "retry",
        /// A slot for active runs.
        Slot = "place",
        /// The run that uses its sandbox.
        Sandbox = "sandbox",
        /// The run that it started.
        ChildRun = "child_run",
        /// The preparation of its first step.
        Start = "start",
        /// Its model's turn.
        Model = "model",
        /// A tool call.
        Tool = "tool",
    }
}

wire_enum! {
    /// The way by which a run was started. A child run has none, because another run started it.
    RunSource {
        Api = "api",
        Web = "web",
        Schedule = "schedule",
        Mcp = "mcp",
        /// The operator, on the machine itself.
        Cli = "cli",
    }
}

/// The status of a run, as it is on the wire and in the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Queued: not started yet, or resumed and not claimed again.
    Pending,
    /// Claimed by a driver; the first step is not committed yet.
    Starting,
    /// Being driven, queued between two steps, or waiting for a timer.
    Running,
    /// Waiting for a person.
    Waiting,
    /// Ended successfully.
    Completed,
    /// Ended with an error.
    Failed,
    /// Stopped by a person or by the system.
    Interrupted,
}

impl Status {
    /// All statuses, in the order of a run's life.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Waiting,
        Self::Completed,
        Self::Failed,
        Self::Interrupted,
    ];

    /// The name on the wire and in the database.
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

    /// The inverse of [`Status::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Interrupted)
    }

    /// Ended, or waiting for a person: the run does nothing more by itself.
    #[must_use]
    pub fn is_at_rest(self) -> bool {
        self.has_ended() || self == Self::Waiting
    }
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// A stable code, such as `tool_failed`, `playbook_failed`, `limit_exceeded`, `step_timeout`, `sandbox_expired`.
    pub code: String,
    /// An explanation for people, with advice on what to do.
    pub message: String,
}

impl RunError {
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }
}

/// Something that happens to a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Event {
    /// A driver claimed the run.
    Claimed,
    /// A step was committed.
    StepDone,
    /// The step made a human request.
    Asked,
    /// The pending request was answered by a person, or expired.
    Answered,
    /// A user sent a message.
    Message,
    /// A person or the system stops the run.
    Stop,
    /// The step ends the run successfully.
    Completed,
    /// The step or a limit ends the run with an error.
    Failed,
    /// `retry`: continue from the step that failed.
    Retry,
    /// The run's driver disappeared without releasing its claim (crash, kill).
    DriverLost,
}

impl Event {
    /// All events, for the transition table.
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

/// The new status and the effects of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    pub to: Status,
    /// Close the pending human request, and the calls that are open with it, in the same transaction.
    pub closes_request: bool,
    /// Queue the run for a driver.
    pub wakes: bool,
    /// Revoke the driver's claim: the store rejects its commits from now on.
    pub fences: bool,
}

/// The event is not allowed in this status and changes nothing. Callers treat it as a normal outcome, not as a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a run that is {} does not accept the event {event:?}", .status.as_str())]
pub struct Refused {
    pub status: Status,
    pub event: Event,
}

/// Returns the transition for an event: the only place where a run's status changes.
///
/// # Errors
/// [`Refused`], if the event is not allowed in the status.
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
        // The previous driver was lost before its first step; the next one starts over.
        (S::Starting | S::Running, E::Claimed) => Ok(stay),
        (S::Starting | S::Running, E::StepDone) => Ok(to(S::Running)),
        (S::Running, E::Asked) => Ok(Transition {
            fences: true,
            ..to(S::Waiting)
        }),
        (S::Waiting, E::Answered) => Ok(Transition {
            closes_request: true,
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
        // Only for an expired request with `on_expire: fail`.
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
