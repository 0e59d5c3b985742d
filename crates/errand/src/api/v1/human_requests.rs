//! Endpoints for human requests: listing open ones, and answering.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::human::Answer as HumanAnswer;
use errand_core::id::{HumanRequestId, RunId};
use errand_core::wire::{AnsweredRequestBody, PendingRequestBody};
use errand_store::model::{PageQuery, Respond};
use errand_store::{OpenRequest, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;

/// An open request, with its run.
#[derive(Serialize, ToSchema)]
pub(crate) struct OpenRequestBody {
    run_id: Uuid,
    /// The beginning of the run's first message.
    #[schema(required)]
    run_title: Option<String>,
    agent_id: Uuid,
    agent_name: String,
    human_request: PendingRequestBody,
}

impl From<&OpenRequest> for OpenRequestBody {
    fn from(open: &OpenRequest) -> Self {
        Self {
            run_id: open.run.as_uuid(),
            run_title: open.run_title.clone(),
            agent_id: open.agent.as_uuid(),
            agent_name: open.agent_name.clone(),
            human_request: (&open.request).into(),
        }
    }
}

/// A page of open requests.
#[derive(Serialize, ToSchema)]
pub(crate) struct OpenRequestListResponse {
    human_requests: Vec<OpenRequestBody>,
    /// The total number of open requests.
    total: u64,
    limit: u32,
    offset: u64,
}

/// Lists the open human requests of all runs of the team, oldest first.
#[utoipa::path(get, path = "/v1/human-requests", tag = "Human requests", params(PageParams),
    responses((status = 200, description = "A page of open requests.", body = OpenRequestListResponse)))]
pub(crate) async fn list_open_requests(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<OpenRequestListResponse>, ApiError> {
    let page = app.store.open_requests(caller.team(), query).await?;
    let PageQuery { limit, offset } = query;
    Ok(Answered(OpenRequestListResponse {
        human_requests: page.items.iter().map(OpenRequestBody::from).collect(),
        total: page.total,
        limit,
        offset,
    }))
}

/// An answer: `approved` for an approval, `answers` for a question.
#[derive(Deserialize, ToSchema)]
pub(crate) struct RespondRequest {
    /// Whether the request is approved.
    approved: Option<bool>,
    /// The answers, by question: a text, or for `multi_select` a list of labels or a comma-separated text.
    #[schema(value_type = Option<Object>)]
    answers: Option<Map<String, Value>>,
    /// The reason for the decision. Permitted only with `approved`.
    reason: Option<String>,
}

impl RequestBody for RespondRequest {
    // Strict, because an ignored field, such as edited arguments, would release the call unchanged.
    const STRICT: bool = true;
}

/// The answered request.
#[derive(Serialize, ToSchema)]
pub(crate) struct RespondResponse {
    human_request: AnsweredRequestBody,
}

/// Answers the pending human request of a run. The run then continues.
#[utoipa::path(post, path = "/v1/runs/{run_id}/human-requests/{request_id}/respond", tag = "Human requests",
    params(("run_id" = Uuid, Path, description = "The run."), ("request_id" = Uuid, Path, description = "The pending request.")),
    request_body = RespondRequest,
    responses((status = 200, description = "The answered request.", body = RespondResponse)))]
pub(crate) async fn respond(
    caller: Caller,
    State(app): State<AppState>,
    Path((run, request)): Path<(RunId, HumanRequestId)>,
    key: IdempotencyKey,
    body: Json<RespondRequest>,
) -> Result<Response, ApiError> {
    let answer = answer_of(body.value)?;
    let respond = Respond {
        team: caller.team(),
        run,
        request,
        answer,
        by: caller.by(),
        now: app.clock.now(),
    };
    let answer = app
        .store
        .respond(respond, key.once(&caller, body.sha256, render))
        .await?;
    Ok(response(answer, render))
}

fn answer_of(request: RespondRequest) -> Result<HumanAnswer, ApiError> {
    match (request.approved, request.answers) {
        (Some(approved), None) => Ok(HumanAnswer::Approval {
            approved,
            reason: request.reason,
        }),
        (None, Some(_)) if request.reason.is_some() => Err(ApiError::invalid(
            "reason",
            "it can be sent only with `approved`; put it into the answers",
        )),
        (None, Some(answers)) => Ok(HumanAnswer::Answers(answers)),
        (Some(_), Some(_)) => Err(ApiError::bad_request(
            "the body has `approved` and `answers`: send only one of them",
        )),
        (None, None) => Err(ApiError::bad_request(
            "the body has no answer: send `approved` (true or false) or `answers` ({question: answer})",
        )),
    }
}

fn render(answered: &AnsweredRequestBody) -> StoredAnswer {
    rendered(
        StatusCode::OK,
        &RespondResponse {
            human_request: answered.clone(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_of_two() {
        let of = |text: &str| answer_of(serde_json::from_str(text).unwrap()).ok();
        assert_eq!(
            of(r#"{"approved": true}"#),
            Some(HumanAnswer::Approval {
                approved: true,
                reason: None
            })
        );
        assert_eq!(
            of(r#"{"approved": false, "reason": "no"}"#),
            Some(HumanAnswer::Approval {
                approved: false,
                reason: Some("no".to_owned())
            })
        );
        assert!(matches!(
            of(r#"{"answers": {"q": "a"}, "approved": null}"#),
            Some(HumanAnswer::Answers(_))
        ));
        for bad in [
            "{}",
            r#"{"approved": true, "answers": {}}"#,
            r#"{"answers": {}, "reason": "x"}"#,
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
