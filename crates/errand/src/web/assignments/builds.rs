//! Builds of an assignment: list, line-by-line comparison, restoring.

#[cfg(test)]
mod fuzz;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::id::{AgentId, BuildId, UserId};
use errand_core::limits::NAME_CHARS_MAX;
use errand_core::role::Permission;
use errand_store::Idempotent;
use errand_store::model::{Build, BuildChange, BuildState, NewBuild, PageQuery};
use maud::{Markup, html};
use similar::{ChangeTag, TextDiff};

use super::editor::yaml;
use super::{Tab, head, model_of};
use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Form, Params, Path};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page};
use crate::web::{Web, ui};

const LIMIT: u32 = 25;
/// Time limit for comparing two builds. After that, the rest counts as changed.
const COMPARE_TIME_MAX: Duration = Duration::from_millis(500);
/// Maximum size in bytes of a shown difference, counting [`LINE_BYTES`] per line.
const SHOWN_BYTES_MAX: usize = 1024 * 1024;
/// Overhead of a line on the page, in addition to its text.
const LINE_BYTES: usize = 64;
/// Unchanged lines shown around each difference.
const AROUND: usize = 4;

pub(in crate::web) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<AgentId>,
    Params(params): Params,
) -> PageResult {
    let team = visitor.team_id();
    let (agent, _) = web.store.agent(team, id).await?;
    let offset = params.get("offset").parse().unwrap_or(0);
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let found = web.store.list_builds(team, id, query).await?;
    let makers: Vec<UserId> = found
        .items
        .iter()
        .filter_map(|build| build.created_by)
        .collect();
    let people = web.store.emails_of(makers).await?;
    let shown = found.items.len() as u64;
    let body = html! {
        (head(&visitor, &agent, Tab::Builds))
        div.card {
            @if found.items.is_empty() { (ui::empty("No builds yet", &html! { "Saving the configuration creates the first build." })) }
            @else {
                form method="get" action={ "/assignments/" (id) "/builds/compare" } id="compare" {}
                (table(&web, &visitor, &found.items, &people))
                @if found.items.len() > 1 { div.pager { button form="compare" { "Compare" } } }
                (ui::pager(offset, shown, found.total, u64::from(LIMIT), &|offset| format!("/assignments/{id}/builds?offset={offset}")))
            }
        }
    };
    Ok(page(&visitor, &agent.name, Section::Assignments, &body))
}

