//! Authentication, authorization and the rate limit of API requests.
//!
//! # Guarantees
//!
//! For every path under `/v1` that is not public, even an unknown one, in this order:
//!
//! - An API key is required.
//! - Each request with a valid key counts toward the key's rate limit, even if it is refused later. Headers report the
//!   limit.
//! - The *current* role of the key's creator must have the permission in the table of routes.
//!
//! A refusal of a key never says why. Failed authentications are counted by address (IPv6: by /64 prefix).

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use errand_core::author::{By, UsedKey};
use errand_core::error_chain::error_chain;
use errand_core::id::{ApiKeyId, TeamId, UserId};
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::{Access, Route, is_public, query};
use crate::http::body_memory::BodyOwner;
use crate::http::client_address::address_of;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::is_api;
use crate::http::limiter::Verdict;
use crate::http::request::OfTeam;
use crate::http::slots::Holder;
use crate::secret_key::ApiKeySecret;
use crate::state::AppState;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The result of a successful authentication, left in the request's extensions.
#[derive(Clone)]
struct Authenticated {
    caller: errand_store::model::Caller,
    key_hash: [u8; 32],
}

/// The layer around all routes under `/v1`.
pub(crate) async fn middleware(
    State(app): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    if !is_api(request.uri().path()) {
        return next.run(request).await;
    }
    if app.draining.is_cancelled() {
        return ApiError::unavailable("the server is stopping: try again in a moment")
            .into_response();
    }
    if request
        .extensions()
        .get::<MatchedPath>()
        .is_some_and(|path| is_public(path.as_str()))
    {
        return next.run(request).await;
    }
    let now = app.clock.now();
    let authenticated = match authenticate(&app, request.headers(), now).await {
        Ok(Some(authenticated)) => authenticated,
        // A browser's preflight request: it never carries a key, so it does not count as a failed attempt.
        Ok(None) if request.method() == Method::OPTIONS && !has_key(request.headers()) => {
            return ApiError::unauthorized().into_response();
        }
        Ok(None) => {
            return app
                .failed_authentications
                .refuse(
                    request.headers(),
                    peer(&request),
                    now,
                    ApiError::unauthorized(),
                )
                .into_response();
        }
        Err(error) => return error.into_response(),
    };
    let (team, key) = (authenticated.caller.team, authenticated.caller.api_key);
    let verdict = app.requests_by_key.count(key, now);
    let mut response = if verdict.allowed {
        if verdict.is_first {
            note_use(&app, key, now).await;
        }
        request.extensions_mut().insert(BodyOwner {
            holder: Holder::Key(key),
            team: Some(team),
        });
        request.extensions_mut().insert(authenticated);
        next.run(request).await
    } else {
        let message = format!(
            "this key has reached its limit of {} requests per minute: wait {} s",
            verdict.limit, verdict.retry_after_s
        );
        ApiError::rate_limited(message, verdict.retry_after_s).into_response()
    };
    tell_limit(response.headers_mut(), verdict);
    response.extensions_mut().insert(OfTeam(team));
    response
}

async fn authenticate(
    app: &AppState,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Option<Authenticated>, ApiError> {
    let Some(key) = bearer(headers).and_then(ApiKeySecret::parse) else {
        return Ok(None);
    };
    let key_hash = key.hash();
    let caller = app.store.caller_by_key_hash(key_hash, now).await?;
    Ok(caller.map(|caller| Authenticated { caller, key_hash }))
}

fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key(header::AUTHORIZATION)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// The address at the other end of the connection. Calls within the process have none.
fn peer(request: &Request) -> IpAddr {
    address_of(request.extensions().get::<ConnectInfo<SocketAddr>>())
}

/// Stores `last_used_at`, at most once per window. A failure is only logged, because it must not fail the request.
async fn note_use(app: &AppState, key: ApiKeyId, now: Timestamp) {
    if let Err(error) = app.store.touch_key(key, now).await {
        tracing::warn!(
            error = error_chain(&error),
            "the use of a key could not be recorded"
        );
    }
}

fn tell_limit(headers: &mut HeaderMap, verdict: Verdict) {
    headers.insert(LIMIT, HeaderValue::from(verdict.limit));
    headers.insert(REMAINING, HeaderValue::from(verdict.remaining));
    headers.insert(RESET, HeaderValue::from(verdict.reset_s));
}

/// Proof that the request has a valid key whose role has the permission of the route.
pub(crate) struct Caller {
    authenticated: Authenticated,
}

impl Caller {
    /// The team, which is the first argument of every store operation.
    pub(crate) fn team(&self) -> TeamId {
        self.authenticated.caller.team
    }

    pub(crate) fn user(&self) -> UserId {
        self.authenticated.caller.user
    }

    pub(crate) fn api_key(&self) -> ApiKeyId {
        self.authenticated.caller.api_key
    }

    /// The author of this request's changes: the key, with its creator.
    pub(crate) fn by(&self) -> By {
        let caller = &self.authenticated.caller;
        By {
            user: caller.user,
            key: Some(UsedKey {
                id: caller.api_key,
                name: caller.api_key_name.clone(),
            }),
        }
    }

    /// Whether the current role has another permission than the route's.
    pub(crate) fn may(&self, permission: Permission) -> bool {
        self.authenticated.caller.may(permission)
    }

    /// The current role of the key's creator.
    pub(crate) fn role(&self) -> Role {
        self.authenticated.caller.role
    }

    /// The time when the key expires.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        self.authenticated.caller.expires_at
    }

    /// Whether the key is still valid, for requests that last long.
    pub(crate) async fn still_counts(&self, app: &AppState) -> bool {
        let caller = app
            .store
            .caller_by_key_hash(self.authenticated.key_hash, app.clock.now())
            .await;
        caller.is_ok_and(|caller| caller.is_some())
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, ApiError> {
        let authenticated = parts.extensions.get::<Authenticated>().cloned();
        let route = parts.extensions.get::<&'static Route>().copied();
        let (Some(authenticated), Some(route)) = (authenticated, route) else {
            return Err(ApiError::internal(
                "a handler extracts its caller on a public route",
            ));
        };
        let Access::Needs(permission) = route.access else {
            return Err(ApiError::internal(
                "a handler extracts its caller on a public route",
            ));
        };
        if !authenticated.caller.may(permission) {
            let role = authenticated.caller.role.as_str();
            let message = format!(
                "the role {role} of the key's creator does not permit this: an admin or owner of the team can do it"
            );
            return Err(ApiError::new(ErrorCode::Forbidden, message));
        }
        if app.settings.unknown_fields_refused {
            query::check_names(parts.uri.query(), route.query)?;
        }
        Ok(Self { authenticated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn one_bearer_is_read() {
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some("abc"));
        assert_eq!(bearer(&headers(&["bearer  abc"])), Some("abc"));
        assert_eq!(bearer(&headers(&["Basic abc"])), None);
        assert_eq!(bearer(&headers(&["Bearer"])), None);
        assert_eq!(bearer(&headers(&[])), None);
        assert_eq!(bearer(&headers(&["Bearer abc", "Bearer abc"])), None);
    }
}
