//! Assignments: the pages' name for the API's agents.

pub(super) mod builds;
pub(super) mod editor;
mod locate;
pub(super) mod start;
mod trigger;
pub(super) mod yaml;

use std::collections::HashMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::id::AgentId;
use errand_core::policy::Policy;
use errand_core::role::Permission;
use errand_core::time::Timestamp;
use errand_core::warning::Warning;
use errand_store::model::{Agent, Build, PageQuery, RunFilter};
use errand_store::{AgentFigures, Idempotent};
use maud::{Markup, html};

use super::failure::{PageResult, sentence};
use super::form::{Form, Params, Path};
use super::guard::Visitor;
use super::layout::{Section, page, page_with_status};
use super::runs::TableData;
use super::{Web, runs, text, ui};
use crate::usecase::effective_tools::{EffectiveTool, tools_of_config, warnings_of_config};

const LIMIT: u32 = 25;
/// Runs on an assignment's page.
const RUNS: u32 = 8;
/// Period of the figures in the list: 30 days.
const DAYS_MS: i64 = 30 * 86_400_000;

pub(super) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let found = web.store.list_agents(visitor.team_id(), query).await?;
    let since = Timestamp::from_millis(visitor.now.as_millis() - DAYS_MS);
    let figures = web.store.figures_by_agent(visitor.team_id(), since).await?;
    let shown = found.items.len() as u64;
    let body = html! {
        div.head {
            h1 { "Assignments" }
            @if visitor.may(Permission::ManageAgents) {
                div.actions { a.button.main href="/assignments/new" { (ui::icon("plus")) "New assignment" } }
            }
        }
        div.card {
            @if found.items.is_empty() {
                (ui::empty("No assignments yet", &html! { "An assignment says what an agent does: its model, its instructions, its tools, and the policy of each tool." }))
            } @else {
                (table(&web, &found.items, &figures, visitor.now))
                (ui::pager(offset, shown, found.total, u64::from(LIMIT), &|offset| format!("/assignments?offset={offset}")))
            }
        }
    };
    Ok(page(&visitor, "Assignments", Section::Assignments, &body))
}

fn table(
    web: &Web,
    agents: &[(Agent, Option<Build>)],
    figures: &HashMap<AgentId, AgentFigures>,
    now: Timestamp,
) -> Markup {
    let none = AgentFigures::default();
    html! {
        div.scroll {
            table.stack {
                thead {
                    tr {
                        th scope="col" { "Assignment" }
                        th scope="col" { "Model" }
                        th scope="col" { "Last run" }
                        th.num scope="col" title="Runs that ended in the last 30 days" { "Runs, 30 days" }
                        th.num scope="col" title="Share of completed runs among those that completed or failed in the last 30 days" { "Success" }
                        th.num scope="col" { "Cost, 30 days" }
                        th.num scope="col" { "Build" }
                    }
                }
                tbody {
                    @for (agent, build) in agents {
                        @let of = figures.get(&agent.id).unwrap_or(&none);
                        tr {
                            td.title { a href={ "/assignments/" (agent.id) } { (ui::name(&agent.name)) } }
                            td { (build.as_ref().map_or_else(|| "no build".to_owned(), |build| model_of(web, build))) }
                            td {
                                @if let Some(last) = of.last { (ui::status(last.status)) " " a.link href={ "/runs/" (last.run) } { (ui::time(last.created_at, now)) } }
                                @else { span.dim { "never" } }
                            }
                            td.num data-label="runs" { (ui::number(of.completed + of.failed + of.interrupted)) }
                            td.num data-label="success" { (success(of)) }
                            td.num data-label="cost" { (ui::cost(of.cost_usd)) }
                            td.num data-label="build" { (build.as_ref().map_or_else(|| "–".to_owned(), |build| build.number.to_string())) }
                        }
                    }
                }
            }
        }
    }
}

/// `98%` of the runs that completed or failed; a dash if there are none.
fn success(of: &AgentFigures) -> String {
    let ended = of.completed + of.failed;
    if ended == 0 {
        return "–".to_owned();
    }
    format!("{}%", of.completed * 100 / ended)
}

fn model_of(web: &Web, build: &Build) -> String {
    web.store.parse_config(&build.config).map_or_else(
        |_| "cannot be read".to_owned(),
        |config| config.model.to_string(),
    )
}

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Path(agent): Path<AgentId>,
) -> PageResult {
    overview(&web, &visitor, agent, None).await
}

