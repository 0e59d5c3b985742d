//! The card of a human request: what a person needs to judge it, and the form that answers it.
//!
//! Guarantees:
//! - Pressing a key in a text field never submits the form: its first submit button, which a browser activates in this
//!   case, is disabled. The server accepts only the value of the pressed button (see [`super::run::answer`]).
//! - Foreign text is never part of our sentences. Text of a model, a playbook or a server is framed as a quotation,
//!   below a fixed line of ours that says who asks and what an answer does. Only requests of the engine have the
//!   engine's frame.
//! - A card has a bounded size, however long its content is; so does a page of cards ([`open_within`]). If something is
//!   left out, the card says so and links to it.
//! - An answered card keeps its size: the outcome is laid over its buttons.

mod call;
pub(super) mod full_text;

use std::collections::HashMap;

use errand_core::display::{Layout, display, one_line};
use errand_core::human::{Ask, HumanRequest, Origin, Question, Resolution, TITLE_CHARS_MAX};
use errand_core::id::RunId;
use errand_core::role::Permission;
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

/// Maximum length in characters of the run's message on a card.
const ASKED_CHARS_MAX: usize = 300;
/// Maximum size in bytes of a description that is rendered as Markdown. A longer one is shown as plain text.
const MARKDOWN_BYTES_MAX: usize = 16 * 1024;
/// Maximum size in bytes of the HTML of a question, or of a description written by us.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Maximum size in bytes of the HTML of a short text: a header, a label, an answer.
const SHORT_BYTES_MAX: usize = 4 * 1024;
/// Answers shown on an answered card, and values shown per answer.
const ANSWERS_MAX: usize = 50;
/// Maximum size in bytes of the HTML of a page's cards. The card that exceeds it is the last one shown completely.
pub(super) const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The author of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voice {
    /// The engine, about a call or a limit.
    Engine,
    /// The model, in its own words.
    Model,
    /// The playbook: text of the build's author, which may contain data of the run.
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

    /// The words before a foreign title. `None` for titles of ours.
    fn asks(self) -> Option<&'static str> {
        match self {
            Self::Engine => None,
            Self::Model => Some("The model asks:"),
            Self::Playbook => Some("The playbook asks:"),
            Self::Server => Some("A connection asks:"),
        }
    }

    /// The fixed line that says who asks and what an answer does.
    fn line(self, ask: &Ask) -> Option<&'static str> {
        match (self, ask) {
            (Self::Engine, _) => None,
            (Self::Model, Ask::Approval) => {
                Some("The model asks for this. Approving does not approve any tool call.")
            }
            (Self::Model, Ask::Question { .. }) => {
                Some("The model asks this. Answering does not approve any tool call.")
            }
            (Self::Playbook, Ask::Approval) => Some(
                "The playbook of this assignment asks for this. Its next steps receive your decision.",
            ),
            (Self::Playbook, Ask::Question { .. }) => Some(
                "The playbook of this assignment asks this. Its next steps receive your answers.",
            ),
            (Self::Server, _) => Some(
                "The server of a connection asks this during the call below. It receives your answer.",
            ),
        }
    }

    /// Accessible label of a quotation: who wrote it.
    fn quoted(self) -> &'static str {
        match self {
            Self::Engine => "Text of the request",
            Self::Model => "Text of the model",
            Self::Playbook => "Text of the playbook",
            Self::Server => "Text of the connection's server",
        }
    }
}

/// Data that cards show besides their requests.
#[derive(Default)]
pub(super) struct CardData {
    asked_for: HashMap<RunId, AskedFor>,
    tools: HashMap<String, String>,
}

impl CardData {
    /// Reads the data for all cards of a page with two queries.
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

/// The page a card is on.
pub(super) struct CardContext<'a> {
    pub(super) visitor: &'a Visitor,
    pub(super) around: &'a CardData,
    /// The page to return to after answering: `run`, or the address of the inbox.
    pub(super) back: &'a str,
}

/// The submitted fields of a refused answer, and the reason for the refusal.
pub(super) type RefusedAnswer<'a> = Option<(&'a Fields, &'a str)>;

