//! Test harness: the whole program in one process, with a manual clock, reproducible ids, a scripted model, tools that
//! count their calls, a webhook receiver, and a server of scripted providers.
//!
//! # Guarantees
//!
//! Nothing here sleeps to see whether something happens: [`TestApp::settle`] waits for a level (nothing is due or in
//! progress), within a bound, and its error says what was still open. A failed expectation is a failed test, so these
//! helpers panic.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing helper fails the test"
)]

mod app;
mod contract;
mod crash;
mod held;
pub mod providers;
mod script;
pub mod sim;
mod sink;
mod sound;
mod tools;
mod world;

pub use app::{Prepared, Reply, Team, TestApp, TestOptions};
pub use contract::Contract;
pub use crash::{CrashPoints, Plan, fail_everywhere};
pub use held::{Held, HeldRun, payment};
pub use script::{Gate, ScriptedModel};
pub use sink::{Received, WebhookSink};
pub use sound::{assert_sound, assert_well_formed};
pub use tools::OutsideTool;
pub use world::World;
