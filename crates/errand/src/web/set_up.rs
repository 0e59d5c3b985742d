//! The page on which a user sets a password.
//!
//! `GET` and `POST /set-up/{token}`: whoever has the link can set the user's password, once. The token is the only
//! permission and as powerful as a password, so the page is not stored, cannot be framed, and sends no referrer. A
//! password is hashed only if the link is valid. Setting it logs the user in.

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_store::{StoreError, User};
use http::StatusCode;
use http::header::{self, HeaderValue};
use maud::{Markup, html};

use super::failure::{PageResult, sentence};
use super::form::OpenForm;
use super::guard::open_session;
use super::layout::lone_page;
use super::{Web, ui};
use crate::http::error::ApiError;
use crate::password::{PASSWORD_CHARS_MIN, PasswordError, hash_password};
use crate::secret_key::SetUpToken;

pub(super) async fn show(State(web): State<Web>, Path(token): Path<String>) -> PageResult {
    Ok(match holder(&web, &token).await? {
        Some((_, user)) => form_page(StatusCode::OK, &user, "", None),
        None => dead_link(),
    })
}

pub(super) async fn claim(
    State(web): State<Web>,
    Path(token): Path<String>,
    OpenForm(sent): OpenForm,
) -> PageResult {
    let Some((token, user)) = holder(&web, &token).await? else {
        return Ok(dead_link());
    };
    let email = sent.get("email");
    let again = |message: &str| form_page(StatusCode::BAD_REQUEST, &user, email, Some(message));
    let password = sent.get("password").to_owned();
    if password != sent.get("again") {
        return Ok(again("The passwords do not match."));
    }
    let hash = match hash(&web, password).await {
        Ok(hash) => hash,
        Err(Some(error)) => return Ok(again(&sentence(&error.to_string()))),
        Err(None) => return Err(ApiError::unavailable(super::BUSY).into()),
    };
    let given = sent.given("email").map(str::to_owned);
    match web
        .store
        .claim_set_up_link(token.hash(), given, hash, web.clock.now())
        .await
    {
        Ok(user) => {
            let cookie = open_session(&web, user.id).await?;
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
        }
        Err(StoreError::NotFound) => Ok(dead_link()),
        Err(StoreError::Invalid { message, .. } | StoreError::Conflict(message)) => {
            Ok(again(&sentence(&message)))
        }
        Err(error) => Err(error.into()),
    }
}

async fn holder(web: &Web, token: &str) -> Result<Option<(SetUpToken, User)>, StoreError> {
    let Some(token) = SetUpToken::parse(token) else {
        return Ok(None);
    };
    let user = web.store.set_up_link(token.hash(), web.clock.now()).await?;
    Ok(user.map(|user| (token, user)))
}

/// Hashes a password. The error is `None` if the server is shutting down or too many checks wait.
pub(super) async fn hash(web: &Web, password: String) -> Result<String, Option<PasswordError>> {
    let _place = web.permit_to_hash().await.map_err(|_| None)?;
    let hashed = tokio::task::spawn_blocking(move || hash_password(&password)).await;
    hashed.map_err(|_| None)?.map_err(Some)
}

fn form_page(status: StatusCode, user: &User, email: &str, message: Option<&str>) -> Response {
    let body: Markup = html! {
        h1 { "Set your password" }
        (ui::alert(message))
        form.form method="post" {
            div.field {
                label for="email" { "Email" }
                @if let Some(email) = &user.email {
                    // For the password manager; the address cannot be changed here.
                    input #email name="email" type="email" value=(email) autocomplete="username" readonly;
                } @else {
                    input #email name="email" type="email" value=(email) autocomplete="username" required;
                }
            }
            div.field {
                label for="password" { "Password" span.hint { "At least " (PASSWORD_CHARS_MIN) " characters" } }
                input #password name="password" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
            }
            div.field {
                label for="again" { "Confirm password" }
                input #again name="again" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
            }
            button.main { "Set password" }
        }
    };
    private(lone_page(status, "Set your password", &body))
}

fn dead_link() -> Response {
    let body = html! {
        h1 { "This link is no longer valid" }
        p { "It was used, expired or replaced by a newer one. Ask the server's operator for a new one: " code { "errand users link EMAIL" } }
        p { a href="/log-in" { "Log in" } }
    };
    private(lone_page(
        StatusCode::NOT_FOUND,
        "This link is no longer valid",
        &body,
    ))
}

/// Keeps the page, whose address is a secret, out of caches and out of the referrer of links.
pub(super) fn private(mut response: Response) -> Response {
    response.headers_mut().insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}
