//! The card of a human request: what a person needs to judge it, and the form that answers it.
//!
//! Guarantees:
//! - No key pressed in a text field submits the form: its first submit button, which is what a browser presses then, is
//!   disabled. The server takes nothing but the value of the button that was pressed, see [`super::run::answer`].
//! - Text from outside never stands in a sentence of ours. What a model, a playbook or a server says is framed as a
//!   quotation, below a fixed line of ours that says who asks and what an answer does; only a request of the engine has
//!   the engine's frame.
//! - A card has a bounded size, however long what it shows is; so has a page of cards ([`open_within`]). What is left out
//!   is said, with the way to it.
//! - A card that was answered has the same size as before: what became of it is laid over its buttons.

mod call;
pub(super) mod whole;

use std::collections::HashMap;

use errand_core::human::{Ask, HumanRequest, Origin, Question, Resolution, TITLE_CHARS_MAX};
use errand_core::id::RunId;
use errand_core::role::Permission;
use errand_core::shown::{Layout, one_line, printable};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;
use errand_store::{AskedFor, ClosedRequest, OpenRequest, StoreError};
use maud::{Markup, html};
use serde_json::Value;

use super::form::Fields;
use super::guard::Visitor;
use super::reason::reason as reason_of;
use super::text::{exact_cut, exact_line};
use super::{Web, text, ui};
pub(super) use call::{brief, long_text};

/// Characters of the user's message that a card shows.
const ASKED_CHARS_MAX: usize = 300;
/// Most bytes of a description that is read as Markdown; beyond, it is shown as a long text.
const MARKDOWN_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of HTML of a question, and of a description of ours.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of HTML of a short text: a header, a label, an answer.
const SHORT_BYTES_MAX: usize = 4 * 1024;
/// Most answers that are shown of a request that was answered, and most values of each of them.
const ANSWERS_MAX: usize = 50;
/// Most bytes of HTML of the cards of a page. The card with which it is reached is the last one that is shown whole.
pub(super) const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voice {
    /// The engine, about a call or a limit.
    Engine,
    /// The model, in words of its own.
    Model,
    /// The playbook: text of whoever wrote the build, which may hold data of the run.
    Playbook,
    /// The server of a connection.
    Server,
}

impl Voice {
    fn of(request: &HumanRequest) -> Self {
        match request.origin {
            Origin::Policy { .. } | Origin::InDoubt { .. } | Origin::Limit { .. } => Self::Engine,
            Origin::Tool { .. } => Self::Model,
            Origin::Model => Self::Playbook,
            Origin::Connection { .. } => Self::Server,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Engine => "request engine",
            Self::Model => "request model",
            Self::Playbook => "request playbook",
            Self::Server => "request server",
        }
    }

    /// The words before a title that is not ours.
    fn asks(self) -> Option<&'static str> {
        match self {
            Self::Engine => None,
            Self::Model => Some("The model asks:"),
            Self::Playbook => Some("The playbook asks:"),
            Self::Server => Some("A connection asks:"),
        }
    }

    /// The fixed line: who asks, and what an answer does.
    fn line(self, ask: &Ask) -> Option<&'static str> {
        match (self, ask) {
            (Self::Engine, _) => None,
            (Self::Model, Ask::Approval) => {
                Some("The model asks this. Approving releases no call by itself.")
            }
            (Self::Model, Ask::Question { .. }) => {
                Some("The model asks this. Answering releases no call by itself.")
            }
            (Self::Playbook, Ask::Approval) => Some(
                "The playbook of this assignment asks this. Your decision goes to its next steps.",
            ),
            (Self::Playbook, Ask::Question { .. }) => Some(
                "The playbook of this assignment asks this. Your answers go to its next steps.",
            ),
            (Self::Server, _) => Some(
                "The server of a connection asks this during the call below. Your answer goes to that server.",
            ),
        }
    }

    /// Whose words a quotation holds.
    fn quoted(self) -> &'static str {
        match self {
            Self::Engine => "Text of the request",
            Self::Model => "Text of the model",
            Self::Playbook => "Text of the playbook",
            Self::Server => "Text of the connection's server",
        }
    }
}

