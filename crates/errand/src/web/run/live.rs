//! A run, live: what is appended to its transcript, its state, its request, its side column, as pieces of the page.
//!
//! Promised: every entry after the position that the page names, in order; an event's id is its position, so that a
//! connection that was lost goes on where it was. The bell only says that there is more. The stream ends when the run has
//! ended and all is told, when the session no longer counts, and when the server stops.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::extract::State;
use axum::response::IntoResponse as _;
use axum::response::sse::{Event, Sse};
use errand_core::id::{HumanRequestId, MessageId, RunId};
use errand_core::role::Permission;
use errand_engine::deltas::{Delta, Listener};
use errand_store::{FoundRequest, OpenRequest, Reach, Watch};
use futures::stream;
use http::header::{self, HeaderMap, HeaderValue};
use maud::{Markup, html};

use super::transcript::{self, Calls, Context};
use super::{PART, actions, hint_of, open_request, people_of, side, state};
use crate::web::card::{Around, Setting};
use crate::web::failure::{PageError, Shown};
use crate::web::form::{Params, Path};
use crate::web::guard::Visitor;
use crate::web::{Web, card, inbox, text};

/// How often a silent stream says that it lives.
const COMMENT_EVERY_MS: u64 = 15_000;
/// What a driver does in quick succession is told together.
const PAUSE_MS: u64 = 100;

