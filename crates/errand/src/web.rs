//! Pages for people, made by the server: for now the one by which somebody sets a password.
//!
//! `GET` and `POST /set-up/{token}`: whoever has the link may set the user's password, once. The token is the only
//! permission, and is as good as a password: the page is not stored, not framed, and sends no referrer; it has no
//! script, and works without. A password is hashed only for a link that works.
//!
//! Left out: signing in.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, Form, Path, State};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use errand_engine::clock::Clock;
use errand_store::{Store, StoreError, User};
use http::{HeaderName, HeaderValue, StatusCode, header};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::api::AppState;
use crate::password::{PASSWORD_CHARS_MIN, PasswordError, hash_password};
use crate::secret_key::SetUpToken;

/// Most bytes of the form.
const FORM_BYTES_MAX: usize = 16 * 1024;
/// How many passwords are hashed at once, at 19 MiB each; the others wait.
const HASHES_MAX: usize = 2;

const STYLE: &str = "\
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}\
body{max-width:26rem;margin:12vh auto;padding:0 1rem}\
h1{font-size:1.5rem}\
label{display:block;margin-top:1rem}\
input,button{box-sizing:border-box;width:100%;padding:.6rem;font:inherit}\
button{margin-top:1.5rem}\
.wrong{border-left:4px solid #c33;padding-left:.75rem}";

/// Nothing but the page's own style, whose digest stands here, and forms to this server.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

#[derive(Clone)]
struct Pages {
    store: Store,
    clock: Clock,
    hashes: Arc<Semaphore>,
}

/// The pages' routes.
pub fn router(state: &AppState) -> Router {
    pages(state.store.clone(), state.clock.clone())
}

fn pages(store: Store, clock: Clock) -> Router {
    let pages = Pages {
        store,
        clock,
        hashes: Arc::new(Semaphore::new(HASHES_MAX)),
    };
    Router::new()
        .route("/set-up/{token}", get(show).post(claim))
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .with_state(pages)
}

#[derive(Deserialize)]
struct SetUpForm {
    #[serde(default)]
    email: String,
    password: String,
    again: String,
}

async fn show(State(pages): State<Pages>, Path(token): Path<String>) -> Response {
    match holder(&pages, &token).await {
        Ok(Some((_, user))) => page(StatusCode::OK, &form(&user, "", None)),
        Ok(None) => dead_link(),
        Err(error) => failed(&error),
    }
}

async fn claim(
    State(pages): State<Pages>,
    Path(token): Path<String>,
    form_sent: Result<Form<SetUpForm>, FormRejection>,
) -> Response {
    let (token, user) = match holder(&pages, &token).await {
        Ok(Some(found)) => found,
        Ok(None) => return dead_link(),
        Err(error) => return failed(&error),
    };
    let again =
        |email: &str, wrong: &str| page(StatusCode::BAD_REQUEST, &form(&user, email, Some(wrong)));
    let Ok(Form(sent)) = form_sent else {
        return again("", "The form did not arrive whole. Fill it in once more.");
    };
    if sent.password != sent.again {
        return again(&sent.email, "The two passwords differ.");
    }
    let hash = match hash(&pages, sent.password).await {
        Ok(hash) => hash,
        Err(Some(wrong)) => {
            return again(&sent.email, &format!("{}.", sentence(&wrong.to_string())));
        }
        Err(None) => return failed(&StoreError::Unavailable("the server is stopping".into())),
    };
    let email = Some(sent.email.clone()).filter(|email| !email.trim().is_empty());
    match pages
        .store
        .claim_set_up_link(token.hash(), email, hash, pages.clock.now())
        .await
    {
        Ok(user) => page(StatusCode::OK, &done(&user)),
        Err(StoreError::NotFound) => dead_link(),
        Err(StoreError::Invalid { message, .. } | StoreError::Conflict(message)) => {
            again(&sent.email, &format!("{}.", sentence(&message)))
        }
        Err(error) => failed(&error),
    }
}

async fn holder(pages: &Pages, token: &str) -> Result<Option<(SetUpToken, User)>, StoreError> {
    let Some(token) = SetUpToken::parse(token) else {
        return Ok(None);
    };
    let user = pages
        .store
        .set_up_link(token.hash(), pages.clock.now())
        .await?;
    Ok(user.map(|user| (token, user)))
}

/// The error is none where the server stops meanwhile.
async fn hash(pages: &Pages, password: String) -> Result<String, Option<PasswordError>> {
    let _place = pages.hashes.acquire().await.map_err(|_| None)?;
    let hashed = tokio::task::spawn_blocking(move || hash_password(&password)).await;
    hashed.map_err(|_| None)?.map_err(Some)
}

fn form(user: &User, email: &str, wrong: Option<&str>) -> Markup {
    html! {
        h1 { "Set your password" }
        @if let Some(wrong) = wrong {
            p.wrong role="alert" { (wrong) }
        }
        form method="post" {
            @if let Some(email) = &user.email {
                // For the password manager; the address is settled.
                label { "E-mail address" input name="email" type="email" value=(email) autocomplete="username" readonly; }
            } @else {
                label { "E-mail address" input name="email" type="email" value=(email) autocomplete="username" required; }
            }
            label {
                "Password, at least " (PASSWORD_CHARS_MIN) " characters"
                input name="password" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
            }
            label {
                "Once more"
                input name="again" type="password" autocomplete="new-password" minlength=(PASSWORD_CHARS_MIN) required;
            }
            button { "Set the password" }
        }
    }
}

fn done(user: &User) -> Markup {
    html! {
        h1 { "Your password is set" }
        p { "It belongs to " strong { (user.email.as_deref().unwrap_or_default()) } ". This link works no more." }
    }
}

fn dead_link() -> Response {
    let body = html! {
        h1 { "This link does not work" }
        p { "It was used, has expired, or was replaced by a newer one. Ask the server's operator for a new one: " code { "errand users link EMAIL" } }
    };
    page(StatusCode::NOT_FOUND, &body)
}

fn failed(error: &StoreError) -> Response {
    let status = match error {
        StoreError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        StoreError::Refused(_) => StatusCode::BAD_REQUEST,
        _ => {
            tracing::error!(
                error = errand_core::cause::chain(error),
                "the set-up page failed"
            );
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let body = html! {
        h1 { "That did not work" }
        p { "Nothing was changed. Try again in a moment." }
    };
    page(status, &body)
}

/// With a capital letter at its beginning.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

fn page(status: StatusCode, body: &Markup) -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "errand" }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    let fixed = |value| HeaderValue::from_static(value);
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::REFERRER_POLICY, fixed("no-referrer")),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::CACHE_CONTROL, fixed("no-store")),
    ];
    (status, headers, Html(markup.into_string())).into_response()
}

#[cfg(test)]
mod tests;
