//! The HTTP API.
//!
//! # Guarantees
//!
//! - [`ROUTES`] is the only table of endpoints. The router is built from it, tests iterate over it, and the OpenAPI
//!   document is compared with it.
//! - What applies to all requests is done once, in this order from the outside: id and log ([`request`]), panics,
//!   discarding unread bodies ([`drain`]), API key and rate limit ([`auth`]). Then the handlers' extractors check
//!   permission, query and body. A handler calls one operation of the store and converts the result.
//!
//! # Non-goals
//!
//! Decisions about runs (`errand-core`), and storage (`errand-store`).

pub(crate) mod auth;
mod body;
mod exact;
mod health;
mod hint;
mod idempotency;
mod openapi;
mod outer;
mod page;
mod query;
mod readiness;
mod upload_token;
pub(crate) mod v1;
mod vary;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use bytes::Bytes;
use errand_core::id::{ApiKeyId, IdGen, TeamId};
use errand_core::role::Permission;
use errand_engine::EngineContext;
use errand_engine::clock::Clock;
use errand_engine::connect::Connections;
use errand_engine::deltas::Deltas;
use errand_engine::model::Models;
use errand_engine::sandboxes::Sandboxes;
use errand_engine::tool::Tools;
use errand_store::Store;
use http::{HeaderValue, Method};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use crate::config::{Config, TrustedProxies, UnknownFields};
use crate::http::body_memory::BodyMemory;
use crate::http::cors::AllowedOrigins;
use crate::http::error::ApiError;
use crate::http::limiter::Limiter;
use crate::http::slots::{Holder, NoSlot, Slot, Slots};
use crate::http::streaming::LargeEvents;
use crate::http::{compress, cors, drain, is_api, request};
use readiness::Readiness;
pub(crate) use v1::providers::own_providers;

/// The settings that the API uses.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The public address of the server, without a trailing slash.
    pub public_url: String,
    /// Whether the operator set the address. Otherwise it is the address on which the server listens.
    pub has_public_url: bool,
    /// The origins whose scripts may call the API.
    pub allowed_origins: AllowedOrigins,
    /// Whether unknown fields and query parameters are refused.
    pub unknown_fields_refused: bool,
    /// Requests per minute of one key; at least 1.
    pub requests_per_minute: u32,
    /// Failed authentications per minute of one address; at least 1.
    pub failed_auth_per_minute: u32,
    /// The proxies whose `x-forwarded-for` header is trusted.
    pub trusted_proxies: TrustedProxies,
    pub direct_upload_bytes_max: u64,
    pub url_upload_bytes_max: u64,
    /// The validity of an upload URL, in seconds.
    pub url_ttl_s: u64,
    /// The lifetime of a sandbox after its last use, in milliseconds.
    pub sandbox_ttl_ms: u64,
    /// Whether webhooks may go to private networks.
    pub allow_private_networks: bool,
    /// The time after which a body without new bytes ends.
    pub idle_timeout: Duration,
    /// The time after which a stream ends whose client reads nothing.
    pub unread_timeout: Duration,
    /// Maximum number of concurrent uploads of one key or person; at least 1.
    pub uploads_per_key: u32,
    /// Maximum number of concurrent uploads to one upload URL; at least 1.
    pub uploads_per_url: u32,
    /// Maximum number of concurrent uploads in total; at least 1.
    pub uploads_max: u32,
    /// Maximum number of concurrent event streams of one key or person; at least 1.
    pub streams_per_key: u32,
}

