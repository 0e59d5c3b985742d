//! Web pages, rendered by the server.
//!
//! Guarantees:
//! - [`PAGES`] is the one table of pages. The router is built from it, and tests iterate over it.
//! - [`guard`] applies the rules of all pages in one place: who is logged in, what their role permits, that one of our
//!   pages sent the form, and the headers that keep foreign text from acting.
//! - A handler takes a [`guard::Visitor`], calls the same store operations as the API's handlers, and renders. An
//!   action that a role does not permit is not offered, and the server refuses it as well.
//! - Everything except live updates works without scripts. Text of people, models, tools and files is escaped by the
//!   template language; [`text`] renders Markdown without letting HTML through.
//!
//! Non-goals: deciding anything about runs (the store and the core do), and calls of programs (the API).

mod account;
mod assets;
mod assignments;
mod card;
mod connections;
mod failure;
mod files;
mod form;
#[cfg(test)]
mod fuzz;
pub(crate) mod guard;
mod home;
mod inbox;
mod join;
mod layout;
mod log_in;
mod permits;
mod reason;
mod run;
mod runs;
mod set_up;
mod settings;
mod shown_once;
mod text;
mod ui;
mod usage;
mod visible;
mod webhooks;

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Redirect;
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use errand_core::role::Permission;
use http::{Method, Uri};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::http::error::ApiError;
use crate::http::layered;
use crate::http::limiter::Limiter;
use crate::http::pages::Pages;
use crate::http::slots::Slots;
use crate::state::AppState;
use permits::Permits;

/// The pages outside the table of pages, for `http`.
pub(crate) const PAGES_ELSEWHERE: Pages = Pages {
    error: layout::error_page,
    signed_in: layout::signed_in_page,
    confirm_sign_in: layout::confirm_sign_in_page,
};

/// Maximum size in bytes of a form with files, in total. Each field has its own limit.
const UPLOAD_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Passwords that are hashed at the same time, at 19 MiB each. The others wait.
const HASHES_MAX: usize = 2;
/// Maximum number of waiting password checks, a few seconds' worth. Further ones are refused with [`BUSY`].
const HASHES_WAITING_MAX: usize = 64;
const BUSY: &str =
    "the server is checking too many passwords, or is shutting down; try again in a moment";
/// Failed log-ins to one account per minute. After that, attempts from addresses that have failed are slowed down.
const FAILED_LOG_INS_PER_MINUTE: u32 = 10;
/// Password checks per minute within a session, for example when the password is changed.
const SESSION_PASSWORDS_PER_MINUTE: u32 = 10;

/// Comparisons of builds that run at the same time, on all pages.
const COMPARISONS_MAX: usize = 4;

/// State of the pages. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Web(Arc<Inner>);

pub(crate) struct Inner {
    app: AppState,
    hashes: Semaphore,
    waiting: Semaphore,
    /// Failed attempts per account.
    failed_log_ins: Limiter<[u8; 32]>,
    /// Password checks within a session, by the hash of its token.
    session_passwords: Limiter<[u8; 32]>,
    /// Slowed attempts that are waiting.
    slow_log_ins: Slots,
    shown_once: shown_once::ShownOnce,
    comparisons: Permits,
}

impl Deref for Web {
    type Target = AppState;

    fn deref(&self) -> &AppState {
        &self.0.app
    }
}

impl Web {
    fn new(app: AppState) -> Self {
        Self(Arc::new(Inner {
            app,
            hashes: Semaphore::new(HASHES_MAX),
            waiting: Semaphore::new(HASHES_WAITING_MAX),
            failed_log_ins: Limiter::new(FAILED_LOG_INS_PER_MINUTE),
            session_passwords: Limiter::new(SESSION_PASSWORDS_PER_MINUTE),
            slow_log_ins: Slots::default(),
            shown_once: shown_once::ShownOnce::default(),
            comparisons: Permits::new(COMPARISONS_MAX),
        }))
    }
}

impl Web {
    fn shown_once(&self) -> &shown_once::ShownOnce {
        &self.0.shown_once
    }

    fn comparisons(&self) -> &Permits {
        &self.0.comparisons
    }

