//! The page of a run: its live transcript and everything known about it.
//!
//! Guarantees: the page contains the newest part of the transcript, however long the transcript is; older parts load on
//! request. A link to an entry ([`entry_url`]) shows the part that contains it. The same functions render the page and its
//! live updates.

pub(super) mod act;
pub(super) mod answer;
pub(super) mod fork;
pub(super) mod live;
mod side;
mod transcript;

use std::collections::HashMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use errand_core::id::{AgentId, BuildId, HumanRequestId, RunId, TeamId, UserId};
use errand_core::role::Permission;
use errand_core::run::Status;
use errand_core::transcript::{Body, Entry, Outcome};
use errand_store::model::{Build, RunView};
use errand_store::{ClosedRequest, FoundRequest, OpenRequest, Reach, StoreError, TranscriptPart};
use http::header::{self, HeaderMap, HeaderValue};
use maud::{Markup, html};

use super::card::{CardContext, CardData};
use super::failure::{PageError, PageResult};
use super::form::{Fields, Params, Path};
use super::guard::Visitor;
use super::layout::{Section, fragment, page_with_status};
use super::{Web, card, files, inbox, runs, ui};
use transcript::{Calls, Context, People};

/// Entries in one part of the transcript.
const PART: u32 = 100;

/// Entries shown before the linked one, for context.
const CONTEXT: u64 = 10;

#[derive(Clone, Copy)]
enum Part {
    Newest,
    /// The entries before a position.
    Before(u64),
    /// The newest part if it contains the position, otherwise the entries around it.
    Around(u64),
}

impl Part {
    fn of(params: &Fields) -> Self {
        let position = |name: &str| params.get(name).parse().ok();
        match (position("before"), position("around")) {
            (Some(before), _) => Self::Before(before),
            (None, Some(around)) => Self::Around(around),
            (None, None) => Self::Newest,
        }
    }
}

/// The address of an entry on its run's page.
pub(super) fn entry_url(run: RunId, position: u64) -> String {
    format!("/runs/{run}?around={position}#e-{position}")
}

/// Reads a part of a run's transcript. The flag says whether it is older than the newest part.
async fn read_part(
    web: &Web,
    team: TeamId,
    run: RunId,
    part: Part,
) -> Result<(TranscriptPart, bool), StoreError> {
    let read = |reach| web.store.transcript(team, run, reach, PART);
    let position = match part {
        Part::Newest => return Ok((read(Reach::Newest).await?, false)),
        Part::Before(position) => return Ok((read(Reach::Before(position)).await?, true)),
        Part::Around(position) => position,
    };
    let has_it = |part: &TranscriptPart| part.entries.iter().any(|e| e.position == position);
    let newest = read(Reach::Newest).await?;
    // A position that no entry has yet shows the newest part.
    if has_it(&newest) || position == 0 || position > newest.last {
        return Ok((newest, false));
    }
    let with_context = Reach::After(position.saturating_sub(CONTEXT + 1));
    let around = read(with_context).await?;
    if has_it(&around) {
        return Ok((around, true));
    }
    // The entries before it fill the part completely.
    Ok((read(Reach::After(position.saturating_sub(1))).await?, true))
}

/// A refused answer and the reason for the refusal.
pub(super) struct Sent {
    request: HumanRequestId,
    fields: Fields,
    message: String,
}

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
) -> PageResult {
    let part = Part::of(&params);
    let answered = inbox::answered(&web, visitor.team_id(), &params).await?;
    let answered = answered.filter(|closed| closed.asked.run == run);
    render_with(&web, &visitor, run, part, None, answered).await
}

