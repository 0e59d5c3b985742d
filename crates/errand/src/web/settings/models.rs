//! Providers of models: the team's own keys and addresses. A key is sealed, and shown to nobody.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::role::Permission;
use errand_store::model::ProviderRow;
use errand_store::{Once, UsageKey, UsageLine, UsageQuery};
use maud::{Markup, html};

use crate::api::path::{PathIds as _, ProviderName};
use crate::api::v1::providers::{PutProviderRequest, checked_provider};
use crate::web::failure::{Shown, sentence};
use crate::web::form::{Fields, Form};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page_with_status};
use crate::web::{Web, ui};

/// How far back models without a price are looked for.
const UNPRICED_DAYS: i64 = 30;

/// The protocols, and what they are called.
const KINDS: [(&str, &str); 4] = [
    ("anthropic", "Anthropic"),
    ("openai", "OpenAI"),
    ("gemini", "Gemini"),
    ("openai_compatible", "another one with OpenAI's protocol"),
];

pub(in crate::web) async fn list(State(web): State<Web>, visitor: Visitor) -> Shown {
    render(&web, &visitor, &Fields::default(), None).await
}

async fn render(web: &Web, visitor: &Visitor, sent: &Fields, wrong: Option<&str>) -> Shown {
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
        p.lead { "An assignment names its model as " code { "provider/name" } ". Where the team sets nothing, what the operator has set holds." }
        div.card {
            @if rows.is_empty() { (ui::empty("The team has no keys of its own", &html! { "Set one below; until then the operator's are used, if there are any." })) }
            @else { (table(visitor, &rows, manages)) }
        }
        (unpriced(&used))
        @if manages {
            section.card.pad {
                div.head { h2 { "Set up a provider" } }
                (ui::alert(wrong))
                (form(visitor, sent))
            }
        }
    };
    let status = ui::status_of(wrong.is_some());
    Ok(page_with_status(
        status,
        visitor,
        "Models",
        Section::Models,
        &body,
    ))
}

/// The models that were used and have no price.
fn unpriced(used: &[UsageLine]) -> Markup {
    let lines: Vec<&UsageLine> = used
        .iter()
        .filter(|line| line.sums.unpriced_tokens > 0)
        .collect();
    html! {
        @if !lines.is_empty() {
            section.card.pad {
                div.head { h2 { "Models without a known price" } }
                p { "What these cost is unknown, so no limit of money can count it: a run with such a limit is not started. An operator sets a price with " code { "[models.prices.\"provider/name\"]" } ", or one for all of them with " code { "[models.default_price]" } "." }
                ul { @for line in lines { li { span.mono { (line.model.as_deref().unwrap_or_default()) } ": " (ui::number(line.sums.unpriced_tokens)) " tokens in " (UNPRICED_DAYS) " days" } } }
            }
        }
    }
}

fn table(visitor: &Visitor, rows: &[ProviderRow], manages: bool) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Provider" } th scope="col" { "Kind" } th scope="col" { "Address" } th scope="col" { "Key" } th scope="col" { "Changed" } th { span.visually-hidden { "Delete" } } } }
                tbody {
                    @for row in rows {
                        tr {
                            td.title { span.mono { (ui::name(&row.name)) } }
                            td { (row.kind) }
                            td.mono { (row.base_url.as_deref().unwrap_or("the provider's own")) }
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
                div.field { label for="name" { "Name " span.hint { "as models name it" } } input #name name="name" value=(sent.get("name")) placeholder="anthropic" required autocomplete="off"; }
                div.field {
                    label for="kind" { "Kind" }
                    select #kind name="kind" { @for (kind, text) in KINDS { option value=(kind) selected[sent.get("kind") == kind] { (text) } } }
                }
            }
            div.field { label for="base_url" { "Address " span.hint { "only where it is not the provider's own" } } input #base_url name="base_url" type="url" value=(sent.get("base_url")) placeholder="https://models.example.com/v1" autocomplete="off"; }
            div.field { label for="api_key" { "Key " span.hint { "empty keeps the one that is set, unless the address changes" } } input #api_key name="api_key" type="password" autocomplete="off"; }
            div.buttons { button.main { "Save" } }
        }
    }
}

/// What the API's check answers, with the form's own names of fields.
fn told(message: &str) -> String {
    let names = [
        ("kind", "Kind"),
        ("base_url", "Address"),
        ("api_key", "Key"),
    ];
    let known = names.iter().find_map(|(field, name)| {
        let said = message.strip_prefix(field)?.strip_prefix(": ")?;
        Some(format!("{name}: {said}"))
    });
    sentence(known.as_deref().unwrap_or(message))
}

pub(in crate::web) async fn put(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> Shown {
    let request = PutProviderRequest {
        kind: sent.given("kind").map(str::to_owned),
        base_url: sent.given("base_url").map(str::to_owned),
        api_key: sent.given("api_key").map(str::to_owned),
    };
    let name = sent.get("name").trim().to_owned();
    if ProviderName::read(&|_| Some(name.clone())).is_err() {
        let wrong = "The name takes small letters, digits, “_” and “-”.";
        return render(&web, &visitor, &sent, Some(wrong)).await;
    }
    let put = match checked_provider(&web, visitor.team_id(), name, request) {
        Ok(put) => put,
        Err(error) => {
            let wrong = told(error.message());
            return render(&web, &visitor, &sent, Some(&wrong)).await;
        }
    };
    web.store.put_provider(put, Once::not_recorded()).await?;
    Ok(Redirect::to("/settings/models").into_response())
}

pub(in crate::web) async fn delete(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> Shown {
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .delete_provider(team, sent.get("name").to_owned(), now, Once::not_recorded())
        .await?;
    Ok(Redirect::to("/settings/models").into_response())
}