impl ApiSettings {
    /// Extracts the settings. `public_url`: without a trailing slash.
    #[must_use]
    pub fn of(config: &Config, public_url: &str) -> Self {
        Self {
            public_url: public_url.to_owned(),
            has_public_url: config.server.public_url.is_some(),
            allowed_origins: AllowedOrigins::new(config.api.allowed_origins.iter().cloned()),
            unknown_fields_refused: config.api.unknown_fields == UnknownFields::Refuse,
            requests_per_minute: config.rate_limit.requests_per_minute,
            failed_auth_per_minute: config.rate_limit.failed_authentications_per_minute,
            trusted_proxies: config.server.trusted_proxies.clone(),
            direct_upload_bytes_max: config.uploads.direct_bytes_max,
            url_upload_bytes_max: config.uploads.url_bytes_max,
            url_ttl_s: config.uploads.url_ttl.as_secs(),
            sandbox_ttl_ms: u64::try_from(config.sandbox.ttl.as_millis()).unwrap_or(u64::MAX),
            allow_private_networks: config.webhooks.allow_private_networks,
            idle_timeout: config.server.idle_timeout,
            unread_timeout: config.server.unread_timeout,
            uploads_per_key: config.uploads.concurrent_per_key,
            uploads_per_url: config.uploads.concurrent_per_url,
            uploads_max: config.uploads.concurrent_max,
            streams_per_key: config.api.event_streams_per_key,
        }
    }
}

/// The `retry-after` of a client that found no free slot, in seconds.
const RETRY_SLOT_S: u64 = 5;

/// The state that handlers share. Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

/// The fields of an [`AppState`].
pub struct Inner {
    pub store: Store,
    pub ids: Arc<IdGen>,
    pub clock: Clock,
    /// The sandboxes on disk.
    pub sandboxes: Sandboxes,
    /// The models that builds can use.
    pub models: Models,
    /// The text of models while it is streamed.
    pub deltas: Deltas,
    /// The built-in tools.
    pub tools: Tools,
    /// The MCP servers whose tools builds can use.
    pub connections: Connections,
    /// Canceled when the server begins to stop.
    pub draining: CancellationToken,
    pub settings: ApiSettings,
    upload_key: [u8; 32],
    limits: Limits,
    document: OnceLock<Bytes>,
    document_page: OnceLock<Bytes>,
    readiness: Readiness,
    pub(crate) large_events: LargeEvents,
    body_memory: BodyMemory,
}

struct Limits {
    by_key: Limiter<ApiKeyId>,
    by_address: Limiter<IpAddr>,
    uploads: Slots,
    streams: Slots,
}

impl AppState {
    /// `upload_key` signs upload URLs. It must be the same after a restart.
    #[must_use]
    pub fn new(context: EngineContext, upload_key: [u8; 32], settings: ApiSettings) -> Self {
        let limits = Limits {
            by_key: Limiter::new(settings.requests_per_minute),
            by_address: Limiter::new(settings.failed_auth_per_minute),
            uploads: Slots::default(),
            streams: Slots::default(),
        };
        let (document, document_page) = (OnceLock::new(), OnceLock::new());
        let EngineContext {
            store,
            ids,
            clock,
            sandboxes,
            parsers: _,
            models,
            deltas,
            tools,
            connections,
            draining,
            post: _,
        } = context;
        Self(Arc::new(Inner {
            store,
            ids,
            clock,
            sandboxes,
            models,
            deltas,
            tools,
            connections,
            draining,
            settings,
            upload_key,
            limits,
            document,
            document_page,
            readiness: Readiness::default(),
            large_events: LargeEvents::default(),
            body_memory: BodyMemory::default(),
        }))
    }
}

impl AppState {
    /// Takes a slot for an upload. `by`: the key, person or upload URL.
    pub(crate) fn begin_upload(&self, team: TeamId, by: Holder) -> Result<Slot, ApiError> {
        let settings = &self.settings;
        let by_max = match by {
            Holder::Url(_) => settings.uploads_per_url,
            _ => settings.uploads_per_key,
        };
        let team_max = settings.uploads_max.div_ceil(2);
        let holders = [
            (by, by_max as usize),
            (Holder::Team(team), team_max as usize),
        ];
        let taken = self
            .limits
            .uploads
            .take(&holders, settings.uploads_max as usize);
        taken.map_err(|full| {
            let (whose, max) = match full {
                NoSlot::Holder(Holder::Url(_)) => ("to this upload URL", by_max),
                NoSlot::Holder(Holder::Key(_)) => ("of this key", by_max),
                NoSlot::Holder(Holder::Team(_)) => ("of this team", team_max),
                NoSlot::Holder(_) => ("of yours", by_max),
                NoSlot::Total => {
                    return ApiError::unavailable(
                        "the server has reached its limit of concurrent uploads: try again in a moment",
                    );
                }
            };
            let message = format!("{max} uploads {whose} are in progress, which is the limit: wait until one has ended");
            ApiError::rate_limited(message, RETRY_SLOT_S)
        })
    }

