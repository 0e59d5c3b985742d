//! Webhooks of a team: who is called, what is still to be delivered, and the secrets that sign deliveries.

pub(crate) mod deliveries;
pub(crate) mod signing_secrets;
pub(crate) mod subscriptions;