/// Older entries: as list items for htmx, otherwise as a whole page.
pub(super) async fn older(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
    headers: HeaderMap,
) -> PageResult {
    let before: u64 = params.get("before").parse().unwrap_or(0);
    if !headers.contains_key("hx-request") {
        return render(&web, &visitor, run, Part::Before(before), None).await;
    }
    let reach = Reach::Before(before);
    let part = web
        .store
        .transcript(visitor.team_id(), run, reach, PART)
        .await?;
    let people = people_of(&web, &part.entries).await?;
    Ok(fragment(items(&visitor, run, &part, &people)))
}

/// The complete value of one entry as plain text, for values that the page cuts.
pub(super) async fn entry(
    State(web): State<Web>,
    visitor: Visitor,
    axum::extract::Path((run, position)): axum::extract::Path<(String, u64)>,
) -> PageResult {
    let run: RunId = run.parse().map_err(|_| PageError::not_found())?;
    let reach = Reach::After(position.saturating_sub(1));
    let part = web
        .store
        .transcript(visitor.team_id(), run, reach, 1)
        .await?;
    let entry = part.entries.into_iter().next();
    let text = match entry.map(|entry| entry.body) {
        Some(Body::ToolResult {
            outcome: Outcome::Result(serde_json::Value::String(text)),
            ..
        }) => text,
        Some(Body::ToolResult {
            outcome: Outcome::Result(value),
            ..
        }) => super::text::pretty(&value),
        Some(Body::ToolResult {
            outcome: Outcome::Error(error),
            ..
        }) => error.to_string(),
        Some(Body::ToolCall { call, .. }) => {
            super::text::pretty(&serde_json::Value::Object(call.arguments))
        }
        Some(Body::User { text, .. } | Body::Assistant { text, .. }) => text,
        _ => return Err(PageError::not_found()),
    };
    let mut response = text.into_response();
    files::make_harmless(response.headers_mut());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(response)
}

struct Whole {
    view: RunView,
    agent_name: Option<String>,
    build: Build,
    part: TranscriptPart,
    people: People,
    around: CardData,
    /// The request that was just answered, shown in place of an open one.
    answered: Option<ClosedRequest>,
}

/// Renders the page with a part of the transcript.
async fn render(
    web: &Web,
    visitor: &Visitor,
    run: RunId,
    part: Part,
    sent: Option<Sent>,
) -> PageResult {
    let answered = match &sent {
        // Someone else answered first: the card says who, and keeps what was typed.
        Some(sent) => {
            let found = web
                .store
                .requests(visitor.team_id(), vec![sent.request])
                .await?;
            found.into_iter().find_map(|found| match found {
                FoundRequest::Closed(closed) => Some(closed),
                FoundRequest::Open(_) => None,
            })
        }
        None => None,
    };
    render_with(web, visitor, run, part, sent, answered).await
}

async fn render_with(
    web: &Web,
    visitor: &Visitor,
    run: RunId,
    part: Part,
    sent: Option<Sent>,
    answered: Option<ClosedRequest>,
) -> PageResult {
    let team = visitor.team_id();
    // The transcript is read first; the live stream sends everything that is committed afterwards.
    let (part, is_older) = read_part(web, team, run, part).await?;
    let view = web.store.run(team, run).await?;
    let agent = AgentId::from_stored(view.run.agent_id);
    let agent_name = web
        .store
        .agent_names(team, vec![agent])
        .await?
        .remove(&agent);
    let build = web
        .store
        .build(team, BuildId::from_stored(view.run.build_id))
        .await?;
    let people = people_of(web, &part.entries).await?;
    let pending = open_request(&view, agent_name.as_deref());
    let shown = pending
        .iter()
        .chain(answered.as_ref().map(|closed| &closed.asked));
    let around = CardData::of(web, visitor, shown).await?;
    let whole = Whole {
        view,
        agent_name,
        build,
        part,
        people,
        around,
        answered,
    };
    let side = side::of(web, visitor, &whole.view.run, &whole.part.entries).await?;
    let status = ui::status_of(sent.is_some());
    let title = runs::title(&whole.view.run);
    let body = body(visitor, &whole, &side, is_older, sent.as_ref());
    Ok(page_with_status(
        status,
        visitor,
        &title,
        Section::Runs,
        &body,
    ))
}

