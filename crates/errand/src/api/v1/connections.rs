//! Endpoints for connections: MCP servers whose tools builds can use.

use std::collections::BTreeMap;

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::connection::{self, NAME_CHARS_MAX, ProbedTool};
use errand_core::id::ConnectionId;
use errand_core::policy::Policy;
use errand_core::role::Permission;
use errand_core::secret;
use errand_core::time::Timestamp;
use errand_core::warning::Warning;
use errand_store::model::PageQuery;
use errand_store::{
    Connection, ConnectionChange, Floors, NewConnection, OauthClient, Setup, StoredAnswer,
    ToolSettingsByName,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, replayed, response};
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::connection_setup::{check_floors, check_settings, check_setup};
use crate::usecase::webhook_url::address_to_show;

/// The way in which the server is reached.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Transport {
    /// Streamable HTTP.
    Http {
        #[schema(example = "https://mcp.example.com/mcp")]
        url: String,
        /// Headers for each request. A value may contain `{{ secret.NAME }}`.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// A pre-registered OAuth client. Without it, a client is registered dynamically.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oauth_client: Option<OauthClientBody>,
    },
    /// A program that the operator has declared in `errand.toml`.
    Stdio {
        /// The name under which the program is declared.
        command: String,
        /// Environment variables. Only variables that the operator lists in `team_env` are permitted. A value may
        /// contain `{{ secret.NAME }}`.
        #[serde(default)]
        env: BTreeMap<String, String>,
    },
}

impl From<Transport> for Setup {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Http {
                url,
                headers,
                oauth_client,
            } => Self::Http {
                url,
                headers,
                client: oauth_client.map(|client| OauthClient {
                    id: client.client_id,
                    secret: client.client_secret,
                }),
            },
            Transport::Stdio { command, env } => Self::Stdio { command, env },
        }
    }
}

/// A client that was registered in advance with the authorization server.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OauthClientBody {
    #[schema(example = "errand-at-example")]
    client_id: String,
    /// `{{ secret.NAME }}`: the secret that holds the client secret. Omit it for a public client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
}

/// What the server says about a tool, as MCP's tool annotations.
#[derive(Clone, Serialize, ToSchema)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "MCP's hints are four of them"
)]
pub(crate) struct ToolHintsBody {
    read_only: bool,
    destructive: bool,
    idempotent: bool,
    open_world: bool,
}

/// A tool that the last probe found.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct ProbedToolBody {
    /// The name by which builds refer to the tool: `connection__tool`.
    #[schema(example = "mail__search")]
    name: String,
    /// The name of the tool on the server.
    server_name: String,
    description: String,
    /// The JSON schema of the arguments.
    #[schema(value_type = Object)]
    input_schema: Value,
    /// The reason why no build has the tool, if its schema is refused because it expands without bound or is too large.
    /// Null otherwise.
    refused: Option<String>,
    hints: ToolHintsBody,
    /// The policy that applies if a build uses all tools of the connection. It follows from the hints and is never
    /// below the floor.
    #[schema(value_type = String, example = "guard")]
    policy: Policy,
    /// Whether the tool reaches the open world: as `tool_settings` say; otherwise as the server says; otherwise true if
    /// an argument is an address. By default, a read-only tool that reaches the open world is guarded, because its
    /// arguments leave the team. The results of tools that do not reach it are private.
    open_world: bool,
    /// Whether its results count as trusted.
    trusted: bool,
}

/// The authorization server to which a connection is signed in.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct SignInBody {
    issuer: String,
}

