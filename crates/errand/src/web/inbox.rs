//! The inbox: all requests of the team that wait for a person.
//!
//! Promised: a card shows the exact call that an approval releases; what is answered goes through the one operation that
//! the API uses, which says who was first.

use axum::extract::State;
use axum::response::IntoResponse as _;
use errand_core::human::{Ask, HumanRequest, Origin, Question, Resolution};
use errand_core::role::Permission;
use errand_core::time::Timestamp;
use errand_store::model::PageQuery;
use errand_store::{ClosedRequest, OpenRequest};
use http::StatusCode;
use maud::{Markup, html};

use super::failure::Shown;
use super::form::{Fields, Params};
use super::guard::Visitor;
use super::layout::{Section, fragment, page};
use super::{Web, text, ui};

/// Requests of one page.
const LIMIT: u32 = 25;
/// How many of those that were closed last are shown.
const CLOSED: u32 = 20;

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> Shown {
    let offset = params.get("offset").parse().unwrap_or(0);
    let open = requests(&web, &visitor, offset).await?;
    let closed = web.store.closed_requests(visitor.team_id(), CLOSED).await?;
    let body = html! {
        div.head {
            h1 { "Inbox" }
            div.actions { button type="button" data-notify hidden { "Tell me in the browser" } }
        }
        @if params.is_on("answered") { div.note.good role="status" { "Answered; the run goes on." } }
        (open)
        section {
            div.head { h2 { "Answered last" } }
            div.card {
                @if closed.is_empty() { (ui::empty("Nothing was answered yet", &html! { "Who answered, and what, is kept here." })) }
                @else { (closed_table(&closed, visitor.now)) }
            }
        }
    };
    Ok(page(&visitor, "Inbox", Section::Inbox, &body))
}

/// The requests alone: what the page asks for again and again.
pub(super) async fn open(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> Shown {
    let offset = params.get("offset").parse().unwrap_or(0);
    let known = params.get("known");
    let list = requests(&web, &visitor, offset).await?;
    // What somebody is writing is not taken away where nothing has changed.
    if !known.is_empty() && list.0.contains(&format!("data-known=\"{known}\"")) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(fragment(list))
}

async fn requests(
    web: &Web,
    visitor: &Visitor,
    offset: u64,
) -> Result<Markup, errand_store::StoreError> {
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let open = web.store.open_requests(visitor.team_id(), query).await?;
    let newest = open.items.iter().max_by_key(|open| open.request.created_at);
    let newest_id = newest.map(|open| open.request.id.to_string());
    // Changes with each request that comes or goes.
    let known = format!(
        "{}-{}-{}",
        open.total,
        open.items
            .first()
            .map(|open| open.request.id.to_string())
            .unwrap_or_default(),
        newest_id.clone().unwrap_or_default()
    );
    let again = format!("/inbox/open?offset={offset}&known={known}");
    let shown = open.items.len() as u64;
    Ok(html! {
        div #open-requests.inbox hx-get=(again) hx-trigger="every 5s" hx-swap="outerHTML"
            data-known=(known) data-open=(open.total) data-newest=[newest_id] data-title=[newest.map(|open| &open.request.title)] {
            @for request in &open.items { (card(visitor, request, "/inbox", None)) }
            @if open.items.is_empty() {
                div.card { (ui::empty("Nothing waits for you", &html! { "Runs that ask for an approval or an answer show up here. A run asks where its assignment says " code { "ask" } " for a tool, or where its playbook or model asks." })) }
            }
            (ui::pager(offset, shown, open.total, u64::from(LIMIT), &|offset| format!("/inbox?offset={offset}")))
        }
    })
}

/// One request, with its answer's form. `sent`: what was answered and did not fit, and why.
pub(super) fn card(
    visitor: &Visitor,
    open: &OpenRequest,
    back: &str,
    sent: Option<(&Fields, &str)>,
) -> Markup {
    let request = &open.request;
    let id = request.id.to_string();
    html! {
        article.request data-request=(id) aria-labelledby={ "r-" (id) } {
            div.small.dim {
                @if back != "run" {
                    a href={ "/assignments/" (open.agent) } { (open.agent_name) } " · "
                    a href={ "/runs/" (open.run) } { (open.run_title.as_deref().unwrap_or("the run")) } " · "
                }
                "asked " (ui::time(request.created_at, visitor.now))
                @if let Some(end) = request.expires_at { " · lapses " (ui::time(end, visitor.now)) }
            }
            h2 id={ "r-" (id) } { (request.title) }
            @if let Some(description) = &request.description { (text::markdown(description)) }
            (the_call(request))
            @if let Some((_, wrong)) = sent { (ui::alert(Some(wrong))) }
            @if visitor.may(Permission::ManageRuns) {
                (form(visitor, open, back, sent.map(|(fields, _)| fields)))
            }
        }
    }
}

/// Requests as a table, each with a link to where it is answered.
pub(super) fn short(open: &[OpenRequest], now: Timestamp) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Request" } th scope="col" { "Kind" } th scope="col" { "Assignment" } th scope="col" { "Asked" } th { span.visually-hidden { "Answer" } } } }
                tbody {
                    @for one in open {
                        tr {
                            td.title { a href={ "/runs/" (one.run) } { (one.request.title) } @if let Some(title) = &one.run_title { span.sub { (title) } } }
                            td { @match one.request.ask { Ask::Approval => (ui::state("ask", "approval")), Ask::Question { .. } => (ui::state("ask", "question")) } }
                            td { a.link href={ "/assignments/" (one.agent) } { (one.agent_name) } }
                            td { (ui::time(one.request.created_at, now)) }
                            td.num { a.button href={ "/runs/" (one.run) } aria-label={ "Answer: " (one.request.title) } { "Answer" } }
                        }
                    }
                }
            }
        }
    }
}

