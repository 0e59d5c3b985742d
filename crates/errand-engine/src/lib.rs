//! Makes things happen: drives runs, calls models and tools, delivers webhooks, keeps time.
//!
//! What happens next is decided in `errand-core`; what has happened is written by `errand-store`. In between, this crate
//! acts. It keeps nothing that the store could not rebuild: a run that waits holds no task and no memory, and whoever
//! dies in the middle of a step is followed by another driver that goes on from the transcript.

pub mod clock;
pub mod connect;
pub mod deltas;
pub mod evaluate;
pub mod model;
pub mod net;
pub mod parse;
pub mod progress;
pub mod sandboxes;
pub mod tool;
pub mod trash;
pub mod webhook;

mod dispatch;
mod drive;
mod exhausted;
mod finish_drive;
mod janitor;
mod outbox;
mod secrets;
mod store_retry;
mod subprocess;

pub use context::EngineContext;
pub use dispatch::{Engine, EngineOptions};
