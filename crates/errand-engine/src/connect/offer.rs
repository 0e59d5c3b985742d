//! The connection tools of a run, determined by its build, the last probe and the current policy floors.
//!
//! A connection that was not probed since it was created or its address was changed offers no tools: the server's hints
//! decide what its tools may do, so an admin must see them first. A call of such a tool fails with an explanation.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use errand_core::config::BuildConfig;
use errand_core::connection::{ConnectionView, connection_of};
use errand_core::effective::{self, CallerPolicies};
use errand_core::id::TeamId;
use errand_core::policy::{Hints, Policy, Settle};
use errand_core::schema::weigh;
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::Outcome;
use errand_store::{Connection, StoreError};
use serde_json::{Map, Value, json};

use super::{ConnectionTool, Connections};
use crate::tool::{Tool, ToolContext, Tools};

/// The connection tools of one run. See the module documentation.
#[derive(Default)]
pub struct Offer {
    connections: Vec<Arc<Connection>>,
    /// The policies of all tools of the run, computed by [`effective::tools`].
    policies: BTreeMap<String, Policy>,
    /// The connection tools.
    tools: BTreeMap<String, Arc<dyn Tool>>,
    /// Stand-ins for the tools of connections that were not probed, by the connection's name.
    unprobed: BTreeMap<String, Arc<dyn Tool>>,
    /// Stand-ins for tools whose schema was refused, by the tool's name.
    refused: BTreeMap<String, Arc<dyn Tool>>,
}

/// The run for which an [`Offer`] is computed.
#[derive(Clone, Copy)]
pub struct OfferFor<'a> {
    pub team: TeamId,
    pub build: &'a BuildConfig,
    /// The policies of the parent run, if another run started this one.
    pub caller: Option<&'a CallerPolicies>,
    /// The built-in tools.
    pub own: &'a Tools,
}

impl Offer {
    /// Computes the tools that a run has now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn of(connections: &Connections, of: OfferFor<'_>) -> Result<Self, StoreError> {
        let mut offer = Self::default();
        if !offer.refresh(connections, of).await? {
            offer.fill(connections, of);
        }
        Ok(offer)
    }

    /// Applies changes that admins have made since. Returns whether anything changed.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn refresh(
        &mut self,
        connections: &Connections,
        of: OfferFor<'_>,
    ) -> Result<bool, StoreError> {
        let ids = &of.build.reach.connections;
        if ids.is_empty() {
            return Ok(false);
        }
        let rows = connections
            .store
            .connections_of(of.team, ids.clone())
            .await?;
        let same = rows.len() == self.connections.len()
            && rows
                .iter()
                .zip(&self.connections)
                .all(|(new, old)| *new == **old);
        if same {
            return Ok(false);
        }
        self.connections = rows.into_iter().map(Arc::new).collect();
        self.fill(connections, of);
        Ok(true)
    }

    fn fill(&mut self, connections: &Connections, of: OfferFor<'_>) {
        self.policies.clear();
        self.tools.clear();
        self.unprobed.clear();
        self.refused.clear();
        let views: Vec<ConnectionView<'_>> =
            self.connections.iter().map(|one| one.view()).collect();
        let has = |name: &str| of.own.get(name).map(|tool| tool.hints());
        for tool in effective::tools(of.build, &has, &views, of.caller) {
            self.policies.insert(tool.name.to_owned(), tool.policy);
            let Some((place, probed)) = tool.probed else {
                continue;
            };
            if let Some(connection) = self.connections.get(place) {
                let made = ConnectionTool::new(
                    connections.clone(),
                    Arc::clone(connection),
                    probed.clone(),
                );
                self.tools.insert(tool.name.to_owned(), Arc::new(made));
            }
        }
        let all = self
            .connections
            .iter()
            .flat_map(|one| one.tools.iter().flatten());
        for tool in all.filter(|tool| of.build.names(&tool.name)) {
            if !self.policies.contains_key(&tool.name)
                && let Err(why) = weigh(&tool.input_schema)
            {
                let refused = Refused(tool.name.clone(), why);
                self.refused.insert(tool.name.clone(), Arc::new(refused));
            }
        }
        for connection in &self.connections {
            let name = &connection.name;
            let is_named = of.build.all_of.contains_key(name)
                || (of.build.tools.keys()).any(|tool| connection_of(tool) == Some(name));
            if connection.tools.is_none() && is_named {
                self.unprobed
                    .insert(name.clone(), Arc::new(Unprobed(name.clone())));
            }
        }
    }

    /// The connection tool (or stand-in) with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        let unprobed = || self.unprobed.get(connection_of(name)?);
        let tool = self.tools.get(name);
        tool.or_else(|| self.refused.get(name)).or_else(unprobed)
    }

    /// The policy of one of the run's tools. `None` if the run does not have the tool.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<Policy> {
        // Calls of stand-ins do nothing, so nobody needs to be asked.
        let unprobed = || {
            let known = self.unprobed.contains_key(connection_of(name)?);
            let known = known || self.refused.contains_key(name);
            known.then_some(Policy::Allow)
        };
        self.policies.get(name).copied().or_else(unprobed)
    }

    /// The policies of all tools, passed on to child runs.
    #[must_use]
    pub fn policies(&self) -> CallerPolicies {
        CallerPolicies(self.policies.clone())
    }

    /// The names of the tools that are offered to the model: all except denied ones.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let offered = self.policies.iter();
        let offered = offered.filter(|(_, policy)| **policy != Policy::Deny);
        offered.map(|(name, _)| name.as_str())
    }
}

/// The hints of stand-ins. A call that began before the tool became a stand-in may have been executed, and only a
/// person can tell.
const NOT_CALLED: Hints = Hints {
    read_only: false,
    destructive: false,
    idempotent: false,
    open_world: true,
    asks: false,
    untrusted: false,
    private: false,
    settle: Settle::AskPerson,
};

/// Stand-in for a tool whose schema was refused: its name, and the reason.
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
        let message = format!(
            "{name} was not called, because its server provides a schema that cannot be checked ({why}); its author must change it"
        );
        Outcome::Error(ToolError::with_content(
            ToolErrorCode::UnusableSchema,
            message,
        ))
    }
}

/// Stand-in for any tool of a connection that was not probed.
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
        let message = format!(
            "the connection {name} was not probed since it was created or its address was changed, and nothing was called: an admin must review its tools and probe it (POST /v1/connections/{{connection_id}}/probe, or its page)"
        );
        Outcome::error(ToolErrorCode::NotRun, message)
    }
}