/// What cards show besides their requests.
#[derive(Default)]
pub(super) struct Around {
    asked_for: HashMap<RunId, AskedFor>,
    tools: HashMap<String, String>,
}

impl Around {
    /// Reads it for all cards of a page.
    pub(super) async fn of<'a>(
        web: &Web,
        visitor: &Visitor,
        requests: impl Iterator<Item = &'a OpenRequest> + Clone,
    ) -> Result<Self, StoreError> {
        let team = visitor.team_id();
        let runs: Vec<RunId> = requests.clone().map(|open| open.run).collect();
        let tools: Vec<String> = requests
            .filter_map(|open| open.request.tool_call.as_ref())
            .map(|call| call.name.clone())
            .collect();
        if runs.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self {
            asked_for: web.store.asked_for(team, runs).await?,
            tools: web.store.tool_descriptions(team, tools).await?,
        })
    }
}

/// Where a card stands, and with what.
pub(super) struct Setting<'a> {
    /// Who looks.
    pub(super) visitor: &'a Visitor,
    /// What it shows besides the request.
    pub(super) around: &'a Around,
    /// The page that it is on: `run`, or the address of the inbox.
    pub(super) back: &'a str,
}

/// What was answered and did not fit, and why.
pub(super) type SentBack<'a> = Option<(&'a Fields, &'a str)>;

/// A request that waits.
pub(super) fn open(setting: &Setting<'_>, open: &OpenRequest, sent: SentBack<'_>) -> Markup {
    card(setting, open, None, sent)
}

/// A request that waits, on a page that has `room` bytes left. With no room left, it is its heading and a link to the run.
pub(super) fn open_within(setting: &Setting<'_>, open: &OpenRequest, room: &mut usize) -> Markup {
    let shown = if *room > 0 {
        card(setting, open, None, None)
    } else {
        elsewhere(setting, open)
    };
    *room = room.saturating_sub(shown.0.len());
    shown
}

fn elsewhere(setting: &Setting<'_>, open: &OpenRequest) -> Markup {
    let request = &open.request;
    let id = request.id.to_string();
    html! {
        article class=(Voice::of(request).class()) id={ "r-" (id) } data-request=(id) aria-labelledby={ "t-" (id) } {
            (origin_line(setting, open))
            h2 id={ "t-" (id) } tabindex="-1" { (heading(request)) }
            p { "There is more on this page than it can show. " a href={ "/runs/" (open.run) } { "Open the run to answer" } }
            div.decide { div data-outcome {} }
        }
    }
}

/// A request that was answered, where it stood; with what somebody sent too late.
pub(super) fn closed(setting: &Setting<'_>, closed: &ClosedRequest, sent: SentBack<'_>) -> Markup {
    card(setting, &closed.asked, Some(closed), sent)
}

fn card(
    setting: &Setting<'_>,
    open: &OpenRequest,
    closed: Option<&ClosedRequest>,
    sent: SentBack<'_>,
) -> Markup {
    let request = &open.request;
    let voice = Voice::of(request);
    let id = request.id.to_string();
    html! {
        article class=(voice.class()) id={ "r-" (id) } data-request=(id) data-closed[closed.is_some()] aria-labelledby={ "t-" (id) } {
            (origin_line(setting, open))
            h2 id={ "t-" (id) } tabindex="-1" { (heading(request)) }
            @if let Some(line) = voice.line(&request.ask) { p.says { (line) } }
            (asked_for(setting, open))
            // The buttons stay in view from here on: never above a title that has not been seen.
            div.body {
                @if let Some(description) = &request.description { (described(voice, request, open.run, description)) }
                (reason_of(request, open.run, setting.visitor.now))
                @if let Some(call) = &request.tool_call {
                    (call::shown(call, setting.around.tools.get(&call.name).map(String::as_str), &|of| whole::way_to(open.run, request.id, of)))
                }
                @if setting.visitor.may(Permission::ManageRuns) {
                    (form(setting, open, closed, sent))
                } @else if let Some(closed) = closed {
                    (outcome(closed, setting.visitor.now))
                } @else {
                    // Where what becomes of it is shown.
                    div.decide { div data-outcome {} }
                }
            }
        }
    }
}

