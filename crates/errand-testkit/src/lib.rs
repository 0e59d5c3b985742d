//! For tests: the whole program in one process, with a clock that stands, ids that repeat, a model that follows a
//! script, tools that count, and a receiver of webhooks.
//!
//! Nothing here sleeps to see whether something happens: [`TestApp::settle`] waits for a level (nothing is due, nothing
//! is under way), within a bound, and its failure says what was still open.
//!
//! A failed expectation here is a failed test, so these helpers panic.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of tests fails the test"
)]

mod app;
mod contract;
mod script;
pub mod sim;
mod sink;
mod tools;

pub use app::{Reply, Team, TestApp, TestOptions};
pub use contract::Contract;
pub use script::{Gate, ScriptedModel};
pub use sink::{Received, WebhookSink};
pub use tools::OutsideTool;
