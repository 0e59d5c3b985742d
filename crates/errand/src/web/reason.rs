//! What a request carries from outside: what was read before a call, and what a connection's server says. Shown as quoted
//! plain text, never as words of this program, and never as markup.

use errand_core::content::{Read, Source};
use errand_core::human::HumanRequest;
use errand_core::id::RunId;
use errand_core::shown::one_line;
use errand_core::time::Timestamp;
use maud::{Markup, html};

use super::card::long_text;
use super::ui;

/// The sources of a request's reason, each with the way to its place in the transcript, and its quote. `run`: the run
/// that asks.
pub(super) fn reason(request: &HumanRequest, run: RunId, now: Timestamp) -> Markup {
    let sources = request.reason.as_ref();
    let more = sources.map_or(0, |reason| reason.more);
    let sources = sources
        .map(|reason| reason.sources.as_slice())
        .unwrap_or_default();
    html! {
        @if let Some(quote) = &request.quote {
            p.small.dim { "The server of the connection " span.mono { (one_line(&quote.by)) } " says:" }
            blockquote.quoted aria-label="Text of the connection's server" { (long_text(&quote.text)) }
        }
        @if !sources.is_empty() {
            p.small.dim { "What was read before, the newest last:" }
            ul.small {
                @for source in sources { li { (one(source, run)) " " (ui::time(source.read.at, now)) } }
            }
            @if more > 0 { p.small.dim { "And up to " (more) " more before." } }
        }
    }
}

fn one(source: &Source, run: RunId) -> Markup {
    let read = &source.read;
    html! {
        span.mono { (one_line(&read.tool)) }
        @if let Some(item) = &read.item { " " q dir="auto" { (one_line(item)) } }
        @if source.untrusted { " · untrusted" }
        @if source.private { " · private" }
        @let words = if read.run.is_some() { "View in another run" } else { "View in the transcript" };
        @if let Some(place) = place_of(read, run) { " · " a href=(place) { (words) } }
    }
}

/// The way to where a read is shown: the part of the transcript that has its entry. Reads from before positions were
/// recorded have a call, which is looked for in the newest part. `run`: the run that asks.
fn place_of(read: &Read, run: RunId) -> Option<String> {
    let of = read.run.unwrap_or(run);
    match (read.position, &read.call_id) {
        (Some(position), _) => Some(super::run::way_to(of, position)),
        (None, Some(call)) => Some(format!("/runs/{of}#{}", ui::call_anchor(call))),
        (None, None) => read.run.map(|_| format!("/runs/{of}")),
    }
}
