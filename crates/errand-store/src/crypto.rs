//! Encryption of secrets at rest, and the rotation of the master key.

pub(crate) mod reencrypt;
pub mod seal;
