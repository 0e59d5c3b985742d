//! Endpoints for a team's webhooks, which are subscriptions to events of all its runs.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::WebhookId;
use errand_core::role::Permission;
use errand_core::time::Timestamp;
use errand_core::webhook::WebhookEvent;
use errand_store::model::PageQuery;
use errand_store::{NewWebhook, StoredAnswer, TestWebhook, Webhook, WebhookChange};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::deliveries::{DeliveryListResponse, DeliveryResponse, list_of, render_sent};
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody, absent_or_null};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, response};
use crate::api::query::{ListPage, PageParams, Query, word};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::webhook_url::{address_to_show, webhook_url};

/// Maximum length of a description.
const DESCRIPTION_CHARS_MAX: usize = 500;

/// A subscription to events of all runs of the team.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookBodyOfTeam {
    id: Uuid,
    /// The address of the receiver. Members see it without user name, password and query.
    #[schema(example = "https://example.com/hook")]
    url: String,
    /// `human_request`, `run_completed`, `run_failed`, `run_interrupted`.
    #[schema(example = json!(["run_failed", "run_interrupted"]))]
    events: Vec<String>,
    #[schema(required)]
    description: Option<String>,
    /// If false, it receives no events.
    enabled: bool,
    /// The reason, if the server disabled it because its receiver answered 410.
    #[schema(required)]
    disabled_reason: Option<String>,
    /// The user who created the webhook.
    #[schema(required)]
    created_by: Option<Uuid>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The time of the last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<&Webhook> for WebhookBodyOfTeam {
    fn from(webhook: &Webhook) -> Self {
        let events = webhook.events.iter().map(|event| event.as_str().to_owned());
        Self {
            id: webhook.id.as_uuid(),
            url: webhook.url.clone(),
            events: events.collect(),
            description: webhook.description.clone(),
            enabled: webhook.enabled,
            disabled_reason: webhook.disabled_reason.clone(),
            created_by: webhook.created_by.map(errand_core::id::UserId::as_uuid),
            created_at: webhook.created_at,
            updated_at: webhook.updated_at,
        }
    }
}

impl WebhookBodyOfTeam {
    /// The webhook as this caller may see it.
    fn shown_to(webhook: &Webhook, caller: &Caller) -> Self {
        let whole = caller.may(Permission::ManageWebhooks);
        Self {
            url: address_to_show(&webhook.url, whole),
            ..webhook.into()
        }
    }
}

/// A webhook.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookResponse {
    webhook: WebhookBodyOfTeam,
}

/// A page of webhooks.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookListResponse {
    webhooks: Vec<WebhookBodyOfTeam>,
    /// The total number of webhooks.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The request to create a webhook.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateWebhookRequest {
    /// The address of the receiver.
    #[schema(example = "https://example.com/hook")]
    url: String,
    /// The events to send. Default: all.
    #[schema(min_items = 1, example = json!(["run_failed", "run_interrupted"]))]
    events: Option<Vec<String>>,
    /// A note on the purpose of the webhook.
    #[schema(max_length = 500)]
    description: Option<String>,
    /// If false, it receives no events until it is enabled.
    #[schema(default = true)]
    enabled: Option<bool>,
}

impl RequestBody for CreateWebhookRequest {}

/// The request to change a webhook. At least one field is required.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeWebhookRequest {
    /// A new address. Pending deliveries go there too.
    url: Option<String>,
    /// The events to send from now on.
    #[schema(min_items = 1)]
    events: Option<Vec<String>>,
    /// Null removes the description.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(max_length = 500, value_type = Option<String>)]
    description: Option<Option<String>>,
    /// Whether it receives events from now on.
    enabled: Option<bool>,
}

impl RequestBody for ChangeWebhookRequest {}

fn address(app: &AppState, text: Option<String>) -> Result<Option<String>, ApiError> {
    Ok(webhook_url(
        "url",
        text,
        app.settings.allow_private_networks,
    )?)
}

fn events(texts: &[String]) -> Result<Vec<WebhookEvent>, ApiError> {
    if texts.is_empty() {
        return Err(ApiError::invalid("events", "must have at least one event"));
    }
    let words = WebhookEvent::ALL.map(|event| (event.as_str(), event));
    texts
        .iter()
        .map(|text| word("events", text, &words))
        .collect()
}

fn description(text: Option<String>) -> Result<Option<String>, ApiError> {
    match text {
        Some(text) if text.chars().count() > DESCRIPTION_CHARS_MAX => Err(ApiError::invalid(
            "description",
            format!("must have at most {DESCRIPTION_CHARS_MAX} characters"),
        )),
        text => Ok(text.filter(|text| !text.trim().is_empty())),
    }
}

/// Lists the team's webhooks, newest first.
#[utoipa::path(get, path = "/v1/webhooks", tag = "Webhooks", params(PageParams),
    responses((status = 200, description = "A page of webhooks.", body = WebhookListResponse)))]
pub(crate) async fn list_webhooks(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<WebhookListResponse>, ApiError> {
    let page = app.store.webhooks(caller.team(), query).await?;
    let shown = |webhook| WebhookBodyOfTeam::shown_to(webhook, &caller);
    let PageQuery { limit, offset } = query;
    Ok(Answered(WebhookListResponse {
        webhooks: page.items.iter().map(shown).collect(),
        total: page.total,
        limit,
        offset,
    }))
}

/// Creates a webhook.
///
/// From now on it receives the selected events of all runs of the team, in addition to the addresses that a run was
/// started with. A team can have at most 20 webhooks, each with a different address.
#[utoipa::path(post, path = "/v1/webhooks", tag = "Webhooks", request_body = CreateWebhookRequest,
    responses((status = 201, description = "The webhook.", body = WebhookResponse)))]
