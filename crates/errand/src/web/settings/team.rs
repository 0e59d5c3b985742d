//! The team: members and their roles, invitations.
//!
//! Before removing a member, a person sees which keys will stop working. Actions that a role does not permit are not
//! offered, and the store refuses them as well.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::id::{InvitationId, UserId};
use errand_core::role::{Permission, Role};
use errand_store::model::{ApiKey, PageQuery};
use errand_store::{Idempotent, Invitation, Member, NewInvitation, OfMember, StoreError};
use http::Method;
use maud::{Markup, html};

use crate::http::error::ApiError;
use crate::secret_key::SetUpToken;
use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Fields, Form, FormState, Params, Path};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page, page_with_status};
use crate::web::{Web, ui};

const LIMIT: u32 = 50;
const DAY_MS: u64 = 86_400_000;

/// The state of the page besides the list: the form and, once, the link of a new invitation.
#[derive(Default)]
struct PageState {
    /// The link of a new invitation. The inner `None` means that it was already displayed.
    link: Option<Option<String>>,
    /// The form for invitations. Its message may also be about a member.
    form: FormState,
}

impl PageState {
    /// The page after an error that the person can do something about.
    fn refused(error: StoreError, sent: Fields) -> Result<Self, PageError> {
        Ok(Self {
            link: None,
            form: FormState::refused(error.into(), sent)?,
        })
    }
}

pub(in crate::web) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
    method: Method,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    let invited: Option<InvitationId> = params.get("invited").parse().ok();
    let link = invited.filter(|_| method == Method::GET).map(|id| {
        web.shown_once()
            .take(visitor.token_hash, &id.to_string(), visitor.now)
    });
    let state = PageState {
        link,
        ..PageState::default()
    };
    render(&web, &visitor, offset, &state).await
}

pub(in crate::web) async fn invite(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let now = web.clock.now();
    let token = SetUpToken::generate().map_err(ApiError::internal)?;
    let days: u64 = sent.get("days").parse().unwrap_or(7);
    let new = NewInvitation {
        id: web.ids.invitation(now),
        team: visitor.team_id(),
        token_hash: token.hash(),
        role: Role::parse(sent.get("role")).unwrap_or(Role::Member),
        email: sent.given("email").map(str::to_owned),
        by: visitor.user_id(),
        by_role: visitor.role(),
        expires_at: now.plus_ms(days.clamp(1, 30) * DAY_MS),
        now,
    };
    let id = new.id.to_string();
    if let Err(error) = web
        .store
        .create_invitation(new, Idempotent::not_recorded())
        .await
    {
        let state = PageState::refused(error, sent)?;
        return render(&web, &visitor, 0, &state).await;
    }
    let link = format!("{}/join/{}", web.settings.public_url, token.expose());
    web.shown_once().keep(visitor.token_hash, &id, &link, now);
    Ok(Redirect::to(&format!("/settings/team?invited={id}")).into_response())
}

pub(in crate::web) async fn take_back(
    State(web): State<Web>,
    visitor: Visitor,
    Path(invitation): Path<InvitationId>,
    Form(_): Form,
) -> PageResult {
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .delete_invitation(team, invitation, now, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/settings/team").into_response())
}

fn of(visitor: &Visitor, user: UserId) -> OfMember {
    OfMember {
        team: visitor.team_id(),
        user,
        by: visitor.user_id(),
        by_role: visitor.role(),
        now: visitor.now,
    }
}

pub(in crate::web) async fn change_role(
    State(web): State<Web>,
    visitor: Visitor,
    Path(user): Path<UserId>,
    Form(sent): Form,
) -> PageResult {
    let role = Role::parse(sent.get("role")).ok_or_else(PageError::not_found)?;
    // The person confirmed a change from one role to another. If the role changed meanwhile, they are asked again.
    let (member, _) = web.store.member(visitor.team_id(), user).await?;
    if Role::parse(sent.get("from")) != Some(member.role) {
        let page = format!("/settings/team/{user}/role?to={}", role.as_str());
        return Ok(Redirect::to(&page).into_response());
    }
    let changed = web
        .store
        .change_role(of(&visitor, user), role, Idempotent::not_recorded())
        .await;
    match changed {
        Ok(_) => Ok(Redirect::to("/settings/team").into_response()),
        Err(error) => {
            let state = PageState::refused(error, Fields::default())?;
            render(&web, &visitor, 0, &state).await
        }
    }
}

/// The confirmation page for a new role, which says what the role permits.
pub(in crate::web) async fn before_change(
    State(web): State<Web>,
    visitor: Visitor,
    Path(user): Path<UserId>,
    Params(params): Params,
) -> PageResult {
    let (member, _) = web.store.member(visitor.team_id(), user).await?;
    let to = Role::parse(params.get("to")).filter(|role| roles(&visitor).contains(role));
    let Some(to) = to.filter(|to| *to != member.role) else {
        return Ok(Redirect::to("/settings/team").into_response());
    };
    let body = html! {
        div.crumbs { a href="/settings/team" { "Team" } }
        div.head { h1 { "Change the role of " (ui::name(name_of(&member))) "?" } }
        p.lead { "From " strong { (member.role.as_str()) } " to " strong { (to.as_str()) } ". " (allows(to)) " The change takes effect immediately, including for the API keys that they created." }
        form.buttons.block method="post" action={ "/settings/team/" (user) "/role" } {
            (ui::form_token(&visitor))
            input type="hidden" name="from" value=(member.role.as_str());
            input type="hidden" name="role" value=(to.as_str());
            button.main { "Change to " (to.as_str()) }
            a.button href="/settings/team" { "Cancel" }
        }
    };
    Ok(page(&visitor, "Change a role", Section::Team, &body))
}

fn allows(role: Role) -> &'static str {
    match role {
        Role::Member => "Members start runs, answer requests and change assignments.",
        Role::Admin => "Admins also manage connections, secrets, webhooks, API keys and members.",
        Role::Owner => "Owners can do everything, including changing and removing other owners.",
    }
}

