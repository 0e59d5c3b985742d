//! Calls for the team's connections.

use std::collections::BTreeMap;

use errand_core::connection::ToolSettings;
use errand_core::warning::Warning;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, ClientError, PAGE, Reply, page, path};

/// A connection, with warnings for an admin.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectionReply {
    pub connection: ConnectionLine,
    /// Present if the call changed or probed the connection.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// The reason why a probe did not reach the server.
    #[serde(default)]
    pub error: Option<String>,
}

/// The part of a connection that the command line displays.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectionLine {
    /// The id that builds list.
    pub id: String,
    /// The prefix of its tools' names, before the two underscores.
    pub name: String,
    pub transport: TransportLine,
    /// Settings of single tools, by tool name.
    pub tool_settings: BTreeMap<String, ToolSettings>,
    /// The tools that the last probe found. `None` if it was never probed.
    pub tools: Option<Vec<ToolLine>>,
    pub probed_at: Option<String>,
}

/// The way in which a connection's server is reached.
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

/// The part of a connection's tool that the command line displays.
#[derive(Clone, Debug, Deserialize)]
pub struct ToolLine {
    /// The name that builds use.
    pub name: String,
    /// The policy if a build uses all tools of the connection.
    pub policy: String,
    /// Whether it reaches the open world.
    pub open_world: bool,
    /// Whether its results count as trusted.
    pub trusted: bool,
    /// The reason why no build has the tool, if its schema is refused.
    pub refused: Option<String>,
}

/// A page of connections.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectionList {
    pub connections: Vec<ConnectionLine>,
    /// The total number of connections.
    pub total: u64,
}

impl Client {
    /// `GET /v1/connections`, one page.
    ///
    /// # Errors
    /// As for any call.
    pub async fn connections(
        &self,
        limit: u32,
        offset: u64,
    ) -> Result<Reply<ConnectionList>, ClientError> {
        self.get("/v1/connections", &page(limit, offset)).await
    }

    /// The id of the connection with this name, searched on all pages. Names are unique within a team.
    ///
    /// # Errors
    /// As for any call.
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
    /// As for any call.
    pub async fn connection(&self, id: &str) -> Result<Reply<ConnectionReply>, ClientError> {
        self.get(&path(&["connections", id]), &[]).await
    }

    /// `POST /v1/connections/{connection_id}/probe`.
    ///
    /// # Errors
    /// As for any call. If the server cannot be reached, the result is [`ConnectionReply::error`].
    pub async fn probe(&self, id: &str) -> Result<Reply<ConnectionReply>, ClientError> {
        self.post(&path(&["connections", id, "probe"]), &json!({}))
            .await
    }

    /// `PATCH /v1/connections/{connection_id}` with all of its tool settings.
    ///
    /// # Errors
    /// As for any call.
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
