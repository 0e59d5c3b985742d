//! The list of runs.

use std::collections::HashMap;

use axum::extract::State;
use errand_core::author::AuthorKind;
use errand_core::human::{HumanRequest, TITLE_CHARS_MAX};
use errand_core::id::{AgentId, RunId, TeamId};
use errand_core::run::{RunSource, Status};
use errand_core::time::{Timestamp, parse_duration_ms};
use errand_core::wire::RunBody;
use errand_store::StoreError;
use errand_store::model::{PageQuery, RunFilter};
use maud::{Markup, html};

use super::failure::PageResult;
use super::form::{Fields, Params};
use super::guard::Visitor;
use super::layout::{Section, page};
use super::{Web, card, text, ui};

const LIMIT: u32 = 25;
/// Assignments in the filter.
const AGENTS_MAX: u32 = 100;
/// Maximum length in characters of a run's error in the list.
const ERROR_CHARS_MAX: usize = 300;
/// Where runs come from: the API's value and the word on pages.
const SOURCES: [(&str, &str); 5] = [
    ("api", "API"),
    ("web", "web"),
    ("cli", "command line"),
    ("schedule", "schedule"),
    ("mcp", "MCP"),
];
/// Filter value that selects all statuses of active runs.
const WORKING: &str = "working";

pub(super) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let team = visitor.team_id();
    let filter = filter(&params, visitor.now);
    let offset = params.get("offset").parse().unwrap_or(0);
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let found = web.store.list_runs(team, filter, query).await?;
    let beside = TableData::of(&web, team, &found.items).await?;
    let agents = PageQuery {
        limit: AGENTS_MAX,
        offset: 0,
    };
    let agents = web.store.list_agents(team, agents).await?;
    let agents: Vec<(AgentId, String)> = agents
        .items
        .into_iter()
        .map(|(agent, _)| (agent.id, agent.name))
        .collect();
    let is_filtered = ["q", "status", "assignment", "source", "since"]
        .iter()
        .any(|name| params.given(name).is_some());
    let shown = found.items.len() as u64;
    let body = html! {
        div.head {
            h1 { "Runs" }
            span.dim { (ui::counted(found.total, "run", "runs")) }
            div.actions { a.button href="/assignments" { (ui::icon("play")) "Start a run" } }
        }
        (filters(&params, &agents))
        div.card {
            @if found.items.is_empty() {
                @if is_filtered {
                    (ui::empty("No runs match these filters", &html! { a href="/runs" { "Show all runs" } }))
                } @else {
                    (ui::empty("No runs yet", &html! { "Open an " a href="/assignments" { "assignment" } " and press " strong { "Run now" } ", or start one through the API." }))
                }
            } @else {
                (table(&found.items, &beside, visitor.now))
                (ui::pager(offset, shown, found.total, u64::from(LIMIT), &|offset| address(&params, offset)))
            }
        }
    };
    Ok(page(&visitor, "Runs", Section::Runs, &body))
}

fn filter(params: &Fields, now: Timestamp) -> RunFilter {
    let statuses = params
        .all("status")
        .flat_map(|word| {
            if word == WORKING {
                vec![Status::Pending, Status::Starting, Status::Running]
            } else {
                Status::ALL
                    .into_iter()
                    .filter(|status| status.as_str() == word)
                    .collect()
            }
        })
        .collect();
    let since = params
        .given("since")
        .and_then(|text| parse_duration_ms(text).ok())
        .and_then(|ms| i64::try_from(ms).ok())
        .map(|ms| Timestamp::from_millis(now.as_millis() - ms));
    let source = params.given("source");
    RunFilter {
        statuses,
        agent: params.given("assignment").and_then(|id| id.parse().ok()),
        source: source.and_then(RunSource::parse),
        none: source.is_some_and(|source| RunSource::parse(source).is_none()),
        since,
        until: None,
        q: params.given("q").map(str::to_owned),
        ..RunFilter::default()
    }
}

/// The address of the same list at another offset.
fn address(params: &Fields, offset: u64) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for name in ["q", "status", "assignment", "source", "since"] {
        for value in params.all(name).filter(|value| !value.is_empty()) {
            query.append_pair(name, value);
        }
    }
    query.append_pair("offset", &offset.to_string());
    format!("/runs?{}", query.finish())
}

fn filters(params: &Fields, agents: &[(AgentId, String)]) -> Markup {
    let choice = |name: &str, label: &str, options: &[(String, String)]| {
        let chosen = params.get(name);
        html! {
            div.field {
                label for={ "filter-" (name) } { (label) }
                select id={ "filter-" (name) } name=(name) {
                    option value="" { "All" }
                    @for (value, text) in options {
                        option value=(value) selected[value == chosen] { (text) }
                    }
                }
            }
        }
    };
    let pair = |value: &str, text: &str| (value.to_owned(), text.to_owned());
    let mut statuses = vec![pair(WORKING, "active")];
    statuses.extend(Status::ALL.map(|status| pair(status.as_str(), ui::status_word(status))));
    let agents: Vec<_> = agents
        .iter()
        .map(|(id, name)| (id.to_string(), name.clone()))
        .collect();
    let sources = SOURCES.map(|(source, label)| pair(source, label));
    let times = [
        pair("1h", "last hour"),
        pair("1d", "last day"),
        pair("7d", "last 7 days"),
        pair("30d", "last 30 days"),
    ];
    html! {
        form.filters method="get" action="/runs" role="search" {
            div.field.search {
                label for="filter-q" { "Search" }
                input #filter-q type="search" name="q" value=(params.get("q")) placeholder="Part of the title or ID";
            }
            (choice("status", "State", &statuses))
            (choice("assignment", "Assignment", &agents))
            (choice("source", "Started by", &sources))
            (choice("since", "Time", &times))
            button { "Filter" }
        }
    }
}

