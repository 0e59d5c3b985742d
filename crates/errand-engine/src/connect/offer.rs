//! The tools of connections that a run has: by its build, the last probe, and the floors of now.

use std::collections::BTreeMap;
use std::sync::Arc;

use errand_core::config::BuildConfig;
use errand_core::connection::connection_of;
use errand_core::id::TeamId;
use errand_core::policy::Policy;
use errand_store::{Connection, StoreError};

use super::{ConnectionTool, Connections};
use crate::tool::Tool;

/// See the module's document.
#[derive(Default)]
pub struct Offer {
    /// Whether those that were never probed were tried: once for each drive.
    tried: bool,
    connections: Vec<Arc<Connection>>,
    tools: BTreeMap<String, (Arc<dyn Tool>, Policy)>,
}

impl Offer {
    /// The tools that a build has now. A connection that nobody has probed yet is probed; where that fails it offers
    /// nothing, and its calls say so.
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
        let mut rows = connections.store.connections_of(team, ids.clone()).await?;
        let tried = std::mem::replace(&mut self.tried, true);
        for row in rows.iter_mut().filter(|row| row.tools.is_none() && !tried) {
            match connections.probe(row).await? {
                Ok(tools) => row.tools = Some(tools),
                Err(error) => {
                    tracing::info!(connection.id = %row.id, error, "a connection that was never probed cannot be reached");
                }
            }
        }
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
        for connection in &self.connections {
            let named = build
                .tools
                .keys()
                .any(|tool| connection_of(tool) == Some(&connection.name));
            for tool in connection.tools.iter().flatten() {
                let said = build.tools.get(&tool.name).copied();
                if named && said.is_none() {
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
        self.tools.get(name).map(|(tool, _)| tool)
    }

    /// The word on a tool: of the build, or by what the server says of it; never below the floor.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<Policy> {
        self.tools.get(name).map(|(_, policy)| *policy)
    }

    /// All tools.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Tool>> {
        self.tools.values().map(|(tool, _)| tool)
    }
}
