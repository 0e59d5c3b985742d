//! Follows a run from page to page, for whoever streams it: the API's events and the live page.
//!
//! Guarantees: what is streamed is read from the store in pages that are bounded by bytes; an entry that is larger than a
//! page is read alone, once few others like it are in memory. Between the reads, and while a large entry waits for its turn,
//! a comment every 15 s tells the client that the stream lives. The stream ends when whoever reads it may no longer, when
//! the server stops, and after the last page.
//!
//! Non-goals: what a page is made of and what its events look like ([`Source`]).

use std::collections::VecDeque;
use std::pin::Pin;

use errand_store::PageBounds;

use super::{Event, Events, LargeEvent};
use crate::api::AppState;
use crate::api::slots::Holder;

/// How often a silent stream says that it lives, and looks whether it still may be read. The contract's number.
const COMMENT_EVERY_MS: u64 = 15_000;

/// The outcome of reading a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageRead {
    /// Its events are ready; there may be more.
    Whole,
    /// Nothing was read: the next entry is larger than a page.
    TooLarge,
    /// Its events are the last.
    Last,
    /// The stream ends here; the source has logged why.
    Failed,
}

/// A source of events. Each of its futures may be dropped at any `await`.
pub(crate) trait Source: Send + 'static {
    /// Whether whoever reads the stream still may.
    fn may_be_read(&mut self) -> impl Future<Output = bool> + Send;

    /// Reads what is new, within the bounds, and makes it ready.
    fn read(
        &mut self,
        bounds: PageBounds,
        ready: &mut VecDeque<Event>,
    ) -> impl Future<Output = PageRead> + Send;

    /// Returns when there may be more to read, or something is ready.
    fn wait(&mut self, ready: &mut VecDeque<Event>) -> impl Future<Output = ()> + Send;
}

/// The events of a source.
pub(crate) struct Follower<S> {
    app: AppState,
    /// The key or person whose large entries are counted.
    holder: Holder,
    page: PageBounds,
    source: S,
    ready: VecDeque<Event>,
    /// The next entry is larger than a page, and waits for its turn to be read.
    entering: Option<Pin<Box<dyn Future<Output = Option<LargeEvent>> + Send>>>,
    /// The event that was given out last was larger than a page.
    large: Option<LargeEvent>,
    has_ended: bool,
}

impl<S: Source> Follower<S> {
    /// Follows a source in pages of these bounds. `ready`: what goes out before the first page.
    pub(crate) fn new(
        app: AppState,
        holder: Holder,
        page: PageBounds,
        source: S,
        ready: VecDeque<Event>,
    ) -> Self {
        Self {
            app,
            holder,
            page,
            source,
            ready,
            entering: None,
            large: None,
            has_ended: false,
        }
    }

    /// The bounds of the next read: a page, or one entry that is larger than that, once it has its turn. `None`: the server
    /// stops.
    async fn next_bounds(&mut self) -> Option<PageBounds> {
        let Some(entering) = self.entering.as_mut() else {
            return Some(self.page);
        };
        tokio::select! {
            biased;
            large = entering => {
                self.entering = None;
                self.large = Some(large?);
                Some(PageBounds { entries: 1, whole: true, ..self.page })
            }
            () = self.app.draining.cancelled() => None,
            () = self.app.clock.sleep_ms(COMMENT_EVERY_MS) => {
                self.ready.push_back(Event::comment());
                Some(self.page)
            }
        }
    }

    /// Until there may be more, or it is time for a sign of life.
    async fn wait(&mut self) {
        tokio::select! {
            biased;
            () = self.source.wait(&mut self.ready) => {}
            () = self.app.draining.cancelled() => {}
            () = self.app.clock.sleep_ms(COMMENT_EVERY_MS) => self.ready.push_back(Event::comment()),
        }
    }
}

impl<S: Source> Events for Follower<S> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.large = None;
            if self.has_ended
                || self.app.draining.is_cancelled()
                || !self.source.may_be_read().await
            {
                return None;
            }
            let bounds = self.next_bounds().await?;
            if !self.ready.is_empty() {
                continue;
            }
            match self.source.read(bounds, &mut self.ready).await {
                PageRead::Whole => {}
                PageRead::TooLarge => {
                    let turn = self.app.large_events.clone().enter(self.holder);
                    self.entering = Some(Box::pin(turn));
                }
                PageRead::Last => self.has_ended = true,
                PageRead::Failed => return None,
            }
            if self.ready.is_empty() && self.entering.is_none() && !self.has_ended {
                self.wait().await;
            }
        }
    }
}
