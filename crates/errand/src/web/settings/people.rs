//! What an owner can do to the team's name and to a person's access.
//!
//! A disabled user loses access to all teams, so only an owner of all of the user's teams can disable them; the store
//! enforces this. Both actions are confirmed on a page that says what ends.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::id::UserId;
use errand_core::role::Permission;
use errand_store::{Member, OfMember};
use maud::{Markup, html};

use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Form, Path};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page};
use crate::web::{Web, ui};

/// The form for the team's name, for people who can change it.
pub(super) fn name_form(visitor: &Visitor) -> Markup {
    if !visitor.may(Permission::ManageOwners) {
        return html! {};
    }
    html! {
        section.card.pad {
            div.head { h2 { "Team name" } }
            form.row.block method="post" action="/settings/team/name" {
                (ui::form_token(visitor))
                div.field { label for="team-name" { "Name" } input #team-name name="name" value=(visitor.team_name()) required maxlength="200" autocomplete="off"; }
                button { "Rename" }
            }
        }
    }
}

/// The link that disables or enables a member, for people who can do so.
pub(super) fn access_link(visitor: &Visitor, member: &Member) -> Markup {
    if !visitor.may(Permission::ManageOwners) || member.user == visitor.user_id() {
        return html! {};
    }
    html! {
        a.button href={ "/settings/team/" (member.user) "/access" } { @if member.disabled { "Enable" } @else { "Disable" } }
    }
}

pub(in crate::web) async fn rename(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let name = sent.get("name").to_owned();
    let (team, role) = (visitor.team_id(), visitor.role());
    web.store.rename_team(team, name, role).await?;
    Ok(Redirect::to("/settings/team").into_response())
}

/// The page that asks for confirmation before a member is disabled or enabled, and says what that affects.
pub(in crate::web) async fn before_access(
    State(web): State<Web>,
    visitor: Visitor,
    Path(user): Path<UserId>,
) -> PageResult {
    let (member, keys) = web.store.member(visitor.team_id(), user).await?;
    let name = name_of(&member);
    let count = ui::counted(keys.len() as u64, "API key", "API keys");
    let action = format!("/settings/team/{user}/access");
    let body = html! {
        div.crumbs { a href="/settings/team" { "Team" } }
        @if member.disabled {
            div.head { h1 { "Enable " (ui::name(name)) "?" } }
            p.lead { "They can log in again, and " (count) " that they created for this team will work again." }
        } @else {
            div.head { h1 { "Disable " (ui::name(name)) "?" } }
            p.lead { "They are logged out everywhere immediately and cannot log in. " (count) " that they created for this team will stop working, and their pending invitations become invalid." }
        }
        form.buttons.block method="post" action=(action) {
            (ui::form_token(&visitor))
            @if member.disabled {
                input type="hidden" name="disabled" value="no";
                button.main { "Enable " (ui::name(name)) }
            } @else {
                input type="hidden" name="disabled" value="yes";
                button.risky { "Disable " (ui::name(name)) }
            }
            a.button href="/settings/team" { "Cancel" }
        }
    };
    Ok(page(&visitor, "Member access", Section::Team, &body))
}

pub(in crate::web) async fn set_access(
    State(web): State<Web>,
    visitor: Visitor,
    Path(user): Path<UserId>,
    Form(sent): Form,
) -> PageResult {
    let disabled = match sent.get("disabled") {
        "yes" => true,
        "no" => false,
        _ => return Err(PageError::not_found()),
    };
    let of = OfMember {
        team: visitor.team_id(),
        user,
        by: visitor.user_id(),
        by_role: visitor.role(),
        now: visitor.now,
    };
    web.store.set_member_disabled(of, disabled).await?;
    Ok(Redirect::to("/settings/team").into_response())
}

fn name_of(member: &Member) -> &str {
    member
        .email
        .as_deref()
        .unwrap_or("the owner whom nobody has claimed yet")
}
