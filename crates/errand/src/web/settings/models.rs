//! Model providers: the team's own keys and addresses. A key is stored encrypted and never shown.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::role::Permission;
use errand_store::model::ProviderRow;
use errand_store::{Idempotent, UsageKey, UsageLine, UsageQuery};
use maud::{Markup, html};

use crate::http::path::{PathIds as _, ProviderName};
use crate::usecase::UseCaseError;
use crate::usecase::provider_checks::{NewProvider, checked_provider};
use crate::web::failure::{PageError, PageResult, sentence};
use crate::web::form::{Fields, Form};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page_with_status};
use crate::web::{Web, ui};

/// How many days back models without a price are searched.
const UNPRICED_DAYS: i64 = 30;

/// The protocols and their labels.
const KINDS: [(&str, &str); 4] = [
    ("anthropic", "Anthropic"),
    ("openai", "OpenAI"),
    ("gemini", "Gemini"),
    ("openai_compatible", "OpenAI-compatible"),
];

pub(in crate::web) async fn list(State(web): State<Web>, visitor: Visitor) -> PageResult {
    render(&web, &visitor, &Fields::default(), None).await
}

async fn render(web: &Web, visitor: &Visitor, sent: &Fields, message: Option<&str>) -> PageResult {
    let rows = web.store.providers(visitor.team_id()).await?;
    let today = visitor.now.day();
    let query = UsageQuery {
        team: visitor.team_id(),
        by: vec![UsageKey::Model],
        since: today.plus(1 - UNPRICED_DAYS),
        until: today.plus(1),
    };
    let (used, _) = web.store.usage_by(query).await?;
    let manages = visitor.may(Permission::ManageModels);
    let body = html! {
        div.head { h1 { "Models" } }
        p.lead { "An assignment names its model as " code { "provider/name" } ". Defaults come from the server's configuration." }
        div.card {
            @if rows.is_empty() { (ui::empty("No providers set up by the team", &html! { "Add one below. Until then, runs use the server's keys, if there are any." })) }
            @else { (table(visitor, &rows, manages)) }
        }
        (unpriced(&used))
        @if manages {
            section.card.pad {
                div.head { h2 { "Set up a provider" } }
                (ui::alert(message))
                (form(visitor, sent))
            }
        }
    };
    let status = ui::status_of(message.is_some());
    Ok(page_with_status(
        status,
        visitor,
        "Models",
        Section::Models,
        &body,
    ))
}

/// The models in use that have no price.
fn unpriced(used: &[UsageLine]) -> Markup {
    let lines: Vec<&UsageLine> = used
        .iter()
        .filter(|line| line.sums.unpriced_tokens > 0)
        .collect();
    html! {
        @if !lines.is_empty() {
            section.card.pad {
                div.head { h2 { "Models without a known price" } }
                p { "The cost of these models is unknown and cannot count toward a budget, so a run with a budget is not started. The operator can set a price with " code { "[models.prices.\"provider/name\"]" } ", or one price for all such models with " code { "[models.default_price]" } "." }
                ul { @for line in lines { li { span.mono { (line.model.as_deref().unwrap_or_default()) } ": " (ui::number(line.sums.unpriced_tokens)) " tokens in the last " (UNPRICED_DAYS) " days" } } }
            }
        }
    }
}

fn table(visitor: &Visitor, rows: &[ProviderRow], manages: bool) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Provider" } th scope="col" { "Kind" } th scope="col" { "Base URL" } th scope="col" { "Key" } th scope="col" { "Changed" } th { span.visually-hidden { "Delete" } } } }
                tbody {
                    @for row in rows {
                        tr {
                            td.title { span.mono { (ui::name(&row.name)) } }
                            td { (row.kind) }
                            td.mono { (row.base_url.as_deref().unwrap_or("provider's default")) }
                            td { @if row.has_key { (ui::state("completed", "set")) } @else { (ui::state("other", "none")) } }
                            td data-label="changed" { (ui::time(row.updated_at, visitor.now)) }
                            td.num {
                                @if manages {
                                    form method="post" action="/settings/models/delete" data-confirm={ "Delete the settings of “" (row.name) "”?" } {
                                        (ui::form_token(visitor))
                                        input type="hidden" name="name" value=(row.name);
                                        button.risky aria-label={ "Delete the settings of " (row.name) } { "Delete" }
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

fn form(visitor: &Visitor, sent: &Fields) -> Markup {
    html! {
        form.form method="post" action="/settings/models" {
            (ui::form_token(visitor))
            div.row {
                div.field { label for="name" { "Name " span.hint { "used in model names as name/model" } } input #name name="name" value=(sent.get("name")) placeholder="anthropic" required autocomplete="off"; }
                div.field {
                    label for="kind" { "Kind" }
                    select #kind name="kind" { @for (kind, text) in KINDS { option value=(kind) selected[sent.get("kind") == kind] { (text) } } }
                }
            }
            div.field { label for="base_url" { "Base URL " span.hint { "only if it differs from the provider's default" } } input #base_url name="base_url" type="url" value=(sent.get("base_url")) placeholder="https://models.example.com/v1" autocomplete="off"; }
            div.field { label for="api_key" { "Key " span.hint { "leave empty to keep the current key, unless you change the address" } } input #api_key name="api_key" type="password" autocomplete="off"; }
            div.buttons { button.main { "Save" } }
        }
    }
}

/// The message for refused settings, with the label of the field. Other errors are passed on.
fn message_of(error: UseCaseError) -> Result<String, PageError> {
    match error {
        UseCaseError::Invalid { field, message } => {
            let name = match field.as_str() {
                "kind" => "Kind",
                "base_url" => "Base URL",
                "api_key" => "Key",
                other => other,
            };
            Ok(sentence(&format!("{name}: {message}")))
        }
        other => Err(other.into()),
    }
}

pub(in crate::web) async fn put(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let new = NewProvider {
        team: visitor.team_id(),
        name: sent.get("name").trim().to_owned(),
        kind: sent.given("kind").map(str::to_owned),
        base_url: sent.given("base_url").map(str::to_owned),
        api_key: sent.given("api_key").map(str::to_owned),
    };
    if ProviderName::read(&|_| Some(new.name.clone())).is_err() {
        let message = "The name must consist of lowercase letters, digits, “_” and “-”.";
        return render(&web, &visitor, &sent, Some(message)).await;
    }
    let put = match checked_provider(&web, new) {
        Ok(put) => put,
        Err(error) => {
            let message = message_of(error)?;
            return render(&web, &visitor, &sent, Some(&message)).await;
        }
    };
    web.store
        .put_provider(put, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/settings/models").into_response())
}

pub(in crate::web) async fn delete(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .delete_provider(
            team,
            sent.get("name").to_owned(),
            now,
            Idempotent::not_recorded(),
        )
        .await?;
    Ok(Redirect::to("/settings/models").into_response())
}
