//! Settings of a team.

pub(super) mod keys;
pub(super) mod team;
