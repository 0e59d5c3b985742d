//! Webhooks of the team: subscriptions, deliveries and their results, the signing secret.
//!
//! People who cannot manage webhooks see where events go, but not the parts of an address that may be secret.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::id::{DeliveryId, WebhookId};
use errand_core::role::Permission;
use errand_core::webhook::WebhookEvent;
use errand_store::model::{DeliveryRow, PageQuery};
use errand_store::{Idempotent, NewSecret, NewWebhook, TestWebhook, Webhook, WebhookChange};
use maud::{Markup, html};

use super::failure::{PageError, PageResult};
use super::form::{Fields, Form, FormState, Params, Path};
use super::guard::Visitor;
use super::layout::{Section, page_with_status};
use super::{Web, text, ui};
use crate::http::error::ApiError;
use crate::secret_key::webhook_secret;
use crate::usecase::UseCaseError;
use crate::usecase::webhook_url::{address_to_show, webhook_url};

/// Webhooks or deliveries per page.
const LIMIT: u32 = 25;
const DESCRIPTION_CHARS_MAX: usize = 500;

pub(super) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    let rolled = params.is_on("rolled");
    render_list(&web, &visitor, offset, rolled, &FormState::default()).await
}

async fn render_list(
    web: &Web,
    visitor: &Visitor,
    offset: u64,
    rolled: bool,
    state: &FormState,
) -> PageResult {
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let found = web.store.webhooks(visitor.team_id(), query).await?;
    let manages = visitor.may(Permission::ManageWebhooks);
    let shown = found.items.len() as u64;
    let secret = if manages {
        Some(secret_card(web, visitor, rolled).await?)
    } else {
        None
    };
    let body = html! {
        div.head { h1 { "Webhooks" } }
        p.lead { "We send signed events about the team's runs to these URLs and retry for three days. A run can also be started with its own webhook URLs." }
        div.card {
            @if found.items.is_empty() { (ui::empty("No webhooks yet", &html! { "A webhook notifies a program when a run needs an answer or ends." })) }
            @else {
                (table(visitor, &found.items))
                (ui::pager(offset, shown, found.total, u64::from(LIMIT), &|offset| format!("/webhooks?offset={offset}")))
            }
        }
        @if manages {
            section.card.pad {
                div.head { h2 { "New webhook" } }
                (ui::alert(state.message.as_deref()))
                (form(visitor, "/webhooks", &state.sent, "Create"))
            }
        }
        @if let Some(secret) = secret { (secret) }
    };
    let status = state.status();
    Ok(page_with_status(
        status,
        visitor,
        "Webhooks",
        Section::Webhooks,
        &body,
    ))
}

fn display_url(visitor: &Visitor, url: &str) -> String {
    address_to_show(url, visitor.may(Permission::ManageWebhooks))
}

fn enabled(webhook: &Webhook) -> Markup {
    html! {
        @if webhook.enabled { (ui::state("completed", "enabled")) } @else { (ui::state("interrupted", "disabled")) }
        @if let Some(why) = &webhook.disabled_reason { span.sub { (why) } }
    }
}

fn table(visitor: &Visitor, webhooks: &[Webhook]) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "URL" } th scope="col" { "Events" } th scope="col" { "State" } th scope="col" { "Created" } } }
                tbody {
                    @for webhook in webhooks {
                        tr {
                            td.title { a href={ "/webhooks/" (webhook.id) } { (ui::name(&display_url(visitor, &webhook.url))) } @if let Some(what) = &webhook.description { span.sub dir="auto" { (what) } } }
                            td { (events_of(webhook)) }
                            td { (enabled(webhook)) }
                            td data-label="made" { (ui::time(webhook.created_at, visitor.now)) }
                        }
                    }
                }
            }
        }
    }
}

fn events_of(webhook: &Webhook) -> String {
    if webhook.events.len() == WebhookEvent::ALL.len() {
        return "all".to_owned();
    }
    let words: Vec<&str> = webhook.events.iter().map(|event| event.as_str()).collect();
    words.join(", ")
}