    /// Takes a slot for an event stream. `by`: the key or person.
    pub(crate) fn begin_stream(&self, by: Holder) -> Result<Slot, ApiError> {
        let max = self.settings.streams_per_key;
        let taken = self.limits.streams.take(&[(by, max as usize)], usize::MAX);
        taken.map_err(|_| {
            let whose = match by {
                Holder::Person(_) => "you have",
                _ => "this key has",
            };
            let message =
                format!("{whose} {max} open event streams, which is the limit: close one");
            ApiError::rate_limited(message, RETRY_SLOT_S)
        })
    }
}

impl Deref for AppState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// The condition for calling a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No key is required.
    Public,
    /// A key whose creator currently has this permission.
    Needs(Permission),
}

/// An endpoint.
pub struct Route {
    pub method: Method,
    /// The path, with the documented names of its parameters.
    pub path: &'static str,
    pub access: Access,
    /// The names of its query parameters.
    pub query: &'static [&'static str],
    /// The path of which this is an alias, if any. The document describes both.
    pub alias_of: Option<&'static str>,
    handler: fn() -> MethodRouter<AppState>,
}

const READ: Access = Access::Needs(Permission::Read);
const RUNS: Access = Access::Needs(Permission::ManageRuns);
const AGENTS: Access = Access::Needs(Permission::ManageAgents);
const KEYS: Access = Access::Needs(Permission::ManageKeys);
const MODELS: Access = Access::Needs(Permission::ManageModels);
const WEBHOOKS: Access = Access::Needs(Permission::ManageWebhooks);
const CONNECTIONS: Access = Access::Needs(Permission::ManageConnections);
const SECRETS: Access = Access::Needs(Permission::ManageSecrets);
const MEMBERS: Access = Access::Needs(Permission::ManageMembers);
const PUBLIC: Access = Access::Public;

const PAGE: &[&str] = &["limit", "offset"];
const PATH: &[&str] = &["path"];
const NONE: &[&str] = &[];

const AGENT_REVISIONS: &str = "/v1/agents/{agent_id}/revisions";
const REVISION: &str = "/v1/revisions/{build_id}";
const BUILDS: &str = "/v1/builds";
const MEMBER: &str = "/v1/members/{user_id}";
const WEBHOOK: &str = "/v1/webhooks/{webhook_id}";

