//! Deliberate defects, which verify that the checks find them.
//!
//! Each defect is one of the world: of a tool, a model, the network, the disk, a client, or the build that an agent
//! really has. Where only the program itself could misbehave, the simulation alters what it observes of the program.

use super::invariants::Invariant;

listed! {
    /// A deliberate defect. A test requires that a check finds each of them.
    pub enum Sabotage {
        /// Payments claim that they may be repeated.
        RepeatsPayments,
        /// The builds allow what should need a person's approval.
        AllowsWhatShouldAsk,
        /// The builds allow what should be denied.
        AllowsWhatIsDenied,
        /// Tools begin although the run was stopped.
        BeginsAfterStop,
        /// A start that is repeated arrives with a different idempotency key.
        LosesKeysOfStarts,
        /// Some messages are accepted but not stored.
        DropsMessages,
        /// A model claims to have read messages that it has not read.
        FinishesUnread,
        /// An approval arrives as a denial.
        DeniesApprovals,
        /// An answer that is repeated arrives with a different idempotency key.
        LosesKeysOfAnswers,
        /// Requests that should fail their run when they expire let it continue.
        LapsesSilently,
        /// The builds allow more active time than they should.
        GrantsMoreTime,
        /// The network alters webhooks that are sent again.
        AltersRepeatedWebhooks,
        /// The network delivers some webhooks after the next one.
        DelaysWebhooks,
        /// Some webhooks are answered although the receiver never got them.
        SwallowsWebhooks,
        /// A run's events report a first status other than `pending`.
        ReportsOtherStatus,
        /// The first event of a run is missing.
        LosesEvents,
        /// A model gives all its calls the same id.
        RepeatsCallIds,
        /// A driver that reports to have released its run keeps it, and commits another step.
        KeepsClaims,
        /// Some calls of tools never return.
        NeverReturns,
        /// Some turns of models panic.
        Panics,
        /// A crash overwrites the beginning of the database.
        DamagesFile,
        /// A driver records the intent of a call that no model has made.
        InventsIntents,
        /// A driver starts a child run that no model has asked for.
        StartsUncalledRuns,
        /// The builds allow more tokens than they should.
        GrantsMoreTokens,
        /// Models report what each turn used twice.
        ReportsUsageTwice,
        /// Models take the part of an answer that broke off for all of it.
        TakesPartsForAnswers,
        /// A fork arrives with an earlier message than the one that the client named.
        ForksEarlier,
    }
}

impl Sabotage {
    /// The invariant whose check must find this defect.
    #[must_use]
    pub fn violates(self) -> Invariant {
        match self {
            Self::RepeatsPayments => Invariant::NoSilentRepeat,
            Self::AllowsWhatShouldAsk => Invariant::OnlyApproved,
            Self::AllowsWhatIsDenied => Invariant::NothingDenied,
            Self::BeginsAfterStop => Invariant::StopHolds,
            Self::LosesKeysOfStarts => Invariant::StartedOnce,
            Self::DropsMessages => Invariant::MessageKept,
            Self::FinishesUnread => Invariant::MessageRead,
            Self::DeniesApprovals => Invariant::OneAnswer,
            Self::LosesKeysOfAnswers => Invariant::Answers,
            Self::LapsesSilently => Invariant::Lapses,
            Self::GrantsMoreTime => Invariant::WorkingTime,
            Self::AltersRepeatedWebhooks => Invariant::SameBytes,
            Self::DelaysWebhooks => Invariant::InOrder,
            Self::SwallowsWebhooks => Invariant::Delivered,
            Self::ReportsOtherStatus => Invariant::Transitions,
            Self::LosesEvents => Invariant::NoGaps,
            Self::RepeatsCallIds => Invariant::OneResult,
            Self::KeepsClaims => Invariant::Fenced,
            Self::NeverReturns => Invariant::NeverStuck,
            Self::Panics => Invariant::NoInternal,
            Self::DamagesFile => Invariant::Starts,
            Self::InventsIntents => Invariant::Stored,
            Self::StartsUncalledRuns => Invariant::RunPerCall,
            Self::GrantsMoreTokens => Invariant::SharedLimits,
            Self::ReportsUsageTwice => Invariant::CountedOnce,
            Self::TakesPartsForAnswers => Invariant::WholeAnswers,
            Self::ForksEarlier => Invariant::ForkCopies,
        }
    }
}