/// The exact call that the answer is about.
fn the_call(request: &HumanRequest) -> Markup {
    let Some(call) = &request.tool_call else {
        return html! {};
    };
    let says = match &request.origin {
        Origin::Policy { .. } => "An approval releases exactly this call, and no other:",
        Origin::InDoubt { .. } => {
            "The server was stopped during this call; whether it was done is not known:"
        }
        Origin::Connection { .. } => {
            "A connection's server asks during this call, and gets the answer:"
        }
        Origin::Model | Origin::Tool { .. } | Origin::Limit { .. } => "It is about this call:",
    };
    html! {
        div {
            p.small.dim { (says) }
            details.fold open {
                summary { strong.mono { (call.name) } }
                div.inside { (text::exact(&call.arguments)) }
            }
        }
    }
}

fn form(visitor: &Visitor, open: &OpenRequest, back: &str, sent: Option<&Fields>) -> Markup {
    let request = &open.request;
    let was = |name: &str| sent.map(|fields| fields.get(name)).unwrap_or_default();
    let id = request.id.to_string();
    html! {
        form.form method="post" action={ "/runs/" (open.run) "/answers/" (id) } {
            (ui::form_token(visitor))
            input type="hidden" name="back" value=(back);
            @match &request.ask {
                Ask::Approval => {
                    div.field {
                        label for={ "why-" (id) } { "Reason " span.hint { "optional; the run gets to read it" } }
                        input id={ "why-" (id) } name="reason" value=(was("reason")) autocomplete="off";
                    }
                    div.buttons {
                        button.main name="decision" value="approve" { "Approve" }
                        button.risky name="decision" value="deny" { "Deny" }
                    }
                }
                Ask::Question { questions } => {
                    @for (index, question) in questions.iter().enumerate() { (one_question(&id, index, question, sent)) }
                    div.buttons { button.main name="decision" value="answer" { "Answer" } }
                }
            }
        }
    }
}

fn one_question(id: &str, index: usize, question: &Question, sent: Option<&Fields>) -> Markup {
    let name = format!("q{index}");
    let own = format!("q{index}_text");
    let chosen: Vec<&str> = sent
        .map(|fields| fields.all(&name).collect())
        .unwrap_or_default();
    let text = sent.map(|fields| fields.get(&own)).unwrap_or_default();
    let kind = if question.multi_select {
        "checkbox"
    } else {
        "radio"
    };
    html! {
        fieldset {
            legend {
                @if let Some(header) = &question.header { span.hint { (header) } }
                (question.question)
            }
            @for option in &question.options {
                label.choice {
                    input type=(kind) name=(name) value=(option.label) checked[chosen.contains(&option.label.as_str())];
                    span { (option.label) @if let Some(more) = &option.description { span.hint { (more) } } }
                }
            }
            @if question.free_text {
                @let label = if question.options.is_empty() { "Your answer" } else { "Or in your own words" };
                @if question.options.is_empty() {
                    textarea id={ (own) "-" (id) } name=(own) aria-label=(label) rows="3" { (text) }
                } @else {
                    input id={ (own) "-" (id) } name=(own) aria-label=(label) placeholder=(label) value=(text) autocomplete="off";
                }
            }
        }
    }
}

fn closed_table(closed: &[ClosedRequest], now: Timestamp) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Request" } th scope="col" { "Answer" } th scope="col" { "By" } th scope="col" { "When" } } }
                tbody {
                    @for one in closed {
                        tr {
                            td.title { a href={ "/runs/" (one.asked.run) } { (one.asked.request.title) } span.sub { (one.asked.agent_name) } }
                            td { (answer(&one.resolution)) }
                            td { (one.by.as_deref().unwrap_or("–")) }
                            td { (ui::time(one.closed_at, now)) }
                        }
                    }
                }
            }
        }
    }
}

/// How a request was closed, in a few words.
pub(super) fn answer(resolution: &Resolution) -> Markup {
    html! {
        @match resolution {
            Resolution::Approved { reason } => { (ui::state("completed", "approved")) (because(reason.as_deref())) }
            Resolution::Denied { reason } => { (ui::state("failed", "denied")) (because(reason.as_deref())) }
            Resolution::Answered { answers } => {
                @for (question, value) in answers { span.sub { (question) } (text::brief(value)) br; }
            }
            Resolution::Expired { .. } => (ui::state("other", "lapsed")),
            Resolution::Message { text } => { "closed by a message" span.sub { (text.chars().take(120).collect::<String>()) } }
            Resolution::Stopped => (ui::state("interrupted", "run stopped")),
        }
    }
}

fn because(reason: Option<&str>) -> Markup {
    html! { @if let Some(reason) = reason { span.sub { (reason) } } }
}
