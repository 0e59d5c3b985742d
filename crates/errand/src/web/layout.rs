//! The frame of every page: navigation, headers, standalone pages.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{Html, IntoResponse as _, Response};
use errand_core::role::Permission;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use maud::{DOCTYPE, Markup, html};

use super::assets::ASSETS;
use super::guard::Person;
use super::ui::{form_token, icon};
use super::visible::visible;
use crate::usecase::sign_in::ConfirmSignIn;

/// Content security policy: a page can load only our own files; inline scripts and styles are forbidden.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    object-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// htmx evaluates no code, injects no styles, and requests only our own server.
const HTMX: &str = r#"{"allowEval":false,"includeIndicatorStyles":false,"selfRequestsOnly":true,"allowScriptTags":false,"historyCacheSize":0}"#;

/// The navigation entry of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    None,
    Home,
    Inbox,
    Runs,
    Assignments,
    Connections,
    Webhooks,
    Secrets,
    Usage,
    Models,
    Team,
    Keys,
    Account,
}

pub(super) fn page(person: &Person, title: &str, section: Section, body: &Markup) -> Response {
    page_with_status(StatusCode::OK, person, title, section, body)
}

pub(super) fn page_with_status(
    status: StatusCode,
    person: &Person,
    title: &str,
    section: Section,
    body: &Markup,
) -> Response {
    let body = html! {
        a.skip href="#main" { "Skip to content" }
        p #says.visually-hidden role="status" {}
        header.top {
            (brand())
            details {
                summary { "Menu" (open_count(person)) }
                (side(person, section, false))
            }
        }
        div.frame {
            (side(person, section, true))
            main #main tabindex="-1" { (body) }
        }
    };
    let open = person.open_requests;
    let title = if open > 0 && section == Section::Inbox {
        format!("({open}) {title}")
    } else {
        title.to_owned()
    };
    let now = Some(person.now.as_millis());
    respond(status, document(&title, now, &body))
}

/// A page for someone who is not logged in.
pub(super) fn lone_page(status: StatusCode, title: &str, body: &Markup) -> Response {
    let body = html! {
        main.alone #main {
            (brand())
            div.card { (body) }
        }
    };
    respond(status, document(title, None, &body))
}

/// The page for an error that no handler rendered.
pub(crate) fn error_page(status: StatusCode, message: &str) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = html! {
        h1 { (title) }
        p role="alert" { (super::failure::sentence(message)) }
        p { a href="/" { "Go to Home" } }
    };
    let mut response = lone_page(status, title, &body);
    secure(&mut response);
    response
}

/// The page shown after signing in to a connection's server.
pub(crate) fn signed_in_page() -> Response {
    let body = html! {
        h1 { "Signed in" }
        p { "The connection is now signed in to its server. You can close this page." }
        p { a href="/connections" { "Go to Connections" } }
    };
    let mut response = lone_page(StatusCode::OK, "Signed in", &body);
    secure(&mut response);
    response
}

/// Asks the person to confirm a sign-in that was started over the API. Anyone could have sent them the sign-in address,
/// so the page names the team that would get access.
pub(crate) fn confirm_sign_in_page(sign_in: &ConfirmSignIn<'_>) -> Response {
    let body = html! {
        h1 { "Authorize access for team " (super::ui::name(sign_in.team)) "?" }
        p { strong { (super::ui::name(sign_in.begun_by)) } " of the team " strong { (super::ui::name(sign_in.team)) } " started this sign-in for the connection " strong { (super::ui::name(sign_in.connection)) } " to " code { (sign_in.server) } "." }
        p { "If you continue, assignments of " strong { (super::ui::name(sign_in.team)) } " can act there with the account that you just signed in with." }
        p { "Close this page if you do not know why you are here." }
        form method="post" action="/sign-ins/callback" {
            input type="hidden" name="code" value=(sign_in.callback.code);
            input type="hidden" name="state" value=(sign_in.callback.state);
            @if let Some(issuer) = &sign_in.callback.issuer { input type="hidden" name="iss" value=(issuer); }
            button.main { "Sign " (sign_in.connection) " in" }
        }
    };
    let mut response = lone_page(StatusCode::OK, "Confirm", &body);
    secure(&mut response);
    response
}

/// The page for a user without a team.
pub(super) fn no_team(person: &Person) -> Response {
    let body = html! {
        h1 { "You're not on a team yet" }
        p { "You are logged in as " strong { (super::ui::name(&person.email)) } ", but you are not a member of any team. Ask an admin of your team to invite you." }
        form method="post" action="/log-out" { (form_token(person)) button { "Log out" } }
    };
    lone_page(StatusCode::FORBIDDEN, "No team", &body)
}

