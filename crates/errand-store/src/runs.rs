//! Everything that changes or reads a run.
//!
//! [`change`] is the unit of work: it loads a run, applies an event of the state machine, and writes the row, the
//! transcript, the events and the deliveries in one transaction. The other modules are the operations that use it.

pub(crate) mod bulk;
pub(crate) mod change;
pub(crate) mod children;
pub(crate) mod claim_order;
pub(crate) mod claims;
pub(crate) mod columns;
pub(crate) mod commands;
pub(crate) mod create;
pub(crate) mod deadlines;
pub(crate) mod events;
pub(crate) mod expected_build;
pub(crate) mod follow_ups;
pub(crate) mod fork;
pub(crate) mod lineage;
pub(crate) mod loss_counts;
pub(crate) mod losses;
pub(crate) mod principal;
pub(crate) mod quarantine;
pub(crate) mod queries;
pub(crate) mod request_rows;
pub(crate) mod row;
pub(crate) mod settle;
pub(crate) mod transcript_copy;
