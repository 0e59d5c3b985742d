//! The only crate that knows SQL: what errand keeps, and the transactions that change it.
//!
//! Every operation is one transaction: all of it is on disk when it answers, or none of it happened. Operations take
//! data and return data, never closures or transactions, so that SQLite can commit many callers' together and another
//! database can do each in one statement. The team comes first: another team's things are not found.
//!
//! What is special to SQLite is in [`sqlite`]: the writer thread, the readers, the lock on the directory, migrations.
//! Time and ids are parameters; nothing here reads a clock. Left out: deciding (that is `errand-core`) and doing
//! (that is `errand-engine`).

pub mod data_dir;
pub mod error;
pub mod model;
pub mod once;
pub mod seal;

mod access;
mod agents;
mod audit;
mod bell;
mod builds;
mod change;
mod children;
mod connections;
mod deliveries;
mod driving;
mod events;
mod figures;
mod forks;
mod inbox;
mod losses;
mod many;
mod outside;
mod overdue;
mod overview;
mod paging;
mod providers;
mod repair;
mod reseal;
mod rows;
mod runs;
mod sandboxes;
mod secrets;
mod sqlite;
mod summary;
mod sums;
mod turns;
mod unread;
mod usage;
mod webhooks;

pub use access::{
    Access, Bootstrap, Bootstrapped, Invitation, Joining, Member, Membership, NewApiKey,
    NewInvitation, NewSecret, NewTeam, NewUser, OfMember, Person, RetiredSecret, Rolled, Session,
    SigningSecrets, Team, TeamFacts, User,
};
pub use audit::{AuditScope, Finding};
pub use bell::{Bell, Fence, Watch};
pub use children::StartChild;
pub use connections::{
    Connection, ConnectionChange, Floors, MadeFor, NewConnection, OauthClient, Setup,
    ToolSettingsByName,
};
pub use deliveries::{DeliverySlots, DeliveryTurns, DueDeliveries, Receiver};
pub use driving::{Recovered, Woken};
pub use error::{Result, StoreError};
pub use figures::{Deliveries, Figures, Late, Overdue};
pub use forks::ForkRun;
pub use inbox::{AskedFor, FoundRequest, OpenRequest};
pub use losses::POISONED;
pub use many::{RETRIABLE, STOPPABLE};
pub use once::{Answer, Idem, Once, Render, StoredAnswer};
pub use overview::{AgentFigures, ClosedRequest, DayFigures, LastRun, Reach, TranscriptPart};
pub use paging::PageBounds;
pub use repair::{Fork, Forked, Repaired};
pub use reseal::{Discarded, Rotated, SealedKeys};
pub use sandboxes::SandboxFate;
pub use secrets::{Secret, SetSecret};
pub use sqlite::{
    Condition, DATABASE_FILE, DatabaseFacts, Fault, Faults, OpenError, OpenOptions, Schema,
    Snapshot, SnapshotError, Store, Trial, Trouble, database_facts,
};
pub use summary::{AgentSummary, RunSums, RunsSummary};
pub use sums::{Named, UsageKey, UsageLine, UsageQuery, UsageSums};
pub use webhooks::{NewWebhook, TestWebhook, Webhook, WebhookChange};
