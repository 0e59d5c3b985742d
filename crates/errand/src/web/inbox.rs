//! The inbox: all open requests of the team.
//!
//! Guarantees: a page has a bounded size, however long the requests are. Answers use the store operation of the API,
//! which decides who was first. Nothing on an open page moves or is replaced: [`open`] reports the outcome of the
//! page's cards and returns new cards, which the page appends when the person asks for them.

use axum::extract::State;
use errand_core::human::Ask;
use errand_core::id::{HumanRequestId, TeamId};
use errand_core::time::Timestamp;
use errand_store::model::PageQuery;
use errand_store::{ClosedRequest, FoundRequest, OpenRequest, StoreError};
use maud::{Markup, html};

use super::card::{CardContext, CardData};
use super::failure::PageResult;
use super::form::{Fields, Params};
use super::guard::Visitor;
use super::layout::{Section, fragment, page};
use super::{Web, card, ui};

const LIMIT: u32 = 25;
/// Recently closed requests shown.
const CLOSED: u32 = 20;
/// Maximum number of cards that a page names when it asks for updates.
const SHOWN_MAX: usize = 200;
/// Requests created up to this long before the page was rendered count as new unless the page shows them, because their
/// transaction may not have been committed yet.
const OVERLAP_MS: i64 = 5_000;

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    let answered = answered(&web, visitor.team_id(), &params).await?;
    let open = requests(&web, &visitor, offset, answered.as_ref()).await?;
    let closed = web.store.closed_requests(visitor.team_id(), CLOSED).await?;
    let body = html! {
        div.head {
            h1 { "Inbox" }
            div.actions { button type="button" data-notify hidden { "Turn on browser notifications" } }
        }
        @if let Some(answered) = &answered { (answered_note(answered, visitor.now)) }
        (open)
        section {
            div.head { h2 { "Recently answered" } }
            div.card {
                @if closed.is_empty() { (ui::empty("No answers yet", &html! { "Answers and who gave them appear here." })) }
                @else { (closed_table(&closed, visitor.now)) }
            }
        }
    };
    Ok(page(&visitor, "Inbox", Section::Inbox, &body))
}

/// The closed request that the parameter `answered` names.
pub(super) async fn answered(
    web: &Web,
    team: TeamId,
    params: &Fields,
) -> Result<Option<ClosedRequest>, StoreError> {
    let Ok(id) = params.get("answered").parse() else {
        return Ok(None);
    };
    let found = web.store.requests(team, vec![id]).await?;
    Ok(found.into_iter().find_map(|found| match found {
        FoundRequest::Closed(closed) => Some(closed),
        FoundRequest::Open(_) => None,
    }))
}

/// A note that says which request was answered, and how.
fn answered_note(closed: &ClosedRequest, now: Timestamp) -> Markup {
    html! {
        div.note.good role="status" {
            p { strong { (card::heading(&closed.asked.request)) } " " span.small { (card::line(&closed.asked.request)) } }
            (card::outcome(closed, now))
        }
    }
}

/// Polled by open pages: the outcome of the cards that a page shows, and the number of requests that it does not show.
/// With `cards`, also the cards of those.
pub(super) async fn open(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let team = visitor.team_id();
    let shown: Vec<HumanRequestId> = params
        .get("shown")
        .split(',')
        .filter_map(|id| id.parse().ok())
        .take(SHOWN_MAX)
        .collect();
    let seen: i64 = params.get("seen").parse().unwrap_or(0);
    let since = Timestamp::from_millis(i64::max(seen.saturating_sub(OVERLAP_MS), 0));
    let first = PageQuery {
        limit: 1,
        offset: 0,
    };
    let total = web.store.open_requests(team, first).await?.total;
    let most = LIMIT + u32::try_from(shown.len()).unwrap_or(LIMIT);
    let recent = web.store.open_requests_since(team, since, most).await?;
    let newest = recent.last().cloned();
    let fresh: Vec<OpenRequest> = recent
        .into_iter()
        .filter(|open| !shown.contains(&open.request.id))
        .take(LIMIT as usize)
        .collect();
    let gone = web.store.requests(team, shown).await?;
    let cards = if params.is_on("cards") {
        let around = CardData::of(&web, &visitor, fresh.iter()).await?;
        let setting = CardContext {
            visitor: &visitor,
            around: &around,
            back: "/inbox",
        };
        let mut room = card::PAGE_BYTES_MAX;
        html! { @for open in &fresh { (card::open_within(&setting, open, &mut room)) } }
    } else {
        html! {}
    };
    Ok(fragment(html! {
        div data-open=(total) data-fresh=(fresh.len())
            data-newest=[newest.as_ref().map(|open| open.request.id)]
            data-title=[newest.as_ref().map(|open| card::plain_heading(&open.request))] {}
        @for found in &gone {
            @if let FoundRequest::Closed(closed) = found { (outcome_of(closed, visitor.now)) }
        }
        (cards)
    }))
}

