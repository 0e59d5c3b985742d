//! The HTTP API.
//!
//! # Guarantees
//!
//! - [`ROUTES`] is the only table of endpoints. The router is built from it, tests iterate over it, and the OpenAPI
//!   document is compared with it.
//! - What applies to all requests is done once, in this order from the outside: the layers that the pages share
//!   ([`layered`]), API key and rate limit ([`auth`]). Then the handlers' extractors check permission, query and body.
//!   A handler calls one operation of the store or one use case, and converts the result.
//!
//! # Non-goals
//!
//! Decisions about runs (`errand-core`), and storage (`errand-store`).

mod auth;
mod body;
mod exact;
mod health;
mod hint;
mod idempotency;
mod openapi;
mod outer;
mod page;
mod query;
mod upload_token;
mod v1;

#[cfg(test)]
mod tests;

use axum::Extension;
use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use errand_core::role::Permission;
use http::{HeaderValue, Method};
use tower::ServiceBuilder;

use crate::http::error::ApiError;
use crate::http::{cors, layered};
use crate::state::AppState;

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

/// The router with all routes of the table. Other routers may be merged into it.
pub(crate) fn router(state: AppState) -> Router {
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
                .layer(from_fn_with_state(
                    state.settings.allowed_origins.clone(),
                    cors::middleware,
                ))
                .layer(from_fn_with_state(state.clone(), auth::middleware)),
        );
    layered(router.with_state(state.clone()), &state.layers)
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
