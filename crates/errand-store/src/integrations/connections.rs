//! Connections: MCP servers that a team's builds can use.
//!
//! # Guarantees
//!
//! A name is unique within its team. The stored setup of a server contains references to secrets, but no secret; a
//! sign-in is sealed. If a connection is pointed at a different server, the known tools and the sign-in are deleted
//! in the same write.
//!
//! # Non-goals
//!
//! Talking to the server (see `errand-engine`), and checking whether an address is allowed (see its guard).

use std::collections::BTreeMap;

use errand_core::connection::{ConnectionView, ProbedTool, ToolSettings};
use errand_core::id::{ConnectionId, TeamId, UserId};
use errand_core::policy::Policy;
use errand_core::time::Timestamp;
use rusqlite::{Connection as Sql, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, count, json, to_json};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{Page, PageQuery};

/// Maximum number of connections of a team.
const CONNECTIONS_MAX: i64 = 200;

/// How to reach a server. The values of headers and variables may contain references to secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Setup {
    /// Streamable HTTP.
    Http {
        url: String,
        /// Headers sent with each request.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// An OAuth client that was registered manually. Otherwise, a client registers itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<OauthClient>,
    },
    /// A program that the operator has configured, over its standard input and output.
    Stdio {
        /// Name under which the program is configured.
        command: String,
        /// Environment variables, in addition to those that the operator has configured.
        #[serde(default)]
        env: BTreeMap<String, String>,
    },
}

/// An OAuth client that was registered in advance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthClient {
    pub id: String,
    /// Reference to the secret that contains the client secret. `None`: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// The server that tokens belong to. Tokens of one server are never stored for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeFor {
    /// Address of the server in the connection's setup.
    pub url: String,
    /// Whether the tokens renew earlier ones. If those were removed in the meantime, the new ones are discarded.
    pub renews: bool,
}

/// The least strict policy that a build may choose for a tool, by the tool's offered name, or `*` for all tools that are not
/// named.
pub type Floors = BTreeMap<String, Policy>;

/// Settings that admins have made for tools, by their offered names.
pub type ToolSettingsByName = BTreeMap<String, ToolSettings>;

#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    pub id: ConnectionId,
    pub team: TeamId,
    /// Unique within the team.
    pub name: String,
    pub setup: Setup,
    /// The least strict policies that a build may choose.
    pub floors: Floors,
    /// Whether results of its closed tools are trusted, for tools without their own setting.
    pub trusted: bool,
    /// Settings that admins have made for its tools.
    pub settings: ToolSettingsByName,
    /// Its tools according to the last probe. `None`: never probed.
    pub tools: Option<Vec<ProbedTool>>,
    /// When it was last probed.
    pub probed_at: Option<Timestamp>,
    /// Issuer of its sign-in, if it has one.
    pub signed_in_at: Option<String>,
    pub created_by: Option<UserId>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Connection {
    /// The part of the connection that matters for the tools of a build.
    #[must_use]
    pub fn view(&self) -> ConnectionView<'_> {
        ConnectionView {
            name: &self.name,
            tools: self.tools.as_deref(),
            floors: &self.floors,
            settings: &self.settings,
        }
    }

    /// The floor of a tool.
    #[must_use]
    pub fn floor(&self, tool: &str) -> Policy {
        self.view().floor(tool)
    }

    /// Settings that admins have made for a tool.
    #[must_use]
    pub fn settings_of(&self, tool: &str) -> ToolSettings {
        self.view().settings_of(tool)
    }

    /// A tool, by its offered name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&ProbedTool> {
        self.tools.as_ref()?.iter().find(|tool| tool.name == name)
    }
}

/// A connection to create.
#[derive(Clone, Debug)]
pub struct NewConnection {
    pub id: ConnectionId,
    pub team: TeamId,
    pub name: String,
    pub setup: Setup,
    /// The least strict policies that a build may choose.
    pub floors: Floors,
    /// Whether results of its closed tools are trusted.
    pub trusted: bool,
    /// Settings that admins have made for its tools.
    pub settings: ToolSettingsByName,
    pub by: UserId,
    pub now: Timestamp,
}