/// The card of an open request.
pub(super) fn open(
    setting: &CardContext<'_>,
    open: &OpenRequest,
    sent: RefusedAnswer<'_>,
) -> Markup {
    card(setting, open, None, sent)
}

/// The card of an open request on a page that has `room` bytes left. If no room is left, only its heading and a link to
/// the run.
pub(super) fn open_within(
    setting: &CardContext<'_>,
    open: &OpenRequest,
    room: &mut usize,
) -> Markup {
    let shown = if *room > 0 {
        card(setting, open, None, None)
    } else {
        placeholder(setting, open)
    };
    *room = room.saturating_sub(shown.0.len());
    shown
}

fn placeholder(setting: &CardContext<'_>, open: &OpenRequest) -> Markup {
    let request = &open.request;
    let id = request.id.to_string();
    html! {
        article class=(Voice::of(request).class()) id={ "r-" (id) } data-request=(id) aria-labelledby={ "t-" (id) } {
            (origin_line(setting, open))
            h2 id={ "t-" (id) } tabindex="-1" { (heading(request)) }
            p { "This page is too long to show the whole request. " a href={ "/runs/" (open.run) } { "Open the run to answer" } }
            div.decide { div data-outcome {} }
        }
    }
}

/// The card of an answered request, in its old position. `sent`: an answer that came too late.
pub(super) fn closed(
    setting: &CardContext<'_>,
    closed: &ClosedRequest,
    sent: RefusedAnswer<'_>,
) -> Markup {
    card(setting, &closed.asked, Some(closed), sent)
}

fn card(
    setting: &CardContext<'_>,
    open: &OpenRequest,
    closed: Option<&ClosedRequest>,
    sent: RefusedAnswer<'_>,
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
            // The buttons are sticky from here on, so that they never cover a title that was not seen.
            div.body {
                @if let Some(description) = &request.description { (description_block(voice, request, open.run, description)) }
                (reason_of(request, open.run, setting.visitor.now))
                @if let Some(call) = &request.tool_call {
                    (call::display(call, setting.around.tools.get(&call.name).map(String::as_str), &|of| full_text::url(open.run, request.id, of)))
                }
                @if setting.visitor.may(Permission::ManageRuns) {
                    (form(setting, open, closed, sent))
                } @else if let Some(closed) = closed {
                    (outcome(closed, setting.visitor.now))
                } @else {
                    // The script puts the outcome here.
                    div.decide { div data-outcome {} }
                }
            }
        }
    }
}