/// The confirmation page for a removal, with the keys that will stop working.
pub(in crate::web) async fn before_removal(
    State(web): State<Web>,
    visitor: Visitor,
    Path(user): Path<UserId>,
) -> PageResult {
    let (member, keys) = web.store.member(visitor.team_id(), user).await?;
    let body = html! {
        div.crumbs { a href="/settings/team" { "Team" } }
        div.head { h1 { "Remove " (ui::name(name_of(&member))) "?" } }
        p.lead { "They lose access to this team immediately." }
        section {
            div.head { h2 { "Keys that will stop working" } }
            div.card {
                @if keys.is_empty() { (ui::empty("They created no API keys", &html! { "No program will stop working." })) }
                @else { (keys_table(&keys, &visitor)) }
            }
        }
        form.buttons.block method="post" action={ "/settings/team/" (user) "/remove" } {
            (ui::form_token(&visitor))
            button.risky { "Remove " (ui::name(name_of(&member))) }
            a.button href="/settings/team" { "Cancel" }
        }
    };
    Ok(page(&visitor, "Remove a member", Section::Team, &body))
}

fn keys_table(keys: &[ApiKey], visitor: &Visitor) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Name" } th scope="col" { "Key" } th scope="col" { "Last used" } } }
                tbody {
                    @for key in keys {
                        tr {
                            td.title { (ui::name(&key.name)) }
                            td.mono { (key.prefix) "…" }
                            td data-label="used" { @match key.last_used_at { Some(at) => (ui::time(at, visitor.now)), None => span.dim { "never" } } }
                        }
                    }
                }
            }
        }
    }
}

pub(in crate::web) async fn remove(
    State(web): State<Web>,
    visitor: Visitor,
    Path(user): Path<UserId>,
    Form(_): Form,
) -> PageResult {
    let removed = web
        .store
        .remove(of(&visitor, user), Idempotent::not_recorded())
        .await;
    match removed {
        Ok(_) if user == visitor.user_id() => Ok(Redirect::to("/").into_response()),
        Ok(_) => Ok(Redirect::to("/settings/team").into_response()),
        Err(error) => {
            let state = PageState::refused(error, Fields::default())?;
            render(&web, &visitor, 0, &state).await
        }
    }
}

fn name_of(member: &Member) -> &str {
    member
        .email
        .as_deref()
        .unwrap_or("the unclaimed owner account")
}