/// The table of endpoints.
#[rustfmt::skip]
pub static ROUTES: &[Route] = &[
    route(Method::GET, "/v1/runs", READ, v1::runs::LIST_QUERY, || get(v1::runs::list_runs)),
    route(Method::POST, "/v1/runs", RUNS, NONE, || post(v1::runs::start_run)),
    route(Method::POST, "/v1/runs/stop", RUNS, NONE, || post(v1::many_runs::stop_runs)),
    route(Method::POST, "/v1/runs/retry", RUNS, NONE, || post(v1::many_runs::retry_runs)),
    route(Method::GET, "/v1/runs/summary", READ, v1::summary::SUMMARY_QUERY, || get(v1::summary::get_runs_summary)),
    route(Method::GET, "/v1/runs/{run_id}", READ, v1::runs::GET_QUERY, || get(v1::runs::get_run)),
    route(Method::GET, "/v1/runs/{run_id}/messages", READ, PAGE, || get(v1::messages::list_messages)),
    route(Method::POST, "/v1/runs/{run_id}/messages", RUNS, NONE, || post(v1::messages::post_message)),
    route(Method::POST, "/v1/runs/{run_id}/human-requests/{request_id}/respond", RUNS, NONE, || post(v1::human_requests::respond)),
    route(Method::GET, "/v1/human-requests", READ, PAGE, || get(v1::human_requests::list_open_requests)),
    route(Method::POST, "/v1/runs/{run_id}/stop", RUNS, NONE, || post(v1::runs::stop_run)),
    route(Method::POST, "/v1/runs/{run_id}/retry", RUNS, NONE, || post(v1::runs::retry_run)),
    route(Method::POST, "/v1/runs/{run_id}/fork", RUNS, NONE, || post(v1::forks::fork_run)),
    route(Method::GET, "/v1/runs/{run_id}/events", READ, &["after"], || get(v1::events::stream_events)),
    route(Method::GET, "/v1/runs/{run_id}/model-calls", READ, NONE, || get(v1::usage::list_model_calls)),
    route(Method::POST, "/v1/sandboxes", RUNS, NONE, || post(v1::sandboxes::create_sandbox)),
    route(Method::DELETE, "/v1/sandboxes/{sandbox_id}", RUNS, NONE, || delete(v1::sandboxes::delete_sandbox)),
    route(Method::GET, "/v1/sandboxes/{sandbox_id}/files", READ, PATH, || get(v1::files::list_files)),
    route(Method::POST, "/v1/sandboxes/{sandbox_id}/files", RUNS, PATH, || post(v1::uploads::upload_file)),
    route(Method::GET, "/v1/sandboxes/{sandbox_id}/files/content", READ, PATH, || get(v1::files::get_content)),
    route(Method::POST, "/v1/sandboxes/{sandbox_id}/upload-urls", RUNS, NONE, || post(v1::uploads::create_upload_url)),
    route(Method::PUT, "/v1/uploads/{token}", PUBLIC, NONE, || put(v1::uploads::put_upload)),
    route(Method::GET, "/v1/agents", READ, v1::agents::LIST_QUERY, || get(v1::agents::list_agents)),
    route(Method::POST, "/v1/agents", AGENTS, NONE, || post(v1::agents::create_agent)),
    route(Method::GET, "/v1/agents/{agent_id}", READ, NONE, || get(v1::agents::get_agent)),
    route(Method::PATCH, "/v1/agents/{agent_id}", AGENTS, NONE, || patch(v1::agents::rename_agent)),
    route(Method::DELETE, "/v1/agents/{agent_id}", AGENTS, NONE, || delete(v1::agents::delete_agent)),
    route(Method::GET, AGENT_REVISIONS, READ, PAGE, || get(v1::builds::list_builds)),
    route(Method::POST, AGENT_REVISIONS, AGENTS, NONE, || post(v1::builds::create_build)),
    alias(Method::GET, "/v1/agents/{agent_id}/builds", READ, PAGE, AGENT_REVISIONS, || get(v1::builds::list_builds)),
    alias(Method::POST, "/v1/agents/{agent_id}/builds", AGENTS, NONE, AGENT_REVISIONS, || post(v1::builds::create_build)),
    route(Method::GET, REVISION, READ, NONE, || get(v1::builds::get_build)),
    route(Method::PATCH, REVISION, AGENTS, NONE, || patch(v1::builds::change_build)),
    alias(Method::GET, "/v1/builds/{build_id}", READ, NONE, REVISION, || get(v1::builds::get_build)),
    alias(Method::PATCH, "/v1/builds/{build_id}", AGENTS, NONE, REVISION, || patch(v1::builds::change_build)),
    route(Method::POST, "/v1/revisions/{build_id}/promote", AGENTS, NONE, || post(v1::builds::promote_build)),
    alias(Method::POST, "/v1/builds/{build_id}/promote", AGENTS, NONE, "/v1/revisions/{build_id}/promote", || post(v1::builds::promote_build)),
    route(Method::POST, BUILDS, AGENTS, NONE, || post(v1::builds::create_build_of)),
    alias(Method::POST, "/v1/revisions", AGENTS, NONE, BUILDS, || post(v1::builds::create_build_of)),
    route(Method::GET, "/v1/api-keys", KEYS, PAGE, || get(v1::api_keys::list_api_keys)),
    route(Method::POST, "/v1/api-keys", KEYS, NONE, || post(v1::api_keys::create_api_key)),
    route(Method::DELETE, "/v1/api-keys/{key_id}", KEYS, NONE, || delete(v1::api_keys::delete_api_key)),
    route(Method::GET, "/v1/providers", READ, NONE, || get(v1::providers::list_providers)),
    route(Method::PUT, "/v1/providers/{provider}", MODELS, NONE, || put(v1::providers::put_provider)),
    route(Method::DELETE, "/v1/providers/{provider}", MODELS, NONE, || delete(v1::providers::delete_provider)),
    route(Method::GET, "/v1/usage", READ, v1::usage::QUERY, || get(v1::usage::get_usage)),
    route(Method::GET, "/v1/usage/limits", READ, NONE, || get(v1::usage::get_limits)),
    route(Method::PATCH, "/v1/usage/limits", MODELS, NONE, || patch(v1::usage::change_limits)),
    route(Method::GET, "/v1/tools", READ, NONE, || get(v1::tools::list_tools)),
    route(Method::GET, "/v1/connections", READ, PAGE, || get(v1::connections::list_connections)),
    route(Method::POST, "/v1/connections", CONNECTIONS, NONE, || post(v1::connections::create_connection)),
    route(Method::GET, "/v1/connections/{connection_id}", READ, NONE, || get(v1::connections::get_connection)),
    route(Method::PATCH, "/v1/connections/{connection_id}", CONNECTIONS, NONE, || patch(v1::connections::change_connection)),
    route(Method::DELETE, "/v1/connections/{connection_id}", CONNECTIONS, NONE, || delete(v1::connections::delete_connection)),
    route(Method::POST, "/v1/connections/{connection_id}/probe", CONNECTIONS, NONE, || post(v1::connections::probe_connection)),
    route(Method::POST, "/v1/connections/{connection_id}/authorize", CONNECTIONS, NONE, || post(v1::sign_ins::authorize_connection)),
    route(Method::DELETE, "/v1/connections/{connection_id}/sign-in", CONNECTIONS, NONE, || delete(v1::sign_ins::sign_out_connection)),
    route(Method::GET, "/v1/sign-ins/callback", PUBLIC, &["code", "state", "iss", "error", "error_description"], || get(v1::sign_ins::end_sign_in)),
    route(Method::GET, "/v1/secrets", SECRETS, PAGE, || get(v1::secrets::list_secrets)),
    route(Method::POST, "/v1/secrets", SECRETS, NONE, || post(v1::secrets::set_secret)),
    route(Method::DELETE, "/v1/secrets/{secret_name}", SECRETS, NONE, || delete(v1::secrets::delete_secret)),
    route(Method::GET, "/v1/webhook-secret", WEBHOOKS, NONE, || get(v1::webhook_secret::get_webhook_secret)),
    route(Method::POST, "/v1/webhook-secret/roll", WEBHOOKS, NONE, || post(v1::webhook_secret::roll_webhook_secret)),
    route(Method::GET, "/v1/webhooks", READ, PAGE, || get(v1::webhooks::list_webhooks)),
    route(Method::POST, "/v1/webhooks", WEBHOOKS, NONE, || post(v1::webhooks::create_webhook)),
    route(Method::GET, WEBHOOK, READ, NONE, || get(v1::webhooks::get_webhook)),
    route(Method::PATCH, WEBHOOK, WEBHOOKS, NONE, || patch(v1::webhooks::change_webhook)),
    route(Method::DELETE, WEBHOOK, WEBHOOKS, NONE, || delete(v1::webhooks::delete_webhook)),
    route(Method::POST, "/v1/webhooks/{webhook_id}/test", WEBHOOKS, NONE, || post(v1::webhooks::send_webhook_test)),
    route(Method::GET, "/v1/webhooks/{webhook_id}/deliveries", READ, PAGE, || get(v1::webhooks::list_webhook_deliveries)),
    route(Method::GET, "/v1/runs/{run_id}/deliveries", READ, PAGE, || get(v1::deliveries::list_run_deliveries)),
    route(Method::GET, "/v1/deliveries/{delivery_id}", READ, NONE, || get(v1::deliveries::get_delivery)),
    route(Method::POST, "/v1/deliveries/{delivery_id}/resend", RUNS, NONE, || post(v1::deliveries::resend_delivery)),
    route(Method::GET, "/v1/team", READ, NONE, || get(v1::members::get_team)),
    route(Method::GET, "/v1/members", READ, PAGE, || get(v1::members::list_members)),
    route(Method::GET, MEMBER, READ, NONE, || get(v1::members::get_member)),
    route(Method::PATCH, MEMBER, MEMBERS, NONE, || patch(v1::members::change_member)),
    route(Method::DELETE, MEMBER, READ, NONE, || delete(v1::members::remove_member)),
    route(Method::GET, "/v1/invitations", MEMBERS, PAGE, || get(v1::invitations::list_invitations)),
    route(Method::POST, "/v1/invitations", MEMBERS, NONE, || post(v1::invitations::create_invitation)),
    route(Method::DELETE, "/v1/invitations/{invitation_id}", MEMBERS, NONE, || delete(v1::invitations::delete_invitation)),
    route(Method::GET, "/v1/documentation", PUBLIC, NONE, || get(v1::documentation::documentation_page)),
    route(Method::GET, "/v1/documentation/json", PUBLIC, NONE, || get(v1::documentation::documentation_json)),
    route(Method::GET, "/healthz", PUBLIC, NONE, || get(health::healthz)),
    route(Method::GET, "/readyz", PUBLIC, NONE, || get(health::readyz)),
];

