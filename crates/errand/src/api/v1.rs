//! Version 1 of the API: wire structs and handlers, a file for each resource.

pub(super) mod agents;
pub(super) mod api_keys;
pub(crate) mod builds;
pub(crate) mod connections;
pub(super) mod deliveries;
pub(super) mod documentation;
pub(super) mod events;
pub(crate) mod files;
pub(crate) mod forks;
pub(super) mod human_requests;
pub(super) mod invitations;
pub(super) mod many_runs;
pub(super) mod members;
pub(super) mod messages;
pub(crate) mod name;
pub(super) mod providers;
pub(super) mod runs;
pub(super) mod sandboxes;
pub(crate) mod secrets;
pub(super) mod sign_ins;
pub(super) mod summary;
pub(super) mod tools;
pub(super) mod uploads;
pub(super) mod usage;
pub(super) mod webhook_secret;
pub(super) mod webhooks;
