//! What a connection offers: asked of its server, and kept as what an admin has seen.

use std::time::Duration;

use errand_core::connection::{ProbedTool, ToolHints, offered_names};
use errand_store::{Connection, StoreError};
use rmcp::service::{Peer, RoleClient};
use serde_json::Value;

use super::{Connections, open};
use crate::secrets::Secrets;

/// Most tools of a connection.
const TOOLS_MAX: usize = 500;
/// Most bytes of a tool's description.
const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of all tools together, as they are kept.
const TOOLS_BYTES_MAX: usize = 1024 * 1024;
/// How long a list may take.
const LIST_TIME_MAX: Duration = Duration::from_secs(30);

impl Connections {
    /// Reaches a connection's server and keeps what it offers. The inner error: why it could not be reached, in words.
    ///
    /// # Errors
    /// Of the store.
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
                "the connection was changed or deleted meanwhile; probe it again".to_owned(),
            ));
        }
        Ok(Ok(tools))
    }

    /// The tools that a server offers now.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn tools_of(
        &self,
        peer: &Peer<RoleClient>,
        connection: &Connection,
        secrets: &Secrets,
    ) -> Result<Vec<ProbedTool>, String> {
        let listed = tokio::time::timeout(LIST_TIME_MAX, peer.list_all_tools()).await;
        let listed = match listed {
            Ok(Ok(tools)) => tools,
            Ok(Err(error)) => return Err(secrets.mask(&open::explain(&error))),
            Err(_) => {
                return Err(format!(
                    "the server did not list its tools within {} s",
                    LIST_TIME_MAX.as_secs()
                ));
            }
        };
        if listed.len() > TOOLS_MAX {
            return Err(format!(
                "the server offers {} tools; a connection has {TOOLS_MAX} at most",
                listed.len()
            ));
        }
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
                "the server describes its tools with {bytes} bytes; {TOOLS_BYTES_MAX} are taken at most"
            ));
        }
        Ok(tools)
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(DESCRIPTION_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}
