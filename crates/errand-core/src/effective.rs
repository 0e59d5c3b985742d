//! The effective tools of a build: its `tools`, combined with the last probe of its connections, the admins' floors,
//! and the policies of the run that started this one.
//!
//! # Guarantees
//!
//! One function computes them. The engine offers and executes tools by its result, and the API and the pages show the
//! same result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::BuildConfig;
use crate::connection::{ConnectionView, ProbedTool};
use crate::policy::{self, Hints, Policy};
use crate::schema;

/// The setting that determined a tool's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The build has no `tools`, so it gets the sandbox's tools and those that ask people.
    Default,
    /// The build names the tool.
    Build,
    /// The build names all tools of the connection with one policy.
    Connection,
    /// The build names all tools of the connection, each with the policy of its hints.
    Hints,
    /// An admin's floor is stricter than the build.
    Floor,
    /// The run that started this one has a stricter policy.
    Caller,
}

impl DecidedBy {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Build => "build",
            Self::Connection => "connection",
            Self::Hints => "hints",
            Self::Floor => "floor",
            Self::Caller => "caller",
        }
    }
}

/// A tool that a build has, with its policy.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveTool<'a> {
    pub name: &'a str,
    /// A tool with the policy `deny` is not offered to the model.
    pub policy: Policy,
    pub by: DecidedBy,
    /// For a connection's tool: the connection's index in the list, and the tool as probed. `None` for built-in tools.
    pub probed: Option<(usize, &'a ProbedTool)>,
}

/// The policies of the tools of a run that started another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallerPolicies(pub BTreeMap<String, Policy>);

/// Built-in tools that stay within the sandbox or ask a person. A child run has them as its own build says even if the
/// calling run lacks them.
const STAY_INSIDE: [&str; 7] = [
    "list_files",
    "read_file",
    "write_file",
    "edit_file",
    "search_files",
    "request_approval",
    "ask_human",
];

impl CallerPolicies {
    /// The minimum policy of a tool in the child run. A tool that the caller lacks and that acts or sends beyond the
    /// sandbox is at least guarded: otherwise the caller's model could use it through the child.
    #[must_use]
    pub fn floor(&self, tool: &str, hints: Hints) -> Policy {
        let reads_inside = hints.read_only && !hints.open_world;
        match self.0.get(tool) {
            Some(policy) => *policy,
            None if STAY_INSIDE.contains(&tool) || reads_inside => Policy::Allow,
            None => Policy::Guard,
        }
    }
}

/// Computes the effective tools of a build, built-in ones first. `has`: the hints of a built-in tool, `None` if this
/// server does not offer it. `caller`: the policies of the run that started this one.
#[must_use]
pub fn tools<'a>(
    build: &'a BuildConfig,
    has: &dyn Fn(&str) -> Option<Hints>,
    connections: &[ConnectionView<'a>],
    caller: Option<&CallerPolicies>,
) -> Vec<EffectiveTool<'a>> {
    let by = if build.has_tools {
        DecidedBy::Build
    } else {
        DecidedBy::Default
    };
    let mut all = Vec::new();
    for (name, policy) in &build.tools {
        let Some(hints) = policy::builtin(name).and_then(|_| has(name)) else {
            continue;
        };
        if hints.asks && !build.human_in_the_loop {
            continue;
        }
        let (policy, by) = with_caller_floor((*policy, by), caller.map(|of| of.floor(name, hints)));
        all.push(EffectiveTool {
            name,
            policy,
            by,
            probed: None,
        });
    }
    for (place, connection) in connections.iter().enumerate() {
        for tool in connection.tools.into_iter().flatten() {
            let Some(by_build) = policy_of_build(build, connection, tool) else {
                continue;
            };
            // The arguments of such a tool could not be validated in bounded time.
            if schema::weigh(&tool.input_schema).is_err() {
                continue;
            }
            let floor = connection.floor(&tool.name);
            let (policy, by) = if by_build.0.or_stricter(floor) == by_build.0 {
                by_build
            } else {
                (floor, DecidedBy::Floor)
            };
            let hints = tool.engine_hints(connection.settings_of(&tool.name), false);
            let (policy, by) =
                with_caller_floor((policy, by), caller.map(|of| of.floor(&tool.name, hints)));
            all.push(EffectiveTool {
                name: &tool.name,
                policy,
                by,
                probed: Some((place, tool)),
            });
        }
    }
    all
}

/// The policy that a build sets for a connection's tool. `None`: the build does not have the tool.
fn policy_of_build(
    build: &BuildConfig,
    connection: &ConnectionView<'_>,
    tool: &ProbedTool,
) -> Option<(Policy, DecidedBy)> {
    if let Some(policy) = build.tools.get(&tool.name) {
        return Some((*policy, DecidedBy::Build));
    }
    if build.off.contains(&tool.name) {
        return None;
    }
    Some(match build.all_of.get(connection.name)? {
        Some(policy) => (*policy, DecidedBy::Connection),
        None => (
            tool.policy(connection.settings_of(&tool.name)),
            DecidedBy::Hints,
        ),
    })
}

fn with_caller_floor(
    (policy, by): (Policy, DecidedBy),
    floor: Option<Policy>,
) -> (Policy, DecidedBy) {
    match floor {
        Some(floor) if policy.or_stricter(floor) != policy => (floor, DecidedBy::Caller),
        _ => (policy, by),
    }
}

#[cfg(test)]
#[path = "effective/tests.rs"]
mod tests;