/// Changes of a connection.
#[derive(Clone, Debug, Default)]
pub struct ConnectionChange {
    pub setup: Option<Setup>,
    /// The least strict policies that a build may choose.
    pub floors: Option<Floors>,
    /// Whether results of its closed tools are trusted.
    pub trusted: Option<bool>,
    /// Settings that admins have made for its tools.
    pub settings: Option<ToolSettingsByName>,
}

const COLUMNS: &str = "id, team_id, name, setup, floors, trusted, tools, probed_at, sign_in_of, created_by, created_at, updated_at, tool_settings";

/// Context for sealing a connection's sign-in.
fn sign_in_purpose(id: ConnectionId) -> String {
    format!("sign_in:{id}")
}

impl Store {
    /// A page of the team's connections, by name.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub async fn list_connections(
        &self,
        team: TeamId,
        page: PageQuery,
    ) -> Result<Page<Connection>> {
        self.read_for(team, move |conn| select(conn, team, page))
            .await
    }

    /// A connection of the team.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is deleted; [`StoreError::Corrupt`].
    pub async fn connection(&self, team: TeamId, id: ConnectionId) -> Result<Connection> {
        self.peek(move |conn| one(conn, team, id)).await
    }

    /// The connections of a build, in the build's order. Deleted ones are left out.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub async fn connections_of(
        &self,
        team: TeamId,
        ids: Vec<ConnectionId>,
    ) -> Result<Vec<Connection>> {
        self.peek(move |conn| {
            let found = ids.iter().map(|id| match one(conn, team, *id) {
                Ok(connection) => Ok(Some(connection)),
                Err(StoreError::NotFound) => Ok(None),
                Err(error) => Err(error),
            });
            found.filter_map(Result::transpose).collect()
        })
        .await
    }

    /// # Errors
    /// [`StoreError::Conflict`] if another connection has the name; [`StoreError::Refused`] if the team has the
    /// maximum number of connections.
    pub async fn create_connection(
        &self,
        new: NewConnection,
        recorded: Idempotent<Connection>,
    ) -> Result<Outcome<Connection>> {
        self.write(move |tx| idempotent(tx, &recorded, new.now, || insert(tx, &new)))
            .await
    }

    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn change_connection(
        &self,
        team: TeamId,
        id: ConnectionId,
        change: ConnectionChange,
        now: Timestamp,
        recorded: Idempotent<Connection>,
    ) -> Result<Outcome<Connection>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                update(tx, team, id, &change, now)?;
                one(tx, team, id)
            })
        })
        .await
    }

    /// Deletes a connection. Calls of its tools fail from then on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_connection(
        &self,
        team: TeamId,
        id: ConnectionId,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                let deleted = tx
                    .prepare_cached(
                        "UPDATE connections SET deleted_at = ?3, updated_at = ?3, sign_in = NULL, sign_in_of = NULL
                         WHERE id = ?1 AND team_id = ?2 AND deleted_at IS NULL",
                    )?
                    .execute(params![Blob(id.as_uuid()), Blob(team.as_uuid()), Ms(now)])?;
                (deleted == 1).then_some(()).ok_or(StoreError::NotFound)
            })
        })
        .await
    }

    /// Stores the result of a probe. `seen` is the connection's `updated_at` as the prober knew it. Returns `false`,
    /// and stores nothing, if the connection has changed since.
    pub async fn set_tools(
        &self,
        team: TeamId,
        id: ConnectionId,
        tools: Vec<ProbedTool>,
        seen: Timestamp,
        now: Timestamp,
    ) -> Result<bool> {
        self.write(move |tx| {
            let changed = tx
                .prepare_cached(
                    "UPDATE connections SET tools = ?4, probed_at = ?5
                     WHERE id = ?1 AND team_id = ?2 AND updated_at = ?3 AND deleted_at IS NULL",
                )?
                .execute(params![
                    Blob(id.as_uuid()),
                    Blob(team.as_uuid()),
                    Ms(seen),
                    to_json("connections", "tools", &tools)?,
                    Ms(now)
                ])?;
            Ok(changed == 1)
        })
        .await
    }

    /// A connection's sign-in, opened. `None` if it has none.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Seal`].
    pub async fn sign_in(&self, team: TeamId, id: ConnectionId) -> Result<Option<Vec<u8>>> {
        let sealed: Option<Vec<u8>> = self
            .peek(move |conn| {
                conn.prepare_cached(
                    "SELECT sign_in FROM connections WHERE id = ?1 AND team_id = ?2 AND deleted_at IS NULL",
                )?
                .query_row(params![Blob(id.as_uuid()), Blob(team.as_uuid())], |row| {
                    row.get(0)
                })
                .optional()?
                .ok_or(StoreError::NotFound)
            })
            .await?;
        Ok(sealed
            .map(|sealed| self.keys().open(&sign_in_purpose(id), &sealed))
            .transpose()?)
    }

    /// Stores or removes a connection's sign-in, if the connection still leads to the server that it was made for.
    /// `issuer` is shown to people.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]: the connection was deleted, leads elsewhere, or was signed out of.
    pub async fn set_sign_in(
        &self,
        team: TeamId,
        id: ConnectionId,
        made_for: MadeFor,
        sign_in: Option<Vec<u8>>,
        issuer: Option<String>,
    ) -> Result<()> {
        self.write(move |tx| {
            let sealed = sign_in
                .as_ref()
                .map(|plain| tx.keys().current().seal(&sign_in_purpose(id), plain))
                .transpose()?;
            let changed = tx
                .prepare_cached(
                    "UPDATE connections SET sign_in = ?3, sign_in_of = ?4
                     WHERE id = ?1 AND team_id = ?2 AND deleted_at IS NULL
                       AND json_extract(setup, '$.url') = ?5 AND (NOT ?6 OR sign_in IS NOT NULL)",
                )?
                .execute(params![
                    Blob(id.as_uuid()),
                    Blob(team.as_uuid()),
                    sealed.map(|sealed| sealed.0),
                    issuer,
                    made_for.url,
                    made_for.renews
                ])?;
            (changed == 1).then_some(()).ok_or(StoreError::NotFound)
        })
        .await
    }

    /// Removes a connection's sign-in. Sessions that use it are not used any more. Does nothing if there is none.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn sign_out(
        &self,
        team: TeamId,
        id: ConnectionId,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                let before = one(tx, team, id)?;
                tx.prepare_cached(
                    "UPDATE connections SET sign_in = NULL, sign_in_of = NULL, updated_at = ?2 WHERE id = ?1",
                )?
                .execute(params![Blob(id.as_uuid()), Ms(after(&before, now))])?;
                Ok(())
            })
        })
        .await
    }
}

