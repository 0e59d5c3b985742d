//! Endpoints for webhook deliveries: reading what was sent and answered, and sending it again.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::{DeliveryId, RunId, WebhookId};
use errand_core::role::Permission;
use errand_core::time::Timestamp;
use errand_store::StoredAnswer;
use errand_store::model::{AttemptRow, DeliveryRow, Page, PageQuery};
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::body::NoBody;
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::webhook_url::address_to_show;

/// The delivery of one event to one address.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeliveryBody {
    id: Uuid,
    /// The id of the event: `webhook-id` in the request, and `id` in its body. It is the same for each attempt and
    /// address.
    event_id: Uuid,
    /// `human_request`, `run_completed`, `run_failed`, `run_interrupted` or `webhook_test`.
    event: String,
    /// The run of the event. Null for a test.
    #[schema(required)]
    run_id: Option<Uuid>,
    /// The webhook that receives the event. Null if the run was started with the address.
    #[schema(required)]
    webhook_id: Option<Uuid>,
    /// The address of the receiver. Members see it without user name, password and query.
    url: String,
    /// `pending`, `delivered`, `gone` (the receiver answered 410), `exhausted` (all attempts of three days failed) or
    /// `dropped` (the webhook was deleted).
    state: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The time of the next attempt. Null unless the delivery is pending.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    next_attempt_at: Option<Timestamp>,
    /// All attempts, oldest first.
    attempts: Vec<AttemptBody>,
    request: DeliveryRequestBody,
}

/// The request, which is the same for each attempt.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeliveryRequestBody {
    /// The JSON body. The signature covers its exact bytes.
    #[schema(value_type = Object)]
    body: Value,
}

/// One attempt to deliver an event.
#[derive(Serialize, ToSchema)]
pub(crate) struct AttemptBody {
    /// Counted from 1.
    attempt: u32,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    duration_ms: u64,
    /// The HTTP status, if the receiver answered.
    #[schema(required)]
    status: Option<u16>,
    /// The reason why the attempt does not count as delivered.
    #[schema(required)]
    error: Option<String>,
    /// The beginning of the response body, as text.
    #[schema(required)]
    answer: Option<String>,
}

/// A delivery.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeliveryResponse {
    delivery: DeliveryBody,
}

/// A page of deliveries.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeliveryListResponse {
    deliveries: Vec<DeliveryBody>,
    /// The total number of deliveries.
    total: u64,
    limit: u32,
    offset: u64,
}

impl From<&AttemptRow> for AttemptBody {
    fn from(row: &AttemptRow) -> Self {
        Self {
            attempt: row.attempt,
            at: row.at,
            duration_ms: row.duration_ms,
            status: row.status,
            error: row.error.clone(),
            answer: row.answer.clone(),
        }
    }
}

/// A delivery in its wire form. `whole`: with the complete address.
fn delivery_body(row: &DeliveryRow, whole: bool) -> DeliveryBody {
    // The body was written as JSON. If it cannot be parsed, it is returned as text.
    let body = serde_json::from_slice(&row.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&row.body).into_owned()));
    DeliveryBody {
        id: row.delivery.as_uuid(),
        event_id: row.id,
        event: row.event.clone(),
        run_id: row.run.map(RunId::as_uuid),
        webhook_id: row.webhook.map(WebhookId::as_uuid),
        url: address_to_show(&row.url, whole),
        state: row.state.as_str().to_owned(),
        created_at: row.created_at,
        next_attempt_at: row.due_at,
        attempts: row.attempts.iter().map(AttemptBody::from).collect(),
        request: DeliveryRequestBody { body },
    }
}

fn sees_addresses(caller: &Caller) -> bool {
    caller.may(Permission::ManageWebhooks)
}

/// A page of deliveries for this caller.
pub(super) fn list_of(
    page: &Page<DeliveryRow>,
    query: PageQuery,
    caller: &Caller,
) -> DeliveryListResponse {
    let whole = sees_addresses(caller);
    let shown = page.items.iter().map(|row| delivery_body(row, whole));
    DeliveryListResponse {
        deliveries: shown.collect(),
        total: page.total,
        limit: query.limit,
        offset: query.offset,
    }
}

/// Lists a run's deliveries to all addresses, in the order of its events.
#[utoipa::path(get, path = "/v1/runs/{run_id}/deliveries", tag = "Webhooks",
    params(("run_id" = Uuid, Path, description = "The run."), PageParams),
    responses((status = 200, description = "A page of deliveries.", body = DeliveryListResponse)))]
pub(crate) async fn list_run_deliveries(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<DeliveryListResponse>, ApiError> {
    let page = app.store.run_deliveries(caller.team(), run, query).await?;
    Ok(Answered(list_of(&page, query, &caller)))
}

/// Returns a delivery.
#[utoipa::path(get, path = "/v1/deliveries/{delivery_id}", tag = "Webhooks", params(("delivery_id" = Uuid, Path, description = "The delivery.")),
    responses((status = 200, description = "The delivery.", body = DeliveryResponse)))]
pub(crate) async fn get_delivery(
    caller: Caller,
    State(app): State<AppState>,
    Path(delivery): Path<DeliveryId>,
) -> Result<Answered<DeliveryResponse>, ApiError> {
    let row = app.store.delivery(caller.team(), delivery).await?;
    Ok(Answered(DeliveryResponse {
        delivery: delivery_body(&row, sees_addresses(&caller)),
    }))
}

/// Sends a delivery again, in any state.
///
/// It is sent immediately, and retried for three more days if that fails, with the same `webhook-id` and body. A
/// delivery to a webhook goes to the webhook's current address.
#[utoipa::path(post, path = "/v1/deliveries/{delivery_id}/resend", tag = "Webhooks", params(("delivery_id" = Uuid, Path, description = "The delivery.")),
    responses((status = 200, description = "The delivery is queued.", body = DeliveryResponse)))]
pub(crate) async fn resend_delivery(
    caller: Caller,
    State(app): State<AppState>,
    Path(delivery): Path<DeliveryId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let render = if sees_addresses(&caller) {
        render_resent
    } else {
        render_resent_for_members
    };
    let once = key.once(&caller, body.sha256, render);
    let answer = app
        .store
        .resend(caller.team(), delivery, app.clock.now(), once)
        .await?;
    Ok(response(answer, render))
}

fn render_resent(row: &DeliveryRow) -> StoredAnswer {
    let delivery = delivery_body(row, true);
    rendered(StatusCode::OK, &DeliveryResponse { delivery })
}

fn render_resent_for_members(row: &DeliveryRow) -> StoredAnswer {
    let delivery = delivery_body(row, false);
    rendered(StatusCode::OK, &DeliveryResponse { delivery })
}

/// Result of a test delivery, with the address, for callers with the permission to see it.
pub(super) fn render_sent(row: &DeliveryRow) -> StoredAnswer {
    let delivery = delivery_body(row, true);
    rendered(StatusCode::CREATED, &DeliveryResponse { delivery })
}
