//! Settings of a team.

pub(super) mod keys;
pub(super) mod models;
pub(super) mod people;
pub(super) mod secrets;
pub(super) mod team;
