//! The team and its people.

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
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, response};
use crate::api::path::Path;
use crate::api::query::{ListPage, PageParams, Query, word};

/// The roles, by their words.
const ROLES: [(&str, Role); 3] = [
    ("member", Role::Member),
    ("admin", Role::Admin),
    ("owner", Role::Owner),
];

/// A role's word in a body.
pub(super) fn role(text: &str) -> Result<Role, ApiError> {
    word("role", text, &ROLES)
}

/// A team.
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

/// The key's team, and whose role the key has there.
#[derive(Serialize, ToSchema)]
pub(crate) struct TeamResponse {
    team: TeamBody,
    /// The key's creator.
    member: MemberBody,
}

/// A person of the team.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberBody {
    /// The user's id, as in `created_by` and `responded_by`.
    id: Uuid,
    /// Null: an owner whom nobody has claimed yet.
    #[schema(required)]
    email: Option<String>,
    /// `member`, `admin` or `owner`.
    role: String,
    /// When they came into the team.
    #[schema(value_type = String, format = DateTime)]
    joined_at: Timestamp,
    /// True: they may do nothing any more.
    disabled: bool,
    /// How many API keys of the team have their role.
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

/// A person of the team.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberResponse {
    member: MemberBody,
}

/// A person of the team, and the keys that go with them.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberDetailResponse {
    member: MemberBody,
    /// The keys that have their role, newest first: deleted with them.
    api_keys: Vec<ApiKeyBody>,
}

/// A page of people.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberListResponse {
    members: Vec<MemberBody>,
    /// How many there are in all.
    total: u64,
    limit: u32,
    offset: u64,
}

/// What of a member changes.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeMemberRequest {
    /// `member`, `admin` or `owner`. Only owners make or unmake owners; the last owner stays one.
    #[schema(example = "admin")]
    role: String,
}

impl RequestBody for ChangeMemberRequest {}

/// The team of the key, and its creator's place in it.
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

/// The team's people, those who came first first.
#[utoipa::path(get, path = "/v1/members", tag = "Team", params(PageParams),
    responses((status = 200, description = "A page of people.", body = MemberListResponse)))]
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

/// A person of the team with their keys. Members see their own; admins and owners everybody's.
#[utoipa::path(get, path = "/v1/members/{user_id}", tag = "Team", params(("user_id" = Uuid, Path, description = "The person.")),
    responses((status = 200, description = "The person.", body = MemberDetailResponse)))]
pub(crate) async fn get_member(
    caller: Caller,
    State(app): State<AppState>,
    Path(user): Path<UserId>,
) -> Result<Answered<MemberDetailResponse>, ApiError> {
    let (member, keys) = app.store.member(caller.team(), user).await?;
    if user != caller.user() && !caller.may(Permission::ManageKeys) {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            "the role member does not show other people's keys: an admin or owner of the team sees them",
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

/// Gives a person of the team another role; their keys have it at once.
#[utoipa::path(patch, path = "/v1/members/{user_id}", tag = "Team", params(("user_id" = Uuid, Path, description = "The person.")),
    request_body = ChangeMemberRequest,
    responses((status = 200, description = "The person.", body = MemberResponse)))]
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

/// Takes a person out of the team, with their keys and open invitations. Everybody may go themselves; an owner is removed
/// by owners only, and the last owner stays.
#[utoipa::path(delete, path = "/v1/members/{user_id}", tag = "Team", params(("user_id" = Uuid, Path, description = "The person.")),
    responses((status = 204, description = "They are gone.")))]
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
