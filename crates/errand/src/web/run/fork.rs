//! *Fork from here*: starts a new run with this run's transcript up to a message, a build of the same assignment, and a
//! copy of the files.

use axum::extract::State;
use errand_core::id::{AgentId, BuildId, MessageId, RunId};
use errand_core::run::RunSource;
use errand_store::model::{Build, PageQuery, RunView};
use errand_store::{Idempotent, Reach, StoreError};
use maud::{Markup, html};

use super::transcript::{self, Calls, Context};
use super::{people_of, to_run};
use crate::usecase::fork_run::{NewFork, fork_run};
use crate::usecase::start_run::FirstMessage;
use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Fields, Form, FormState, Params, Path};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page_with_status};
use crate::web::{Web, runs, ui};

/// Builds in the form: the newest.
const BUILDS: u32 = 50;

pub(in crate::web) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
) -> PageResult {
    let state = FormState {
        message: None,
        sent: params,
    };
    render(&web, &visitor, run, &state).await
}

/// A link from an entry to the page.
pub(super) fn link(run: RunId, message: MessageId, position: u64) -> Markup {
    let to = format!(
        "/runs/{run}/fork?after_message={}&at={position}",
        message.as_uuid()
    );
    html! {
        a.button.plain.fork href=(to) title="Fork: start a new run from this point" aria-label="Fork from here" { (ui::icon("fork")) }
    }
}

async fn render(web: &Web, visitor: &Visitor, run: RunId, state: &FormState) -> PageResult {
    let team = visitor.team_id();
    let view = web.store.run(team, run).await?;
    let first = PageQuery {
        limit: BUILDS,
        offset: 0,
    };
    let agent = AgentId::from_stored(view.run.agent_id);
    let builds = match web.store.list_builds(team, agent, first).await {
        Ok(builds) => builds.items,
        // The assignment was deleted. The fork will report that.
        Err(StoreError::NotFound) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let last = last_of(web, visitor, run, &state.sent).await?;
    let title = runs::title(&view.run);
    let body = html! {
        div.crumbs { a href="/runs" { "Runs" } " / " a href={ "/runs/" (run) } { (ui::name(&title)) } }
        div.head { h1 { "Fork from here" } }
        p.lead { "Creates a new run that starts with everything up to this point. Later actions are not included and may be repeated. The original run does not change." }
        (ui::alert(state.message.as_deref()))
        @if let Some(last) = &last { section { div.head { h2 { "Last message included" } } ol.transcript aria-label="The last entry" { (last) } } }
        (form(visitor, &view, &builds, &state.sent))
    };
    Ok(page_with_status(
        state.status(),
        visitor,
        "Fork a run",
        Section::Runs,
        &body,
    ))
}

/// The named entry, rendered as in the transcript.
async fn last_of(
    web: &Web,
    visitor: &Visitor,
    run: RunId,
    sent: &Fields,
) -> Result<Option<Markup>, PageError> {
    let Some(at) = sent.given("at").and_then(|at| at.parse::<u64>().ok()) else {
        return Ok(None);
    };
    let reach = Reach::After(at.saturating_sub(1));
    let part = web
        .store
        .transcript(visitor.team_id(), run, reach, 1)
        .await?;
    let people = people_of(web, &part.entries).await?;
    let context = Context {
        run,
        calls: &Calls::of(&part.entries),
        people: &people,
        now: visitor.now,
        forks: false,
    };
    let wanted = sent.get("after_message");
    let found = part
        .entries
        .iter()
        .find(|entry| entry.id.as_uuid().to_string() == wanted);
    Ok(found.map(|entry| transcript::entry(entry, &context)))
}

fn form(visitor: &Visitor, view: &RunView, builds: &[Build], sent: &Fields) -> Markup {
    let run = &view.run;
    let own = BuildId::from_stored(run.build_id);
    let chosen = sent.get("build");
    html! {
        form.form.block method="post" action={ "/runs/" (run.id) "/fork" } {
            (ui::form_token(visitor))
            input type="hidden" name="after_message" value=(sent.get("after_message"));
            input type="hidden" name="at" value=(sent.get("at"));
            div.field {
                label for="build" { "Build" }
                select #build name="build" {
                    @for build in builds {
                        @let id = build.id.to_string();
                        @let is_chosen = if chosen.is_empty() { build.id == own } else { chosen == id };
                        option value=(id) selected[is_chosen] { "Build " (build.number) ": " (build.name) @if build.id == own { " (this run's)" } }
                    }
                    @if builds.iter().all(|build| build.id != own) { option value="" selected[chosen.is_empty()] { "This run's own" } }
                }
            }
            div.field.wide {
                label for="message" { "Message " span.hint { "optional, but required if the run had ended at this point; the fork reads it first" } }
                textarea #message name="message" rows="3" { (sent.get("message")) }
            }
            (ui::untrusted_choice(sent.is_on("untrusted")))
            label.choice { input type="checkbox" name="no_files" value="on" checked[sent.is_on("no_files")]; span { "Start with an empty sandbox" span.hint { "otherwise with a copy of the run's current files" } } }
            div.buttons { button.main { (ui::icon("fork")) "Fork" } a.button href={ "/runs/" (run.id) } { "Cancel" } }
        }
    }
}

pub(in crate::web) async fn fork(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Form(sent): Form,
) -> PageResult {
    match try_fork(&web, &visitor, run, &sent).await {
        Ok(made) => Ok(to_run(made)),
        Err(error) => render(&web, &visitor, run, &FormState::refused(error, sent)?).await,
    }
}

async fn try_fork(
    web: &Web,
    visitor: &Visitor,
    run: RunId,
    sent: &Fields,
) -> Result<RunId, PageError> {
    let new = NewFork {
        team: visitor.team_id(),
        run,
        after_message: id_of(sent, "after_message")?,
        build: id_of(sent, "build")?,
        message: sent.given("message").map(|text| FirstMessage {
            text: text.to_owned(),
            untrusted: sent.is_on("untrusted"),
        }),
        files: !sent.is_on("no_files"),
        webhook_url: None,
        human_request_webhook_url: None,
        sandbox_ttl_ms: web.settings.sandbox_ttl_ms,
        by: visitor.user_id().into(),
        api_key: None,
        source: RunSource::Web,
    };
    let made = fork_run(web, new, Idempotent::not_recorded()).await?;
    Ok(RunId::from_stored(made.executed()?.run.id))
}

fn id_of<T: std::str::FromStr>(sent: &Fields, name: &str) -> Result<Option<T>, PageError> {
    sent.given(name)
        .map(|id| id.parse().map_err(|_| PageError::not_found()))
        .transpose()
}
