//! Settings of a team.

pub(super) mod keys;
