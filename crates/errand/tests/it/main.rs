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
mod api_authors;
mod api_builds_live;
mod api_bulk;
mod api_document;
mod api_errors;
mod api_events;
mod api_forks;
mod api_idempotency;
mod api_keys;
mod api_limits;
mod api_list_runs;
mod api_manners;
mod api_messages;
mod api_runs;
mod api_sandboxes;
mod api_search;
mod api_summary;
mod api_team;
mod api_uploads;
mod api_usage;
mod api_wait;
mod api_webhooks;
mod assignments;
mod backup;
mod browser;
mod connections;
mod connections_bound;
mod connections_changing;
mod connections_programs;
mod connections_secrets;
mod connections_sign_in;
mod coverage;
mod crash_children;
mod crash_connections;
mod crash_everywhere;
mod crash_models;
mod crash_real;
mod damaged;
mod data_directory;
mod doctor;
mod documentation;
mod engine_crash;
mod engine_life;
mod engine_steps;
mod examples;
mod exhausted;
mod fetch_url;
mod full_disk;
mod health;
mod hostile_documents;
mod hostile_member;
mod hostile_templates;
mod isolated;
mod metrics;
mod models;
mod models_documents;
mod models_faults;
mod models_limits;
mod models_long;
mod models_money;
mod models_progress;
mod models_property;
mod models_providers;
mod operators;
mod poisoned;
mod process;
mod properties;
mod real_server;
mod reconciler;
mod repair;
mod secrets;
mod signals;
mod taken_over;
mod tidy;
mod web;
mod web_answering;
mod web_assignments;
mod web_browser;
mod web_connections;
mod web_log_in;
mod web_pages;
mod web_runs;
mod web_team;
mod web_usage;
mod webhooks;
