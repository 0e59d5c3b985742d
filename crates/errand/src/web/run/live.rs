//! Live updates of a run's page: new entries, state, request and side column as fragments of the page.
//!
//! Guarantees: the stream sends every entry after the position that the page names, in order. The ID of an event is its
//! position, so a lost connection continues where it stopped. The notifier only says that there is more. The stream
//! ends when the run has ended and everything is sent, when the session is no longer valid, when the server shuts down,
//! and when the browser reads nothing for a minute ([`crate::http::streaming`]). Entries are read in parts of 256 KiB;
//! a larger one is read alone, while few others like it are in memory.

use std::collections::VecDeque;

use axum::extract::State;
use errand_core::id::{HumanRequestId, MessageId, RunId};
use errand_core::role::Permission;
use errand_engine::deltas::{Delta, Listener};
use errand_store::{FoundRequest, OpenRequest, PageBounds, Reach, Watch};
use http::header::HeaderMap;
use maud::{Markup, html};

use super::transcript::{self, Calls, Context};
use super::{PART, actions, hint_of, open_request, people_of, side, state};
use crate::http::slots::Holder;
use crate::http::streaming::follow::{Follower, PageRead, Source};
use crate::http::streaming::{Event, respond};
use crate::web::card::{CardContext, CardData};
use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Params, Path};
use crate::web::guard::Visitor;
use crate::web::visible::visible;
use crate::web::{Web, card, inbox, text};

/// Pause after an update, so that rapid steps of a driver are sent together.
const PAUSE_MS: u64 = 100;
/// Limits for one read.
const LIVE_PART: PageBounds = PageBounds {
    entries: PART,
    bytes: 256 * 1024,
    whole: false,
};

pub(in crate::web) async fn stream(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
    headers: HeaderMap,
) -> PageResult {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    let after = last.unwrap_or_else(|| params.get("after").parse().unwrap_or(0));
    let holder = Holder::Person(visitor.user_id());
    let slot = web.begin_stream(holder)?;
    // Subscribed before the first read, so that no notification is missed in between.
    let watch = web.store.bell().watch(run);
    let listener = web.deltas.listen(run);
    web.store.run(visitor.team_id(), run).await?;
    let page = LivePage {
        web: web.clone(),
        visitor,
        run,
        after,
        asked: params.get("request").parse().ok(),
        last_state: String::new(),
        calls: Calls::default(),
        watch,
        listener,
        draft: Draft::default(),
        is_first: true,
    };
    let follower = Follower::new(
        web.streams.clone(),
        holder,
        LIVE_PART,
        page,
        VecDeque::new(),
    );
    Ok(respond(&web.streams, follower, slot))
}

/// The text streamed so far for the model's next message.
#[derive(Default)]
struct Draft {
    of: Option<(MessageId, u32)>,
    text: String,
}

impl Draft {
    fn take(&mut self, delta: Delta) {
        let of = Some((delta.message, delta.attempt));
        // A new attempt replaces the previous text. A draft with a gap stays unchanged until the message arrives.
        if self.of != of {
            self.of = of;
            self.text.clear();
        }
        if delta.offset == self.text.len() {
            self.text.push_str(&delta.text);
        }
    }
}

/// A live page of a session.
struct LivePage {
    web: Web,
    visitor: Visitor,
    run: RunId,
    after: u64,
    /// The request that the page shows.
    asked: Option<HumanRequestId>,
    /// The last state that was sent.
    last_state: String,
    calls: Calls,
    watch: Watch,
    listener: Listener,
    draft: Draft,
    is_first: bool,
}

impl Source for LivePage {
    async fn may_be_read(&mut self) -> bool {
        self.visitor.still_counts(&self.web).await
    }