/// The outcome of a request, for a page that shows its card.
pub(super) fn outcome_of(closed: &ClosedRequest, now: Timestamp) -> Markup {
    html! { div data-outcome-of=(closed.asked.request.id) { (card::outcome(closed, now)) } }
}

async fn requests(
    web: &Web,
    visitor: &Visitor,
    offset: u64,
    answered: Option<&ClosedRequest>,
) -> Result<Markup, StoreError> {
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let open = web.store.open_requests(visitor.team_id(), query).await?;
    let around = open
        .items
        .iter()
        .chain(answered.map(|closed| &closed.asked));
    let around = CardData::of(web, visitor, around).await?;
    let back = if offset == 0 {
        "/inbox".to_owned()
    } else {
        format!("/inbox?offset={offset}")
    };
    let setting = CardContext {
        visitor,
        around: &around,
        back: &back,
    };
    let newest = open.items.iter().max_by_key(|open| open.request.created_at);
    let newest_id = newest.map(|open| open.request.id.to_string());
    let shown = open.items.len() as u64;
    // The answered card stays in its place among the others.
    let place = answered.map_or(0, |closed| {
        let made = |open: &OpenRequest| (open.request.created_at, open.request.id);
        open.items
            .partition_point(|open| made(open) < made(&closed.asked))
    });
    let (before, after) = open.items.split_at(place);
    let mut room = card::PAGE_BYTES_MAX;
    Ok(html! {
        div #open-requests.inbox data-seen=(visitor.now.as_millis()) data-open=(open.total) data-newest=[newest_id]
            data-title=[newest.map(|open| card::plain_heading(&open.request))] {
            @for request in before { (card::open_within(&setting, request, &mut room)) }
            @if let Some(closed) = answered { (card::closed(&setting, closed, None)) }
            @for request in after { (card::open_within(&setting, request, &mut room)) }
        }
        @if open.items.is_empty() && answered.is_none() {
            div.card { (ui::empty("You're all caught up", &html! { "Runs that need an approval or an answer appear here. A run asks if its assignment has the policy " code { "ask" } " for a tool, or if its playbook or model asks." })) }
        }
        (news())
        (ui::pager(offset, shown, open.total, u64::from(LIMIT), &|offset| format!("/inbox?offset={offset}")))
    })
}

/// The notification bar for new requests. It overlays the page, so that nothing moves when it appears.
pub(super) fn news() -> Markup {
    html! { div #news.news hidden { button.main type="button" data-news data-decides {} } }
}

/// Requests as a table that links to where they can be answered.
pub(super) fn short(open: &[OpenRequest], now: Timestamp) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Request" } th scope="col" { "Kind" } th scope="col" { "Assignment" } th scope="col" { "Asked" } th { span.visually-hidden { "Answer" } } } }
                tbody {
                    @for one in open {
                        tr {
                            td.title { a href={ "/runs/" (one.run) } { (card::heading(&one.request)) } (card::line(&one.request)) @if let Some(title) = &one.run_title { span.sub { (ui::name(title)) } } }
                            td { @match one.request.ask { Ask::Approval => (ui::state("ask", "approval")), Ask::Question { .. } => (ui::state("ask", "question")) } }
                            td { a.link href={ "/assignments/" (one.agent) } { (ui::name(&one.agent_name)) } }
                            td { (ui::time(one.request.created_at, now)) }
                            td.num { a.button href={ "/runs/" (one.run) } aria-label={ "Answer: " (card::plain_heading(&one.request)) } { "Answer" } }
                        }
                    }
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
                            td.title { a href={ "/runs/" (one.asked.run) } { (card::heading(&one.asked.request)) } (card::line(&one.asked.request)) span.sub { (ui::name(&one.asked.agent_name)) } }
                            td { (card::answer(&one.resolution)) }
                            td { @match &one.by { Some(by) => (ui::who(by)), None => "–" } }
                            td { (ui::time(one.closed_at, now)) }
                        }
                    }
                }
            }
        }
    }
}