/// Of which run it is, and since when it waits.
fn origin_line(setting: &Setting<'_>, open: &OpenRequest) -> Markup {
    let now = setting.visitor.now;
    html! {
        div.small.dim.from {
            @if setting.back != "run" {
                a href={ "/assignments/" (open.agent) } { (ui::name(&open.agent_name)) } " · "
                a href={ "/runs/" (open.run) } { @match &open.run_title { Some(title) => (ui::name(title)), None => "View run" } } " · "
            }
            "asked " (ui::time(open.request.created_at, now))
            @if let Some(end) = open.request.expires_at { " · expires " (ui::time(end, now)) }
        }
    }
}

/// The title; one that is not ours as a quotation.
pub(super) fn heading(request: &HumanRequest) -> Markup {
    let title = text::start(&request.title, TITLE_CHARS_MAX);
    html! {
        @match Voice::of(request).asks() {
            None => (ui::name(&title)),
            Some(asks) => { span.asks { (asks) } " " q.outside { (ui::name(&title)) } }
        }
    }
}

/// A request as an entry of a transcript, where it cannot be answered.
pub(super) fn in_transcript(request: &HumanRequest, run: RunId) -> Markup {
    let voice = Voice::of(request);
    html! {
        strong { (heading(request)) }
        (line_of_call(request))
        @if let Some(description) = &request.description { (described(voice, request, run, description)) }
    }
}

fn line_of_call(request: &HumanRequest) -> Markup {
    html! { @if let Some(call) = &request.tool_call { span.small { (brief(call)) } } }
}

/// A request in a line of a list: what it asks, and what decides.
pub(super) fn line(request: &HumanRequest) -> Markup {
    html! {
        @match &request.tool_call {
            Some(call) => span.sub { (brief(call)) },
            None => {
                @if let Ask::Question { questions } = &request.ask {
                    span.sub { @for (index, question) in questions.iter().take(3).enumerate() { @if index > 0 { " " } span.arg { bdi { (exact_line(&text::start(&question.question, 80))) } } } }
                } @else if let Some(description) = &request.description {
                    span.sub { bdi { (exact_line(&text::clip(description, 160))) } }
                }
            }
        }
    }
}

/// The title of a request for a place that shows plain text alone.
pub(super) fn plain_heading(request: &HumanRequest) -> String {
    let title = one_line(&text::start(&request.title, TITLE_CHARS_MAX));
    match Voice::of(request).asks() {
        None => title,
        Some(asks) => format!("{asks} “{title}”"),
    }
}

/// What the user of the run asked for.
fn asked_for(setting: &Setting<'_>, open: &OpenRequest) -> Markup {
    let Some(asked) = setting.around.asked_for.get(&open.run) else {
        return html! {};
    };
    let Body::User { text, .. } = &asked.body else {
        return html! {};
    };
    html! {
        div.asked-for {
            div.small { span.dim { "The run was asked: " } a href={ "/runs/" (open.run) "#e-" (asked.position) } { "View message" } }
            q.outside.line { (ui::name(&text::clip(text.trim(), ASKED_CHARS_MAX))) }
        }
    }
}

