#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod agents;
mod author;
mod backoff;
mod client;
mod config;
mod connections;
mod content;
mod error;
mod events;
mod human_requests;
mod id;
mod messages;
mod names;
mod page;
mod reply;
mod request;
mod run;
mod runs;
mod sandboxes;
mod setters;
#[cfg(test)]
mod tests;
mod time;
mod tool_calls;
mod transport;
mod verify;
mod webhooks;

pub use agents::{
    Agent, AgentDetails, Build, BuildStatus, CreatedBuild, NewAgent, NewBuild, Promotion, Warning,
};
pub use author::{Author, AuthorKind};
pub use backoff::RetryPolicy;
pub use client::Client;
pub use config::ClientBuilder;
pub use connections::{
    Connection, ConnectionDetails, ConnectionTool, ToolSettings, Transport, TransportKind,
};
pub use content::{Download, FileContent};
pub use error::{ApiError, Error, ErrorCode};
pub use events::{Event, EventBody, Events, MessageDelta, ToolProgress};
pub use human_requests::{
    Answer, AnsweredRequest, ContentSource, HumanRequest, Policy, Question, QuestionOption, Quote,
    Reason, RequestKind,
};
pub use id::{
    AgentId, BuildId, ConnectionId, DeliveryId, HumanRequestId, MessageId, RunId, SandboxId,
    WebhookId,
};
pub use messages::{HumanResponse, Message, MessageKind, NewMessage, Role};
pub use page::{Page, PageRequest};
pub use reply::Reply;
pub use request::Request;
pub use run::{Run, RunError, RunSource, RunStatus, Usage, WaitKind, WaitingOn};
pub use runs::{BulkChange, BulkOutcome, ForkRun, NewRun, RunDetails, RunFilter, Stopped};
pub use sandboxes::{FileEntry, FileKind, FileList, Sandbox, UploadedFile};
pub use time::{InvalidTimestamp, Timestamp};
pub use tool_calls::{ToolCall, ToolResult};
pub use verify::{RunWebhook, TestWebhook, WebhookError, WebhookPayload, WebhookVerifier};
pub use webhooks::{
    Attempt, DeliveriesOf, Delivery, DeliveryState, NewWebhook, RetiredSecret, RolledSecret,
    Webhook, WebhookEvent, WebhookSecret,
};

/// Types of these crates are part of the interface: statuses, headers, and [`ClientBuilder::http_client`].
pub use {http, reqwest};