/// The time of a change. Always later than the previous one, because sessions use it to detect changes.
fn after(before: &Connection, now: Timestamp) -> Timestamp {
    now.max(before.updated_at.plus_ms(1))
}

fn read(row: &Row<'_>) -> Result<Connection> {
    let tools: Option<String> = row.get(6)?;
    Ok(Connection {
        id: ConnectionId::from_stored(row.get::<_, Blob>(0)?.0),
        team: TeamId::from_stored(row.get::<_, Blob>(1)?.0),
        name: row.get(2)?,
        setup: json("connections", "setup", &row.get::<_, String>(3)?)?,
        floors: json("connections", "floors", &row.get::<_, String>(4)?)?,
        trusted: row.get(5)?,
        tools: tools
            .map(|text| json("connections", "tools", &text))
            .transpose()?,
        probed_at: row.get::<_, Option<Ms>>(7)?.map(|ms| ms.0),
        signed_in_at: row.get(8)?,
        created_by: row
            .get::<_, Option<Blob>>(9)?
            .map(|id| UserId::from_stored(id.0)),
        created_at: row.get::<_, Ms>(10)?.0,
        updated_at: row.get::<_, Ms>(11)?.0,
        settings: json("connections", "tool_settings", &row.get::<_, String>(12)?)?,
    })
}