    /// Waits for a permit to hash a password. Fails if too many wait already.
    async fn permit_to_hash(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        let Ok(_waiting) = self.0.waiting.try_acquire() else {
            return Err(ApiError::unavailable(BUSY));
        };
        let place = self.0.hashes.acquire().await;
        place.map_err(|_| ApiError::unavailable(BUSY))
    }
}

/// Who can see a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Open,
    /// Logged-in users, even without a team.
    LoggedIn,
    /// Logged-in users whose current role in the team has this permission.
    Needs(Permission),
}

/// A page or the target of a form.
pub struct Page {
    pub method: Method,
    /// Path template, such as `/runs/{run_id}`.
    pub path: &'static str,
    pub access: Access,
    handler: fn() -> MethodRouter<Web>,
}

const OPEN: Access = Access::Open;
const LOGGED_IN: Access = Access::LoggedIn;
const READ: Access = Access::Needs(Permission::Read);
const RUNS: Access = Access::Needs(Permission::ManageRuns);
const AGENTS: Access = Access::Needs(Permission::ManageAgents);
const KEYS: Access = Access::Needs(Permission::ManageKeys);
const CONNECTIONS: Access = Access::Needs(Permission::ManageConnections);
const SECRETS: Access = Access::Needs(Permission::ManageSecrets);
const MODELS: Access = Access::Needs(Permission::ManageModels);
const OWNERS: Access = Access::Needs(Permission::ManageOwners);
const MEMBERS: Access = Access::Needs(Permission::ManageMembers);
const WEBHOOKS: Access = Access::Needs(Permission::ManageWebhooks);