/// Renders an assignment's page. `message`: why a run could not be started.
async fn overview(web: &Web, visitor: &Visitor, id: AgentId, message: Option<&str>) -> PageResult {
    let team = visitor.team_id();
    let (agent, build) = web.store.agent(team, id).await?;
    let filter = RunFilter {
        agent: Some(id),
        ..RunFilter::default()
    };
    let first = PageQuery {
        limit: RUNS,
        offset: 0,
    };
    let found = web.store.list_runs(team, filter, first).await?;
    let beside = TableData::of_one(web, team, &found.items).await?;
    let tools = match &build {
        Some(build) => tools_of_config(web, team, &build.config).await?,
        None => Vec::new(),
    };
    let warnings = match &build {
        Some(build) => warnings_of_config(web, team, &build.config).await?,
        None => Vec::new(),
    };
    let body = html! {
        (head(visitor, &agent, Tab::Overview))
        div.grid-2 {
            div {
                @if build.is_some() { (start::card(visitor, id, message)) }
                @else { div.card { (ui::empty("This assignment has no build yet", &html! { a href={ "/assignments/" (id) "/edit" } { "Configure it" } " to run it." })) } }
                section {
                    div.head { h2 { "Runs" } @if found.total > 0 { a href={ "/runs?assignment=" (id) } { "All " (ui::number(found.total)) } } }
                    div.card {
                        @if found.items.is_empty() { (ui::empty("No runs yet", &html! { "Press " strong { "Run now" } ", or start one through the API." })) }
                        @else { (runs::table(&found.items, &beside, visitor.now)) }
                    }
                }
                (trigger::card(&web.settings.public_url, &id.to_string()))
            }
            div { @if let Some(build) = &build { (setup(web, build, (&tools, &warnings), visitor.now)) } }
        }
    };
    let status = ui::status_of(message.is_some());
    Ok(page_with_status(
        status,
        visitor,
        &agent.name,
        Section::Assignments,
        &body,
    ))
}

/// Tabs of an assignment's pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tab {
    Overview,
    Edit,
    Builds,
}

fn head(visitor: &Visitor, agent: &Agent, tab: Tab) -> Markup {
    let id = agent.id.to_string();
    let link = |of: Tab, end: &str, name: &str| {
        html! { a href={ "/assignments/" (id) (end) } aria-current=[(of == tab).then_some("page")] { (name) } }
    };
    let manages = visitor.may(Permission::ManageAgents);
    html! {
        div.crumbs { a href="/assignments" { "Assignments" } }
        div.head {
            h1 { (ui::name(&agent.name)) }
            (ui::id(&id))
            @if manages && tab == Tab::Overview {
                div.actions {
                    a.button href={ "/assignments/" (id) "/edit" } { (ui::icon("edit")) "Edit" }
                    form method="post" action={ "/assignments/" (id) "/delete" } data-confirm="Delete this assignment? You can no longer start runs. Existing runs continue and stay readable." {
                        (ui::form_token(visitor))
                        button.risky { "Delete" }
                    }
                }
            }
        }
        nav.tabs aria-label="Assignment" {
            (link(Tab::Overview, "", "Overview"))
            @if manages { (link(Tab::Edit, "/edit", "Set-up")) }
            (link(Tab::Builds, "/builds", "Builds"))
        }
    }
}

/// Summary of the latest build.
fn setup(
    web: &Web,
    build: &Build,
    (tools, warnings): (&[EffectiveTool], &[Warning]),
    now: Timestamp,
) -> Markup {
    let parsed = web.store.parse_config(&build.config);
    html! {
        section {
            div.head { h2 { "Build " (build.number) } }
            dl.facts {
                dt { "Created" } dd { (ui::time(build.created_at, now)) }
                @match &parsed {
                    Err(error) => { dt { "Problem" } dd.wrong { (error) } }
                    Ok(config) => {
                        dt { "Model" } dd.mono { (config.model) }
                        dt { "People" } dd { @if config.human_in_the_loop { "can be asked" } @else { "are never asked" } }
                        @if let Some(steps) = config.limits.steps { dt { "Steps" } dd { "at most " (ui::number(steps)) } }
                        @if let Some(tokens) = config.limits.tokens { dt { "Tokens" } dd { "at most " (ui::number(tokens)) } }
                        @if let Some(usd) = config.limits.cost_usd { dt { "Cost" } dd { "at most " (ui::cost(usd)) } }
                        dt { "Active time" } dd { "at most " (ui::duration(config.limits.seconds.saturating_mul(1000))) }
                    }
                }
            }
        }
        @if let Ok(config) = &parsed {
            section {
                div.head { h2 { "Tools" } }
                @for warning in warnings { p.alert { (sentence(&warning.message)) } }
                @if tools.is_empty() { p.dim.small { "None." } }
                ul.files {
                    @for tool in tools {
                        li { span.name.mono { (ui::name(&tool.name)) } span.small.dim { (from_of(tool.from)) } " " (ui::state(tool.policy, tool.policy)) }
                    }
                }
            }
            @let instructions: String = config.input.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n");
            @if !instructions.is_empty() {
                section { div.head { h2 { "Instructions" } } div.card.pad { (text::markdown(&instructions)) } }
            }
        }
    }
}

/// What decided a tool's policy, in words. `from` is the API's value.
fn from_of(from: &str) -> &'static str {
    match from {
        "build" => "set by this build",
        "connection" => "set for all tools of the connection",
        "hints" => "from the tool's hints",
        "floor" => "minimum set by an admin",
        _ => "default",
    }
}

pub(super) fn word_of(policy: Policy) -> &'static str {
    match policy {
        Policy::Allow => "allow",
        Policy::Ask => "ask",
        Policy::Deny => "deny",
        Policy::Guard => "guard",
    }
}

pub(super) async fn delete(
    State(web): State<Web>,
    visitor: Visitor,
    Path(agent): Path<AgentId>,
    Form(_): Form,
) -> PageResult {
    let now = web.clock.now();
    web.store
        .delete_agent(visitor.team_id(), agent, now, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/assignments").into_response())
}
