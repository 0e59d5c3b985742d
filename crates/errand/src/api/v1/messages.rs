//! Endpoints for the messages of a run.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::RunId;
use errand_core::limits::MESSAGES_PAGE_MAX;
use errand_core::wire::MessageBody;
use errand_store::StoredAnswer;
use errand_store::model::{PageQuery, PostMessage};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::{Given, Query, QueryParams};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;

/// A message to a run.
#[derive(Deserialize, ToSchema)]
pub(crate) struct PostMessageRequest {
    #[schema(min_length = 1)]
    message: String,
    /// Whether strangers may have written the text, for example an email or a ticket that a program forwards. It then
    /// counts as untrusted, and tools with the policy `guard` ask a person. Default: false.
    untrusted: Option<bool>,
}

impl RequestBody for PostMessageRequest {}

/// The stored message.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageResponse {
    message: MessageBody,
}

/// A page of messages.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageListResponse {
    messages: Vec<MessageBody>,
    /// The total number of messages.
    total: u64,
    /// The requested page size. If the page ended at 8 MiB, the number of messages on it, so that the next page begins
    /// at `offset + limit`.
    limit: u32,
    offset: u64,
}

/// Query parameters of the list of messages.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what MessagesPage reads")]
pub(crate) struct MessagesParams {
    /// The maximum number of messages.
    #[param(minimum = 1, maximum = 50, default = 20)]
    limit: Option<u32>,
    /// The number of messages to skip.
    #[param(minimum = 0, default = 0)]
    offset: Option<u64>,
}

pub(crate) struct MessagesPage(PageQuery);

impl QueryParams for MessagesPage {
    fn read(given: &Given) -> Result<Self, ApiError> {
        given.page(MESSAGES_PAGE_MAX).map(Self)
    }
}

/// Lists a run's messages, oldest first.
///
/// A page also ends at 8 MiB. `limit` is then the number of messages on it.
#[utoipa::path(get, path = "/v1/runs/{run_id}/messages", tag = "Messages",
    params(("run_id" = Uuid, Path, description = "The run."), MessagesParams),
    responses((status = 200, description = "A page of messages.", body = MessageListResponse)))]
pub(crate) async fn list_messages(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    Query(MessagesPage(query)): Query<MessagesPage>,
) -> Result<Answered<MessageListResponse>, ApiError> {
    let page = app.store.messages(caller.team(), run, query).await?;
    let PageQuery { limit, offset } = query;
    // A client that continues at `offset + limit` must not skip the messages that did not fit.
    let held = u32::try_from(page.items.len()).unwrap_or(limit);
    let is_cut = held < limit && offset.saturating_add(u64::from(held)) < page.total;
    let limit = if is_cut { held } else { limit };
    Ok(Answered(MessageListResponse {
        messages: page.items,
        total: page.total,
        limit,
        offset,
    }))
}

/// Sends a message to a run.
///
/// The message is always stored. It resumes a run that is waiting, completed or interrupted. A running run reads it
/// before its next model call.
#[utoipa::path(post, path = "/v1/runs/{run_id}/messages", tag = "Messages",
    params(("run_id" = Uuid, Path, description = "The run.")), request_body = PostMessageRequest,
    responses((status = 201, description = "The stored message.", body = MessageResponse)))]
pub(crate) async fn post_message(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    key: IdempotencyKey,
    body: Json<PostMessageRequest>,
) -> Result<Response, ApiError> {
    if body.value.message.is_empty() {
        return Err(ApiError::invalid("message", "must not be empty"));
    }
    let now = app.clock.now();
    let message = PostMessage {
        team: caller.team(),
        run,
        id: app.ids.message(now),
        text: body.value.message,
        untrusted: body.value.untrusted.unwrap_or(false),
        by: caller.by(),
        now,
    };
    let answer = app
        .store
        .post_message(message, key.once(&caller, body.sha256, render))
        .await?;
    Ok(response(answer, render))
}

fn render(message: &MessageBody) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &MessageResponse {
            message: message.clone(),
        },
    )
}