fn table(
    web: &Web,
    visitor: &Visitor,
    builds: &[Build],
    people: &HashMap<UserId, String>,
) -> Markup {
    let changes = visitor.may(Permission::ManageAgents);
    let compares = builds.len() > 1;
    html! {
        div.scroll {
            table.stack {
                thead {
                    tr {
                        @if compares { th scope="col" { "From" } th scope="col" { "To" } }
                        th.num scope="col" { "Build" }
                        th scope="col" { "What changed" } th scope="col" { "Model" } th scope="col" { "By" } th scope="col" { "Created" } th scope="col" { "State" }
                    }
                }
                tbody {
                    @for (index, build) in builds.iter().enumerate() {
                        tr {
                            @if compares {
                                td data-label="from" { input type="radio" form="compare" name="from" value=(build.id) checked[index == 1] aria-label={ "Compare from build " (build.number) }; }
                                td data-label="to" { input type="radio" form="compare" name="to" value=(build.id) checked[index == 0] aria-label={ "Compare to build " (build.number) }; }
                            }
                            td.num data-label="build" { (build.number) }
                            td.title { (ui::name(&build.name)) @if let Some(more) = &build.description { span.sub dir="auto" { (more) } } }
                            td.mono { (model_of(web, build)) }
                            td { (build.created_by.and_then(|user| people.get(&user)).map_or("–", String::as_str)) }
                            td { (ui::time(build.created_at, visitor.now)) }
                            td {
                                @match build.state {
                                    BuildState::Live => span.dim { "live" },
                                    BuildState::Draft => { span.dim { "draft" } @if changes { (act(visitor, build, "promote", "Promote")) } },
                                    BuildState::Historic => @if changes { (act(visitor, build, "restore", "Restore")) },
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(in crate::web) async fn compare(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<AgentId>,
    Params(params): Params,
) -> PageResult {
    let team = visitor.team_id();
    let (agent, _) = web.store.agent(team, id).await?;
    let find = async |name: &str| -> Result<Build, PageError> {
        let build: BuildId = params
            .get(name)
            .parse()
            .map_err(|_| PageError::bad("Choose two builds to compare."))?;
        let build = web.store.build(team, build).await?;
        if build.agent_id == id {
            Ok(build)
        } else {
            Err(PageError::not_found())
        }
    };
    let (from, to) = (find("from").await?, find("to").await?);
    let (from_number, to_number) = (from.number, to.number);
    let place = web.comparisons().enter(visitor.user_id()).ok_or_else(|| {
        PageError::busy("You are already comparing builds in another window, or too many people are comparing builds right now. Wait a moment, then reload this page.")
    })?;
    // On a blocking thread, so that it does not delay other requests. It stops at its deadline, even if the browser has
    // disconnected.
    let compared = tokio::task::spawn_blocking(move || {
        let _place = place;
        difference(&yaml(&from.config), &yaml(&to.config))
    });
    let compared = compared
        .await
        .map_err(|_| PageError::busy("The comparison was interrupted. Reload this page."))?;
    let body = html! {
        (head(&visitor, &agent, Tab::Builds))
        div.head { h2 { "From build " (from_number) " to build " (to_number) } a href={ "/assignments/" (id) "/builds" } { "All builds" } }
        (compared)
    };
    Ok(page(&visitor, &agent.name, Section::Assignments, &body))
}

fn difference(old: &str, new: &str) -> Markup {
    if old == new {
        return html! { div.card { (ui::empty("These builds have the same configuration", &html! { "Only their names can differ." })) } };
    }
    let began = Instant::now();
    let mut config = TextDiff::configure();
    let diff = config.timeout(COMPARE_TIME_MAX).diff_lines(old, new);
    let cut_short = began.elapsed() >= COMPARE_TIME_MAX;
    let mut left = SHOWN_BYTES_MAX;
    let mut lines: Vec<(Option<ChangeTag>, &str)> = Vec::new();
    'all: for (index, group) in diff.grouped_ops(AROUND).iter().enumerate() {
        if index > 0 {
            lines.push((None, "…"));
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let line = change.value().trim_end_matches('\n');
            left = left.saturating_sub(line.len() + LINE_BYTES);
            if left == 0 {
                break 'all;
            }
            lines.push((Some(change.tag()), line));
        }
    }
    html! {
        @if cut_short { p { "The builds differ in too many lines to compare completely. Some unchanged lines are marked as changed." } }
        pre.diff tabindex="0" role="region" aria-label="Difference" {
            @for (tag, line) in &lines {
                @match tag {
                    None => span.gap { (line) },
                    Some(ChangeTag::Delete) => span.del { span.visually-hidden { "removed: " } "- " (line) },
                    Some(ChangeTag::Insert) => span.add { span.visually-hidden { "added: " } "+ " (line) },
                    Some(ChangeTag::Equal) => span { "  " (line) },
                }
            }
        }
        @if left == 0 { p { "The rest of the difference is too long to show." } }
    }
}

/// A button for an action on a build.
fn act(visitor: &Visitor, build: &Build, action: &str, label: &str) -> Markup {
    html! {
        form method="post" action={ "/assignments/" (build.agent_id) "/builds/" (build.id) "/" (action) } {
            (ui::form_token(visitor))
            button aria-label={ (label) " build " (build.number) } { (label) }
        }
    }
}

/// Promotes a draft to the build that new runs use.
pub(in crate::web) async fn promote(
    State(web): State<Web>,
    visitor: Visitor,
    Path((id, build)): Path<(AgentId, BuildId)>,
    Form(_): Form,
) -> PageResult {
    let team = visitor.team_id();
    if web.store.build(team, build).await?.agent_id != id {
        return Err(PageError::not_found());
    }
    let by = (visitor.user_id(), web.clock.now());
    let promotion = BuildChange {
        promote: true,
        ..BuildChange::default()
    };
    web.store
        .update_build(team, build, promotion, by, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to(&format!("/assignments/{id}/builds")).into_response())
}

/// Creates a new build from an old build's configuration.
pub(in crate::web) async fn restore(
    State(web): State<Web>,
    visitor: Visitor,
    Path((id, build)): Path<(AgentId, BuildId)>,
    Form(_): Form,
) -> PageResult {
    let team = visitor.team_id();
    let old = web.store.build(team, build).await?;
    if old.agent_id != id {
        return Err(PageError::not_found());
    }
    let now = web.clock.now();
    let name = format!("Restores build {}: {}", old.number, old.name);
    let new = NewBuild {
        id: web.ids.build(now),
        name: name.chars().take(NAME_CHARS_MAX).collect(),
        description: None,
        config: old.config,
        created_by: visitor.user_id(),
        draft: false,
        warnings: Vec::new(),
    };
    web.store
        .create_build(team, id, new, now, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to(&format!("/assignments/{id}/builds")).into_response())
}
