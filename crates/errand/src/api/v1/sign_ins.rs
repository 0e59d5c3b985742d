//! Endpoints for signing in to a connection's server. An admin starts a sign-in, and the browser's callback completes
//! it.

use axum::extract::State;
use axum::response::Response;
use errand_core::id::{ConnectionId, UserId};
use errand_core::time::Timestamp;
use errand_engine::connect::BegunBy;
use errand_store::{Setup, StoredAnswer};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::auth::Caller;
use crate::api::body::NoBody;
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, replayed, response};
use crate::api::outer::OuterUrl;
use crate::http::error::{ApiError, ErrorCode, ErrorResponse};
use crate::http::path::Path;
use crate::http::session_cookie;
use crate::state::AppState;
use crate::usecase::sign_in::{self, Callback, ConfirmSignIn};
use crate::usecase::webhook_url::address_to_show;

/// The page for signing in.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct AuthorizeResponse {
    /// The address to open in a browser.
    authorization_url: String,
    /// The time when the sign-in expires.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Starts a sign-in to the connection's server with OAuth 2.1.
///
/// Open the address in a browser. The authorization server redirects it back to this server.
#[utoipa::path(post, path = "/v1/connections/{connection_id}/authorize", tag = "Connections", params(("connection_id" = Uuid, Path, description = "The connection.")),
    responses((status = 200, description = "The page for signing in.", body = AuthorizeResponse)))]
pub(crate) async fn authorize_connection(
    caller: Caller,
    State(app): State<AppState>,
    Path(id): Path<ConnectionId>,
    key: IdempotencyKey,
    OuterUrl(outer): OuterUrl,
    body: NoBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    if let Some(idem) = key.idem(&caller, body.sha256)
        && let Some(stored) = app.store.lookup_idempotent(idem, now).await?
    {
        return Ok(replayed(stored));
    }
    let connection = app.store.connection(caller.team(), id).await?;
    let by = BegunBy {
        user: caller.user(),
        in_web: false,
    };
    let begun = sign_in::begin(&app, &connection, by, &outer).await?;
    let begun = AuthorizeResponse {
        authorization_url: begun.url,
        expires_at: begun.ends,
    };
    let once = key.once(&caller, body.sha256, render_begun);
    let answer = app.store.record_idempotent(begun, once, now).await?;
    Ok(response(answer, render_begun))
}

fn render_begun(begun: &AuthorizeResponse) -> StoredAnswer {
    rendered(StatusCode::OK, begun)
}

/// Signs out by deleting the connection's tokens.
///
/// Calls that need them fail from now on.
#[utoipa::path(delete, path = "/v1/connections/{connection_id}/sign-in", tag = "Connections", params(("connection_id" = Uuid, Path, description = "The connection.")),
    responses((status = 204, description = "Signed out.")))]
pub(crate) async fn sign_out_connection(
    caller: Caller,
    State(app): State<AppState>,
    Path(id): Path<ConnectionId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .sign_out(caller.team(), id, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}

/// The query parameters of the callback.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct CallbackParams {
    /// The authorization code.
    code: Option<String>,
    /// Identifies the sign-in.
    state: Option<String>,
    /// The issuer.
    iss: Option<String>,
    /// The error code of the authorization server, if there is no code.
    error: Option<String>,
    #[expect(dead_code, reason = "untrusted text, which is never shown")]
    error_description: Option<String>,
}

/// Completes a sign-in. The browser is redirected here from the authorization server.
///
/// It works once. If the sign-in was started in the web interface, it is completed only in the session of the person
/// who started it. If it was started over the API, the person must first confirm on a page which team's connection they
/// sign in.
#[utoipa::path(get, path = "/v1/sign-ins/callback", tag = "Connections", params(CallbackParams), security(()),
    responses((status = 200, description = "Signed in, or a page that asks for confirmation.", content_type = "text/html", body = String),
        (status = 400, description = "Access was not granted, or the sign-in failed. A page for a browser, JSON for other clients.", content((String = "text/html"), (ErrorResponse = "application/json"))),
        (status = 403, description = "The sign-in was started in the web interface by another person or in another browser.", content((String = "text/html"), (ErrorResponse = "application/json"))),
        (status = 404, description = "The sign-in does not exist, was already completed, or has expired.", content((String = "text/html"), (ErrorResponse = "application/json")))))]
pub(crate) async fn end_sign_in(
    State(app): State<AppState>,
    axum::extract::Query(callback): axum::extract::Query<CallbackParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let state = callback.state.unwrap_or_default();
    let begun = app.connections.sign_in_under_way(&state);
    let (Some(code), None) = (callback.code, &callback.error) else {
        return Err(ApiError::bad_request(
            "access was not granted: start another sign-in, on the connection's page or with POST /v1/connections/{connection_id}/authorize",
        ));
    };
    let begun = begun.ok_or_else(ApiError::not_found)?;
    let callback = Callback {
        code,
        state,
        issuer: callback.iss,
    };
    if user_of(&app, &headers).await? == Some(begun.by.user) {
        sign_in::finish(&app, &callback).await?;
        return Ok((app.pages.signed_in)());
    }
    if begun.by.in_web {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            "this sign-in was started by another person or in another browser: complete it where it was started",
        ));
    }
    let team = app.store.team(begun.team).await?;
    let (member, _) = app.store.member(begun.team, begun.by.user).await?;
    let connection = app.store.connection(begun.team, begun.connection).await?;
    let server = match &connection.setup {
        Setup::Http { url, .. } => address_to_show(url, false),
        Setup::Stdio { command, .. } => command.clone(),
    };
    Ok((app.pages.confirm_sign_in)(&ConfirmSignIn {
        callback: &callback,
        team: &team.name,
        begun_by: member.email.as_deref().unwrap_or("Somebody"),
        connection: &connection.name,
        server: &server,
    }))
}

/// The person who is logged in to the web interface in the browser that sends this.
async fn user_of(app: &AppState, headers: &HeaderMap) -> Result<Option<UserId>, ApiError> {
    let Some(token) = session_cookie::token_of(&app.settings.public_url, headers) else {
        return Ok(None);
    };
    let session = app.store.session(token.hash(), app.clock.now()).await?;
    Ok(session.map(|session| session.user))
}