fn form(visitor: &Visitor, action: &str, sent: &Fields, does: &str) -> Markup {
    let chosen: Vec<&str> = sent.all("event").collect();
    let is_new = chosen.is_empty() && sent.given("url").is_none();
    html! {
        form.form method="post" action=(action) {
            (ui::form_token(visitor))
            div.field { label for="url" { "URL" } input #url name="url" type="url" value=(sent.get("url")) placeholder="https://example.com/hook" required autocomplete="off"; }
            fieldset {
                legend { "Events" }
                @for event in WebhookEvent::ALL {
                    label.choice { input type="checkbox" name="event" value=(event.as_str()) checked[is_new || chosen.contains(&event.as_str())]; span.mono { (event.as_str()) } }
                }
            }
            div.field { label for="description" { "Description " span.hint { "optional" } } input #description name="description" value=(sent.get("description")) maxlength=(DESCRIPTION_CHARS_MAX) autocomplete="off"; }
            label.choice { input type="checkbox" name="enabled" value="on" checked[is_new || sent.is_on("enabled")]; span { "Enabled" } }
            div.buttons { button.main { (does) } }
        }
    }
}

/// The settings of a webhook in a submitted form.
struct WebhookForm {
    url: String,
    events: Vec<WebhookEvent>,
    description: Option<String>,
    enabled: bool,
}

fn settings_of(web: &Web, sent: &Fields) -> Result<WebhookForm, PageError> {
    let private = web.settings.allow_private_networks;
    let url =
        webhook_url("url", Some(sent.get("url").trim().to_owned()), private).map_err(|error| {
            match error {
                UseCaseError::Invalid { message, .. } => PageError::bad(message),
                other => other.into(),
            }
        })?;
    let events: Vec<WebhookEvent> = sent.all("event").filter_map(WebhookEvent::parse).collect();
    if events.is_empty() {
        return Err(PageError::bad("Choose at least one event."));
    }
    Ok(WebhookForm {
        url: url.unwrap_or_default(),
        events,
        description: sent
            .given("description")
            .map(|text| text.chars().take(DESCRIPTION_CHARS_MAX).collect()),
        enabled: sent.is_on("enabled"),
    })
}

pub(super) async fn create(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    match try_create(&web, &visitor, &sent).await {
        Ok(id) => Ok(Redirect::to(&format!("/webhooks/{id}")).into_response()),
        Err(error) => {
            let state = FormState::refused(error, sent)?;
            render_list(&web, &visitor, 0, false, &state).await
        }
    }
}

async fn try_create(web: &Web, visitor: &Visitor, sent: &Fields) -> Result<WebhookId, PageError> {
    let form = settings_of(web, sent)?;
    let now = web.clock.now();
    let new = NewWebhook {
        team: visitor.team_id(),
        id: web.ids.webhook(now),
        url: form.url,
        events: form.events,
        description: form.description,
        enabled: form.enabled,
        created_by: visitor.user_id(),
        now,
    };
    let id = new.id;
    web.store
        .create_webhook(new, Idempotent::not_recorded())
        .await?;
    Ok(id)
}

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<WebhookId>,
    Params(params): Params,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    render_one(&web, &visitor, id, offset, &FormState::default()).await
}

async fn render_one(
    web: &Web,
    visitor: &Visitor,
    id: WebhookId,
    offset: u64,
    state: &FormState,
) -> PageResult {
    let team = visitor.team_id();
    let webhook = web.store.webhook(team, id).await?;
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let sent = web.store.webhook_deliveries(team, id, query).await?;
    let manages = visitor.may(Permission::ManageWebhooks);
    let shown = sent.items.len() as u64;
    let url = display_url(visitor, &webhook.url);
    let fields = state.fields_or(|| fields_of(&webhook));
    let act = |what: &str, name: &str, risky: bool, question: Option<&str>| {
        html! {
            form method="post" action={ "/webhooks/" (id) "/" (what) } data-confirm=[question] {
                (ui::form_token(visitor))
                button class=[risky.then_some("risky")] { (name) }
            }
        }
    };
    let body = html! {
        div.crumbs { a href="/webhooks" { "Webhooks" } }
        div.head {
            h1 { (ui::name(&url)) }
            (enabled(&webhook))
            @if manages {
                div.actions {
                    (act("test", "Send test event", false, None))
                    (act("delete", "Delete", true, Some("Delete this webhook? Pending deliveries are dropped.")))
                }
            }
        }
        section {
            div.head { h2 { "Deliveries" } }
            div.card {
                @if sent.items.is_empty() { (ui::empty("No deliveries yet", &html! { "Send a test event, or wait for a run to end." })) }
                @else {
                    div.pad.folds { @for delivery in &sent.items { (delivery_fold(visitor, delivery)) } }
                    (ui::pager(offset, shown, sent.total, u64::from(LIMIT), &|offset| format!("/webhooks/{id}?offset={offset}")))
                }
            }
        }
        @if manages {
            section.card.pad {
                div.head { h2 { "Edit" } }
                (ui::alert(state.message.as_deref()))
                (form(visitor, &format!("/webhooks/{id}"), &fields, "Save"))
            }
        }
    };
    Ok(page_with_status(
        state.status(),
        visitor,
        &url,
        Section::Webhooks,
        &body,
    ))
}

fn fields_of(webhook: &Webhook) -> Fields {
    let mut fields = Fields::default();
    fields.set("url", &webhook.url);
    fields.set(
        "description",
        webhook.description.as_deref().unwrap_or_default(),
    );
    if webhook.enabled {
        fields.set("enabled", "on");
    }
    for event in &webhook.events {
        fields.add("event", event.as_str());
    }
    fields
}

/// One delivery: what was sent, what was returned, and when the next attempt is.
pub(super) fn delivery_fold(visitor: &Visitor, delivery: &DeliveryRow) -> Markup {
    let request = serde_json::from_slice(&delivery.body).map_or_else(
        |_| String::from_utf8_lossy(&delivery.body).into_owned(),
        |value| text::pretty(&value),
    );
    html! {
        details.fold {
            summary {
                (ui::state(delivery.state.as_str(), delivery.state.as_str()))
                span.mono.small { (delivery.event) }
                span.small.dim.nowrap { (ui::time(delivery.created_at, visitor.now)) }
            }
            div.inside {
                dl.facts {
                    dt { "To" } dd.mono { (display_url(visitor, &delivery.url)) }
                    dt { "webhook-id" } dd { (ui::id(&delivery.id.to_string())) }
                    @if let Some(run) = delivery.run { dt { "Run" } dd { a href={ "/runs/" (run) } { "View run" } } }
                    @if let Some(due) = delivery.due_at { dt { "Next attempt" } dd { (ui::time(due, visitor.now)) } }
                }
                @for attempt in &delivery.attempts {
                    div.small {
                        "Attempt " (attempt.attempt) ", " (ui::time(attempt.at, visitor.now)) ": "
                        @match attempt.status { Some(status) => strong { (status) }, None => strong { "no response" } }
                        " in " (ui::duration(attempt.duration_ms))
                        @if let Some(error) = &attempt.error { br; span.dim { (error) } }
                        @if let Some(answer) = attempt.answer.as_deref().filter(|answer| !answer.is_empty()) { (text::code(answer)) }
                    }
                }
                details.fold { summary { "Request" } div.inside { (text::code(&request)) } }
                @if visitor.may(Permission::ManageRuns) {
                    form method="post" action={ "/deliveries/" (delivery.delivery) "/resend" } {
                        (ui::form_token(visitor))
                        button { (ui::icon("again")) "Send again" }
                    }
                }
            }
        }
    }
}

pub(super) async fn save(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<WebhookId>,
    Form(sent): Form,
) -> PageResult {
    match try_save(&web, &visitor, id, &sent).await {
        Ok(()) => Ok(Redirect::to(&format!("/webhooks/{id}")).into_response()),
        Err(error) => {
            let state = FormState::refused(error, sent)?;
            render_one(&web, &visitor, id, 0, &state).await
        }
    }
}

async fn try_save(
    web: &Web,
    visitor: &Visitor,
    id: WebhookId,
    sent: &Fields,
) -> Result<(), PageError> {
    let form = settings_of(web, sent)?;
    let change = WebhookChange {
        url: Some(form.url),
        events: Some(form.events),
        description: Some(form.description),
        enabled: Some(form.enabled),
    };
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .change_webhook(team, id, change, now, Idempotent::not_recorded())
        .await?;
    Ok(())
}

pub(super) async fn delete(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<WebhookId>,
    Form(_): Form,
) -> PageResult {
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .delete_webhook(team, id, now, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/webhooks").into_response())
}

pub(super) async fn test(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<WebhookId>,
    Form(_): Form,
) -> PageResult {
    let now = web.clock.now();
    let test = TestWebhook {
        team: visitor.team_id(),
        webhook: id,
        event: web.ids.event(now),
        delivery: web.ids.delivery(now),
        now,
    };
    web.store
        .test_webhook(test, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to(&format!("/webhooks/{id}")).into_response())
}

pub(super) async fn resend(
    State(web): State<Web>,
    visitor: Visitor,
    Path(delivery): Path<DeliveryId>,
    Form(_): Form,
) -> PageResult {
    let (team, now) = (visitor.team_id(), web.clock.now());
    let row = web
        .store
        .resend(team, delivery, now, Idempotent::not_recorded())
        .await?
        .executed()?;
    let to = match (row.webhook, row.run) {
        (Some(webhook), _) => format!("/webhooks/{webhook}"),
        (None, Some(run)) => format!("/runs/{run}"),
        (None, None) => "/webhooks".to_owned(),
    };
    Ok(Redirect::to(&to).into_response())
}

/// The signing secret in a fold, and the button that rotates it.
async fn secret_card(web: &Web, visitor: &Visitor, rolled: bool) -> Result<Markup, PageError> {
    let now = visitor.now;
    let secrets = web.store.signing_secrets(visitor.team_id(), now).await?;
    Ok(html! {
        section.card.pad {
            div.head { h2 { "Signing secret" } }
            @if rolled { div.note.good role="status" { "The secret was rotated. The old secret stays valid beside the new one for 24 hours." } }
            p.dim { "Signs all webhooks of the team as described in the Standard Webhooks specification." }
            div.form.block {
                details.fold {
                    summary { "Show secret" }
                    div.inside { div.secret { code { (secrets.present) } (ui::copy(&secrets.present, "Copy secret")) } }
                }
                @for old in &secrets.retired { p.small { "An older secret stays valid until " (ui::time(old.valid_until, now)) "." } }
                form method="post" action="/webhooks/secret" data-confirm="Rotate the secret? The current secret stays valid beside the new one for 24 hours." {
                    (ui::form_token(visitor))
                    button { (ui::icon("again")) "Rotate secret" }
                }
            }
        }
    })
}

pub(super) async fn roll(State(web): State<Web>, visitor: Visitor, Form(_): Form) -> PageResult {
    let new = NewSecret {
        team: visitor.team_id(),
        secret: webhook_secret().map_err(ApiError::internal)?,
        now: web.clock.now(),
    };
    web.store
        .roll_webhook_secret(new, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/webhooks?rolled=1").into_response())
}
