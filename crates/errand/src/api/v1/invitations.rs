//! Endpoints for invitations: links with which a person joins the team. A link is shown once, when it is created.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use errand_core::id::{InvitationId, UserId};
use errand_core::limits::INVITATION_MS_DEFAULT;
use errand_core::time::Timestamp;
use errand_store::model::PageQuery;
use errand_store::{Invitation, NewInvitation, Outcome, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::members::role;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, replayed, response};
use crate::api::outer::OuterUrl;
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::secret_key::SetUpToken;
use crate::state::AppState;

/// A valid invitation, without its link.
#[derive(Serialize, ToSchema)]
pub(crate) struct InvitationBody {
    id: Uuid,
    /// The role of the new member: `member`, `admin` or `owner`.
    role: String,
    /// Email address of the invited person. Null if everyone with the link can join.
    #[schema(required)]
    email: Option<String>,
    /// The user who created the invitation. It becomes invalid if this user may no longer create such invitations.
    created_by: Uuid,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The time when the invitation expires.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

impl From<&Invitation> for InvitationBody {
    fn from(invitation: &Invitation) -> Self {
        Self {
            id: invitation.id.as_uuid(),
            role: invitation.role.as_str().to_owned(),
            email: invitation.email.clone(),
            created_by: UserId::as_uuid(invitation.created_by),
            created_at: invitation.created_at,
            expires_at: invitation.expires_at,
        }
    }
}

/// A page of invitations.
#[derive(Serialize, ToSchema)]
pub(crate) struct InvitationListResponse {
    invitations: Vec<InvitationBody>,
    /// The total number of invitations.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The request to create an invitation.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateInvitationRequest {
    /// The role of the new member: `member`, `admin` or `owner`. Only owners can invite owners.
    #[schema(default = "member", example = "member")]
    role: Option<String>,
    /// Email address of the invited person. Without it, everyone with the link can join.
    #[schema(example = "ann@example.com")]
    email: Option<String>,
    /// The time when the invitation expires, at most 30 days from now. Default: in seven days.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

impl RequestBody for CreateInvitationRequest {}

/// A new invitation, with its link.
#[derive(Serialize, ToSchema)]
pub(crate) struct NewInvitationResponse {
    invitation: InvitationBody,
    /// The link, shown only in this response. Null if the response is a replay.
    #[schema(required, example = "https://errand.example/join/…")]
    url: Option<String>,
    /// True if the response is a replay: the link was shown before and is not stored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    shown_once: bool,
}

/// Lists the team's valid invitations, newest first.
#[utoipa::path(get, path = "/v1/invitations", tag = "Team", params(PageParams),
    responses((status = 200, description = "A page of invitations.", body = InvitationListResponse)))]
pub(crate) async fn list_invitations(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<InvitationListResponse>, ApiError> {
    let now = app.clock.now();
    let page = app.store.invitations(caller.team(), query, now).await?;
    let PageQuery { limit, offset } = query;
    Ok(Answered(InvitationListResponse {
        invitations: page.items.iter().map(InvitationBody::from).collect(),
        total: page.total,
        limit,
        offset,
    }))
}

/// Creates a link with which one person joins the team.
///
/// The link is only in this response and cannot be shown again. It works once, until it expires, and only as long as
/// its creator may create such invitations.
#[utoipa::path(post, path = "/v1/invitations", tag = "Team", request_body = CreateInvitationRequest,
    responses((status = 201, description = "The invitation.", body = NewInvitationResponse)))]
pub(crate) async fn create_invitation(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    OuterUrl(outer): OuterUrl,
    body: Json<CreateInvitationRequest>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let wanted = body.value;
    let token = SetUpToken::generate().map_err(ApiError::internal)?;
    let new = NewInvitation {
        id: app.ids.invitation(now),
        team: caller.team(),
        token_hash: token.hash(),
        role: role(wanted.role.as_deref().unwrap_or("member"))?,
        email: wanted.email,
        by: caller.user(),
        by_role: caller.role(),
        expires_at: wanted
            .expires_at
            .unwrap_or_else(|| now.plus_ms(INVITATION_MS_DEFAULT)),
        now,
    };
    let once = key.once(&caller, body.sha256, render_recorded);
    Ok(match app.store.create_invitation(new, once).await? {
        Outcome::Executed(made) => {
            let url = format!("{outer}/join/{}", token.expose());
            let body = NewInvitationResponse {
                invitation: (&made).into(),
                url: Some(url),
                shown_once: false,
            };
            (StatusCode::CREATED, Answered(body)).into_response()
        }
        Outcome::Replayed(stored) => replayed(stored),
    })
}

/// The stored response for replays, without the link.
fn render_recorded(invitation: &Invitation) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &NewInvitationResponse {
            invitation: invitation.into(),
            url: None,
            shown_once: true,
        },
    )
}

/// Revokes an invitation.
///
/// Its link stops working.
#[utoipa::path(delete, path = "/v1/invitations/{invitation_id}", tag = "Team",
    params(("invitation_id" = Uuid, Path, description = "The invitation.")),
    responses((status = 204, description = "Revoked.")))]
pub(crate) async fn delete_invitation(
    caller: Caller,
    State(app): State<AppState>,
    Path(invitation): Path<InvitationId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .delete_invitation(caller.team(), invitation, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}
