//! Endpoints for the team and its members.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::UserId;
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use errand_store::model::PageQuery;
use errand_store::{Member, OfMember, StoredAnswer, Team};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::api_keys::ApiKeyBody;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, response};
use crate::api::query::{ListPage, PageParams, Query, word};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::path::Path;
use crate::state::AppState;

const ROLES: [(&str, Role); 3] = [
    ("member", Role::Member),
    ("admin", Role::Admin),
    ("owner", Role::Owner),
];

/// Parses a role in a request body.
pub(super) fn role(text: &str) -> Result<Role, ApiError> {
    word("role", text, &ROLES)
}

/// A team, the owner of all its data.
#[derive(Serialize, ToSchema)]
pub(crate) struct TeamBody {
    id: Uuid,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<&Team> for TeamBody {
    fn from(team: &Team) -> Self {
        Self {
            id: team.id.as_uuid(),
            name: team.name.clone(),
            created_at: team.created_at,
        }
    }
}

/// The key's team, and the membership of the key's creator.
#[derive(Serialize, ToSchema)]
pub(crate) struct TeamResponse {
    team: TeamBody,
    /// The creator of the key.
    member: MemberBody,
}

/// A member of the team.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberBody {
    /// The id of the user, as in `created_by` and `responded_by`.
    id: Uuid,
    /// Null for an owner whose account is not linked to a person yet.
    #[schema(required)]
    email: Option<String>,
    /// `member`, `admin` or `owner`.
    role: String,
    /// The time when the user joined the team.
    #[schema(value_type = String, format = DateTime)]
    joined_at: Timestamp,
    /// Whether the user is disabled and may not do anything.
    disabled: bool,
    /// The number of API keys that have the member's role.
    api_keys: u64,
}

impl From<&Member> for MemberBody {
    fn from(member: &Member) -> Self {
        Self {
            id: member.user.as_uuid(),
            email: member.email.clone(),
            role: member.role.as_str().to_owned(),
            joined_at: member.joined_at,
            disabled: member.disabled,
            api_keys: member.api_keys,
        }
    }
}

/// A member of the team.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberResponse {
    member: MemberBody,
}

/// A member of the team with their API keys.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberDetailResponse {
    member: MemberBody,
    /// The keys that have the member's role, newest first. They are deleted together with the member.
    api_keys: Vec<ApiKeyBody>,
}

/// A page of people.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberListResponse {
    members: Vec<MemberBody>,
    /// The total number of members.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The request to change a member's role.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeMemberRequest {
    /// `member`, `admin` or `owner`. Only owners can appoint or demote owners. The last owner cannot be demoted.
    #[schema(example = "admin")]
    role: String,
}

impl RequestBody for ChangeMemberRequest {}

/// Returns the key's team and the membership of the key's creator.
#[utoipa::path(get, path = "/v1/team", tag = "Team",
    responses((status = 200, description = "The team.", body = TeamResponse)))]
pub(crate) async fn get_team(
    caller: Caller,
    State(app): State<AppState>,
) -> Result<Answered<TeamResponse>, ApiError> {
    let team = app.store.team(caller.team()).await?;
    let (member, _) = app.store.member(caller.team(), caller.user()).await?;
    Ok(Answered(TeamResponse {
        team: (&team).into(),
        member: (&member).into(),
    }))
}

/// Lists the team's members, in the order in which they joined.
#[utoipa::path(get, path = "/v1/members", tag = "Team", params(PageParams),
    responses((status = 200, description = "A page of members.", body = MemberListResponse)))]
pub(crate) async fn list_members(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<MemberListResponse>, ApiError> {
    let page = app.store.members(caller.team(), query).await?;
    let PageQuery { limit, offset } = query;
    Ok(Answered(MemberListResponse {
        members: page.items.iter().map(MemberBody::from).collect(),
        total: page.total,
        limit,
        offset,
    }))
}

/// Returns a member with their API keys.
///
/// Members see only themselves; admins and owners see everyone.
#[utoipa::path(get, path = "/v1/members/{user_id}", tag = "Team", params(("user_id" = Uuid, Path, description = "The member.")),
    responses((status = 200, description = "The member.", body = MemberDetailResponse)))]
pub(crate) async fn get_member(
    caller: Caller,
    State(app): State<AppState>,
    Path(user): Path<UserId>,
) -> Result<Answered<MemberDetailResponse>, ApiError> {
    let (member, keys) = app.store.member(caller.team(), user).await?;
    if user != caller.user() && !caller.may(Permission::ManageKeys) {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            "the role member does not permit reading other members' keys: ask an admin or owner of the team",
        ));
    }
    Ok(Answered(MemberDetailResponse {
        member: (&member).into(),
        api_keys: keys.iter().map(ApiKeyBody::from).collect(),
    }))
}

fn of_member(app: &AppState, caller: &Caller, user: UserId) -> OfMember {
    OfMember {
        team: caller.team(),
        user,
        by: caller.user(),
        by_role: caller.role(),
        now: app.clock.now(),
    }
}

/// Changes a member's role.
///
/// Their API keys have the new role immediately.
#[utoipa::path(patch, path = "/v1/members/{user_id}", tag = "Team", params(("user_id" = Uuid, Path, description = "The member.")),
    request_body = ChangeMemberRequest,
    responses((status = 200, description = "The member.", body = MemberResponse)))]
pub(crate) async fn change_member(
    caller: Caller,
    State(app): State<AppState>,
    Path(user): Path<UserId>,
    key: IdempotencyKey,
    body: Json<ChangeMemberRequest>,
) -> Result<Response, ApiError> {
    let role = role(&body.value.role)?;
    let of = of_member(&app, &caller, user);
    let once = key.once(&caller, body.sha256, render);
    let answer = app.store.change_role(of, role, once).await?;
    Ok(response(answer, render))
}

fn render(member: &Member) -> StoredAnswer {
    let member = member.into();
    rendered(StatusCode::OK, &MemberResponse { member })
}

/// Removes a member from the team, with their API keys and open invitations.
///
/// Every member can remove themselves. Only owners can remove owners, and the last owner cannot be removed.
#[utoipa::path(delete, path = "/v1/members/{user_id}", tag = "Team", params(("user_id" = Uuid, Path, description = "The member.")),
    responses((status = 204, description = "Removed.")))]
pub(crate) async fn remove_member(
    caller: Caller,
    State(app): State<AppState>,
    Path(user): Path<UserId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let of = of_member(&app, &caller, user);
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app.store.remove(of, once).await?;
    Ok(response(answer, no_content))
}
