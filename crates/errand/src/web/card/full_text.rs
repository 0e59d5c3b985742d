//! Pages for texts of a request that may be too long for its card.
//!
//! Guarantees: a page shows a bounded part of a text and links to the next part. Every character is visible.

use axum::extract::State;
use errand_core::display::Layout;
use errand_core::human::HumanRequest;
use errand_core::id::{HumanRequestId, RunId};
use maud::html;
use serde_json::Value;

use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Params, Path};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page};
use crate::web::{Web, text, ui};

const PART_BYTES_MAX: usize = 256 * 1024;

/// All arguments of the request's call.
pub(super) const CALL: &str = "call";
pub(super) const DESCRIPTION: &str = "description";
/// The quoted words of the connection's server.
pub(in crate::web) const QUOTE: &str = "quote";

/// The address of a text. `of`: one of the names above, or the index of an argument.
pub(in crate::web) fn url(run: RunId, request: HumanRequestId, of: &str) -> String {
    format!("/runs/{run}/requests/{request}/text?of={of}")
}

/// Shows one part of a text.
pub(in crate::web) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Path((run, id)): Path<(RunId, HumanRequestId)>,
    Params(params): Params,
) -> PageResult {
    let found = web.store.requests(visitor.team_id(), vec![id]).await?;
    let found = found.into_iter().find(|found| found.asked().run == run);
    let Some(found) = found else {
        return Err(PageError::not_found());
    };
    let request = &found.asked().request;
    let of = params.get("of");
    let (Some(what), Some(whole)) = (what(request, of), text_of(request, of)) else {
        return Err(PageError::not_found());
    };
    let from: usize = params.get("from").parse().unwrap_or(0);
    let Some(rest) = whole.get(from..) else {
        return Err(PageError::not_found());
    };
    let (shown, bytes) = text::exact_within(rest, Layout::Lines, PART_BYTES_MAX);
    let end = from.saturating_add(bytes);
    let way = url(run, id, of);
    let body = html! {
        div.crumbs { a href="/inbox" { "Inbox" } " / " a href={ "/runs/" (run) } { "Run" } }
        div.head { h1 { (what) } }
        p.dim {
            "Bytes " (ui::number(from as u64)) " to " (ui::number(end as u64)) " of " (ui::number(whole.len() as u64)) "."
        }
        pre.block-code.whole tabindex="0" dir="auto" { (shown) }
        p {
            @if from > 0 { a href=(way) { "First part" } " " }
            @if end < whole.len() { a href={ (way) "&from=" (end) } { "Next part" } }
        }
    };
    Ok(page(&visitor, "Request text", Section::Inbox, &body))
}

/// The heading of a text: our words and, set apart, the name of the argument.
fn what(request: &HumanRequest, of: &str) -> Option<maud::Markup> {
    Some(match of {
        CALL => html! { "Call arguments" },
        DESCRIPTION => html! { "Request description" },
        QUOTE => html! { "Text of the connection's server" },
        _ => {
            let (name, _) = argument(request, of)?;
            html! { "Argument " code { (ui::name(&text::start(name, 200))) } }
        }
    })
}

fn argument<'a>(request: &'a HumanRequest, index: &str) -> Option<(&'a String, &'a Value)> {
    let index: usize = index.parse().ok()?;
    request.tool_call.as_ref()?.arguments.iter().nth(index)
}

fn text_of(request: &HumanRequest, of: &str) -> Option<String> {
    match of {
        CALL => {
            let call = request.tool_call.as_ref()?;
            Some(text::pretty(&Value::Object(call.arguments.clone())))
        }
        DESCRIPTION => request.description.clone(),
        QUOTE => request.quote.as_ref().map(|quote| quote.text.clone()),
        _ => match argument(request, of)?.1 {
            Value::String(text) => Some(text.clone()),
            other => Some(text::pretty(other)),
        },
    }
}