fn one(conn: &Sql, team: TeamId, id: ConnectionId) -> Result<Connection> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM connections WHERE id = ?1 AND team_id = ?2 AND deleted_at IS NULL"
    ))?;
    let mut rows = select.query(params![Blob(id.as_uuid()), Blob(team.as_uuid())])?;
    rows.next()?.map_or(Err(StoreError::NotFound), read)
}

fn select(conn: &Sql, team: TeamId, page: PageQuery) -> Result<Page<Connection>> {
    let total = conn
        .prepare_cached(
            "SELECT count(*) FROM connections WHERE team_id = ?1 AND deleted_at IS NULL",
        )?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    let offset = i64::try_from(page.offset).unwrap_or(i64::MAX);
    let items = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM connections WHERE team_id = ?1 AND deleted_at IS NULL ORDER BY name LIMIT ?2 OFFSET ?3"
        ))?
        .query_and_then(params![Blob(team.as_uuid()), page.limit, offset], read)?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: count(total),
    })
}

fn insert(tx: &Tx<'_>, new: &NewConnection) -> Result<Connection> {
    let team = Blob(new.team.as_uuid());
    let taken = tx
        .prepare_cached(
            "SELECT 1 FROM connections WHERE team_id = ?1 AND name = ?2 AND deleted_at IS NULL",
        )?
        .exists(params![team, new.name])?;
    if taken {
        return Err(StoreError::Conflict(format!(
            "another connection is already named {:?}; use another name",
            new.name
        )));
    }
    let there: i64 = tx
        .prepare_cached(
            "SELECT count(*) FROM connections WHERE team_id = ?1 AND deleted_at IS NULL",
        )?
        .query_row(params![team], |row| row.get(0))?;
    if there >= CONNECTIONS_MAX {
        return Err(StoreError::Refused(format!(
            "a team has at most {CONNECTIONS_MAX} connections; delete those that are no longer used"
        )));
    }
    tx.prepare_cached(
        "INSERT INTO connections (id, team_id, name, setup, floors, trusted, created_by, created_at, updated_at, tool_settings)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?9)",
    )?
    .execute(params![
        Blob(new.id.as_uuid()),
        team,
        new.name,
        to_json("connections", "setup", &new.setup)?,
        to_json("connections", "floors", &new.floors)?,
        new.trusted,
        Blob(new.by.as_uuid()),
        Ms(new.now),
        to_json("connections", "tool_settings", &new.settings)?
    ])?;
    one(tx, new.team, new.id)
}

fn update(
    tx: &Tx<'_>,
    team: TeamId,
    id: ConnectionId,
    change: &ConnectionChange,
    now: Timestamp,
) -> Result<()> {
    let before = one(tx, team, id)?;
    let setup = change.setup.as_ref().unwrap_or(&before.setup);
    let leads_elsewhere = match (setup, &before.setup) {
        (Setup::Http { url, .. }, Setup::Http { url: was, .. }) => url != was,
        (Setup::Stdio { command, .. }, Setup::Stdio { command: was, .. }) => command != was,
        _ => true,
    };
    let now = after(&before, now);
    // Settings for the tools of one server do not apply to another server.
    let kept = if leads_elsewhere {
        BTreeMap::new()
    } else {
        before.settings.clone()
    };
    tx.prepare_cached(
        "UPDATE connections SET setup = ?2, floors = ?3, trusted = ?4, updated_at = ?5, tool_settings = ?7,
             tools = CASE WHEN ?6 THEN NULL ELSE tools END, probed_at = CASE WHEN ?6 THEN NULL ELSE probed_at END,
             sign_in = CASE WHEN ?6 THEN NULL ELSE sign_in END, sign_in_of = CASE WHEN ?6 THEN NULL ELSE sign_in_of END
         WHERE id = ?1",
    )?
    .execute(params![
        Blob(id.as_uuid()),
        to_json("connections", "setup", setup)?,
        to_json(
            "connections",
            "floors",
            change.floors.as_ref().unwrap_or(&before.floors)
        )?,
        change.trusted.unwrap_or(before.trusted && !leads_elsewhere),
        Ms(now),
        leads_elsewhere,
        to_json(
            "connections",
            "tool_settings",
            change.settings.as_ref().unwrap_or(&kept)
        )?
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests;
