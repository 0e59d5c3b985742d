//! Checks who is logged in, what they are permitted to do, and that one of our pages sent a form.
//!
//! Guarantees, in this order, for each page of the table:
//! - A request that changes something comes from our own origin, as reported by the browser (`Sec-Fetch-Site`,
//!   otherwise `Origin`).
//! - Someone who is not logged in is sent to the log-in page, and back afterwards.
//! - The person's *current* role in the team has the permission that the table names.

use std::ops::Deref;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_core::id::{TeamId, UserId};
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use errand_store::{Membership, Session};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};
use sha2::{Digest as _, Sha256};

use super::failure::Failure;
use super::{Access, Page, Web, layout};
use crate::http::body_memory::BodyOwner;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::request::OfTeam;
use crate::http::session_cookie::{cookie, token_of};
use crate::http::slots::Holder;
use crate::secret_key::SetUpToken;

/// Separates form tokens from other values derived from the session token.
const FORM_PURPOSE: &[u8] = b"errand form ";
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// A logged-in person.
#[derive(Clone)]
pub(crate) struct Person {
    session: Session,
    /// SHA-256 of the cookie's token.
    pub(super) token_hash: [u8; 32],
    /// The token that each of their forms contains.
    pub(super) form_token: String,
    /// Open requests of their team.
    pub(super) open_requests: u64,
    /// When the request arrived.
    pub(super) now: Timestamp,
}

impl Deref for Person {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

/// A logged-in person with a team.
#[derive(Clone)]
pub(crate) struct Visitor {
    person: Person,
    membership: Membership,
}

impl Deref for Visitor {
    type Target = Person;

    fn deref(&self) -> &Person {
        &self.person
    }
}

impl Visitor {
    /// The team, which is the first argument of every store operation.
    pub(super) fn team_id(&self) -> TeamId {
        self.membership.team
    }

    pub(super) fn team_name(&self) -> &str {
        &self.membership.name
    }

    pub(super) fn user_id(&self) -> UserId {
        self.person.session.user
    }

    /// Their current role in the team.
    pub(super) fn role(&self) -> Role {
        self.membership.role
    }

    pub(super) fn may(&self, permission: Permission) -> bool {
        self.membership.role.may(permission)
    }

    /// Whether they are still logged in and can still read. Long-lived streams check it again and again.
    pub(super) async fn still_counts(&self, web: &Web) -> bool {
        let session = web.store.session(self.person.token_hash, web.clock.now());
        session.await.is_ok_and(|session| {
            session.is_some_and(|session| {
                session
                    .teams
                    .iter()
                    .any(|of| of.team == self.team_id() && of.role.may(Permission::Read))
            })
        })
    }
}

/// The middleware of each page.
pub(super) async fn middleware(
    State(web): State<Web>,
    mut request: Request,
    next: Next,
) -> Response {
    if web.draining.is_cancelled() {
        return ApiError::unavailable("the server is shutting down; try again in a moment")
            .into_response();
    }
    let Some(page) = request.extensions().get::<&'static Page>().copied() else {
        return ApiError::internal("a page is not in the table of pages").into_response();
    };
    if request.method() != Method::GET && !is_of_our_own(&web, request.headers()) {
        let message = "this form was sent from another site; open the page here and send it again";
        return ApiError::new(ErrorCode::Forbidden, message).into_response();
    }
    let person = match person(&web, request.headers(), request.method()).await {
        Ok(person) => person,
        Err(error) => return error.into_response(),
    };
    let Some(person) = person else {
        if page.access == Access::Open {
            let mut response = next.run(request).await;
            return match response.extensions_mut().remove::<Failure>() {
                Some(failure) => failure.into_lone_page(),
                None => response,
            };
        }
        return to_log_in(request.method(), request.uri(), request.headers());
    };
    let membership = person.team.clone();
    let team = membership.as_ref().map(|membership| membership.team);
    let mut owner = BodyOwner {
        holder: Holder::Person(person.user),
        team: None,
    };
    if let Access::Needs(permission) = page.access {
        let Some(membership) = membership else {
            return layout::no_team(&person);
        };
        if !membership.role.may(permission) {
            return refused(&person, membership.role.as_str());
        }
        owner.team = team;
        request.extensions_mut().insert(Visitor {
            person: person.clone(),
            membership,
        });
    }
    request.extensions_mut().insert(owner);
    request.extensions_mut().insert(person.clone());
    let mut response = next.run(request).await;
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        response = failure.into_page(&person);
    }
    if let Some(team) = team {
        response.extensions_mut().insert(OfTeam(team));
    }
    response
}