/// All pages, in the order of the router.
#[rustfmt::skip]
pub static PAGES: &[Page] = &[
    page(Method::GET, assets::PATH, OPEN, || get(assets::serve)),
    page(Method::GET, "/set-up/{token}", OPEN, || get(set_up::show)),
    page(Method::POST, "/set-up/{token}", OPEN, || post(set_up::claim)),
    page(Method::GET, "/join/{token}", OPEN, || get(join::show)),
    page(Method::POST, "/join/{token}", OPEN, || post(join::join)),
    page(Method::POST, "/sign-ins/callback", OPEN, || post(connections::confirm_sign_in)),
    page(Method::GET, "/log-in", OPEN, || get(log_in::show)),
    page(Method::POST, "/log-in", OPEN, || post(log_in::log_in)),
    page(Method::POST, "/log-out", LOGGED_IN, || post(log_in::log_out)),
    page(Method::GET, "/account", LOGGED_IN, || get(account::show)),
    page(Method::POST, "/account/password", LOGGED_IN, || post(account::change_password)),
    page(Method::POST, "/account/team", LOGGED_IN, || post(account::choose_team)),
    page(Method::GET, "/", READ, || get(home::show)),
    page(Method::GET, "/inbox", READ, || get(inbox::show)),
    page(Method::GET, "/inbox/open", READ, || get(inbox::open)),
    page(Method::GET, "/runs", READ, || get(runs::list)),
    page(Method::GET, "/runs/{run_id}", READ, || get(run::show)),
    page(Method::GET, "/runs/{run_id}/older", READ, || get(run::older)),
    page(Method::GET, "/runs/{run_id}/live", READ, || get(run::live::stream)),
    page(Method::GET, "/runs/{run_id}/entries/{position}", READ, || get(run::entry)),
    page(Method::GET, "/runs/{run_id}/requests/{request_id}/text", READ, || get(card::full_text::show)),
    page(Method::POST, "/runs/{run_id}/answers/{request_id}", RUNS, || post(run::answer::answer)),
    page(Method::POST, "/runs/{run_id}/messages", RUNS, || post(run::act::message)),
    page(Method::POST, "/runs/{run_id}/stop", RUNS, || post(run::act::stop)),
    page(Method::POST, "/runs/{run_id}/retry", RUNS, || post(run::act::retry)),
    page(Method::POST, "/runs/{run_id}/again", RUNS, || post(run::act::again)),
    page(Method::GET, "/runs/{run_id}/fork", RUNS, || get(run::fork::show)),
    page(Method::POST, "/runs/{run_id}/fork", RUNS, || post(run::fork::fork)),
    page(Method::GET, "/runs/{run_id}/files", READ, || get(files::list)),
    page(Method::GET, "/runs/{run_id}/files/view", READ, || get(files::view)),
    page(Method::GET, "/runs/{run_id}/files/raw", READ, || get(files::raw)),
    page(Method::GET, "/assignments", READ, || get(assignments::list)),
    page(Method::GET, "/assignments/new", AGENTS, || get(assignments::editor::blank)),
    page(Method::POST, "/assignments/new", AGENTS, || post(assignments::editor::create)),
    page(Method::GET, "/assignments/{agent_id}", READ, || get(assignments::show)),
    page(Method::POST, "/assignments/{agent_id}/runs", RUNS, || post(assignments::start::start).layer(DefaultBodyLimit::max(UPLOAD_BYTES_MAX))),
    page(Method::GET, "/assignments/{agent_id}/edit", AGENTS, || get(assignments::editor::edit)),
    page(Method::POST, "/assignments/{agent_id}/edit", AGENTS, || post(assignments::editor::save)),
    page(Method::POST, "/assignments/{agent_id}/delete", AGENTS, || post(assignments::delete)),
    page(Method::GET, "/assignments/{agent_id}/builds", READ, || get(assignments::builds::list)),
    page(Method::GET, "/assignments/{agent_id}/builds/compare", READ, || get(assignments::builds::compare)),
    page(Method::POST, "/assignments/{agent_id}/builds/{build_id}/restore", AGENTS, || post(assignments::builds::restore)),
    page(Method::POST, "/assignments/{agent_id}/builds/{build_id}/promote", AGENTS, || post(assignments::builds::promote)),
    page(Method::GET, "/webhooks", READ, || get(webhooks::list)),
    page(Method::POST, "/webhooks", WEBHOOKS, || post(webhooks::create)),
    page(Method::POST, "/webhooks/secret", WEBHOOKS, || post(webhooks::roll)),
    page(Method::GET, "/webhooks/{webhook_id}", READ, || get(webhooks::show)),
    page(Method::POST, "/webhooks/{webhook_id}", WEBHOOKS, || post(webhooks::save)),
    page(Method::POST, "/webhooks/{webhook_id}/delete", WEBHOOKS, || post(webhooks::delete)),
    page(Method::POST, "/webhooks/{webhook_id}/test", WEBHOOKS, || post(webhooks::test)),
    page(Method::POST, "/deliveries/{delivery_id}/resend", RUNS, || post(webhooks::resend)),
    page(Method::GET, "/connections", READ, || get(connections::list)),
    page(Method::POST, "/connections", CONNECTIONS, || post(connections::create)),
    page(Method::GET, "/connections/{connection_id}", READ, || get(connections::show)),
    page(Method::POST, "/connections/{connection_id}", CONNECTIONS, || post(connections::save)),
    page(Method::POST, "/connections/{connection_id}/probe", CONNECTIONS, || post(connections::probe)),
    page(Method::POST, "/connections/{connection_id}/sign-in", CONNECTIONS, || post(connections::sign_in)),
    page(Method::POST, "/connections/{connection_id}/sign-out", CONNECTIONS, || post(connections::sign_out)),
    page(Method::POST, "/connections/{connection_id}/delete", CONNECTIONS, || post(connections::delete)),
    page(Method::GET, "/settings/secrets", SECRETS, || get(settings::secrets::list)),
    page(Method::POST, "/settings/secrets", SECRETS, || post(settings::secrets::set)),
    page(Method::POST, "/settings/secrets/delete", SECRETS, || post(settings::secrets::delete)),
    page(Method::GET, "/usage", READ, || get(usage::show)),
    page(Method::GET, "/usage/csv", READ, || get(usage::csv)),
    page(Method::POST, "/usage/limit", MODELS, || post(usage::set_limit)),
    page(Method::GET, "/settings/models", READ, || get(settings::models::list)),
    page(Method::POST, "/settings/models", MODELS, || post(settings::models::put)),
    page(Method::POST, "/settings/models/delete", MODELS, || post(settings::models::delete)),
    page(Method::GET, "/settings/team", READ, || get(settings::team::show)),
    page(Method::POST, "/settings/team/invitations", MEMBERS, || post(settings::team::invite)),
    page(Method::POST, "/settings/team/invitations/{invitation_id}/delete", MEMBERS, || post(settings::team::take_back)),
    page(Method::GET, "/settings/team/{user_id}/role", MEMBERS, || get(settings::team::before_change)),
    page(Method::POST, "/settings/team/{user_id}/role", MEMBERS, || post(settings::team::change_role)),
    page(Method::POST, "/settings/team/name", OWNERS, || post(settings::people::rename)),
    page(Method::GET, "/settings/team/{user_id}/access", OWNERS, || get(settings::people::before_access)),
    page(Method::POST, "/settings/team/{user_id}/access", OWNERS, || post(settings::people::set_access)),
    page(Method::GET, "/settings/team/{user_id}/remove", READ, || get(settings::team::before_removal)),
    page(Method::POST, "/settings/team/{user_id}/remove", READ, || post(settings::team::remove)),
    page(Method::GET, "/settings/api-keys", KEYS, || get(settings::keys::list)),
    page(Method::POST, "/settings/api-keys", KEYS, || post(settings::keys::create)),
    page(Method::POST, "/settings/api-keys/{key_id}/delete", KEYS, || post(settings::keys::delete)),
];