    async fn read(&mut self, bounds: PageBounds, ready: &mut VecDeque<Event>) -> PageRead {
        match self.read_part(bounds, ready).await {
            Ok(read) => read,
            Err(error) => {
                if let PageError::Internal(error) = error {
                    tracing::warn!(run.id = %self.run, ?error, "a live page ends early");
                }
                PageRead::Failed
            }
        }
    }

    async fn wait(&mut self, ready: &mut VecDeque<Event>) {
        tokio::select! {
            () = self.watch.changed() => self.web.clock.sleep_ms(PAUSE_MS).await,
            delta = self.listener.next() => {
                self.draft.take(delta);
                self.web.clock.sleep_ms(PAUSE_MS).await;
                while let Some(delta) = self.listener.ready() {
                    self.draft.take(delta);
                }
                let draft = html! { div.entry.assistant { div.by { strong { "Assistant" } "is writing" } (text::plain(&self.draft.text)) } };
                send(ready, "draft", &draft, None);
            }
        }
    }
}

fn send(ready: &mut VecDeque<Event>, name: &str, markup: &Markup, position: Option<u64>) {
    // Event data cannot contain carriage returns, and pages do not need them. An event without data would not be
    // dispatched.
    let data = if markup.0.is_empty() {
        "<!-- nothing -->".to_owned()
    } else {
        visible(markup.clone()).replace('\r', "")
    };
    ready.push_back(Event::new(position, name, &data));
}

impl LivePage {
    async fn read_part(
        &mut self,
        bounds: PageBounds,
        ready: &mut VecDeque<Event>,
    ) -> Result<PageRead, PageError> {
        let team = self.visitor.team_id();
        let now = self.web.clock.now();
        let store = &self.web.store;
        if self.is_first {
            // New results may belong to calls that the page already shows.
            let before = store
                .transcript(team, self.run, Reach::Before(self.after + 1), PART)
                .await?;
            self.calls.note(&before.entries);
        }
        while let Some(delta) = self.listener.ready() {
            self.draft.take(delta);
        }
        let reach = Reach::After(self.after);
        let part = store.transcript_page(team, self.run, reach, bounds).await?;
        if part.large {
            return Ok(PageRead::TooLarge);
        }
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
            send(ready, name, &item, Some(entry.position));
        }
        if !part.entries.is_empty() && self.draft.of.take().is_some() {
            self.draft.text.clear();
            send(ready, "draft", &html! {}, None);
        }
        let is_whole = self.after >= part.last;
        let markup = state(&view);
        if is_whole && (self.is_first || !part.entries.is_empty() || markup.0 != self.last_state) {
            self.last_state.clone_from(&markup.0);
            send(ready, "state", &markup, None);
            send(ready, "actions", &actions(&self.visitor, &view), None);
            send(ready, "hint", &html! { (hint_of(&view)) }, None);
            let reach = Reach::Newest;
            let newest = self
                .web
                .store
                .transcript(team, self.run, reach, PART)
                .await?;
            let column = side::of(&self.web, &self.visitor, &view.run, &newest.entries).await?;
            send(ready, "side", &column, None);
        }
        self.send_request(open_request(&view, None), ready).await?;
        self.is_first = false;
        if is_whole && view.run.status.has_ended() {
            ready.push_back(Event::new(None, "end", "end"));
            return Ok(PageRead::Last);
        }
        Ok(PageRead::Whole)
    }

    /// The outcome of the request that the page shows, and the card of a new one. The page decides when it shows the
    /// card.
    async fn send_request(
        &mut self,
        pending: Option<OpenRequest>,
        ready: &mut VecDeque<Event>,
    ) -> Result<(), PageError> {
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
                send(ready, "outcome", &outcome, None);
            }
        }
        if let Some(open) = pending {
            let around = CardData::of(&self.web, &self.visitor, std::iter::once(&open)).await?;
            let setting = CardContext {
                visitor: &self.visitor,
                around: &around,
                back: "run",
            };
            let card = card::open(&setting, &open, None);
            send(ready, "request", &card, None);
        }
        Ok(())
    }
}
