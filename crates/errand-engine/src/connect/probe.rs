//! Probing: asks a server for its tools, and stores them for an admin's review.

use std::time::Duration;

use errand_core::connection::{ProbedTool, ToolHints, offered_names};
use errand_store::{Connection, StoreError};
use rmcp::model::{PaginatedRequestParams, Tool};
use rmcp::service::{Peer, RoleClient};
use serde_json::Value;

use super::{Connections, why};
use crate::secrets::Secrets;

/// Maximum number of tools of a connection.
const TOOLS_MAX: usize = 500;
/// Maximum size of a tool's description. Longer ones are cut.
const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;
/// Maximum size of all stored descriptions and schemas of a connection.
const TOOLS_BYTES_MAX: usize = 1024 * 1024;
/// Maximum size of a server's complete list, before descriptions are cut and icons removed.
const LISTED_BYTES_MAX: usize = 16 * TOOLS_BYTES_MAX;
/// Time limit for listing the tools.
const LIST_TIME_MAX: Duration = Duration::from_secs(30);

impl Connections {
    /// Connects to a server and stores its tools. The inner error says why the server could not be reached.
    ///
    /// # Errors
    /// The store failed.
    pub async fn probe(
        &self,
        connection: &Connection,
    ) -> Result<Result<Vec<ProbedTool>, String>, StoreError> {
        let session = match self.reach(None, connection).await {
            Ok(session) => session,
            Err(error) => return Ok(Err(error)),
        };
        let tools = self
            .tools_of(&session.peer, connection, &session.secrets)
            .await;
        session.close().await;
        let tools = match tools {
            Ok(tools) => tools,
            Err(error) => return Ok(Err(error)),
        };
        let kept = self
            .store
            .set_tools(
                connection.team,
                connection.id,
                tools.clone(),
                connection.updated_at,
                self.clock.now(),
            )
            .await?;
        if !kept {
            return Ok(Err(
                "the connection was changed or deleted in the meantime; probe it again".to_owned(),
            ));
        }
        Ok(Ok(tools))
    }

    /// The tools that a server offers now.
    ///
    /// # Errors
    /// A message for people.
    pub(super) async fn tools_of(
        &self,
        peer: &Peer<RoleClient>,
        connection: &Connection,
        secrets: &Secrets,
    ) -> Result<Vec<ProbedTool>, String> {
        let listed = match tokio::time::timeout(LIST_TIME_MAX, listed(peer)).await {
            Ok(Ok(tools)) => tools,
            Ok(Err(error)) => return Err(secrets.mask(&error)),
            Err(_) => {
                return Err(format!(
                    "the server did not list its tools within {} s",
                    LIST_TIME_MAX.as_secs()
                ));
            }
        };
        let names = offered_names(&connection.name, listed.iter().map(|tool| &*tool.name));
        let tools: Vec<ProbedTool> = listed
            .iter()
            .zip(names)
            .filter_map(|(tool, name)| {
                let schema = Value::Object((*tool.input_schema).clone());
                let said = tool.annotations.as_ref();
                let hint =
                    |of: fn(&rmcp::model::ToolAnnotations) -> Option<bool>| said.and_then(of);
                Some(ProbedTool {
                    name: name?,
                    server_name: tool.name.to_string(),
                    description: secrets
                        .mask(&cut(tool.description.as_deref().unwrap_or_default())),
                    input_schema: secrets.mask_value(schema),
                    hints: ToolHints {
                        read_only: hint(|a| a.read_only_hint).unwrap_or(false),
                        destructive: hint(|a| a.destructive_hint).unwrap_or(true),
                        idempotent: hint(|a| a.idempotent_hint).unwrap_or(false),
                        open_world: hint(|a| a.open_world_hint).unwrap_or(true),
                        says_destructive: hint(|a| a.destructive_hint).is_some(),
                        says_open_world: hint(|a| a.open_world_hint).is_some(),
                    },
                })
            })
            .collect();
        let bytes: usize = tools
            .iter()
            .map(|tool| tool.description.len() + tool.input_schema.to_string().len())
            .sum();
        if bytes > TOOLS_BYTES_MAX {
            return Err(format!(
                "the server describes its tools with {bytes} bytes; the maximum is {TOOLS_BYTES_MAX}"
            ));
        }
        Ok(tools)
    }
}

/// All pages of a server's list. The limits on tools, bytes and pages stop a server that never ends its list.
async fn listed(peer: &Peer<RoleClient>) -> Result<Vec<Tool>, String> {
    let (mut tools, mut bytes) = (Vec::new(), 0);
    let mut cursor: Option<String> = None;
    // A page normally has at least one tool. A server with more pages than that would never end its list.
    for _ in 0..=TOOLS_MAX {
        let page = cursor
            .take()
            .map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
        let found = peer.list_tools(page).await;
        let found = found.map_err(|error| why::explain(&error))?;
        for tool in found.tools {
            bytes += serde_json::to_string(&tool).map_or(0, |text| text.len());
            tools.push(tool);
        }
        if tools.len() > TOOLS_MAX {
            return Err(format!(
                "the server offers more than {TOOLS_MAX} tools, the maximum of a connection"
            ));
        }
        if bytes > LISTED_BYTES_MAX {
            return Err(format!(
                "the server describes its tools with more than {LISTED_BYTES_MAX} bytes"
            ));
        }
        cursor = found.next_cursor;
        if cursor.is_none() {
            return Ok(tools);
        }
    }
    Err(format!(
        "the server lists its tools on more than {TOOLS_MAX} pages"
    ))
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(DESCRIPTION_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}
