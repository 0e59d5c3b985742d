//! Version 1 of the API: wire structs and handlers, one file per resource.

pub(super) mod agents;
pub(super) mod api_keys;
pub(super) mod builds;
pub(super) mod connections;
pub(super) mod deliveries;
pub(super) mod documentation;
pub(super) mod events;
pub(super) mod files;
pub(super) mod forks;
pub(super) mod human_requests;
pub(super) mod invitations;
pub(super) mod many_runs;
pub(super) mod members;
pub(super) mod messages;
pub(super) mod name;
pub(super) mod providers;
pub(super) mod runs;
pub(super) mod sandboxes;
pub(super) mod secrets;
pub(super) mod sign_ins;
pub(super) mod summary;
pub(super) mod tools;
pub(super) mod uploads;
pub(super) mod usage;
pub(super) mod webhook_secret;
pub(super) mod webhooks;