/// Whether a `GET` of the address shows a page.
fn has_page(path: &str) -> bool {
    PAGES
        .iter()
        .any(|page| page.method == Method::GET && page.path == path)
}

/// Redirects a `GET` of a form's address, for example from a restored tab, to the page that contains the form: the
/// longest prefix of the address that is a page.
fn nearest_page(template: &str, path: &str) -> Redirect {
    let parts = |text: &str| -> Vec<String> {
        let parts = text.trim_start_matches('/').split('/');
        parts.map(str::to_owned).collect()
    };
    let (template, path) = (parts(template), parts(path));
    let page = |count: usize, of: &[String]| {
        let part = of.iter().take(count).map(String::as_str);
        format!("/{}", part.collect::<Vec<_>>().join("/"))
    };
    let count = (0..template.len())
        .rev()
        .find(|count| has_page(&page(*count, &template)));
    Redirect::to(&page(count.unwrap_or(0), &path))
}

const fn page(
    method: Method,
    path: &'static str,
    access: Access,
    handler: fn() -> MethodRouter<Web>,
) -> Page {
    Page {
        method,
        path,
        access,
        handler,
    }
}

/// The router of all pages, with their middleware.
pub(crate) fn router(state: &AppState) -> Router {
    let web = Web::new(state.clone());
    let mut router = Router::new();
    for page in PAGES {
        let mut route = (page.handler)();
        if page.method == Method::POST && !has_page(page.path) {
            route =
                route.get(move |uri: Uri| std::future::ready(nearest_page(page.path, uri.path())));
        }
        let route = route
            .layer::<_, Infallible>(from_fn_with_state(web.clone(), guard::middleware))
            .layer(Extension(page));
        router = router.route(page.path, route);
    }
    let router = router
        .layer(DefaultBodyLimit::max(form::BYTES_MAX))
        .layer(from_fn(layout::headers))
        .with_state(web);
    layered(router, &state.layers)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    #[test]
    fn the_address_of_a_form_leads_to_its_page() {
        let of = |template: &str, path: &str| {
            let redirect = nearest_page(template, path).into_response();
            redirect.headers()["location"].to_str().unwrap().to_owned()
        };
        assert_eq!(
            of("/runs/{run_id}/answers/{request_id}", "/runs/7/answers/8"),
            "/runs/7"
        );
        assert_eq!(
            of(
                "/settings/team/invitations/{id}/delete",
                "/settings/team/invitations/7/delete"
            ),
            "/settings/team"
        );
        assert_eq!(of("/account/team", "/account/team"), "/account");
        assert_eq!(of("/log-out", "/log-out"), "/");
    }
}
