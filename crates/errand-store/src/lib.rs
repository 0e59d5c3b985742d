//! Stores everything that errand keeps, and contains the transactions that change it.
//!
//! # Guarantees
//!
//! Every operation is one transaction: when it returns, either all of it is on disk, or nothing happened. Operations
//! take and return data, not transactions, so that SQLite can commit many callers' operations together, and another
//! database can execute each in one statement. The team is the first parameter: data of another team is reported as
//! not found.
//!
//! Everything specific to SQLite is in [`db::sqlite`]: the writer thread, the readers, the lock on the directory, and
//! migrations. Time and ids are parameters; nothing here reads a clock.
//!
//! # Non-goals
//!
//! Deciding (see `errand-core`) and acting (see `errand-engine`).

pub mod error;
pub mod idempotency;
pub mod model;

mod accounts;
mod agents;
mod audit;
mod crypto;
mod db;
mod integrations;
mod notify;
mod repair;
mod requests;
mod runs;
mod sandboxes;
mod stats;
mod webhooks;

pub use accounts::{
    Access, Bootstrap, Bootstrapped, Invitation, Joining, Member, Membership, NewApiKey,
    NewInvitation, NewTeam, NewUser, OfMember, Person, Session, Team, TeamFacts, User,
};
pub use audit::{AuditScope, Finding};
pub use crypto::reencrypt::{Discarded, Rotated, SealedKeys};
pub use crypto::seal;
pub use db::data_dir;
pub use db::paging::PageBounds;
pub use db::sqlite::{
    Condition, DATABASE_FILE, DatabaseFacts, DirLock, Fault, Faults, LostLog, OpenError,
    OpenOptions, Schema, Snapshot, SnapshotError, Store, Trial, Trouble, database_facts,
};
pub use error::{Result, StoreError};
pub use idempotency::{Idem, Idempotent, Outcome, Render, StoredAnswer};
pub use integrations::connections::{
    Connection, ConnectionChange, Floors, MadeFor, NewConnection, OauthClient, Setup,
    ToolSettingsByName,
};
pub use integrations::secrets::{Secret, SetSecret};
pub use model::StartChild;
pub use notify::{Bell, RevocationListener, Watch};
pub use repair::{Fork, Forked, Repaired};
pub use requests::inbox::{AskedFor, FoundRequest, OpenRequest};
pub use runs::bulk::{RETRIABLE, STOPPABLE};
pub use runs::claims::{Recovered, WakeOutcome};
pub use runs::fork::ForkRun;
pub use runs::losses::POISONED;
pub use sandboxes::{RecordedSandbox, SandboxFate, UNKNOWN_SANDBOX};
pub use stats::dashboard::{
    AgentFigures, ClosedRequest, DayFigures, LastRun, Reach, TranscriptPart,
};
pub use stats::gauges::{Deliveries, Figures, Late, Overdue};
pub use stats::run_report::{AgentSummary, RunSums, RunsSummary};
pub use stats::usage_report::{Named, UsageKey, UsageLine, UsageQuery, UsageSums};
pub use webhooks::deliveries::{DeliverySlots, DeliveryTurns, DueDeliveries, Receiver};
pub use webhooks::signing_secrets::{NewSecret, RetiredSecret, Rolled, SigningSecrets};
pub use webhooks::subscriptions::{NewWebhook, TestWebhook, Webhook, WebhookChange};
