//! Use cases: the work of API and pages that is neither HTTP nor SQL, such as starting a run, forking one, setting up a
//! connection, or checking a build.
//!
//! Guarantees: a use case takes parts of the engine (the store, the clock, …) and domain data, and returns domain data
//! or a [`UseCaseError`]. It does not depend on requests, responses, pages or settings.
//!
//! Non-goals: operations that are a single call of the store. Handlers make those themselves.

pub(crate) mod blocking;
pub(crate) mod build_checks;
pub(crate) mod connection_setup;
mod csv;
pub(crate) mod effective_tools;
mod error;
pub(crate) mod fork_run;
pub(crate) mod provider_checks;
pub(crate) mod readiness;
pub(crate) mod sandbox_files;
pub(crate) mod secret_checks;
pub(crate) mod sign_in;
pub(crate) mod start_run;
pub(crate) mod usage_csv;
pub(crate) mod webhook_url;

pub(crate) use error::UseCaseError;
