//! API keys: creates them and shows each once, lists and deletes them.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::display::{is_name, one_line};
use errand_core::id::{ApiKeyId, UserId};
use errand_core::limits::NAME_CHARS_MAX;
use errand_store::model::{ApiKey, PageQuery};
use errand_store::{Idempotent, NewApiKey};
use http::Method;
use maud::{Markup, html};

use crate::http::error::ApiError;
use crate::secret_key::ApiKeySecret;
use crate::web::failure::PageResult;
use crate::web::form::{Form, FormState, Params, Path};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page_with_status};
use crate::web::{Web, ui};

const LIMIT: u32 = 50;
const DAY_MS: u64 = 86_400_000;

/// A key that was just created.
struct Created {
    id: ApiKeyId,
    /// The key itself. `None` if it was already shown.
    secret: Option<String>,
}

/// The state of the page besides the list: the form and, once, a new key.
#[derive(Default)]
struct PageState {
    /// A key that was just created.
    created: Option<Created>,
    form: FormState,
}

pub(in crate::web) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
    method: Method,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    let created: Option<ApiKeyId> = params.get("created").parse().ok();
    let created = created.filter(|_| method == Method::GET).map(|id| Created {
        id,
        secret: web
            .shown_once()
            .take(visitor.token_hash, &id.to_string(), visitor.now),
    });
    let state = PageState {
        created,
        ..PageState::default()
    };
    render(&web, &visitor, offset, &state).await
}

pub(in crate::web) async fn create(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let name = sent.get("name").trim().to_owned();
    if !is_name(&name) {
        let message = format!("The name must have 1 to {NAME_CHARS_MAX} visible characters.");
        let state = PageState {
            form: FormState {
                message: Some(message),
                sent,
            },
            ..PageState::default()
        };
        return render(&web, &visitor, 0, &state).await;
    }
    let now = web.clock.now();
    let days = sent
        .get("days")
        .parse::<u64>()
        .ok()
        .filter(|days| *days > 0);
    let secret = ApiKeySecret::generate().map_err(ApiError::internal)?;
    let new = NewApiKey {
        id: web.ids.api_key(now),
        team: visitor.team_id(),
        created_by: visitor.user_id(),
        name,
        prefix: secret.prefix().to_owned(),
        hash: secret.hash(),
        expires_at: days.map(|days| now.plus_ms(days.saturating_mul(DAY_MS))),
        not_after: None,
        now,
    };
    let id = new.id.to_string();
    web.store
        .create_api_key(new, Idempotent::not_recorded())
        .await?;
    web.shown_once()
        .keep(visitor.token_hash, &id, secret.expose(), now);
    Ok(Redirect::to(&format!("/settings/api-keys?created={id}")).into_response())
}

pub(in crate::web) async fn delete(
    State(web): State<Web>,
    visitor: Visitor,
    Path(key): Path<ApiKeyId>,
    Form(_): Form,
) -> PageResult {
    let now = web.clock.now();
    web.store
        .delete_api_key(visitor.team_id(), key, now, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/settings/api-keys").into_response())
}

async fn render(web: &Web, visitor: &Visitor, offset: u64, state: &PageState) -> PageResult {
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let found = web.store.list_api_keys(visitor.team_id(), query).await?;
    let makers: Vec<UserId> = found.items.iter().map(|key| key.created_by).collect();
    let people = web.store.emails_of(makers).await?;
    let shown = found.items.len() as u64;
    let body = html! {
        div.head { h1 { "API keys" } }
        p.lead { "Programs use a key to call the API. A key has the current role of the person who created it. Deleting it revokes it immediately." }
        @if let Some(created) = &state.created { (created_note(created, &found.items)) }
        section.card.pad {
            div.head { h2 { "New key" } }
            (ui::alert(state.form.message.as_deref()))
            form.row method="post" action="/settings/api-keys" {
                (ui::form_token(visitor))
                div.field { label for="name" { "Name" } input #name name="name" value=(state.form.sent.get("name")) required maxlength=(NAME_CHARS_MAX) autocomplete="off"; }
                div.field {
                    label for="days" { "Expires" }
                    select #days name="days" {
                        @for (days, text) in [("", "Never"), ("7", "In 7 days"), ("30", "In 30 days"), ("90", "In 90 days"), ("365", "In a year")] {
                            option value=(days) selected[state.form.sent.get("days") == days] { (text) }
                        }
                    }
                }
                button.main { "Create" }
            }
        }
        section {
            div.card {
                @if found.items.is_empty() { (ui::empty("No API keys yet", &html! { "Create one above and give it to the program that starts runs." })) }
                @else {
                    (table(visitor, &found.items, &people))
                    (ui::pager(offset, shown, found.total, u64::from(LIMIT), &|offset| format!("/settings/api-keys?offset={offset}")))
                }
            }
        }
    };
    Ok(page_with_status(
        state.form.status(),
        visitor,
        "API keys",
        Section::Keys,
        &body,
    ))
}

fn created_note(created: &Created, keys: &[ApiKey]) -> Markup {
    let key = keys.iter().find(|key| key.id == created.id);
    html! {
        @match (&created.secret, key) {
            (Some(secret), key) => div.note.good role="status" {
                p { strong { "Key " @if let Some(key) = key { (ui::name(&key.name)) " " } "created." } " Copy it now: you won't be able to see it again." }
                div.secret { code #new-key { (secret) } button.main type="button" data-copy=(secret) { (ui::icon("copy")) "Copy" } }
            },
            (None, Some(key)) => div.note role="status" {
                "Key " strong { (ui::name(&key.name)) } " was created. Its secret was shown once and cannot be shown again. If you did not copy it, delete the key and create another."
            },
            (None, None) => {}
        }
    }
}

fn table(visitor: &Visitor, keys: &[ApiKey], people: &HashMap<UserId, String>) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Name" } th scope="col" { "Key" } th scope="col" { "Created by" } th scope="col" { "Created" } th scope="col" { "Last used" } th scope="col" { "Expires" } th { span.visually-hidden { "Delete" } } } }
                tbody {
                    @for key in keys {
                        @let has_ended = key.expires_at.is_some_and(|end| end <= visitor.now);
                        tr {
                            td.title { (ui::name(&key.name)) }
                            td.mono { (key.prefix) "…" }
                            td { (ui::name(people.get(&key.created_by).map_or("the operator", String::as_str))) }
                            td data-label="created" { (ui::time(key.created_at, visitor.now)) }
                            td data-label="used" { @match key.last_used_at { Some(at) => (ui::time(at, visitor.now)), None => span.dim { "never" } } }
                            td data-label="expires" { @match key.expires_at { Some(_) if has_ended => (ui::state("failed", "expired")), Some(at) => (ui::time(at, visitor.now)), None => span.dim { "never" } } }
                            td {
                                form method="post" action={ "/settings/api-keys/" (key.id) "/delete" } data-confirm={ "Delete the key “" (one_line(&key.name)) "”? Programs that use it lose access immediately." } {
                                    (ui::form_token(visitor))
                                    button.risky aria-label={ "Delete the key " (key.name) } { "Delete" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
