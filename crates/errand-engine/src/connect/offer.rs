//! The tools of connections that a run has: by its build, the last probe, and the floors of now.
//!
//! A connection that nobody has probed since it was made, or since it leads elsewhere, has none: what its server says of
//! its tools decides what they may do, and an admin takes note of that first. A call of one says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use errand_core::config::BuildConfig;
use errand_core::connection::{ConnectionView, connection_of};
use errand_core::effective::{self, CallerPolicies};
use errand_core::id::TeamId;
use errand_core::policy::{Hints, Policy, Settle};
use errand_core::schema::weigh;
use errand_core::transcript::Outcome;
use errand_store::{Connection, StoreError};
use serde_json::{Map, Value, json};

use super::{ConnectionTool, Connections};
use crate::tool::{Tool, ToolContext, Tools};

/// See the module's document.
#[derive(Default)]
pub struct Offer {
    connections: Vec<Arc<Connection>>,
    /// The policies of all tools of the run: by [`effective::tools`].
    policies: BTreeMap<String, Policy>,
    /// The tools of connections.
    tools: BTreeMap<String, Arc<dyn Tool>>,
    /// What stands for the tools of connections that were not probed, by the connection's name.
    unprobed: BTreeMap<String, Arc<dyn Tool>>,
    /// What stands for tools whose schema is refused, by the tool's name.
    refused: BTreeMap<String, Arc<dyn Tool>>,
}

/// Whose tools they are.
#[derive(Clone, Copy)]
pub struct OfferFor<'a> {
    /// The team.
    pub team: TeamId,
    /// The run's build.
    pub build: &'a BuildConfig,
    /// The policies of the run that started it, if one did.
    pub caller: Option<&'a CallerPolicies>,
    /// The tools of this program.
    pub own: &'a Tools,
}

impl Offer {
    /// The tools that a run has now.
    ///
    /// # Errors
    /// Of the store.
    pub async fn of(connections: &Connections, of: OfferFor<'_>) -> Result<Self, StoreError> {
        let mut offer = Self::default();
        if !offer.refresh(connections, of).await? {
            offer.fill(connections, of);
        }
        Ok(offer)
    }

    /// Takes over what admins have changed since. True where something was.
    ///
    /// # Errors
    /// Of the store.
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

    /// A connection's tool.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        let unprobed = || self.unprobed.get(connection_of(name)?);
        let tool = self.tools.get(name);
        tool.or_else(|| self.refused.get(name)).or_else(unprobed)
    }

    /// The policy of a tool of the run; none: it does not have it.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<Policy> {
        // Nobody is asked about a call that calls nothing.
        let unprobed = || {
            let known = self.unprobed.contains_key(connection_of(name)?);
            let known = known || self.refused.contains_key(name);
            known.then_some(Policy::Allow)
        };
        self.policies.get(name).copied().or_else(unprobed)
    }

    /// The policies of all tools, for a run that this one starts.
    #[must_use]
    pub fn policies(&self) -> CallerPolicies {
        CallerPolicies(self.policies.clone())
    }

    /// All tools that are offered to the model, by name: those that are not denied.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let offered = self.policies.iter();
        let offered = offered.filter(|(_, policy)| **policy != Policy::Deny);
        offered.map(|(name, _)| name.as_str())
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
    private: false,
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
