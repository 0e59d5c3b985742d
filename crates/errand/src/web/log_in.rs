//! Logging in and out.
//!
//! Guarantees:
//! - A response never reveals whether a user exists: a wrong password and an unknown address take the same time.
//! - Failed attempts are counted per address and per account. Beyond a limit, no one is locked out: further attempts
//!   from an address that failed are slow, one at a time per account. The correct password still works, and guessing
//!   does not pay.
//! - An address that has not failed is not slowed by the attempts of others.
//! - Only a few passwords are checked at the same time, because each check takes memory, and only a few attempts wait.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier as _;
use argon2::password_hash::phc::PasswordHash;
use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::StatusCode;
use http::header::{self, HeaderMap};
use maud::{Markup, html};
use sha2::{Digest as _, Sha256};

use super::failure::{PageError, PageResult};
use super::form::{Fields, Form, OpenForm, Params};
use super::guard::{Person, no_cookie, open_session};
use super::layout::lone_page;
use super::{Web, ui};
use crate::http::client_address::address_of;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::slots::{Holder, NoSlot};
use crate::password::{PASSWORD_BYTES_MAX, hash_password};

/// Delay before a password check after many failed attempts.
const SLOW: Duration = Duration::from_secs(2);
/// Slowed attempts of one address that can wait at the same time.
const SLOW_PER_ADDRESS: usize = 4;

const TOO_MANY: &str = "Many attempts have failed, and the previous one is still being checked. Wait a few seconds, then try again.";
const WRONG: &str = "Incorrect email or password.";

/// Checked for unknown users, so that their log-in takes as long as any other.
static NOBODY: LazyLock<String> =
    LazyLock::new(|| hash_password("nobody has this password").unwrap_or_default());

pub(super) async fn show(Params(params): Params) -> Response {
    form_page(StatusCode::OK, &params, None)
}

pub(super) async fn log_in(
    State(web): State<Web>,
    info: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    OpenForm(fields): OpenForm,
) -> PageResult {
    let now = web.clock.now();
    let email = fields.get("email").trim().to_lowercase();
    let account: [u8; 32] = Sha256::digest(email.as_bytes()).into();
    let peer = address_of(info.as_ref().map(|info| &info.0));
    let (failed, may_fail) = web.failed_authentications.so_far(&headers, peer, now);
    let (_, account_may_fail) = web.0.failed_log_ins.so_far(&account, now);
    if !may_fail || (!account_may_fail && failed > 0) {
        let address = web.failed_authentications.address_behind(&headers, peer);
        if slow(&web, address, &account).await.is_err() {
            let status = StatusCode::TOO_MANY_REQUESTS;
            return Ok(form_page(status, &fields, Some(TOO_MANY)));
        }
    }
    let found = web.store.log_in_by_email(&email).await?;
    let (user, hash) = match found {
        Some((user, hash)) => (Some(user), hash),
        None => (None, NOBODY.clone()),
    };
    let fits = verify(&web, fields.get("password").to_owned(), hash).await?;
    let Some(user) = user.filter(|_| fits) else {
        web.0.failed_log_ins.count(account, now);
        // Counts against the address. The response is the same within and beyond the limit: the password is wrong.
        let refusal = ApiError::new(ErrorCode::Unauthorized, WRONG);
        let _ = web
            .failed_authentications
            .refuse(&headers, peer, now, refusal);
        return Ok(form_page(StatusCode::UNAUTHORIZED, &fields, Some(WRONG)));
    };
    let cookie = open_session(&web, user).await?;
    let next = Redirect::to(own_path(fields.get("next")));
    Ok(([(header::SET_COOKIE, cookie)], next).into_response())
}

/// Waits in one of a few slots. The error means that too many attempts wait already.
async fn slow(web: &Web, address: IpAddr, account: &[u8; 32]) -> Result<(), NoSlot> {
    let attempt = Sha256::new()
        .chain_update(address.to_string())
        .chain_update([0])
        .chain_update(account)
        .finalize();
    let holders = [
        (Holder::LogIn(attempt.into()), 1),
        (Holder::Address(address), SLOW_PER_ADDRESS),
    ];
    let _slot = web.0.slow_log_ins.take(&holders, usize::MAX)?;
    // Real time, not the application clock, which tests and administrators can change: the delay must cost the client
    // time.
    tokio::time::sleep(SLOW).await;
    Ok(())
}

pub(super) async fn log_out(State(web): State<Web>, person: Person, Form(_): Form) -> PageResult {
    web.store.close_session(person.token_hash).await?;
    let cookie = no_cookie(&web)?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/log-in")).into_response())
}

/// Checks a password against a hash, on a blocking thread for tens of milliseconds.
pub(super) async fn verify(web: &Web, password: String, hash: String) -> Result<bool, PageError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Ok(false);
    }
    let _place = web.permit_to_hash().await?;
    let fits = tokio::task::spawn_blocking(move || {
        PasswordHash::new(&hash).is_ok_and(|parsed| {
            Argon2::default()
                .verify_password(password.as_bytes(), &parsed)
                .is_ok()
        })
    });
    Ok(fits.await.map_err(ApiError::internal)?)
}

/// Accepts only a path on this server, never another site's address.
fn own_path(next: &str) -> &str {
    let is_own = next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains(['\\', '\r', '\n'])
        && next.bytes().all(|byte| byte.is_ascii_graphic());
    if is_own { next } else { "/" }
}

fn form_page(status: StatusCode, fields: &Fields, message: Option<&str>) -> Response {
    let next = own_path(fields.get("next"));
    let body: Markup = html! {
        h1 { "Log in" }
        (ui::alert(message))
        form.form method="post" action="/log-in" {
            input type="hidden" name="next" value=(next);
            div.field {
                label for="email" { "Email" }
                input #email name="email" type="email" value=(fields.get("email")) autocomplete="username" required autofocus;
            }
            div.field {
                label for="password" { "Password" }
                input #password name="password" type="password" autocomplete="current-password" required;
            }
            button.main { "Log in" }
        }
        p.small.dim { "Forgot your password, or never set one? Ask an admin of your team. The server's operator can create a link with " code { "errand users link EMAIL" } "." }
    };
    lone_page(status, "Log in", &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_in_never_redirects_to_another_site() {
        assert_eq!(own_path("/runs?status=failed"), "/runs?status=failed");
        for other in [
            "https://evil.example/",
            "//evil.example/",
            "/\\evil.example",
            "javascript:alert(1)",
            "/a\r\nset-cookie: x",
            "",
        ] {
            assert_eq!(own_path(other), "/", "{other:?}");
        }
    }
}
