//! The page of an invitation link. Whoever has the link joins the team, either with a new password or as the logged-in
//! user.
//!
//! The token is the only permission and as powerful as a password, so the page is not stored and sends no referrer.

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_store::{Invitation, Joining, StoreError, Team};
use http::StatusCode;
use http::header;
use maud::html;

use super::failure::{PageResult, sentence};
use super::form::{Fields, OpenForm, TOKEN_FIELD, check_token};
use super::guard::{Person, open_session};
use super::layout::lone_page;
use super::set_up::{hash, private};
use super::{Web, ui};
use crate::http::error::ApiError;
use crate::password::PASSWORD_CHARS_MIN;
use crate::secret_key::SetUpToken;

pub(super) async fn show(
    State(web): State<Web>,
    person: Option<axum::Extension<Person>>,
    Path(token): Path<String>,
) -> PageResult {
    Ok(match invited(&web, &token).await? {
        Some((_, team, invitation)) => form_page(
            StatusCode::OK,
            person.as_deref(),
            &team,
            &invitation,
            &Fields::default(),
            None,
        ),
        None => dead_link(),
    })
}

pub(super) async fn join(
    State(web): State<Web>,
    person: Option<axum::Extension<Person>>,
    Path(token): Path<String>,
    OpenForm(sent): OpenForm,
) -> PageResult {
    let Some((token, team, invitation)) = invited(&web, &token).await? else {
        return Ok(dead_link());
    };
    let person = person.as_deref();
    let again = |message: &str| {
        form_page(
            StatusCode::BAD_REQUEST,
            person,
            &team,
            &invitation,
            &sent,
            Some(message),
        )
    };
    let now = web.clock.now();
    let who = match person {
        Some(person) => {
            check_token(Some(person), sent.get(TOKEN_FIELD))?;
            Joining::User(person.user)
        }
        None => {
            let password = sent.get("password").to_owned();
            if password != sent.get("again") {
                return Ok(again("The passwords do not match."));
            }
            match hash(&web, password).await {
                Ok(phc_hash) => Joining::New {
                    id: web.ids.user(now),
                    email: sent.given("email").map(str::to_owned),
                    phc_hash,
                },
                Err(Some(error)) => return Ok(again(&sentence(&error.to_string()))),
                Err(None) => return Err(ApiError::unavailable(super::BUSY).into()),
            }
        }
    };
    let (team, user) = match web.store.join(token.hash(), who, now).await {
        Ok(joined) => joined,
        Err(StoreError::NotFound) => return Ok(dead_link()),
        Err(
            StoreError::Invalid { message, .. }
            | StoreError::Conflict(message)
            | StoreError::Refused(message),
        ) => return Ok(again(&sentence(&message))),
        Err(error) => return Err(error.into()),
    };
    if let Some(person) = person {
        web.store.choose_team(person.token_hash, team.id).await?;
        return Ok(Redirect::to("/").into_response());
    }
    let cookie = open_session(&web, user.id).await?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
}

async fn invited(
    web: &Web,
    token: &str,
) -> Result<Option<(SetUpToken, Team, Invitation)>, StoreError> {
    let Some(token) = SetUpToken::parse(token) else {
        return Ok(None);
    };
    let found = web.store.invited(token.hash(), web.clock.now()).await?;
    Ok(found.map(|(team, invitation)| (token, team, invitation)))
}

fn form_page(
    status: StatusCode,
    person: Option<&Person>,
    team: &Team,
    invitation: &Invitation,
    sent: &Fields,
    message: Option<&str>,
) -> Response {
    let email = invitation.email.as_deref();
    let body = html! {
        h1 { "Join " (ui::name(&team.name)) }
        p { "You were invited as " strong { (invitation.role.as_str()) } "." }
        (ui::alert(message))
        form.form method="post" {
            @if let Some(person) = person {
                (ui::form_token(person))
                p { "You are logged in as " strong { (ui::name(&person.email)) } "." }
                button.main { "Join the team" }
            } @else {
                div.field {
                    label for="email" { "Email" }
                    input #email name="email" type="email" value=(email.unwrap_or_else(|| sent.get("email"))) readonly[email.is_some()] autocomplete="username" required;
                }
                div.field {
                    label for="password" { "Password" span.hint { "At least " (PASSWORD_CHARS_MIN) " characters" } }
                    input #password name="password" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
                }
                div.field {
                    label for="again" { "Confirm password" }
                    input #again name="again" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
                }
                button.main { "Set password and join" }
            }
        }
        @if person.is_none() { p.small.dim { "Already have an account? " a href="/log-in" { "Log in" } " first, then open the link again." } }
    };
    private(lone_page(status, "Join a team", &body))
}

fn dead_link() -> Response {
    let body = html! {
        h1 { "This invitation is no longer valid" }
        p { "It was used, expired or revoked. Ask for a new one." }
        p { a href="/log-in" { "Log in" } }
    };
    private(lone_page(
        StatusCode::NOT_FOUND,
        "This invitation is no longer valid",
        &body,
    ))
}