pub(in crate::web) async fn stream(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
    headers: HeaderMap,
) -> Shown {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    let after = last.unwrap_or_else(|| params.get("after").parse().unwrap_or(0));
    // Watched before it is read: what happens in between rings.
    let watch = web.store.bell().watch(run);
    let listener = web.deltas.listen(run);
    web.store.run(visitor.team_id(), run).await?;
    let follow = Follow {
        web,
        visitor,
        run,
        after,
        asked: params.get("request").parse().ok(),
        told: String::new(),
        calls: Calls::default(),
        watch,
        listener,
        draft: Draft::default(),
        ready: VecDeque::new(),
        is_first: true,
        has_ended: false,
    };
    let events = stream::unfold(follow, async |mut follow| {
        let event = follow.next().await?;
        Some((Ok::<_, Infallible>(event), follow))
    });
    let mut response = Sse::new(events).into_response();
    // Proxies that collect a response before they send it would hold the stream back.
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What a network model has said of the message that is to come.
#[derive(Default)]
struct Draft {
    of: Option<(MessageId, u32)>,
    text: String,
}

impl Draft {
    fn take(&mut self, delta: Delta) {
        let of = Some((delta.message, delta.attempt));
        // Another attempt replaces the text of the last; what has a gap is left as it is until the message comes.
        if self.of != of {
            self.of = of;
            self.text.clear();
        }
        if delta.offset == self.text.len() {
            self.text.push_str(&delta.text);
        }
    }
}

/// Where a stream is.
struct Follow {
    web: Web,
    visitor: Visitor,
    run: RunId,
    after: u64,
    /// The request that the page shows.
    asked: Option<HumanRequestId>,
    /// The state that was told last.
    told: String,
    calls: Calls,
    watch: Watch,
    listener: Listener,
    draft: Draft,
    ready: VecDeque<Event>,
    is_first: bool,
    has_ended: bool,
}

impl Follow {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.has_ended
                || self.web.draining.is_cancelled()
                || !self.visitor.still_counts(&self.web).await
            {
                return None;
            }
            if let Err(error) = self.read().await {
                if let PageError::Inside(error) = error {
                    tracing::warn!(run.id = %self.run, ?error, "a live page ends early");
                }
                return None;
            }
            if self.ready.is_empty() {
                self.wait().await;
            }
        }
    }

    async fn read(&mut self) -> Result<(), PageError> {
        let team = self.visitor.team_id();
        let now = self.web.clock.now();
        let store = &self.web.store;
        if self.is_first {
            // Results that come now are of calls that the page shows already.
            let before = store
                .transcript(team, self.run, Reach::Before(self.after + 1), PART)
                .await?;
            self.calls.note(&before.entries);
        }
        while let Some(delta) = self.listener.ready() {
            self.draft.take(delta);
        }
        let reach = Reach::After(self.after);
        let part = store.transcript(team, self.run, reach, PART).await?;
        let view = store.run(team, self.run).await?;
        let people = people_of(&self.web, &part.entries).await?;
        self.calls.note(&part.entries);
        for entry in &part.entries {
            self.after = entry.position;
            let context = Context {
                run: self.run,
                calls: &self.calls,
                people: &people,
                now,
                forks: self.visitor.may(Permission::ManageRuns),
            };
            let item = transcript::entry(entry, &context);
            let name = if item.0.is_empty() { "note" } else { "entry" };
            self.tell(name, &item, Some(entry.position));
        }
        if !part.entries.is_empty() && self.draft.of.take().is_some() {
            self.draft.text.clear();
            self.tell("draft", &html! {}, None);
        }
        let is_whole = self.after >= part.last;
        let shown = state(&view);
        if is_whole && (self.is_first || !part.entries.is_empty() || shown.0 != self.told) {
            self.told.clone_from(&shown.0);
            self.tell("state", &shown, None);
            self.tell("actions", &actions(&self.visitor, &view), None);
            self.tell("hint", &html! { (hint_of(&view)) }, None);
            let reach = Reach::Newest;
            let newest = self
                .web
                .store
                .transcript(team, self.run, reach, PART)
                .await?;
            let column = side::of(&self.web, &self.visitor, &view.run, &newest.entries).await?;
            self.tell("side", &column, None);
        }
        self.tell_request(open_request(&view, None)).await?;
        self.is_first = false;
        if is_whole && view.run.status.has_ended() {
            self.has_ended = true;
            self.ready
                .push_back(Event::default().event("end").data("end"));
        }
        Ok(())
    }

    /// What became of the request that the page shows, and the card of one that it does not show. The page decides when
    /// it puts a card where.
    async fn tell_request(&mut self, pending: Option<OpenRequest>) -> Result<(), PageError> {
        let asked = pending.as_ref().map(|open| open.request.id);
        if asked == self.asked {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.asked, asked);
        if let Some(before) = before {
            let found = self
                .web
                .store
                .requests(self.visitor.team_id(), vec![before])
                .await?;
            if let Some(FoundRequest::Closed(closed)) = found.first() {
                let outcome = inbox::outcome_of(closed, self.web.clock.now());
                self.tell("outcome", &outcome, None);
            }
        }
        if let Some(open) = pending {
            let around = Around::of(&self.web, &self.visitor, std::iter::once(&open)).await?;
            let setting = Setting {
                visitor: &self.visitor,
                around: &around,
                back: "run",
            };
            let card = card::open(&setting, &open, None);
            self.tell("request", &card, None);
        }
        Ok(())
    }

    fn tell(&mut self, name: &str, markup: &Markup, position: Option<u64>) {
        // A line break of another kind cannot be in an event's data; for a page it is the same. An event without data is
        // not told at all.
        let data = if markup.0.is_empty() {
            "<!-- nothing -->".to_owned()
        } else {
            markup.0.replace('\r', "")
        };
        let event = Event::default().event(name).data(data);
        self.ready.push_back(match position {
            Some(position) => event.id(position.to_string()),
            None => event,
        });
    }

    /// Until there may be more, or it is time for a sign of life.
    async fn wait(&mut self) {
        tokio::select! {
            () = self.watch.changed() => {
                tokio::select! {
                    () = self.web.clock.sleep_ms(PAUSE_MS) => {}
                    () = self.web.draining.cancelled() => {}
                }
            }
            delta = self.listener.next() => {
                self.draft.take(delta);
                self.web.clock.sleep_ms(PAUSE_MS).await;
                while let Some(delta) = self.listener.ready() {
                    self.draft.take(delta);
                }
                let said = html! { div.entry.assistant { div.by { strong { "Assistant" } "is writing" } (text::plain(&self.draft.text)) } };
                self.tell("draft", &said, None);
            }
            () = self.web.draining.cancelled() => {}
            () = self.web.clock.sleep_ms(COMMENT_EVERY_MS) => self.ready.push_back(Event::default().comment("")),
        }
    }
}