/// The run that asks, and the time of the request.
fn origin_line(setting: &CardContext<'_>, open: &OpenRequest) -> Markup {
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

/// The title. A foreign one is quoted.
pub(super) fn heading(request: &HumanRequest) -> Markup {
    let title = text::start(&request.title, TITLE_CHARS_MAX);
    html! {
        @match Voice::of(request).asks() {
            None => (ui::name(&title)),
            Some(asks) => { span.asks { (asks) } " " q.outside { (ui::name(&title)) } }
        }
    }
}

/// A request as an entry of a transcript, without a form.
pub(super) fn in_transcript(request: &HumanRequest, run: RunId) -> Markup {
    let voice = Voice::of(request);
    html! {
        strong { (heading(request)) }
        (line_of_call(request))
        @if let Some(description) = &request.description { (description_block(voice, request, run, description)) }
    }
}

fn line_of_call(request: &HumanRequest) -> Markup {
    html! { @if let Some(call) = &request.tool_call { span.small { (brief(call)) } } }
}

/// A request in one line of a list: the deciding arguments of its call, or its questions.
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

/// The title as plain text, for places without markup.
pub(super) fn plain_heading(request: &HumanRequest) -> String {
    let title = one_line(&text::start(&request.title, TITLE_CHARS_MAX));
    match Voice::of(request).asks() {
        None => title,
        Some(asks) => format!("{asks} “{title}”"),
    }
}

/// The message that the run is working on.
fn asked_for(setting: &CardContext<'_>, open: &OpenRequest) -> Markup {
    let Some(asked) = setting.around.asked_for.get(&open.run) else {
        return html! {};
    };
    let Body::User { text, .. } = &asked.body else {
        return html! {};
    };
    html! {
        div.asked-for {
            div.small { span.dim { "Message to the run: " } a href={ "/runs/" (open.run) "#e-" (asked.position) } { "View message" } }
            q.outside.line { (ui::name(&text::clip(text.trim(), ASKED_CHARS_MAX))) }
        }
    }
}

/// The request's description. The engine's own is a plain paragraph; all others are quoted.
fn description_block(
    voice: Voice,
    request: &HumanRequest,
    run: RunId,
    description: &str,
) -> Markup {
    let ours =
        || html! { p.why dir="auto" { (exact_cut(description, Layout::Lines, TEXT_BYTES_MAX)) } };
    let theirs = || {
        let way = full_text::url(run, request.id, full_text::DESCRIPTION);
        html! { blockquote.quoted aria-label=(voice.quoted()) { (call::long_text(description, &way)) } }
    };
    html! {
        @match voice {
            Voice::Engine => (ours()),
            // The server's words are in the request's `quote`. Requests stored by older versions have them in the
            // description.
            Voice::Server if request.quote.is_some() => (ours()),
            Voice::Server => (theirs()),
            Voice::Model | Voice::Playbook if description.len() > MARKDOWN_BYTES_MAX => (theirs()),
            Voice::Model | Voice::Playbook => blockquote.quoted dir="auto" aria-label=(voice.quoted()) { (text::markdown(&display(description))) },
        }
    }
}

fn form(
    setting: &CardContext<'_>,
    open: &OpenRequest,
    closed: Option<&ClosedRequest>,
    sent: RefusedAnswer<'_>,
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
            // A browser presses the first submit button when Enter is pressed in a text field. This one does nothing.
            button type="submit" disabled hidden tabindex="-1" {}
            (ui::form_token(setting.visitor))
            input type="hidden" name="back" value=(setting.back);
            @match &request.ask {
                Ask::Approval => (reason(&id, fields, is_closed)),
                Ask::Question { questions } => {
                    @for (index, question) in questions.iter().enumerate() { (one_question(&id, index, question, fields, is_closed)) }
                }
            }
            p.wrong role="alert" data-wrong { @if let Some((_, message)) = sent { (message) } }
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
                @let label = if question.options.is_empty() { "Your answer" } else { "Or write your own answer" };
                textarea id={ (own) "-" (id) } name=(own) aria-label=(label) placeholder=(label) rows=(if question.options.is_empty() { "3" } else { "1" }) dir="auto" readonly[is_closed] { (text) }
            }
        }
    }
}

/// The outcome of a request: who answered what, and when. Takes the place of the buttons.
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

/// The content of an answer: reason, answers, or message.
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

/// How a request was closed, with the content of the answer.
pub(super) fn answer(resolution: &Resolution) -> Markup {
    html! { (verdict(resolution)) (details(resolution)) }
}

/// `Cost center: 4712 Sales`, `Which months? January, February`.
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

/// The message for a person whose answer came too late.
pub(super) fn too_late(closed: &ClosedRequest) -> String {
    let how = match closed.resolution {
        Resolution::Approved { .. } => "approved",
        Resolution::Denied { .. } => "denied",
        Resolution::Answered { .. } => "answered",
        Resolution::Expired { .. } => "closed, because it expired",
        Resolution::Message { .. } => "closed by a message",
        Resolution::Stopped => "closed, because the run was stopped",
    };
    let by = closed
        .by
        .as_deref()
        .map(|by| format!(" by {}", one_line(by)))
        .unwrap_or_default();
    let at = closed.closed_at;
    format!("Your answer was not sent: the request was already {how}{by} at {at}.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_shown_as_people_gave_them() {
        let shown = |question: &str, value: Value| answered(question, &value).into_string();
        assert_eq!(
            shown("Cost center", json!("4712 Sales")),
            "<bdi>Cost center</bdi>: <bdi class=\"text\">4712 Sales</bdi>"
        );
        assert_eq!(
            shown("Which months?", json!(["January", "<b>"])),
            "<bdi>Which months?</bdi> <bdi class=\"text\">January</bdi>, <bdi class=\"text\">&lt;b&gt;</bdi>"
        );
    }
}