/// Data that a table of runs shows besides the runs.
#[derive(Default)]
pub(super) struct TableData {
    /// The names of the assignments. `None` if all runs have the same one.
    names: Option<HashMap<AgentId, String>>,
    /// The open requests of the runs that wait for an answer.
    requests: HashMap<RunId, HumanRequest>,
}

impl TableData {
    /// Reads the data for runs of several assignments.
    pub(super) async fn of(web: &Web, team: TeamId, runs: &[RunBody]) -> Result<Self, StoreError> {
        let mut agents: Vec<AgentId> = runs
            .iter()
            .map(|run| AgentId::from_stored(run.agent_id))
            .collect();
        agents.sort_unstable();
        agents.dedup();
        let names = web.store.agent_names(team, agents).await?;
        Ok(Self {
            names: Some(names),
            ..Self::of_one(web, team, runs).await?
        })
    }

    /// Reads the data for runs of one assignment.
    pub(super) async fn of_one(
        web: &Web,
        team: TeamId,
        runs: &[RunBody],
    ) -> Result<Self, StoreError> {
        let waiting: Vec<RunId> = runs
            .iter()
            .filter(|run| run.status == Status::Waiting)
            .map(|run| RunId::from_stored(run.id))
            .collect();
        let requests = if waiting.is_empty() {
            HashMap::new()
        } else {
            web.store.pending_of(team, waiting).await?
        };
        Ok(Self {
            names: None,
            requests,
        })
    }
}

pub(super) fn table(runs: &[RunBody], beside: &TableData, now: Timestamp) -> Markup {
    let names = beside.names.as_ref();
    html! {
        div.scroll {
            table.stack {
                thead {
                    tr {
                        th scope="col" { "Run" }
                        th scope="col" { "State" }
                        @if names.is_some() { th scope="col" { "Assignment" } }
                        th scope="col" { "Started by" }
                        th scope="col" { "Created" }
                        th.num scope="col" { "Took" }
                        @if names.is_some() { th.num scope="col" { "Tokens" } }
                        th.num scope="col" { "Cost" }
                    }
                }
                tbody { @for run in runs { (row(run, beside, now)) } }
            }
        }
    }
}

fn row(run: &RunBody, beside: &TableData, now: Timestamp) -> Markup {
    let names = beside.names.as_ref();
    let agent = AgentId::from_stored(run.agent_id);
    let whole = run.id.to_string();
    let took = run.started_at.map(|from| {
        let to = run.completed_at.unwrap_or(now);
        ui::duration(to.ms_since(from))
    });
    let tokens = run.usage.input_tokens + run.usage.output_tokens;
    html! {
        tr {
            td.title {
                a href={ "/runs/" (whole) } { (ui::name(&title(run))) }
                @if let Some(error) = &run.error { span.sub dir="auto" { (text::exact_line(&text::clip(&error.message, ERROR_CHARS_MAX))) } }
                @else if let Some(request) = beside.requests.get(&RunId::from_stored(run.id)) {
                    span.sub { (card::heading(request)) }
                    (card::line(request))
                }
                @else if let Some(waiting) = run.waiting_on.as_ref().filter(|waiting| waiting.kind == "human") { span.sub { (ui::name(waiting.who.as_deref().unwrap_or_default())) } }
            }
            td { (ui::status(run.status)) }
            @if let Some(names) = names {
                td.of { a.link href={ "/assignments/" (agent) } { (ui::name(names.get(&agent).map_or("deleted", String::as_str))) } }
            }
            td.dim { (run.source.as_deref().map_or("–", source_label)) @if let Some(key) = key_of(run) { span.sub { (ui::api_key(key)) } } }
            td { (ui::time(run.created_at, now)) }
            td.num data-label="took" { (took.as_deref().unwrap_or("–")) }
            @if names.is_some() { td.num data-label="tokens" { @if tokens > 0 { (ui::number(tokens)) } @else { "–" } } }
            td.num data-label="cost" { (ui::cost_of(run.usage.known_usd(), run.usage.cost_unknown_tokens)) }
        }
    }
}

/// The name of the API key that started the run.
fn key_of(run: &RunBody) -> Option<&str> {
    let author = run.author.as_ref()?;
    match author.kind {
        AuthorKind::ApiKey => author.name.as_deref(),
        AuthorKind::User | AuthorKind::System => None,
    }
}

/// The word for a run's source on pages; an unknown source as it is.
pub(super) fn source_label(source: &str) -> &str {
    let known = SOURCES.iter().find(|(name, _)| *name == source);
    known.map_or(source, |(_, label)| label)
}

/// The run's title, or its ID if it has none.
pub(super) fn title(run: &RunBody) -> String {
    if let Some(title) = &run.title {
        return text::start(title, TITLE_CHARS_MAX).into_owned();
    }
    let id = run.id.to_string();
    format!(
        "Run {}",
        id.get(id.len().saturating_sub(8)..).unwrap_or(&id)
    )
}