/// An MCP server whose tools builds can use.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct ConnectionBody {
    id: Uuid,
    #[schema(example = "mail")]
    name: String,
    transport: Transport,
    /// Minimum policies for builds, by tool name; `*` stands for all tools.
    #[schema(value_type = BTreeMap<String, String>)]
    floors: Floors,
    /// Whether the results of tools that do not reach the open world count as trusted. `tool_settings` can override it
    /// per tool.
    trusted: bool,
    /// Settings of single tools, by tool name.
    #[schema(value_type = BTreeMap<String, ToolSettingsBody>)]
    tool_settings: ToolSettingsByName,
    /// Null if the connection was never probed.
    #[schema(required)]
    tools: Option<Vec<ProbedToolBody>>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    probed_at: Option<Timestamp>,
    /// Null if the connection is not signed in.
    #[schema(required)]
    sign_in: Option<SignInBody>,
    #[schema(required)]
    created_by: Option<Uuid>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<&Connection> for ConnectionBody {
    fn from(connection: &Connection) -> Self {
        let tools = connection.tools.as_ref().map(|tools| {
            tools
                .iter()
                .map(|tool| tool_body(connection, tool))
                .collect()
        });
        Self {
            id: connection.id.as_uuid(),
            name: connection.name.clone(),
            transport: match connection.setup.clone() {
                Setup::Http {
                    url,
                    headers,
                    client,
                } => Transport::Http {
                    url,
                    headers,
                    oauth_client: client.map(|client| OauthClientBody {
                        client_id: client.id,
                        client_secret: client.secret,
                    }),
                },
                Setup::Stdio { command, env } => Transport::Stdio { command, env },
            },
            floors: connection.floors.clone(),
            trusted: connection.trusted,
            tool_settings: connection.settings.clone(),
            tools,
            probed_at: connection.probed_at,
            sign_in: connection
                .signed_in_at
                .clone()
                .map(|issuer| SignInBody { issuer }),
            created_by: connection.created_by.map(|user| user.as_uuid()),
            created_at: connection.created_at,
            updated_at: connection.updated_at,
        }
    }
}

impl ConnectionBody {
    /// Hides values that may contain credentials from callers who do not manage connections.
    fn for_caller(connection: &Connection, caller: &Caller) -> Self {
        let mut body = Self::from(connection);
        if !caller.may(Permission::ManageConnections) {
            match &mut body.transport {
                Transport::Http {
                    url,
                    headers,
                    oauth_client,
                } => {
                    *url = address_to_show(url, false);
                    headers.values_mut().for_each(hide);
                    if let Some(OauthClientBody {
                        client_secret: Some(secret),
                        ..
                    }) = oauth_client
                    {
                        hide(secret);
                    }
                }
                Transport::Stdio { env, .. } => env.values_mut().for_each(hide),
            }
        }
        body
    }
}

/// Removes everything from a value except the marks of secrets.
fn hide(value: &mut String) {
    let marks = secret::marks_in(value).into_iter();
    let marks: Vec<String> = marks
        .map(|name| format!("{{{{ secret.{name} }}}}"))
        .collect();
    *value = if marks.is_empty() {
        "…".to_owned()
    } else {
        marks.join(" ")
    };
}

fn tool_body(connection: &Connection, tool: &ProbedTool) -> ProbedToolBody {
    let settings = connection.settings_of(&tool.name);
    ProbedToolBody {
        name: tool.name.clone(),
        server_name: tool.server_name.clone(),
        description: tool.description.clone(),
        input_schema: tool.input_schema.clone(),
        refused: errand_core::schema::weigh(&tool.input_schema).err(),
        hints: ToolHintsBody {
            read_only: tool.hints.read_only,
            destructive: tool.hints.destructive,
            idempotent: tool.hints.idempotent,
            open_world: tool.hints.open_world,
        },
        policy: connection.view().default_policy(tool),
        open_world: tool.is_open(settings),
        trusted: !tool.engine_hints(settings, connection.trusted).untrusted,
    }
}

/// Warnings for an admin about tools whose results count as trusted.
fn warnings_of(connection: &Connection) -> Vec<Warning> {
    let trusted: Vec<&str> = connection
        .tools
        .iter()
        .flatten()
        .filter(|tool| {
            let settings = connection.settings_of(&tool.name);
            !tool.engine_hints(settings, connection.trusted).untrusted
        })
        .map(|tool| tool.name.as_str())
        .collect();
    let says = |what: String| {
        vec![Warning::new(
            if connection.trusted {
                "trusted"
            } else {
                "tool_settings"
            },
            what,
        )]
    };
    if !trusted.is_empty() {
        return says(format!(
            "the results of these tools count as trusted, so guarded calls that follow them do not ask a person: {}. This is safe only if nobody outside the team can write the content that they return; a mailbox or a ticket system contains text from strangers. Set \"trusted\": false in tool_settings for each tool for which this is not so",
            trusted.join(", ")
        ));
    }
    if connection.trusted && connection.tools.is_none() {
        return says("the results of all tools that the probe finds and that do not reach the open world will count as trusted; probe the connection to see these tools, and set trust by tool in tool_settings".to_owned());
    }
    Vec::new()
}

/// A connection.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct ConnectionResponse {
    connection: ConnectionBody,
}