fn body(
    visitor: &Visitor,
    whole: &Whole,
    side: &Markup,
    is_older: bool,
    sent: Option<&Sent>,
) -> Markup {
    let run = &whole.view.run;
    let id = run.id.to_string();
    let run_id = RunId::from_stored(run.id);
    let pending = open_request(&whole.view, whole.agent_name.as_deref());
    let asked = pending.as_ref().map(|open| open.request.id.to_string());
    let last = whole.part.last;
    let connect = format!(
        "/runs/{id}/live?after={last}&request={}",
        asked.unwrap_or_default()
    );
    let is_live = !run.status.has_ended() && !is_older;
    html! {
        div.crumbs { a href="/runs" { "Runs" } " / " a href={ "/assignments/" (run.agent_id) } { (ui::name(whole.agent_name.as_deref().unwrap_or("a deleted assignment"))) } " · build " (whole.build.number) }
        div sse-connect=[is_live.then_some(connect)] sse-close=[is_live.then_some("end")] {
            div.head {
                h1 { (ui::name(&runs::title(run))) }
                span #state sse-swap="state" { (state(&whole.view)) }
                (ui::id(&id))
                span #live.live hidden { svg viewBox="0 0 8 8" aria-hidden="true" { circle cx="4" cy="4" r="4" {} } span { "Live" } }
                div #actions.actions sse-swap="actions" { (actions(visitor, &whole.view)) }
            }
            div.grid-2 {
                div.run {
                    div #request { (requests(visitor, whole, pending.as_ref(), sent)) }
                    (inbox::news())
                    @if is_older { p.note { "This is an older part of the transcript. " a href={ "/runs/" (id) } { "Go to the newest entries" } } }
                    ol #transcript.transcript sse-swap="entry" hx-swap="beforeend" aria-label="Transcript" {
                        (items(visitor, run_id, &whole.part, &whole.people))
                    }
                    div #draft.block-draft sse-swap="draft" aria-live="off" {}
                    @if whole.part.entries.is_empty() { p.dim { "No entries yet." } }
                    (composer(visitor, &whole.view))
                }
                div #side sse-swap="side" { (side) }
            }
        }
    }
}

/// The cards of the just answered and of the open request.
fn requests(
    visitor: &Visitor,
    whole: &Whole,
    pending: Option<&OpenRequest>,
    sent: Option<&Sent>,
) -> Markup {
    let setting = CardContext {
        visitor,
        around: &whole.around,
        back: "run",
    };
    let of = |id: HumanRequestId| {
        sent.filter(|sent| sent.request == id)
            .map(|sent| (&sent.fields, sent.message.as_str()))
    };
    html! {
        @if let Some(closed) = &whole.answered { (card::closed(&setting, closed, of(closed.asked.request.id))) }
        @else if let Some(sent) = sent.filter(|sent| pending.is_none_or(|open| open.request.id != sent.request)) { (ui::alert(Some(&sent.message))) }
        @if let Some(open) = pending { (card::open(&setting, open, of(open.request.id))) }
    }
}

/// The entries of a part, with a link to earlier ones.
fn items(visitor: &Visitor, run: RunId, part: &TranscriptPart, people: &People) -> Markup {
    let calls = Calls::of(&part.entries);
    let context = Context {
        run,
        calls: &calls,
        people,
        now: visitor.now,
        forks: visitor.may(Permission::ManageRuns),
    };
    let first = part.entries.first().map_or(0, |entry| entry.position);
    let link = format!("/runs/{run}/older?before={first}");
    html! {
        @if part.before > 0 {
            li.entry.mark { a.button href=(link) hx-get=(link) hx-target="closest li" hx-swap="outerHTML" { "Show " (part.before.min(u64::from(PART))) " earlier entries of " (part.before) } }
        }
        @for entry in &part.entries { (transcript::entry(entry, &context)) }
    }
}

