//! The tools that a build has now: by its `tools`, the last probe of its connections, the floors of the team's admins, and
//! the run that started this one.
//!
//! Guarantee: there is one function for it. The engine offers and calls by it, the API and the pages show it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::BuildConfig;
use crate::connection::{ConnectionView, ProbedTool};
use crate::policy::{self, Hints, Policy};
use crate::schema;

/// What decided a tool's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The build names no tools, so that it has those of the sandbox and those that ask.
    Default,
    /// The build names the tool.
    Build,
    /// The build names all tools of the connection, with this policy.
    Connection,
    /// The build names all tools of the connection, each as its hints say.
    Hints,
    /// An admin's floor is stricter than the build.
    Floor,
    /// The run that started this one has a stricter policy.
    Caller,
}

impl DecidedBy {
    /// As the API has it.
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

/// A tool that a build has.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveTool<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it may do. A tool that is denied is not offered to the model.
    pub policy: Policy,
    /// What decided that.
    pub by: DecidedBy,
    /// Its connection, by its place in the list, and what was probed; none: it is part of this program.
    pub probed: Option<(usize, &'a ProbedTool)>,
}

/// The policies of a run that started another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallerPolicies(pub BTreeMap<String, Policy>);

/// Built-in tools that stay within the sandbox or ask a person: a run that was started by another has them as its own build
/// says, where the other does not have them.
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
    /// How strict a tool must be at least in the run that was started. A tool that the caller does not have itself, and
    /// that acts or sends beyond the sandbox, is guarded at least: the caller's model could not use it without.
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

/// The tools that a build has now, those of this program first. `has`: the hints of a tool of this program, none where this
/// server does not have it. `caller`: the policies of the run that started this one.
#[must_use]
pub fn tools<'a>(
    build: &'a BuildConfig,
    has: &dyn Fn(&str) -> Option<Hints>,
    connections: &[ConnectionView<'a>],
    caller: Option<&CallerPolicies>,
) -> Vec<EffectiveTool<'a>> {
    let by = if build.names_tools {
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
        let (policy, by) = raised((*policy, by), caller.map(|of| of.floor(name, hints)));
        all.push(EffectiveTool {
            name,
            policy,
            by,
            probed: None,
        });
    }
    for (place, connection) in connections.iter().enumerate() {
        for tool in connection.tools.into_iter().flatten() {
            let Some(said) = said(build, connection, tool) else {
                continue;
            };
            // Nothing could be validated against it.
            if schema::weigh(&tool.input_schema).is_err() {
                continue;
            }
            let floor = connection.floor(&tool.name);
            let (policy, by) = if said.0.or_stricter(floor) == said.0 {
                said
            } else {
                (floor, DecidedBy::Floor)
            };
            let hints = tool.engine_hints(connection.settings_of(&tool.name), false);
            let (policy, by) = raised((policy, by), caller.map(|of| of.floor(&tool.name, hints)));
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

/// What a build says of a connection's tool; none: it does not have it.
fn said(
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

fn raised((policy, by): (Policy, DecidedBy), floor: Option<Policy>) -> (Policy, DecidedBy) {
    match floor {
        Some(floor) if policy.or_stricter(floor) != policy => (floor, DecidedBy::Caller),
        _ => (policy, by),
    }
}

#[cfg(test)]
#[path = "effective/tests.rs"]
mod tests;
