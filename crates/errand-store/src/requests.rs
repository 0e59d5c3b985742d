//! Human requests as pages and the API list them.

pub(crate) mod inbox;