/// The run's status and what it waits for.
fn state(view: &RunView) -> Markup {
    html! {
        (ui::status(view.run.status))
        @if let Some(waiting) = &view.run.waiting_on {
            " " span.dim.small title=(waiting.next) {
                @match waiting.kind.as_str() {
                    "human" => "Waiting for an answer",
                    "timer" => "Waiting for a timer",
                    "place" => "Waiting for a free slot",
                    "sandbox" => "Waiting for the sandbox",
                    "model" => "Waiting for the model",
                    "tool" => { "Running " (ui::name(waiting.who.as_deref().unwrap_or("a tool"))) }
                    "start" => "Starting…",
                    _ => (waiting.next),
                }
            }
        }
    }
}

fn actions(visitor: &Visitor, view: &RunView) -> Markup {
    if !visitor.may(Permission::ManageRuns) {
        return html! {};
    }
    let run = &view.run;
    let act = |what: &str, name: &str, picture: &str, question: Option<&str>| {
        html! {
            form method="post" action={ "/runs/" (run.id) "/" (what) } data-confirm=[question] {
                (ui::form_token(visitor))
                button { (ui::icon(picture)) (name) }
            }
        }
    };
    html! {
            @if !run.status.has_ended() { (act("stop", "Stop", "stop", Some("Stop this run? Its current work is interrupted."))) }
            @if run.status == Status::Failed { (act("retry", "Retry", "again", None)) }
            @if run.status.has_ended() { (act("again", "Run again", "play", None)) }
    }
}

fn composer(visitor: &Visitor, view: &RunView) -> Markup {
    if !visitor.may(Permission::ManageRuns) {
        return html! {};
    }
    html! {
        form.form.block.composer method="post" action={ "/runs/" (view.run.id) "/messages" } {
            (ui::form_token(visitor))
            div.field.wide {
                label for="message" { "Message to the run " span #hint.hint sse-swap="hint" { (hint_of(view)) } }
                textarea #message name="message" rows="3" dir="auto" required {}
            }
            (ui::untrusted_choice(false))
            div.buttons { button { "Send" } }
        }
    }
}

/// What sending a message does in the run's current status.
fn hint_of(view: &RunView) -> &'static str {
    match view.run.status {
        Status::Failed => "The run reads the message when you retry it.",
        Status::Completed | Status::Interrupted => "Sending a message resumes this run.",
        Status::Waiting => "Sending a message closes the open request without approving it.",
        Status::Pending | Status::Starting | Status::Running => {
            "The run reads the message before its next model call."
        }
    }
}

/// The open request, in the form that cards take.
fn open_request(view: &RunView, agent_name: Option<&str>) -> Option<OpenRequest> {
    view.pending.as_ref().map(|request| OpenRequest {
        run: RunId::from_stored(view.run.id),
        run_title: view.run.title.clone(),
        agent: AgentId::from_stored(view.run.agent_id),
        agent_name: agent_name.unwrap_or_default().to_owned(),
        request: request.clone(),
    })
}

/// Email addresses of the people in the entries.
async fn people_of(web: &Web, entries: &[Entry]) -> Result<People, StoreError> {
    let mut users: Vec<UserId> = entries
        .iter()
        .filter_map(|entry| match &entry.body {
            Body::User { by, .. }
            | Body::HumanResponse { by, .. }
            | Body::Interrupted { by }
            | Body::Retried { by } => by.as_ref().map(|by| by.user),
            _ => None,
        })
        .collect();
    users.sort_unstable();
    users.dedup();
    if users.is_empty() {
        return Ok(HashMap::new());
    }
    web.store.emails_of(users).await
}

fn to_run(run: RunId) -> Response {
    axum::response::Redirect::to(&format!("/runs/{run}")).into_response()
}
