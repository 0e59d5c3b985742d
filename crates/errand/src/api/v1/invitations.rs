//! Invitations: links by which somebody joins the team. A link is shown once, when it is made.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use errand_core::id::{InvitationId, UserId};
use errand_core::limits::INVITATION_MS_DEFAULT;
use errand_core::time::Timestamp;
use errand_store::model::PageQuery;
use errand_store::{Answer, Invitation, NewInvitation, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::members::role;
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, replayed, response};
use crate::api::outer::OuterUrl;
use crate::api::path::Path;
use crate::api::query::{ListPage, PageParams, Query};
use crate::secret_key::SetUpToken;

/// An invitation that works, without its link.
#[derive(Serialize, ToSchema)]
pub(crate) struct InvitationBody {
    id: Uuid,
    /// The role of whoever comes: `member`, `admin` or `owner`.
    role: String,
    /// Whom it is for; null: whoever has the link.
    #[schema(required)]
    email: Option<String>,
    /// The user who made it. It works as long as they may make it still.
    created_by: Uuid,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Until when it works.
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
    /// How many there are in all.
    total: u64,
    limit: u32,
    offset: u64,
}

/// An invitation to make.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateInvitationRequest {
    /// The role of whoever comes: `member`, `admin` or, made by owners only, `owner`.
    #[schema(default = "member", example = "member")]
    role: Option<String>,
    /// Whom it is for. Without it, whoever has the link joins.
    #[schema(example = "ann@example.com")]
    email: Option<String>,
    /// Until when it works: at most 30 days from now; a week, unless it is given.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

impl RequestBody for CreateInvitationRequest {}

/// A new invitation.
#[derive(Serialize, ToSchema)]
pub(crate) struct NewInvitationResponse {
    invitation: InvitationBody,
    /// The link: shown once, here. Null in a replay.
    #[schema(required, example = "https://errand.example/join/…")]
    url: Option<String>,
    /// True in a replay: the link was shown, and is not kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    shown_once: bool,
}

/// The team's invitations that work, newest first.
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

/// Makes a link by which one person joins the team. The link is in this answer, and nowhere else; it works once, until
/// it expires, and as long as its maker may make it still.
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
        Answer::Fresh(made) => {
            let url = format!("{outer}/join/{}", token.expose());
            let body = NewInvitationResponse {
                invitation: (&made).into(),
                url: Some(url),
                shown_once: false,
            };
            (StatusCode::CREATED, Answered(body)).into_response()
        }
        Answer::Replayed(stored) => replayed(stored),
    })
}

/// What a replay gets: without the link, which is kept nowhere.
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

/// Takes an invitation back: its link works no more.
#[utoipa::path(delete, path = "/v1/invitations/{invitation_id}", tag = "Team",
    params(("invitation_id" = Uuid, Path, description = "The invitation.")),
    responses((status = 204, description = "It is gone.")))]
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
