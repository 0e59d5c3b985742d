//! The pure half of errand: the state of a run, its next action, what its tools may do, and the types on the wire.
//!
//! # Guarantees
//!
//! Nothing here reads a clock, draws a random number, touches a file or waits. Time, ids and randomness are
//! parameters, so the same input always gives the same result. Effects happen in `errand-store` (inside one
//! transaction) and in `errand-engine` (after the commit).
//!
//! # Where to start
//!
//! [`run`] (status), [`transcript`] (what is stored), [`ledger`] (what a transcript adds up to), [`next`] (what a run
//! does next), [`policy`] and [`content`] (which calls need a person).

pub mod author;
pub mod budget;
pub mod config;
pub mod connection;
pub mod content;
pub mod display;
pub mod effective;
pub mod error_chain;
pub mod event;
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
pub mod time;
pub mod tool_error;
pub mod transcript;
pub mod turn;
pub mod warning;
pub mod webhook;
pub mod wire;
mod wire_enum;
