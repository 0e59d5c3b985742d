//! Which calls run, which ask a person, which are refused: a tool's hints, the build's policy, and the decision.

use serde::{Deserialize, Serialize};

/// The policy for a tool in a build.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Runs without asking.
    Allow,
    /// A person sees the exact call and approves or denies it.
    Ask,
    /// Never runs.
    Deny,
    /// Allowed until the run has read untrusted content, then like `ask`. For a tool that only reads the open world:
    /// until the run has read private content as well.
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

    /// The stricter of two policies for one tool.
    #[must_use]
    pub fn or_stricter(self, other: Self) -> Self {
        if other.strictness() > self.strictness() {
            other
        } else {
            self
        }
    }

    /// The name on the wire and in a build's configuration.
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

/// How a call that has an intent but no result is settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settle {
    /// Execute it again: repeating the same call has no further effect.
    RunAgain,
    /// The tool can check whether it was done, or sends an idempotency key to the other side.
    LookUp,
    /// Only the model can find out, by looking at its sandbox: an error result tells it to.
    TellModel,
    /// Only a person can find out.
    AskPerson,
}

/// The properties of a tool, independent of the caller. Most names are those of MCP's tool annotations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hints {
    /// Changes nothing. Such calls may run at the same time.
    pub read_only: bool,
    /// May remove or overwrite data.
    pub destructive: bool,
    /// Repeating a call with the same arguments has no further effect.
    pub idempotent: bool,
    /// Reaches beyond the sandbox.
    pub open_world: bool,
    /// Asks a person: the call itself is a human request.
    pub asks: bool,
    /// Its results may come from outside the team.
    pub untrusted: bool,
    /// Its results must not leave the team.
    pub private: bool,
    /// How a call in doubt is settled: its intent exists, but no result.
    pub settle: Settle,
}

/// The built-in tools that every build has, in the contract's order, with their hints.
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

/// The built-in tools that a build has only if it names them.
pub const OPT_IN: [(&str, Hints); 2] = [
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
            // A new call starts a new run, but the same call (by its id) finds the run that it started before.
            idempotent: false,
            open_world: false,
            asks: false,
            // The content that the child run has read counts instead; see `Body::Source`.
            untrusted: false,
            private: false,
            settle: Settle::RunAgain,
        },
    ),
];

/// The names of all built-in tools, in the contract's order.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().chain(&OPT_IN).map(|(name, _)| *name)
}

/// The hints of a built-in tool; `None` for any other name.
#[must_use]
pub fn builtin(name: &str) -> Option<Hints> {
    BUILTIN
        .iter()
        .chain(&OPT_IN)
        .find(|(n, _)| *n == name)
        .map(|(_, hints)| *hints)
}

/// The decision about one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Execute the call.
    Run,
    /// Ask a person first.
    Ask,
    /// Do not execute it. The text is the error result.
    Refuse(&'static str),
}

/// Decides about one call. `tainted`: the run has read content that makes `guard` ask. `human_in_the_loop`: people can be
/// asked.
#[must_use]
pub fn decide(policy: Policy, tainted: bool, human_in_the_loop: bool) -> Decision {
    match policy {
        Policy::Allow => Decision::Run,
        Policy::Guard if !tainted => Decision::Run,
        Policy::Ask | Policy::Guard if human_in_the_loop => Decision::Ask,
        Policy::Ask | Policy::Guard => Decision::Refuse(
            "the tool needs a person's approval, and this assignment runs without people (`human_in_the_loop: false`)",
        ),
        Policy::Deny => Decision::Refuse("this assignment does not allow the tool"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_follow_the_table() {
        use Decision as D;
        use Policy as P;
        for (policy, tainted, human_in_the_loop, runs, asks) in [
            (P::Allow, true, false, true, false),
            (P::Guard, false, true, true, false),
            (P::Guard, true, true, false, true),
            (P::Guard, true, false, false, false),
            (P::Ask, false, true, false, true),
            (P::Ask, false, false, false, false),
            (P::Deny, false, true, false, false),
        ] {
            let decision = decide(policy, tainted, human_in_the_loop);
            assert_eq!(
                (decision == D::Run, decision == D::Ask),
                (runs, asks),
                "{policy:?} tainted={tainted} people={human_in_the_loop}"
            );
        }
    }
}
