//! Secrets of the team: set, replace, delete. They are never shown.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::id::UserId;
use errand_core::role::Permission;
use errand_store::Idempotent;
use errand_store::model::PageQuery;
use errand_store::{Secret, SetSecret};
use maud::{Markup, html};

use crate::usecase::secret_checks::check_secret;
use crate::web::failure::{PageResult, sentence};
use crate::web::form::{Form, Params};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page_with_status};
use crate::web::{Web, ui};

const LIMIT: u32 = 50;

pub(in crate::web) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    render(&web, &visitor, offset, "", None).await
}

async fn render(
    web: &Web,
    visitor: &Visitor,
    offset: u64,
    name: &str,
    message: Option<&str>,
) -> PageResult {
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let found = web.store.list_secrets(visitor.team_id(), query).await?;
    let makers: Vec<UserId> = found
        .items
        .iter()
        .filter_map(|one| one.created_by)
        .collect();
    let people = web.store.emails_of(makers).await?;
    let shown = found.items.len() as u64;
    let manages = visitor.may(Permission::ManageSecrets);
    let body = html! {
        div.head { h1 { "Secrets" } }
        p.lead { "Use a secret in a connection as " code { "{{ secret.NAME }}" } ". Its value is stored encrypted, inserted only when needed, and never shown to anyone, including models." }
        @if manages {
            section.card.pad {
                div.head { h2 { "Set a secret" } }
                (ui::alert(message))
                form.row method="post" action="/settings/secrets" {
                    (ui::form_token(visitor))
                    div.field { label for="name" { "Name" } input #name name="name" value=(name) placeholder="MAIL_TOKEN" required autocomplete="off"; }
                    div.field { label for="value" { "Value " span.hint { "at least 12 characters; replaces the current value" } } input #value name="value" type="password" required autocomplete="off"; }
                    button.main { "Set" }
                }
            }
        }
        section {
            div.card {
                @if found.items.is_empty() { (ui::empty("No secrets yet", &html! { "Set one above, then use it in a connection." })) }
                @else {
                    (table(visitor, &found.items, &people, manages))
                    (ui::pager(offset, shown, found.total, u64::from(LIMIT), &|offset| format!("/settings/secrets?offset={offset}")))
                }
            }
        }
    };
    let status = ui::status_of(message.is_some());
    Ok(page_with_status(
        status,
        visitor,
        "Secrets",
        Section::Secrets,
        &body,
    ))
}

fn table(
    visitor: &Visitor,
    secrets: &[Secret],
    people: &HashMap<UserId, String>,
    manages: bool,
) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Name" } th scope="col" { "Set by" } th scope="col" { "Created" } th scope="col" { "Replaced" } th { span.visually-hidden { "Delete" } } } }
                tbody {
                    @for secret in secrets {
                        tr {
                            td.title { span.mono { (ui::name(&secret.name)) } }
                            td { (secret.created_by.and_then(|user| people.get(&user)).map_or("–", String::as_str)) }
                            td data-label="created" { (ui::time(secret.created_at, visitor.now)) }
                            td data-label="replaced" { @if secret.updated_at > secret.created_at { (ui::time(secret.updated_at, visitor.now)) } @else { span.dim { "never" } } }
                            td.num {
                                @if manages {
                                    form method="post" action="/settings/secrets/delete" data-confirm={ "Delete the secret “" (secret.name) "”? Connections that use it will fail." } {
                                        (ui::form_token(visitor))
                                        input type="hidden" name="name" value=(secret.name);
                                        button.risky aria-label={ "Delete the secret " (secret.name) } { "Delete" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(in crate::web) async fn set(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let name = sent.get("name").trim().to_owned();
    let value = sent.get("value").to_owned();
    if let Err(error) = check_secret(&name, &value) {
        let message = sentence(&error.to_string());
        return render(&web, &visitor, 0, &name, Some(&message)).await;
    }
    let new = SetSecret {
        team: visitor.team_id(),
        name,
        value,
        by: visitor.user_id(),
        now: web.clock.now(),
    };
    web.store
        .set_secret(new, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/settings/secrets").into_response())
}

pub(in crate::web) async fn delete(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .delete_secret(
            team,
            sent.get("name").to_owned(),
            now,
            Idempotent::not_recorded(),
        )
        .await?;
    Ok(Redirect::to("/settings/secrets").into_response())
}
