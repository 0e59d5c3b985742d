//! Who is logged in, what they may, and whether a form was sent by our own page.
//!
//! Promised, in this order, for every page of the table: a request that changes something comes from our own origin, as
//! the browser says (`Sec-Fetch-Site`, else `Origin`); whoever is not logged in is sent to log in, and back afterwards;
//! the role that the person has *now* in the team must have the permission that the table names. [`super::form`] holds
//! each form's token against the session besides.
//!
//! The cookie is a random token of which the store has the SHA-256. It is `HttpOnly` and `SameSite=Lax`; where people
//! reach the server by TLS it is `Secure` and has the prefix `__Host-`.

use std::ops::Deref;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_core::id::{TeamId, UserId};
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use errand_core::transcript::hex;
use errand_store::{Membership, Session};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};
use sha2::{Digest as _, Sha256};

use super::failure::Failure;
use super::{Access, Page, Web, layout};
use crate::api::AppState;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::request::OfTeam;
use crate::api::slots::Holder;
use crate::secret_key::SetUpToken;

/// What the form's token is derived for.
const FORM_PURPOSE: &[u8] = b"errand form ";
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Somebody who is logged in.
#[derive(Clone)]
pub(crate) struct Person {
    session: Session,
    /// SHA-256 of the cookie's token.
    pub(super) token_hash: [u8; 32],
    /// What each form of theirs holds.
    pub(super) form_token: String,
    /// How many requests of their team wait for an answer.
    pub(super) open_requests: u64,
    /// When the request came.
    pub(super) now: Timestamp,
}

/// Whose memory the body of a request takes: that of the person and of the team. `None` if nobody is logged in.
pub(crate) fn holders(extensions: &http::Extensions) -> Option<(Holder, Option<TeamId>)> {
    let person = extensions.get::<Person>()?;
    let team = extensions.get::<Visitor>().map(Visitor::team_id);
    Some((Holder::Person(person.user), team))
}

impl Deref for Person {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

/// Somebody who is logged in and of a team.
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
    /// The team: the first argument of every operation.
    pub(super) fn team_id(&self) -> TeamId {
        self.membership.team
    }

    /// The team's name.
    pub(super) fn team_name(&self) -> &str {
        &self.membership.name
    }

    /// Who it is.
    pub(super) fn user_id(&self) -> UserId {
        self.person.session.user
    }

    /// Their role in the team now.
    pub(super) fn role(&self) -> Role {
        self.membership.role
    }

    /// Whether their role has the right.
    pub(super) fn may(&self, permission: Permission) -> bool {
        self.membership.role.may(permission)
    }

    /// Whether they are still logged in and may read, for what goes on longer than a request.
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

/// The layer around each page.
pub(super) async fn middleware(
    State(web): State<Web>,
    mut request: Request,
    next: Next,
) -> Response {
    if web.draining.is_cancelled() {
        return ApiError::unavailable("the server is stopping: try again in a moment")
            .into_response();
    }
    let Some(page) = request.extensions().get::<&'static Page>().copied() else {
        return ApiError::internal("a page is not in the table of pages").into_response();
    };
    if request.method() != Method::GET && !is_of_our_own(&web, request.headers()) {
        let message =
            "this form was sent from another site; open the page here and send it once more";
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
    if let Access::Needs(permission) = page.access {
        let Some(membership) = membership else {
            return layout::no_team(&person);
        };
        if !membership.role.may(permission) {
            return refused(&person, membership.role.as_str());
        }
        request.extensions_mut().insert(Visitor {
            person: person.clone(),
            membership,
        });
    }
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
    let Some(token) = token_of(web, headers) else {
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

/// Who is logged in in the browser that sends this, for what is no page of the table.
pub(crate) async fn user_of(
    app: &AppState,
    headers: &HeaderMap,
) -> Result<Option<UserId>, ApiError> {
    let Some(token) = token_of(app, headers) else {
        return Ok(None);
    };
    let session = app.store.session(token.hash(), app.clock.now()).await?;
    Ok(session.map(|session| session.user))
}

/// What the forms of a session hold: nobody makes it who does not know the cookie.
fn form_token(token: &SetUpToken) -> String {
    let digest = Sha256::new()
        .chain_update(FORM_PURPOSE)
        .chain_update(token.expose())
        .finalize();
    hex(&digest)
}

fn to_log_in(method: &Method, uri: &Uri, headers: &HeaderMap) -> Response {
    if headers.contains_key("hx-request") || headers.contains_key("last-event-id") {
        return ApiError::new(ErrorCode::Unauthorized, "log in again").into_response();
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // A form that was sent is not sent again after the log-in.
    let next = if method == Method::GET { path } else { "/" };
    if next == "/" {
        return Redirect::to("/log-in").into_response();
    }
    let next: String = url::form_urlencoded::byte_serialize(next.as_bytes()).collect();
    Redirect::to(&format!("/log-in?next={next}")).into_response()
}

/// Whether the browser says that the request comes from our own pages. A caller that says nothing is no browser of these
/// days, and has no cookie that a page could make it send.
fn is_of_our_own(web: &Web, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(SEC_FETCH_SITE) {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(header::ORIGIN.as_str()) else {
        return !headers.contains_key(header::ORIGIN);
    };
    let host = origin.split_once("://").map(|(_, host)| host);
    // The public address; or the one that the browser itself says it connects to, where nobody has set a public one.
    origin == web.settings.public_url
        || host.is_some_and(|host| text(header::HOST.as_str()) == Some(host))
}

/// Whether people reach the server by TLS.
fn is_secure(web: &AppState) -> bool {
    web.settings.public_url.starts_with("https:")
}

fn cookie_name(web: &AppState) -> &'static str {
    if is_secure(web) {
        "__Host-errand"
    } else {
        "errand"
    }
}

fn token_of(web: &AppState, headers: &HeaderMap) -> Option<SetUpToken> {
    let name = cookie_name(web);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| SetUpToken::parse(value))
}

/// Opens a session for somebody who has shown who they are: the header that sets its cookie.
pub(super) async fn open_session(web: &Web, user: UserId) -> Result<HeaderValue, ApiError> {
    let token = SetUpToken::generate().map_err(ApiError::internal)?;
    web.store
        .open_session(user, token.hash(), web.clock.now())
        .await?;
    cookie(web, token.expose(), 30 * 24 * 3600)
}

/// The header that takes the cookie away.
pub(super) fn no_cookie(web: &Web) -> Result<HeaderValue, ApiError> {
    cookie(web, "", 0)
}

fn cookie(web: &Web, value: &str, max_age_s: u32) -> Result<HeaderValue, ApiError> {
    let secure = if is_secure(web) { "; Secure" } else { "" };
    let text = format!(
        "{}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age_s}{secure}",
        cookie_name(web)
    );
    HeaderValue::try_from(text).map_err(ApiError::internal)
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
