//! The account page: the user's password, and the team they work in.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_core::id::TeamId;
use http::StatusCode;
use maud::html;

use super::failure::{PageError, PageResult, sentence};
use super::form::{Form, Params};
use super::guard::Person;
use super::layout::{Section, page_with_status};
use super::log_in::verify;
use super::{Web, set_up, ui};
use crate::http::error::{ApiError, ErrorCode};
use crate::password::PASSWORD_CHARS_MIN;

pub(super) async fn show(person: Person, Params(params): Params) -> Response {
    account(StatusCode::OK, &person, None, params.is_on("changed"))
}

pub(super) async fn change_password(
    State(web): State<Web>,
    person: Person,
    Form(fields): Form,
) -> PageResult {
    let again = |message: &str| account(StatusCode::BAD_REQUEST, &person, Some(message), false);
    let verdict = web.0.session_passwords.count(person.token_hash, person.now);
    if !verdict.allowed {
        let message = "Too many attempts. Wait a minute, then try again.";
        return Ok(again(message));
    }
    let Some(present) = web.store.password_hash(person.user).await? else {
        return Err(ApiError::new(ErrorCode::Forbidden, "your account has no password").into());
    };
    if !verify(&web, fields.get("present").to_owned(), present).await? {
        return Ok(again("The current password is incorrect."));
    }
    let password = fields.get("password").to_owned();
    if password != fields.get("again") {
        return Ok(again("The new passwords do not match."));
    }
    let hash = match set_up::hash(&web, password).await {
        Ok(hash) => hash,
        Err(Some(error)) => return Ok(again(&sentence(&error.to_string()))),
        Err(None) => return Err(ApiError::unavailable(super::BUSY).into()),
    };
    web.store
        .change_password(person.user, hash, person.token_hash)
        .await?;
    Ok(Redirect::to("/account?changed=1").into_response())
}

pub(super) async fn choose_team(
    State(web): State<Web>,
    person: Person,
    Form(fields): Form,
) -> PageResult {
    let team: TeamId = fields
        .get("team")
        .parse()
        .map_err(|_| PageError::not_found())?;
    web.store.choose_team(person.token_hash, team).await?;
    Ok(Redirect::to("/").into_response())
}

fn account(status: StatusCode, person: &Person, message: Option<&str>, changed: bool) -> Response {
    let body = html! {
        div.head { h1 { "Your account" } }
        @if changed { div.note.good role="status" { "Your password was changed. You were logged out on all other devices." } }
        section {
            dl.facts {
                dt { "Email" } dd { (ui::name(&person.email)) }
                dt { "Logged in" } dd { (ui::time(person.created_at, person.now)) }
                @for of in &person.teams {
                    dt { "Team" } dd { (ui::name(&of.name)) ", as " (of.role.as_str()) }
                }
            }
        }
        section {
            div.head { h2 { "Change password" } }
            (ui::alert(message))
            form.form method="post" action="/account/password" {
                (ui::form_token(person))
                input type="hidden" name="username" value=(person.email) autocomplete="username";
                div.field {
                    label for="present" { "Current password" }
                    input #present name="present" type="password" autocomplete="current-password" required;
                }
                div.field {
                    label for="password" { "New password" span.hint { "At least " (PASSWORD_CHARS_MIN) " characters" } }
                    input #password name="password" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
                }
                div.field {
                    label for="again" { "Confirm new password" }
                    input #again name="again" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
                }
                div.buttons { button.main { "Change password" } }
            }
        }
    };
    page_with_status(status, person, "Your account", Section::Account, &body)
}