fn refused(person: &Person, role: &str) -> Response {
    let message = format!(
        "Your role in this team is {role}, which does not allow this. Ask an admin or owner of the team."
    );
    Failure::new(http::StatusCode::FORBIDDEN, "Not allowed", message).into_page(person)
}

async fn person(
    web: &Web,
    headers: &HeaderMap,
    method: &Method,
) -> Result<Option<Person>, ApiError> {
    let Some(token) = token_of(&web.settings.public_url, headers) else {
        return Ok(None);
    };
    let now = web.clock.now();
    let Some(session) = web.store.session(token.hash(), now).await? else {
        return Ok(None);
    };
    let open_requests = match &session.team {
        Some(team) if method == Method::GET => web.store.open_requests_count(team.team).await?,
        _ => 0,
    };
    Ok(Some(Person {
        session,
        token_hash: token.hash(),
        form_token: form_token(&token),
        open_requests,
        now,
    }))
}

/// The form token of a session. It cannot be derived without the cookie.
fn form_token(token: &SetUpToken) -> String {
    let digest = Sha256::new()
        .chain_update(FORM_PURPOSE)
        .chain_update(token.expose())
        .finalize();
    hex::encode(digest)
}

fn to_log_in(method: &Method, uri: &Uri, headers: &HeaderMap) -> Response {
    if headers.contains_key("hx-request") || headers.contains_key("last-event-id") {
        return ApiError::new(ErrorCode::Unauthorized, "log in again").into_response();
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // A submitted form is not sent again after the log-in.
    let next = if method == Method::GET { path } else { "/" };
    if next == "/" {
        return Redirect::to("/log-in").into_response();
    }
    let next: String = url::form_urlencoded::byte_serialize(next.as_bytes()).collect();
    Redirect::to(&format!("/log-in?next={next}")).into_response()
}

/// Whether the browser reports that one of our pages sent the request. A client that sends neither header is not a
/// current browser, so no site can make it send a cookie.
fn is_of_our_own(web: &Web, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(SEC_FETCH_SITE) {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(header::ORIGIN.as_str()) else {
        return !headers.contains_key(header::ORIGIN);
    };
    let host = origin.split_once("://").map(|(_, host)| host);
    // The configured public address. Without one, the address that the browser says it connected to.
    origin == web.settings.public_url
        || host.is_some_and(|host| text(header::HOST.as_str()) == Some(host))
}

/// Opens a session for an authenticated user and returns the header that sets its cookie.
pub(super) async fn open_session(web: &Web, user: UserId) -> Result<HeaderValue, ApiError> {
    let token = SetUpToken::generate().map_err(ApiError::internal)?;
    web.store
        .open_session(user, token.hash(), web.clock.now())
        .await?;
    cookie(&web.settings.public_url, token.expose(), 30 * 24 * 3600)
}

/// The header that deletes the cookie.
pub(super) fn no_cookie(web: &Web) -> Result<HeaderValue, ApiError> {
    cookie(&web.settings.public_url, "", 0)
}

impl<S: Sync> FromRequestParts<S> for Person {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let person = parts.extensions.get::<Self>().cloned();
        person.ok_or_else(|| ApiError::internal("a page that is open asks who is logged in"))
    }
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let visitor = parts.extensions.get::<Self>().cloned();
        visitor.ok_or_else(|| ApiError::internal("a page without a permission asks for a team"))
    }
}
