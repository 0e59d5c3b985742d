//! Connections: the MCP servers of the team, and the settings of their tools.

use std::collections::BTreeMap;
use std::future::ready;
use std::pin::pin;

use futures::{Stream, TryStreamExt as _};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::agents::Warning;
use crate::client::Client;
use crate::error::Error;
use crate::human_requests::Policy;
use crate::id::ConnectionId;
use crate::names::names;
use crate::page::{List, Listed, Page, PageRequest};
use crate::reply::Reply;
use crate::time::Timestamp;

names! {
    /// The way in which a connection's server is reached.
    TransportKind {
        /// Streamable HTTP.
        Http = "http",
        /// A program on the server's machine.
        Stdio = "stdio",
    }
}

/// An MCP server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Connection {
    /// The id, which builds list.
    pub id: ConnectionId,
    /// The beginning of the names of its tools, before the two underscores. Unique within the team.
    pub name: String,
    /// How the server is reached.
    pub transport: Transport,
    /// Settings of single tools, by tool name.
    pub tool_settings: BTreeMap<String, ToolSettings>,
    /// The tools that the last probe found. `None` if it was never probed.
    pub tools: Option<Vec<ConnectionTool>>,
    /// When it was last probed.
    pub probed_at: Option<Timestamp>,
}

impl Listed for Connection {
    const FIELD: &'static str = "connections";
}

/// How a connection's server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Transport {
    /// The way.
    #[serde(rename = "type")]
    pub kind: TransportKind,
    /// The address, for [`TransportKind::Http`].
    pub url: Option<String>,
    /// The name of the program that the operator declared, for [`TransportKind::Stdio`].
    pub command: Option<String>,
}

/// A tool of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ConnectionTool {
    /// The name that builds use: `connection__tool`.
    pub name: String,
    /// The policy if a build uses all tools of the connection.
    pub policy: Policy,
    /// Whether it reaches systems outside the team.
    pub open_world: bool,
    /// Whether its results count as trusted.
    pub trusted: bool,
    /// Why no build has the tool, if its schema is refused.
    pub refused: Option<String>,
}

/// A team's settings for a tool, which override what its server says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ToolSettings {
    /// Whether the tool reaches systems outside the team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_world: Option<bool>,
    /// Whether only the team's own people and programs write what it returns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<bool>,
    /// Settings that this version of the crate does not know. They are kept when all settings are replaced.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A connection, and remarks about it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ConnectionDetails {
    /// The connection.
    pub connection: Connection,
    /// Remarks for an admin, if the call changed or probed the connection.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// Why a probe did not reach the server.
    pub error: Option<String>,
}

impl Client {
    /// One page of the connections, by name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn connections(&self, page: PageRequest) -> Result<Reply<Page<Connection>>, Error> {
        self.page(&List::at(["connections"]), page).await
    }

    /// All connections, by name.
    pub fn all_connections(&self) -> impl Stream<Item = Result<Connection, Error>> + Send + use<> {
        self.all(List::at(["connections"]))
    }

    /// The connection with this name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn connection_named(&self, name: &str) -> Result<Option<Connection>, Error> {
        let named = self
            .all_connections()
            .try_filter(|connection| ready(connection.name == name));
        pin!(named).try_next().await
    }

    /// A connection and its tools.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn connection(&self, id: &ConnectionId) -> Result<Reply<ConnectionDetails>, Error> {
        self.get(["connections", id.as_str()]).send().await
    }

    /// Fetches the list of tools from a connection's server. If the server cannot be reached,
    /// [`ConnectionDetails::error`] says why.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn probe_connection(
        &self,
        id: &ConnectionId,
    ) -> Result<Reply<ConnectionDetails>, Error> {
        self.post(["connections", id.as_str(), "probe"])
            .send()
            .await
    }

    /// Replaces all tool settings of a connection.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_tool_settings(
        &self,
        id: &ConnectionId,
        settings: &BTreeMap<String, ToolSettings>,
    ) -> Result<Reply<ConnectionDetails>, Error> {
        self.call(Method::PATCH, ["connections", id.as_str()])
            .json(&serde_json::json!({ "tool_settings": settings }))
            .send()
            .await
    }
}