async fn render(web: &Web, visitor: &Visitor, offset: u64, state: &PageState) -> PageResult {
    let team = visitor.team_id();
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let members = web.store.members(team, query).await?;
    let manages = visitor.may(Permission::ManageMembers);
    let (open, makers) = if manages {
        let first = PageQuery {
            limit: LIMIT,
            offset: 0,
        };
        let open = web.store.invitations(team, first, visitor.now).await?.items;
        let makers = open.iter().map(|one| one.created_by).collect();
        (open, web.store.emails_of(makers).await?)
    } else {
        (Vec::new(), HashMap::new())
    };
    let shown = members.items.len() as u64;
    let body = html! {
        div.head { h1 { "Team" } span.dim { (ui::counted(members.total, "member", "members")) } }
        (ui::alert(state.form.message.as_deref()))
        @if let Some(link) = &state.link {
            div.note.good role="status" {
                @match link {
                    Some(link) => {
                        p { strong { "Invitation created." } " Copy the link now and send it: you won't be able to see it again, and it works once." }
                        div.secret { code #new-link { (link) } button.main type="button" data-copy=(link) { (ui::icon("copy")) "Copy" } }
                    }
                    None => "The invitation was created. Its link was shown once and cannot be shown again. If you did not copy it, revoke the invitation and create another."
                }
            }
        }
        div.card {
            (members_table(visitor, &members.items))
            (ui::pager(offset, shown, members.total, u64::from(LIMIT), &|offset| format!("/settings/team?offset={offset}")))
        }
        (super::people::name_form(visitor))
        @if manages {
            (invite_form(visitor, &state.form.sent))
            @if !open.is_empty() {
                section { div.head { h2 { "Pending invitations" } } div.card { (invitations_table(visitor, &open, &makers)) } }
            }
        }
    };
    Ok(page_with_status(
        state.form.status(),
        visitor,
        "Team",
        Section::Team,
        &body,
    ))
}

fn roles(visitor: &Visitor) -> &'static [Role] {
    if visitor.may(Permission::ManageOwners) {
        &[Role::Member, Role::Admin, Role::Owner]
    } else {
        &[Role::Member, Role::Admin]
    }
}

fn members_table(visitor: &Visitor, members: &[Member]) -> Markup {
    let manages = visitor.may(Permission::ManageMembers);
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Person" } th scope="col" { "Role" } th.num scope="col" { "API keys" } th scope="col" { "Joined" } th { span.visually-hidden { "Remove" } } } }
                tbody {
                    @for member in members {
                        @let is_me = member.user == visitor.user_id();
                        @let may_change = manages && (member.role != Role::Owner || visitor.may(Permission::ManageOwners));
                        tr {
                            td.title { (ui::name(name_of(member))) @if is_me { span.dim { " (you)" } } @if member.disabled { " " (ui::state("failed", "disabled")) } }
                            td {
                                @if may_change {
                                    form.row method="get" action={ "/settings/team/" (member.user) "/role" } {
                                        select name="to" aria-label={ "Role of " (name_of(member)) } {
                                            @for role in roles(visitor) { option value=(role.as_str()) selected[*role == member.role] { (role.as_str()) } }
                                        }
                                        button aria-label={ "Change the role of " (name_of(member)) } { "Change" }
                                    }
                                } @else { (member.role.as_str()) }
                            }
                            td.num data-label="keys" { (member.api_keys) }
                            td data-label="joined" { (ui::time(member.joined_at, visitor.now)) }
                            td.num {
                                div.buttons {
                                    (super::people::access_link(visitor, member))
                                    @if may_change || is_me {
                                        a.button href={ "/settings/team/" (member.user) "/remove" } { @if is_me { "Leave" } @else { "Remove" } }
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

fn invite_form(visitor: &Visitor, sent: &Fields) -> Markup {
    html! {
        section.card.pad {
            div.head { h2 { "Invite someone" } }
            p.dim { "An invitation is a link that works once. Anyone who opens it can join the team." }
            form.row.block method="post" action="/settings/team/invitations" {
                (ui::form_token(visitor))
                div.field { label for="email" { "Email " span.hint { "optional; without it, anyone who has the link can join" } } input #email name="email" type="email" value=(sent.get("email")) autocomplete="off"; }
                div.field {
                    label for="role" { "Role" }
                    select #role name="role" { @for role in roles(visitor) { option value=(role.as_str()) selected[sent.get("role") == role.as_str()] { (role.as_str()) } } }
                }
                div.field {
                    label for="days" { "Valid for" }
                    select #days name="days" { @for (days, text) in [("1", "1 day"), ("7", "7 days"), ("30", "30 days")] { option value=(days) selected[days == "7"] { (text) } } }
                }
                button.main { "Create link" }
            }
        }
    }
}

fn invitations_table(
    visitor: &Visitor,
    open: &[Invitation],
    makers: &HashMap<UserId, String>,
) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "For" } th scope="col" { "Role" } th scope="col" { "Created by" } th scope="col" { "Expires" } th { span.visually-hidden { "Revoke" } } } }
                tbody {
                    @for one in open {
                        @let whom = one.email.as_deref().unwrap_or("anyone with the link");
                        tr {
                            td.title { (ui::name(whom)) }
                            td { (one.role.as_str()) }
                            td { (ui::name(makers.get(&one.created_by).map_or("–", String::as_str))) }
                            td data-label="expires" { (ui::time(one.expires_at, visitor.now)) }
                            td.num {
                                form method="post" action={ "/settings/team/invitations/" (one.id) "/delete" } {
                                    (ui::form_token(visitor))
                                    button.risky aria-label={ "Revoke the invitation for " (whom) } { "Revoke" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
