//! The tools of connections that a run has: by its build, the last probe, and the floors of now.
//!
//! A connection that nobody has probed since it was made, or since it leads elsewhere, has none: what its server says of
//! its tools decides what they may do, and an admin takes note of that first. A call of one says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use errand_core::config::BuildConfig;
use errand_core::connection::connection_of;
use errand_core::id::TeamId;
use errand_core::policy::{Hints, Policy, Settle};
use errand_core::schema::weigh;
use errand_core::transcript::Outcome;
use errand_store::{Connection, StoreError};
use serde_json::{Map, Value, json};

use super::{ConnectionTool, Connections};
use crate::tool::{Tool, ToolContext};

/// See the module's document.
#[derive(Default)]
pub struct Offer {
    connections: Vec<Arc<Connection>>,
    tools: BTreeMap<String, (Arc<dyn Tool>, Policy)>,
    /// What stands for the tools of connections that were not probed, by the connection's name.
    unprobed: BTreeMap<String, Arc<dyn Tool>>,
    /// What stands for tools whose schema is refused, by the tool's name.
    refused: BTreeMap<String, Arc<dyn Tool>>,
}

impl Offer {
    /// The tools that a build has now.
    ///
    /// # Errors
    /// Of the store.
    pub async fn of(
        connections: &Connections,
        team: TeamId,
        build: &BuildConfig,
    ) -> Result<Self, StoreError> {
        let mut offer = Self::default();
        offer.refresh(connections, team, build).await?;
        Ok(offer)
    }

    /// Takes over what admins have changed since. True where something was.
    ///
    /// # Errors
    /// Of the store.
    pub async fn refresh(
        &mut self,
        connections: &Connections,
        team: TeamId,
        build: &BuildConfig,
    ) -> Result<bool, StoreError> {
        let ids = &build.reach.connections;
        if ids.is_empty() {
            return Ok(false);
        }
        let rows = connections.store.connections_of(team, ids.clone()).await?;
        let same = rows.len() == self.connections.len()
            && rows
                .iter()
                .zip(&self.connections)
                .all(|(new, old)| *new == **old);
        if same {
            return Ok(false);
        }
        self.connections = rows.into_iter().map(Arc::new).collect();
        self.tools.clear();
        self.unprobed.clear();
        self.refused.clear();
        for connection in &self.connections {
            if connection.tools.is_none() {
                let unprobed = Unprobed(connection.name.clone());
                self.unprobed
                    .insert(connection.name.clone(), Arc::new(unprobed));
            }
            let named = build
                .tools
                .keys()
                .any(|tool| connection_of(tool) == Some(&connection.name));
            for tool in connection.tools.iter().flatten() {
                let said = build.tools.get(&tool.name).copied();
                if named && said.is_none() {
                    continue;
                }
                if let Err(why) = weigh(&tool.input_schema) {
                    let refused = Refused(tool.name.clone(), why);
                    self.refused.insert(tool.name.clone(), Arc::new(refused));
                    continue;
                }
                let policy = said
                    .unwrap_or_else(|| tool.hints.policy())
                    .or_stricter(connection.floor(&tool.name));
                let made =
                    ConnectionTool::new(connections.clone(), Arc::clone(connection), tool.clone());
                self.tools
                    .insert(tool.name.clone(), (Arc::new(made), policy));
            }
        }
        Ok(true)
    }

    /// A tool.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        let unprobed = || self.unprobed.get(connection_of(name)?);
        let tool = self.tools.get(name).map(|(tool, _)| tool);
        tool.or_else(|| self.refused.get(name)).or_else(unprobed)
    }

    /// The word on a tool: of the build, or by what the server says of it; never below the floor.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<Policy> {
        // Nobody is asked about a call that calls nothing.
        let unprobed = || {
            let known = self.unprobed.contains_key(connection_of(name)?);
            let known = known || self.refused.contains_key(name);
            known.then_some(Policy::Allow)
        };
        self.tools
            .get(name)
            .map(|(_, policy)| *policy)
            .or_else(unprobed)
    }

    /// All tools.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Tool>> {
        self.tools.values().map(|(tool, _)| tool)
    }
}

/// A call that began before may have been done: nobody but a person can tell.
const NOT_CALLED: Hints = Hints {
    read_only: false,
    destructive: false,
    idempotent: false,
    open_world: true,
    asks: false,
    untrusted: false,
    settle: Settle::AskPerson,
};

/// Stands for a tool whose schema is refused: its name, and why.
struct Refused(String, String);

#[async_trait]
impl Tool for Refused {
    fn name(&self) -> &str {
        &self.0
    }

    fn description(&self) -> &str {
        ""
    }

    fn hints(&self) -> Hints {
        NOT_CALLED
    }

    fn schema(&self) -> Value {
        json!({"type": "object"})
    }

    async fn run(&self, _: &ToolContext, _: Map<String, Value>) -> Outcome {
        let Self(name, why) = self;
        Outcome::Error(format!(
            "unusable_schema: {name} was not called, since its server gives a schema that cannot be checked ({why}); its maker must change it"
        ))
    }
}

/// Stands for any tool of a connection that was not probed.
struct Unprobed(String);

#[async_trait]
impl Tool for Unprobed {
    fn name(&self) -> &str {
        &self.0
    }

    fn description(&self) -> &str {
        ""
    }

    fn hints(&self) -> Hints {
        NOT_CALLED
    }

    fn schema(&self) -> Value {
        json!({"type": "object"})
    }

    async fn run(&self, _: &ToolContext, _: Map<String, Value>) -> Outcome {
        let name = &self.0;
        Outcome::Error(format!(
            "not_run: the connection {name} has not been probed since it was made, or since it leads elsewhere, and nothing was called: an admin looks at what it offers, and probes it (POST /v1/connections/{{connection_id}}/probe, or its page)"
        ))
    }
}