/// More lines of a request. Those of the engine are ours and plain; all others are somebody's words.
fn described(voice: Voice, request: &HumanRequest, run: RunId, description: &str) -> Markup {
    let ours =
        || html! { p.why dir="auto" { (exact_cut(description, Layout::Lines, TEXT_BYTES_MAX)) } };
    let theirs = || {
        let way = whole::way_to(run, request.id, whole::DESCRIPTION);
        html! { blockquote.quoted aria-label=(voice.quoted()) { (call::long_text(description, &way)) } }
    };
    html! {
        @match voice {
            Voice::Engine => (ours()),
            // The server's own words are the request's quote; those of older requests stand here.
            Voice::Server if request.quote.is_some() => (ours()),
            Voice::Server => (theirs()),
            Voice::Model | Voice::Playbook if description.len() > MARKDOWN_BYTES_MAX => (theirs()),
            Voice::Model | Voice::Playbook => blockquote.quoted dir="auto" aria-label=(voice.quoted()) { (text::markdown(&printable(description))) },
        }
    }
}

fn form(
    setting: &Setting<'_>,
    open: &OpenRequest,
    closed: Option<&ClosedRequest>,
    sent: SentBack<'_>,
) -> Markup {
    let request = &open.request;
    let fields = sent.map(|(fields, _)| fields);
    let id = request.id.to_string();
    let is_closed = closed.is_some();
    let button = |class: &str, value: &str, name: &str| {
        html! {
            button class=(class) name="decision" value=(value) data-decides disabled[is_closed] aria-describedby={ "t-" (id) } { (name) }
        }
    };
    html! {
        form.form method="post" action={ "/runs/" (open.run) "/answers/" (id) } data-answer {
            // What a key pressed in a text field would press: nothing.
            button type="submit" disabled hidden tabindex="-1" {}
            (ui::form_token(setting.visitor))
            input type="hidden" name="back" value=(setting.back);
            @match &request.ask {
                Ask::Approval => (reason(&id, fields, is_closed)),
                Ask::Question { questions } => {
                    @for (index, question) in questions.iter().enumerate() { (one_question(&id, index, question, fields, is_closed)) }
                }
            }
            p.wrong role="alert" data-wrong { @if let Some((_, wrong)) = sent { (wrong) } }
            div.decide {
                @match &request.ask {
                    Ask::Approval => { (button("main", "approve", "Approve")) (button("risky", "deny", "Deny")) }
                    Ask::Question { .. } => (button("main", "answer", "Answer")),
                }
                span.of.small.dim aria-hidden="true" { @match &request.tool_call { Some(call) => { span.mono { (ui::name(&call.name)) } " " (brief(call)) }, None => (heading(request)) } }
                div data-outcome { @if let Some(closed) = closed { (outcome(closed, setting.visitor.now)) } }
            }
        }
    }
}

fn reason(id: &str, sent: Option<&Fields>, is_closed: bool) -> Markup {
    let was = sent.map(|fields| fields.get("reason")).unwrap_or_default();
    html! {
        div.field {
            label for={ "why-" (id) } { "Reason " span.hint { "Optional. The agent will see this." } }
            textarea id={ "why-" (id) } name="reason" rows="2" dir="auto" autocomplete="off" readonly[is_closed] { (was) }
        }
    }
}

fn one_question(
    id: &str,
    index: usize,
    question: &Question,
    sent: Option<&Fields>,
    is_closed: bool,
) -> Markup {
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
            legend dir="auto" {
                @if let Some(header) = &question.header { span.hint { (exact_cut(header, Layout::OneLine, SHORT_BYTES_MAX)) } }
                (exact_cut(&question.question, Layout::Lines, TEXT_BYTES_MAX))
            }
            @for option in &question.options {
                label.choice {
                    input type=(kind) name=(name) value=(option.label) checked[chosen.contains(&option.label.as_str())] disabled[is_closed];
                    span dir="auto" { (exact_cut(&option.label, Layout::OneLine, SHORT_BYTES_MAX)) @if let Some(more) = &option.description { span.hint { (exact_cut(more, Layout::OneLine, SHORT_BYTES_MAX)) } } }
                }
            }
            @if question.free_text {
                @let label = if question.options.is_empty() { "Your answer" } else { "Or in your own words" };
                textarea id={ (own) "-" (id) } name=(own) aria-label=(label) placeholder=(label) rows=(if question.options.is_empty() { "3" } else { "1" }) dir="auto" readonly[is_closed] { (text) }
            }
        }
    }
}