const fn route(
    method: Method,
    path: &'static str,
    access: Access,
    query: &'static [&'static str],
    handler: fn() -> MethodRouter<AppState>,
) -> Route {
    Route {
        method,
        path,
        access,
        query,
        alias_of: None,
        handler,
    }
}

const fn alias(
    method: Method,
    path: &'static str,
    access: Access,
    query: &'static [&'static str],
    of: &'static str,
    handler: fn() -> MethodRouter<AppState>,
) -> Route {
    Route {
        method,
        path,
        access,
        query,
        alias_of: Some(of),
        handler,
    }
}

/// Whether a path pattern of the table is public.
fn is_public(path: &str) -> bool {
    ROUTES
        .iter()
        .any(|route| route.path == path && route.access == Access::Public)
}

/// The router with all routes of the table. Other routers may be merged into it; [`layered`] gives both the same
/// layers.
pub fn router(state: AppState) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handler)().route_layer(Extension(route)));
    }
    let router = router
        .method_not_allowed_fallback(async |request: Request| {
            ApiError::method_not_allowed(request.method())
        })
        .fallback(async || ApiError::no_endpoint())
        .layer(
            ServiceBuilder::new()
                .layer(from_fn_with_state(state.clone(), cors::middleware))
                .layer(from_fn_with_state(state.clone(), auth::middleware)),
        );
    layered(router.with_state(state.clone()), &state)
}

