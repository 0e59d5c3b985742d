//! Version 1 of the API: wire structs and handlers, a file for each resource.

pub(super) mod agents;
pub(super) mod api_keys;
pub(super) mod builds;
pub(super) mod documentation;
pub(super) mod events;
pub(super) mod files;
pub(super) mod human_requests;
pub(super) mod many_runs;
pub(super) mod messages;
pub(super) mod name;
pub(super) mod runs;
pub(super) mod sandboxes;
pub(super) mod tools;
pub(super) mod uploads;
pub(super) mod webhook_secret;