/// What became of a request: who answered, what and when. It takes the place of the buttons.
pub(super) fn outcome(closed: &ClosedRequest, now: Timestamp) -> Markup {
    html! {
        div.outcome tabindex="-1" {
            span {
                (verdict(&closed.resolution))
                @if let Some(by) = &closed.by { " by " (ui::who(by)) }
                ", " (ui::time(closed.closed_at, now)) ". "
                a href={ "/runs/" (closed.asked.run) } { "View run" }
            }
            (details(&closed.resolution))
        }
    }
}

fn verdict(resolution: &Resolution) -> Markup {
    match resolution {
        Resolution::Approved { .. } => ui::state("completed", "approved"),
        Resolution::Denied { .. } => ui::state("failed", "denied"),
        Resolution::Answered { .. } => ui::state("completed", "answered"),
        Resolution::Expired { .. } => ui::state("other", "expired"),
        Resolution::Message { .. } => ui::state("other", "closed by a message"),
        Resolution::Stopped => ui::state("interrupted", "run stopped"),
    }
}

/// What was said with an answer.
fn details(resolution: &Resolution) -> Markup {
    html! {
        @match resolution {
            Resolution::Approved { reason: Some(reason) } | Resolution::Denied { reason: Some(reason) } => span.sub.text dir="auto" { (exact_cut(reason, Layout::Lines, SHORT_BYTES_MAX)) },
            Resolution::Answered { answers } => {
                @for (question, value) in answers.iter().take(ANSWERS_MAX) { span.sub { (answered(question, value)) } }
            }
            Resolution::Message { text } => span.sub dir="auto" { (exact_line(&text::clip(text, 120))) },
            _ => {}
        }
    }
}

/// How a request was closed, in a few words.
pub(super) fn answer(resolution: &Resolution) -> Markup {
    html! { (verdict(resolution)) (details(resolution)) }
}

/// `Cost centre: 4712 Sales`, `Which months? January, February`.
fn answered(question: &str, value: &Value) -> Markup {
    let separator = if question.trim_end().ends_with(['?', ':', '？', '؟']) {
        " "
    } else {
        ": "
    };
    let given: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    html! {
        bdi { (exact_cut(question, Layout::OneLine, SHORT_BYTES_MAX)) } (separator)
        @for (index, one) in given.iter().take(ANSWERS_MAX).enumerate() { @if index > 0 { ", " } bdi.text { (exact_cut(one, Layout::Lines, SHORT_BYTES_MAX)) } }
    }
}

/// A closed request in words, for whoever's answer came too late.
pub(super) fn too_late(closed: &ClosedRequest) -> String {
    let how = match closed.resolution {
        Resolution::Approved { .. } => "approved",
        Resolution::Denied { .. } => "denied",
        Resolution::Answered { .. } => "answered",
        Resolution::Expired { .. } => "closed because it expired",
        Resolution::Message { .. } => "closed by a message",
        Resolution::Stopped => "closed because the run was stopped",
    };
    let by = closed
        .by
        .as_deref()
        .map(|by| format!(" by {}", one_line(by)))
        .unwrap_or_default();
    let at = closed.closed_at;
    format!("Your answer was not sent: it was {how}{by} at {at}.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_shown_as_people_gave_them() {
        let shown = |question: &str, value: Value| answered(question, &value).into_string();
        assert_eq!(
            shown("Cost centre", json!("4712 Sales")),
            "<bdi>Cost centre</bdi>: <bdi class=\"text\">4712 Sales</bdi>"
        );
        assert_eq!(
            shown("Which months?", json!(["January", "<b>"])),
            "<bdi>Which months?</bdi> <bdi class=\"text\">January</bdi>, <bdi class=\"text\">&lt;b&gt;</bdi>"
        );
    }
}