fn document(title: &str, now: Option<i64>, body: &Markup) -> Markup {
    let assets = &*ASSETS;
    html! {
        (DOCTYPE)
        html lang="en" data-now=[now] {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="htmx-config" content=(HTMX);
                title { (title) " · errand" }
                link rel="icon" href=(assets.icon.path) type="image/svg+xml";
                link rel="stylesheet" href=(assets.style.path);
                script src=(assets.htmx.path) defer {}
                script src=(assets.sse.path) defer {}
                script src=(assets.answer.path) defer {}
                script src=(assets.script.path) defer {}
            }
            body hx-ext="sse" { (body) }
        }
    }
}

fn respond(status: StatusCode, markup: Markup) -> Response {
    (status, Html(visible(markup))).into_response()
}

/// A part of a page.
pub(super) fn fragment(markup: Markup) -> Response {
    Html(visible(markup)).into_response()
}

fn brand() -> Markup {
    html! {
        a.brand href="/" {
            svg viewBox="0 0 20 20" aria-hidden="true" {
                rect width="20" height="20" rx="5" fill="currentColor" {}
                path d="M5.5 10h9M10.5 6l4 4-4 4" fill="none" stroke="#fff" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round" {}
            }
            "errand"
        }
    }
}

/// The navigation. `is_main`: the column on the left; otherwise the menu at the top. The style sheet shows only one of
/// them.
fn side(person: &Person, section: Section, is_main: bool) -> Markup {
    let link = |of: Section, href: &str, name: &str, picture: &str, after: Markup| {
        html! {
            li {
                a href=(href) aria-current=[(of == section).then_some("page")] { (icon(picture)) (name) (after) }
            }
        }
    };
    let may = |permission| {
        person
            .team
            .as_ref()
            .is_some_and(|team| team.role.may(permission))
    };
    let inside = html! {
            @if is_main { (brand()) }
            (team(person))
            nav aria-label=(if is_main { "Main" } else { "Menu" }) {
                ul {
                    (link(Section::Home, "/", "Home", "home", html! {}))
                    (link(Section::Inbox, "/inbox", "Inbox", "inbox", open_count(person)))
                    (link(Section::Runs, "/runs", "Runs", "runs", html! {}))
                    (link(Section::Assignments, "/assignments", "Assignments", "assignments", html! {}))
                    (link(Section::Connections, "/connections", "Connections", "plug", html! {}))
                    (link(Section::Webhooks, "/webhooks", "Webhooks", "hook", html! {}))
                    (link(Section::Usage, "/usage", "Usage", "chart", html! {}))
                }
                h2 { "Settings" }
                ul {
                    @if may(Permission::ManageKeys) { (link(Section::Keys, "/settings/api-keys", "API keys", "key", html! {})) }
                    @if may(Permission::ManageSecrets) { (link(Section::Secrets, "/settings/secrets", "Secrets", "lock", html! {})) }
                    (link(Section::Models, "/settings/models", "Models", "model", html! {}))
                    (link(Section::Team, "/settings/team", "Team", "team", html! {}))
                }
            }
            div.foot {
                div.who {
                    (icon("person"))
                    a href="/account" title=(person.email) aria-current=[(section == Section::Account).then_some("page")] { (super::ui::name(&person.email)) }
                }
                form method="post" action="/log-out" { (form_token(person)) button.plain { (icon("leave")) "Log out" } }
            }
    };
    html! {
        @if is_main { header.side { (inside) } } @else { div.side { (inside) } }
    }
}

/// The current team, with a choice if the person has several.
fn team(person: &Person) -> Markup {
    let Some(team) = &person.team else {
        return html! {};
    };
    if person.teams.len() < 2 {
        return html! { div.team-name { (super::ui::name(&team.name)) } };
    }
    html! {
        form.team-form method="post" action="/account/team" {
            (form_token(person))
            select name="team" aria-label="Team" {
                @for of in &person.teams {
                    option value=(of.team) selected[of.team == team.team] { (of.name) }
                }
            }
            button aria-label="Switch team" { "Go" }
        }
    }
}

fn open_count(person: &Person) -> Markup {
    let open = person.open_requests;
    html! {
        span.count data-open-count { @if open > 0 { (open) } }
        @if open > 0 { span.visually-hidden { " requests waiting for an answer" } }
    }
}

/// Middleware that adds security headers to each response that does not set its own.
pub(super) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    secure(&mut response);
    response
}

fn secure(response: &mut Response) {
    let all: [(HeaderName, &str); 6] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in all {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().entry(name).or_insert(value);
        }
    }
}
