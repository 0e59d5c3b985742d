//! Follows a run page by page, for the API's event stream and for the live page.
//!
//! # Guarantees
//!
//! - Events are read from the store in pages of bounded size. A larger entry is read alone, when only few others like
//!   it are in memory.
//! - Between reads, and while a large entry waits for its permit, a comment every 15 s shows the client that the stream
//!   is alive.
//! - The stream ends when the reader loses its permission, when the server stops, and after the last page.
//!
//! # Non-goals
//!
//! The content of pages and the form of events ([`Source`]).

use std::collections::VecDeque;
use std::pin::Pin;

use errand_store::PageBounds;

use super::{Event, Events, LargeEvent, Streams};
use crate::http::slots::Holder;

/// Interval for comments on a silent stream, and for checking the reader's permission. Part of the API contract.
const COMMENT_EVERY_MS: u64 = 15_000;

/// The outcome of reading a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageRead {
    /// The page's events are ready. There may be more.
    Whole,
    /// Nothing was read, because the next entry is larger than a page.
    TooLarge,
    /// The page's events are the last ones.
    Last,
    /// The stream must end. The source has logged the reason.
    Failed,
}

/// A source of events. Each of its futures may be dropped at any await point.
pub(crate) trait Source: Send + 'static {
    /// Whether the reader still has permission.
    fn may_be_read(&mut self) -> impl Future<Output = bool> + Send;

    /// Reads new events within the bounds, and adds them to `ready`.
    fn read(
        &mut self,
        bounds: PageBounds,
        ready: &mut VecDeque<Event>,
    ) -> impl Future<Output = PageRead> + Send;

    /// Completes when there may be more to read, or when something was added to `ready`.
    fn wait(&mut self, ready: &mut VecDeque<Event>) -> impl Future<Output = ()> + Send;
}

/// Turns a [`Source`] into a stream of events.
pub(crate) struct Follower<S> {
    streams: Streams,
    /// The key or person to whom large entries are charged.
    holder: Holder,
    page: PageBounds,
    source: S,
    ready: VecDeque<Event>,
    /// Waits for a permit to read the next entry, which is larger than a page.
    entering: Option<Pin<Box<dyn Future<Output = Option<LargeEvent>> + Send>>>,
    /// The permit of the event that was returned last, if it was larger than a page.
    large: Option<LargeEvent>,
    has_ended: bool,
}

impl<S: Source> Follower<S> {
    /// Follows a source in pages of these bounds. `ready`: events to send before the first page.
    pub(crate) fn new(
        streams: Streams,
        holder: Holder,
        page: PageBounds,
        source: S,
        ready: VecDeque<Event>,
    ) -> Self {
        Self {
            streams,
            holder,
            page,
            source,
            ready,
            entering: None,
            large: None,
            has_ended: false,
        }
    }

    /// The bounds of the next read: a page, or, with a permit, a single larger entry. `None`: the server is stopping.
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
            () = self.streams.draining.cancelled() => None,
            () = self.streams.clock.sleep_ms(COMMENT_EVERY_MS) => {
                self.ready.push_back(Event::comment());
                Some(self.page)
            }
        }
    }

    /// Waits until there may be more events, or a comment is due.
    async fn wait(&mut self) {
        tokio::select! {
            biased;
            () = self.source.wait(&mut self.ready) => {}
            () = self.streams.draining.cancelled() => {}
            () = self.streams.clock.sleep_ms(COMMENT_EVERY_MS) => self.ready.push_back(Event::comment()),
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
                || self.streams.draining.is_cancelled()
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
                    let turn = self.streams.large.clone().enter(self.holder);
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