/// A connection that was created or changed.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct ChangedConnectionResponse {
    connection: ConnectionBody,
    /// Warnings for an admin, such as a list of tools whose results count as trusted.
    warnings: Vec<Warning>,
}

/// Settings of one tool, made by an admin.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what ToolSettings is on the wire")]
pub(crate) struct ToolSettingsBody {
    /// Whether the tool reaches the open world. Default: as its server says.
    open_world: Option<bool>,
    /// Whether only the team's own people and programs write the content that it returns. Permitted only for a tool
    /// that does not reach the open world. Default: the connection's `trusted`.
    trusted: Option<bool>,
}

/// A page of connections.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct ConnectionListResponse {
    connections: Vec<ConnectionBody>,
    /// The total number of connections.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The result of a probe.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct ProbeResponse {
    connection: ConnectionBody,
    /// Null if the probe succeeded; the connection then has the tools. Otherwise a description of the problem.
    #[schema(required)]
    error: Option<String>,
    /// Warnings for an admin, such as a list of tools whose results count as trusted.
    warnings: Vec<Warning>,
}

/// The request to create a connection.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateConnectionRequest {
    /// Lower-case letters, digits, `-` and single `_`, beginning with a letter. The connection's tools are called
    /// `name__tool`.
    #[schema(min_length = 1, max_length = 24, example = "mail")]
    name: String,
    transport: Transport,
    /// Minimum policies for builds, by tool name; `*` stands for all tools.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    floors: Option<Floors>,
    /// Whether the results of tools that do not reach the open world count as trusted. Default: false.
    trusted: Option<bool>,
    /// Settings of single tools, by tool name.
    #[schema(value_type = Option<BTreeMap<String, ToolSettingsBody>>)]
    tool_settings: Option<ToolSettingsByName>,
}

impl RequestBody for CreateConnectionRequest {}

/// The request to change a connection.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeConnectionRequest {
    transport: Option<Transport>,
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    floors: Option<Floors>,
    trusted: Option<bool>,
    /// Replaces all tool settings: entries that are left out are removed.
    #[schema(value_type = Option<BTreeMap<String, ToolSettingsBody>>)]
    tool_settings: Option<ToolSettingsByName>,
}

impl RequestBody for ChangeConnectionRequest {}

/// Lists the team's connections, sorted by name.
#[utoipa::path(get, path = "/v1/connections", tag = "Connections", params(PageParams),
    responses((status = 200, description = "A page of connections.", body = ConnectionListResponse)))]
pub(crate) async fn list_connections(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<ConnectionListResponse>, ApiError> {
    let page = app.store.list_connections(caller.team(), query).await?;
    let PageQuery { limit, offset } = query;
    Ok(Answered(ConnectionListResponse {
        connections: page
            .items
            .iter()
            .map(|connection| ConnectionBody::for_caller(connection, &caller))
            .collect(),
        total: page.total,
        limit,
        offset,
    }))
}

/// Returns a connection.
#[utoipa::path(get, path = "/v1/connections/{connection_id}", tag = "Connections", params(("connection_id" = Uuid, Path, description = "The connection.")),
    responses((status = 200, description = "The connection.", body = ConnectionResponse)))]
pub(crate) async fn get_connection(
    caller: Caller,
    State(app): State<AppState>,
    Path(id): Path<ConnectionId>,
) -> Result<Answered<ConnectionResponse>, ApiError> {
    let connection = app.store.connection(caller.team(), id).await?;
    Ok(Answered(ConnectionResponse {
        connection: ConnectionBody::for_caller(&connection, &caller),
    }))
}

/// Creates a connection.
///
/// The server is not contacted. Probe the connection next.
#[utoipa::path(post, path = "/v1/connections", tag = "Connections", request_body = CreateConnectionRequest,
    responses((status = 201, description = "The connection.", body = ChangedConnectionResponse)))]
pub(crate) async fn create_connection(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<CreateConnectionRequest>,
) -> Result<Response, ApiError> {
    let CreateConnectionRequest {
        name,
        transport,
        floors,
        trusted,
        tool_settings,
    } = body.value;
    if !connection::is_name(&name) {
        return Err(ApiError::invalid(
            "name",
            format!(
                "must have 1 to {NAME_CHARS_MAX} lower-case letters, digits, `-` and single `_`, begin with a letter, and not end with `_`"
            ),
        ));
    }
    let floors = floors.unwrap_or_default();
    let settings = tool_settings.unwrap_or_default();
    check_floors(&name, &floors)?;
    check_settings(&name, None, &settings)?;
    let now = app.clock.now();
    let new = NewConnection {
        id: app.ids.connection(now),
        team: caller.team(),
        name,
        setup: checked(&app, &caller, transport).await?,
        floors,
        trusted: trusted.unwrap_or(false),
        settings,
        by: caller.user(),
        now,
    };
    let once = key.once(&caller, body.sha256, render_created);
    let answer = app.store.create_connection(new, once).await?;
    Ok(response(answer, render_created))
}

