//! What a tool may do: hints of the tool, policy of the build, and the decision for one call.

use serde::{Deserialize, Serialize};

/// What a build says of a tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Runs without asking.
    Allow,
    /// A person sees the exact call and releases it.
    Ask,
    /// Never runs.
    Deny,
    /// Allowed until untrusted content came into the run, then asked; for a tool that only reads the open world: until
    /// private content came as well.
    Guard,
}

impl Policy {
    fn strictness(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Guard => 1,
            Self::Ask => 2,
            Self::Deny => 3,
        }
    }

    /// The stricter of two words on one tool.
    #[must_use]
    pub fn or_stricter(self, other: Self) -> Self {
        if other.strictness() > self.strictness() {
            other
        } else {
            self
        }
    }

    /// As a build has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
            Self::Guard => "guard",
        }
    }
}

/// What settles a call that has an intent and no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settle {
    /// The same call may be carried out again: what it does, it does once.
    RunAgain,
    /// The tool can look whether it was done, or gives an idempotency key to the other side.
    LookUp,
    /// Only the model can find out, by looking at its sandbox: an error result tells it so.
    TellModel,
    /// Only a person can say.
    AskPerson,
}

/// What a tool is, whoever calls it. The names are MCP's, but for the last two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hints {
    /// Changes nothing.
    pub read_only: bool,
    /// May remove or overwrite.
    pub destructive: bool,
    /// Twice is as good as once.
    pub idempotent: bool,
    /// Reaches beyond the sandbox.
    pub open_world: bool,
    /// Asks a person: its call *is* a human request.
    pub asks: bool,
    /// What it returns comes from outside the team's trust.
    pub untrusted: bool,
    /// What it returns must not leave the team.
    pub private: bool,
    /// How a call in doubt is settled.
    pub settle: Settle,
}

/// The built-in tools of the contract, in its order, with their hints.
pub const BUILTIN: [(&str, Hints); 8] = {
    const READ: Hints = Hints {
        read_only: true,
        destructive: false,
        idempotent: true,
        open_world: false,
        asks: false,
        untrusted: true,
        private: true,
        settle: Settle::RunAgain,
    };
    const ASK: Hints = Hints {
        asks: true,
        untrusted: false,
        private: false,
        ..READ
    };
    const WRITE: Hints = Hints {
        read_only: false,
        destructive: true,
        untrusted: false,
        private: false,
        ..READ
    };
    [
        ("list_files", READ),
        ("read_file", READ),
        ("write_file", WRITE),
        (
            "edit_file",
            Hints {
                idempotent: false,
                settle: Settle::LookUp,
                ..WRITE
            },
        ),
        ("search_files", READ),
        (
            "run_command",
            Hints {
                idempotent: false,
                untrusted: true,
                private: true,
                settle: Settle::TellModel,
                ..WRITE
            },
        ),
        ("request_approval", ASK),
        ("ask_human", ASK),
    ]
};

/// The built-in tools that a build has only where it names them.
pub const NAMED: [(&str, Hints); 2] = [
    (
        "fetch_url",
        Hints {
            read_only: true,
            destructive: false,
            idempotent: true,
            open_world: true,
            asks: false,
            untrusted: true,
            private: false,
            settle: Settle::RunAgain,
        },
    ),
    (
        "run_assignment",
        Hints {
            read_only: false,
            destructive: false,
            // Another call starts another run. The same one finds the run that it started.
            idempotent: false,
            open_world: false,
            asks: false,
            // What the run that was started has read counts; see `Body::Source`.
            untrusted: false,
            private: false,
            settle: Settle::RunAgain,
        },
    ),
];

/// The names of all built-in tools.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().chain(&NAMED).map(|(name, _)| *name)
}

/// The hints of a built-in tool.
#[must_use]
pub fn builtin(name: &str) -> Option<Hints> {
    BUILTIN
        .iter()
        .chain(&NAMED)
        .find(|(n, _)| *n == name)
        .map(|(_, hints)| *hints)
}

/// What follows for one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Carry it out.
    Run,
    /// Ask a person first.
    Ask,
    /// Refuse it, with this reason.
    Refuse(&'static str),
}

/// Decides by policy. `tainted`: what a guarded call asks after came into the run. `people`: whether a person can be asked.
#[must_use]
pub fn decide(policy: Policy, tainted: bool, people: bool) -> Decision {
    match policy {
        Policy::Allow => Decision::Run,
        Policy::Guard if !tainted => Decision::Run,
        Policy::Ask | Policy::Guard if people => Decision::Ask,
        Policy::Ask | Policy::Guard => Decision::Refuse(
            "denied: the tool needs a person's approval, and this assignment runs without people (`human_in_the_loop: false`)",
        ),
        Policy::Deny => Decision::Refuse("denied: this assignment does not allow the tool"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        use Decision as D;
        use Policy as P;
        for (policy, tainted, people, runs, asks) in [
            (P::Allow, true, false, true, false),
            (P::Guard, false, true, true, false),
            (P::Guard, true, true, false, true),
            (P::Guard, true, false, false, false),
            (P::Ask, false, true, false, true),
            (P::Ask, false, false, false, false),
            (P::Deny, false, true, false, false),
        ] {
            let decision = decide(policy, tainted, people);
            assert_eq!(
                (decision == D::Run, decision == D::Ask),
                (runs, asks),
                "{policy:?} tainted={tainted} people={people}"
            );
        }
    }
}
