//! Connections of the team, as the command line calls them.

use std::collections::BTreeMap;

use errand_core::connection::ToolSettings;
use errand_core::warning::Warning;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, ClientError, PAGE, Reply, page, path};

/// A connection, and what an admin should know about it.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectionReply {
    /// The connection.
    pub connection: ConnectionLine,
    /// Present where the call changed or probed it.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// Why a probe did not reach the server.
    #[serde(default)]
    pub error: Option<String>,
}

/// A connection, as the command line shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectionLine {
    /// The id that builds list.
    pub id: String,
    /// The part of its tools' names before the two underscores.
    pub name: String,
    /// How the server is reached.
    pub transport: TransportLine,
    /// Settings of single tools that admins made, by the tool's name.
    pub tool_settings: BTreeMap<String, ToolSettings>,
    /// By the last probe; `None` if it was never probed.
    pub tools: Option<Vec<ToolLine>>,
    /// When it was last probed.
    pub probed_at: Option<String>,
}

/// How the server of a connection is reached.
#[derive(Clone, Debug, Deserialize)]
pub struct TransportLine {
    /// `http` or `stdio`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address, for `http`.
    pub url: Option<String>,
    /// The name of the operator's program, for `stdio`.
    pub command: Option<String>,
}

/// A tool of a connection, as the command line shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct ToolLine {
    /// The name that builds use.
    pub name: String,
    /// The policy that it has where a build names all tools of the connection.
    pub policy: String,
    /// Whether it reaches the open world.
    pub open_world: bool,
    /// Whether its results count as trusted.
    pub trusted: bool,
    /// Why no build has it, if its schema is refused.
    pub refused: Option<String>,
}

/// A page of connections.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectionList {
    /// The connections.
    pub connections: Vec<ConnectionLine>,
    /// How many there are in all.
    pub total: u64,
}

impl Client {
    /// `GET /v1/connections`, one page.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn connections(
        &self,
        limit: u32,
        offset: u64,
    ) -> Result<Reply<ConnectionList>, ClientError> {
        self.get("/v1/connections", &page(limit, offset)).await
    }

    /// The id of the connection with this name, looked for on all pages. A team has a name at most once.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn connection_named(&self, name: &str) -> Result<Option<String>, ClientError> {
        let mut seen = 0;
        loop {
            let list = self.connections(PAGE, seen).await?.value;
            seen += list.connections.len() as u64;
            let is_last = list.connections.is_empty() || seen >= list.total;
            let found = list.connections.into_iter().find(|one| one.name == name);
            if found.is_some() || is_last {
                return Ok(found.map(|connection| connection.id));
            }
        }
    }

    /// `GET /v1/connections/{connection_id}`.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn connection(&self, id: &str) -> Result<Reply<ConnectionReply>, ClientError> {
        self.get(&path(&["connections", id]), &[]).await
    }

    /// `POST /v1/connections/{connection_id}/probe`.
    ///
    /// # Errors
    /// Those of any call. A server that cannot be reached is [`ConnectionReply::error`].
    pub async fn probe(&self, id: &str) -> Result<Reply<ConnectionReply>, ClientError> {
        self.post(&path(&["connections", id, "probe"]), &json!({}))
            .await
    }

    /// `PATCH /v1/connections/{connection_id}` with all of its tool settings.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn set_tool_settings(
        &self,
        id: &str,
        settings: &BTreeMap<String, ToolSettings>,
    ) -> Result<Reply<ConnectionReply>, ClientError> {
        let body: Value = json!({ "tool_settings": settings });
        self.with_body(Method::PATCH, &path(&["connections", id]), &body)
            .await
    }
}