/// Changes a connection.
///
/// If its address changes, it must be probed and signed in to again.
#[utoipa::path(patch, path = "/v1/connections/{connection_id}", tag = "Connections", params(("connection_id" = Uuid, Path, description = "The connection.")),
    request_body = ChangeConnectionRequest,
    responses((status = 200, description = "The connection.", body = ChangedConnectionResponse)))]
pub(crate) async fn change_connection(
    caller: Caller,
    State(app): State<AppState>,
    Path(id): Path<ConnectionId>,
    key: IdempotencyKey,
    body: Json<ChangeConnectionRequest>,
) -> Result<Response, ApiError> {
    let ChangeConnectionRequest {
        transport,
        floors,
        trusted,
        tool_settings,
    } = body.value;
    let before = app.store.connection(caller.team(), id).await?;
    if let Some(floors) = &floors {
        check_floors(&before.name, floors)?;
    }
    if let Some(settings) = &tool_settings {
        let there = Some(&before).filter(|_| transport.is_none());
        check_settings(&before.name, there, settings)?;
    }
    let setup = match transport {
        Some(transport) => Some(checked(&app, &caller, transport).await?),
        None => None,
    };
    let change = ConnectionChange {
        setup,
        floors,
        trusted,
        settings: tool_settings,
    };
    let once = key.once(&caller, body.sha256, render);
    let answer = app
        .store
        .change_connection(caller.team(), id, change, app.clock.now(), once)
        .await?;
    Ok(response(answer, render))
}

/// Deletes a connection.
///
/// Calls of its tools fail from now on.
#[utoipa::path(delete, path = "/v1/connections/{connection_id}", tag = "Connections", params(("connection_id" = Uuid, Path, description = "The connection.")),
    responses((status = 204, description = "Deleted.")))]
pub(crate) async fn delete_connection(
    caller: Caller,
    State(app): State<AppState>,
    Path(id): Path<ConnectionId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .delete_connection(caller.team(), id, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}

/// Contacts the connection's server and stores its tools.
///
/// Runs call the tools only as long as the server describes them in the same way.
#[utoipa::path(post, path = "/v1/connections/{connection_id}/probe", tag = "Connections", params(("connection_id" = Uuid, Path, description = "The connection.")),
    responses((status = 200, description = "The connection with its tools, or a description of the problem.", body = ProbeResponse)))]
pub(crate) async fn probe_connection(
    caller: Caller,
    State(app): State<AppState>,
    Path(id): Path<ConnectionId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    if let Some(idem) = key.idem(&caller, body.sha256)
        && let Some(stored) = app.store.lookup_idempotent(idem, now).await?
    {
        return Ok(replayed(stored));
    }
    let connection = app.store.connection(caller.team(), id).await?;
    let error = app.connections.probe(&connection).await?.err();
    let connection = app.store.connection(caller.team(), id).await?;
    let found = ProbeResponse {
        connection: (&connection).into(),
        error,
        warnings: warnings_of(&connection),
    };
    let once = key.once(&caller, body.sha256, render_probed);
    let answer = app.store.record_idempotent(found, once, now).await?;
    Ok(response(answer, render_probed))
}

fn render_probed(found: &ProbeResponse) -> StoredAnswer {
    rendered(StatusCode::OK, found)
}

fn render_created(connection: &Connection) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &ChangedConnectionResponse {
            connection: connection.into(),
            warnings: warnings_of(connection),
        },
    )
}

fn render(connection: &Connection) -> StoredAnswer {
    rendered(
        StatusCode::OK,
        &ChangedConnectionResponse {
            connection: connection.into(),
            warnings: warnings_of(connection),
        },
    )
}

/// How a server is reached, as it is stored.
async fn checked(app: &AppState, caller: &Caller, transport: Transport) -> Result<Setup, ApiError> {
    let setup = Setup::from(transport);
    check_setup(app, caller.team(), &setup).await?;
    Ok(setup)
}
