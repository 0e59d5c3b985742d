//! Drives runs, calls models and tools, delivers webhooks, and acts on deadlines.
//!
//! `errand-core` decides what happens next, `errand-store` records what has happened, and this crate acts in between.
//!
//! # Guarantees
//!
//! It keeps nothing in memory that the store cannot rebuild. A run that waits holds no task and no memory. If a driver
//! dies in the middle of a step, another one continues from the transcript.

pub mod checked_start;
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

mod clock_jump;
mod context;
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
