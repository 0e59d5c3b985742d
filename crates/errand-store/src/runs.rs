//! Everything that changes or reads a run.
//!
//! [`change`] is the unit of work: it loads a run, applies an event of the state machine, and writes the row, the
//! transcript, the events and the deliveries in one transaction. The other modules are the operations that use it.

pub(crate) mod bulk;
pub(crate) mod change;
pub(crate) mod children;
pub(crate) mod claim_order;
pub(crate) mod claims;
pub(crate) mod commands;
pub(crate) mod deadlines;
pub(crate) mod events;
pub(crate) mod fork;
pub(crate) mod losses;
pub(crate) mod quarantine;
pub(crate) mod queries;
pub(crate) mod row;