pub(crate) async fn create_webhook(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<CreateWebhookRequest>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let wanted = body.value;
    let url = address(&app, Some(wanted.url))?
        .ok_or_else(|| ApiError::invalid("url", "must be an address"))?;
    let new = NewWebhook {
        team: caller.team(),
        id: app.ids.webhook(now),
        url,
        events: match wanted.events {
            Some(texts) => events(&texts)?,
            None => WebhookEvent::ALL.to_vec(),
        },
        description: description(wanted.description)?,
        enabled: wanted.enabled.unwrap_or(true),
        created_by: caller.user(),
        now,
    };
    let once = key.once(&caller, body.sha256, render_created);
    let answer = app.store.create_webhook(new, once).await?;
    Ok(response(answer, render_created))
}

fn render_created(webhook: &Webhook) -> StoredAnswer {
    let webhook = webhook.into();
    rendered(StatusCode::CREATED, &WebhookResponse { webhook })
}

/// Returns a webhook.
#[utoipa::path(get, path = "/v1/webhooks/{webhook_id}", tag = "Webhooks", params(("webhook_id" = Uuid, Path, description = "The webhook.")),
    responses((status = 200, description = "The webhook.", body = WebhookResponse)))]
pub(crate) async fn get_webhook(
    caller: Caller,
    State(app): State<AppState>,
    Path(webhook): Path<WebhookId>,
) -> Result<Answered<WebhookResponse>, ApiError> {
    let webhook = app.store.webhook(caller.team(), webhook).await?;
    Ok(Answered(WebhookResponse {
        webhook: WebhookBodyOfTeam::shown_to(&webhook, &caller),
    }))
}

/// Changes a webhook.
///
/// Pending deliveries go to a new address.
#[utoipa::path(patch, path = "/v1/webhooks/{webhook_id}", tag = "Webhooks", params(("webhook_id" = Uuid, Path, description = "The webhook.")),
    request_body = ChangeWebhookRequest,
    responses((status = 200, description = "The webhook.", body = WebhookResponse)))]
pub(crate) async fn change_webhook(
    caller: Caller,
    State(app): State<AppState>,
    Path(webhook): Path<WebhookId>,
    key: IdempotencyKey,
    body: Json<ChangeWebhookRequest>,
) -> Result<Response, ApiError> {
    let wanted = body.value;
    let change = WebhookChange {
        url: address(&app, wanted.url)?,
        events: wanted.events.as_deref().map(events).transpose()?,
        description: wanted.description.map(description).transpose()?,
        enabled: wanted.enabled,
    };
    if change == WebhookChange::default() {
        return Err(ApiError::bad_request(
            "the body changes nothing: send url, events, description or enabled",
        ));
    }
    let once = key.once(&caller, body.sha256, render);
    let answer = app
        .store
        .change_webhook(caller.team(), webhook, change, app.clock.now(), once)
        .await?;
    Ok(response(answer, render))
}

fn render(webhook: &Webhook) -> StoredAnswer {
    let webhook = webhook.into();
    rendered(StatusCode::OK, &WebhookResponse { webhook })
}

/// Deletes a webhook.
///
/// Pending deliveries are dropped.
#[utoipa::path(delete, path = "/v1/webhooks/{webhook_id}", tag = "Webhooks", params(("webhook_id" = Uuid, Path, description = "The webhook.")),
    responses((status = 204, description = "Deleted.")))]
pub(crate) async fn delete_webhook(
    caller: Caller,
    State(app): State<AppState>,
    Path(webhook): Path<WebhookId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .delete_webhook(caller.team(), webhook, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}

/// Sends a `webhook_test` event to a webhook, even if it is disabled.
#[utoipa::path(post, path = "/v1/webhooks/{webhook_id}/test", tag = "Webhooks", params(("webhook_id" = Uuid, Path, description = "The webhook.")),
    responses((status = 201, description = "The delivery is queued.", body = DeliveryResponse)))]
pub(crate) async fn send_webhook_test(
    caller: Caller,
    State(app): State<AppState>,
    Path(webhook): Path<WebhookId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let test = TestWebhook {
        team: caller.team(),
        webhook,
        event: app.ids.event(now),
        delivery: app.ids.delivery(now),
        now,
    };
    let once = key.once(&caller, body.sha256, render_sent);
    let answer = app.store.test_webhook(test, once).await?;
    Ok(response(answer, render_sent))
}

/// Lists the deliveries of a webhook, newest first.
#[utoipa::path(get, path = "/v1/webhooks/{webhook_id}/deliveries", tag = "Webhooks",
    params(("webhook_id" = Uuid, Path, description = "The webhook."), PageParams),
    responses((status = 200, description = "A page of deliveries.", body = DeliveryListResponse)))]
pub(crate) async fn list_webhook_deliveries(
    caller: Caller,
    State(app): State<AppState>,
    Path(webhook): Path<WebhookId>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<DeliveryListResponse>, ApiError> {
    let page = app
        .store
        .webhook_deliveries(caller.team(), webhook, query)
        .await?;
    Ok(Answered(list_of(&page, query, &caller)))
}
