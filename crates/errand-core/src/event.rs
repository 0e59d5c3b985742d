//! The events of a run's stream.

use crate::wire_enum::wire_enum;

wire_enum! {
    /// The kind of an event of a run's stream.
    EventKind {
        /// The run itself changed.
        RunUpdated = "run.updated",
        MessageCreated = "message.created",
        HumanRequestCreated = "human_request.created",
        /// The request was answered, expired, or was closed by a message or a stop.
        HumanRequestClosed = "human_request.closed",
    }
}
