//! The parts that the engine works with.

use std::sync::Arc;

use errand_core::id::IdGen;
use errand_store::Store;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::connect::Connections;
use crate::deltas::Deltas;
use crate::model::Models;
use crate::parse::Parsers;
use crate::sandboxes::Sandboxes;
use crate::tool::Tools;
use crate::webhook::Post;

/// The store, the clock and everything else that dispatcher, drivers, outbox and janitor share. Cheap to clone.
#[derive(Clone)]
pub struct EngineContext {
    pub store: Store,
    pub clock: Clock,
    pub ids: Arc<IdGen>,
    pub models: Models,
    /// The built-in tools. Those of a team's connections come from `connections`.
    pub tools: Tools,
    /// Publishes a model's text while it streams.
    pub deltas: Deltas,
    /// Sessions with MCP servers, whose tools a run can call.
    pub connections: Connections,
    pub sandboxes: Sandboxes,
    /// Extracts text from documents in processes of their own.
    pub parsers: Parsers,
    /// Sends webhooks.
    pub post: Arc<dyn Post>,
    /// Cancelled when the server shuts down: no new work begins, and steps in progress are finished.
    pub draining: CancellationToken,
}

impl EngineContext {
    /// Whether this process is about to end: it drains, or its store accepts no writes until a restart.
    pub(crate) fn is_ending(&self) -> bool {
        self.draining.is_cancelled() || *self.store.poisoned().borrow()
    }
}
