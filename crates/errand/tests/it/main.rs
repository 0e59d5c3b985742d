//! Tests of the program from outside. One binary: each module is a topic, and linking happens once.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of tests fails the test"
)]

mod api_agents;
mod api_answers;
mod api_auth;
mod api_bulk;
mod api_errors;
mod api_events;
mod api_idempotency;
mod api_keys;
mod api_limits;
mod api_messages;
mod api_runs;
mod api_sandboxes;
mod api_uploads;
mod api_wait;
mod coverage;
mod crash_everywhere;
mod crash_real;
mod doctor;
mod documentation;
mod engine_crash;
mod engine_life;
mod engine_steps;
mod full_disk;
mod health;
mod isolated;
mod metrics;
mod properties;
mod real_server;
mod reconciler;
mod repair;
mod tidy;
mod webhooks;
