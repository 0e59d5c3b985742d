//! The pure half of errand: what a run is, what it does next, what may be done, what goes over the wire.
//!
//! Nothing here reads a clock, draws a random number, touches a file or waits. Time, ids and randomness are
//! parameters; the same input gives the same answer. Everything that happens because of an answer happens in
//! `errand-store` (one transaction) and `errand-engine` (after it).
//!
//! In reading order.

pub mod author;
pub mod budget;
pub mod cause;
pub mod config;
pub mod connection;
pub mod content;
pub mod effective;
pub mod fair;
pub mod human;
pub mod id;
pub mod ledger;
pub mod limits;
pub mod next;
pub mod path;
mod place;
pub mod playbook;
pub mod policy;
pub mod progress;
pub mod retry;
pub mod role;
pub mod run;
pub mod schema;
pub mod secret;
pub mod shown;
pub mod time;
pub mod transcript;
pub mod turn;
pub mod warning;
pub mod webhook;
pub mod wire;