/// Adds the layers that apply to every request: id, log line, error bodies, panics as 500, discarding unread bodies,
/// compression.
pub fn layered(router: Router, state: &AppState) -> Router {
    // One stack, from the outermost layer inward. `Router::layer` boxes every route once for each call, and each
    // middleware clones the boxes below it for each request: with separate calls, that grows with the square of the
    // number of layers.
    router.layer(
        ServiceBuilder::new()
            .layer(from_fn_with_state(state.clone(), request::middleware))
            .layer(CatchPanicLayer::custom(request::of_panic))
            .layer(from_fn(compress::before))
            .layer(compress::layer())
            .layer(from_fn_with_state(state.clone(), drain::middleware))
            // Each extractor of a body enforces its own limit.
            .layer(DefaultBodyLimit::disable()),
    )
}

/// The response before the store is open.
#[must_use]
pub fn starting(path: &str) -> Response {
    without_a_store(
        path,
        "starting",
        "the server is starting: try again in a moment",
    )
}

/// The response while the server is stopping, also for readiness.
pub(crate) fn stopping(path: &str) -> Response {
    without_a_store(
        path,
        "stopping",
        "the server is stopping: try again in a moment",
    )
}

/// The response if the store cannot be opened.
pub(crate) fn not_working(path: &str, message: String) -> Response {
    without_a_store(path, "not-working", message)
}

/// `state`: used in place of a request id.
fn without_a_store(
    path: &str,
    state: &'static str,
    message: impl Into<std::borrow::Cow<'static, str>>,
) -> Response {
    let mut response = if path == "/healthz" {
        health::alive().into_response()
    } else {
        ApiError::unavailable(message).into_response()
    };
    response
        .headers_mut()
        .insert("x-request-id", HeaderValue::from_static(state));
    response
}
