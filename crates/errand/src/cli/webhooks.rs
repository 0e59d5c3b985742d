//! `errand webhooks`: the team's webhooks, their deliveries and their signing secret, through the API. The secret is
//! also available on the server's machine.

use anyhow::{Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use errand_client::{
    DeliveriesOf, Delivery, DeliveryId, NewWebhook, RunId, WebhookEvent, WebhookId,
};
use serde_json::json;

use super::agents::{Paging, note_more};
use super::{CommandContext, LocalServer, RemoteServer, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, reach};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the secret that signs webhooks (on the server's machine)
    Secret {
        /// Name or ID of the team [default: the first team]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
    /// Rotate the signing secret and print the new one; both sign for 24 hours
    Roll {
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// List the team's webhooks, newest first
    List {
        #[command(flatten)]
        page: Paging,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Create a webhook for the events of all runs, and print its ID
    Create(Create),
    /// Delete a webhook; pending deliveries are dropped
    Delete(WebhookArgs),
    /// Send a test event to a webhook
    Test(WebhookArgs),
    /// List the deliveries to a webhook (newest first), or of a run (oldest first)
    Deliveries(Deliveries),
    /// Send a delivery again
    Resend {
        /// ID of the delivery
        delivery: DeliveryId,
        #[command(flatten)]
        remote: RemoteServer,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// URL that receives the events
    #[arg(value_name = "URL")]
    address: String,
    /// Only this event; can be repeated [default: all]
    #[arg(long = "event", value_name = "EVENT")]
    events: Vec<WebhookEvent>,
    /// Description
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
pub(super) struct WebhookArgs {
    /// ID of the webhook
    webhook: WebhookId,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("of").required(true).args(["webhook", "run"])))]
pub(super) struct Deliveries {
    /// ID of the webhook
    webhook: Option<WebhookId>,
    /// Deliveries of this run, to all URLs
    #[arg(long, value_name = "ID")]
    run: Option<RunId>,
    #[command(flatten)]
    page: Paging,
    #[command(flatten)]
    remote: RemoteServer,
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    match command {
        Command::Secret { team, place } => secret(team, &place, with).await,
        Command::Roll { remote } => {
            let rolled = with.client(&remote)?.roll_webhook_secret().await?;
            if out.json() {
                return Ok(out.json_text(&rolled.text)?);
            }
            Ok(out.line(&rolled.into_value().secret.unwrap_or_default())?)
        }
        Command::List { page, remote } => list(&page, &remote, with).await,
        Command::Create(args) => create(args, with).await,
        Command::Delete(WebhookArgs { webhook, remote }) => {
            with.client(&remote)?.delete_webhook(&webhook).await?;
            Ok(out.note("The webhook was deleted.")?)
        }
        Command::Test(WebhookArgs { webhook, remote }) => {
            let sent = with.client(&remote)?.test_webhook(&webhook).await?;
            if out.json() {
                return Ok(out.json_text(&sent.text)?);
            }
            out.line(sent.id.as_str())?;
            Ok(out
                .note("A test event was sent; see its result with `errand webhooks deliveries`.")?)
        }
        Command::Deliveries(args) => deliveries(args, with).await,
        Command::Resend { delivery, remote } => {
            let sent = with.client(&remote)?.resend_delivery(&delivery).await?;
            if out.json() {
                return Ok(out.json_text(&sent.text)?);
            }
            Ok(out.note("The delivery was queued again.")?)
        }
    }
}

async fn secret(team: Option<String>, place: &LocalServer, with: &CommandContext) -> Result<()> {
    match reach::execute(
        &with.settings_of(place)?,
        AdminRequest::WebhookSecret { team },
    )
    .await?
    {
        AdminAnswer::WebhookSecret { secret } if with.out.json() => {
            Ok(with.out.json_value(&json!({ "webhook_secret": secret }))?)
        }
        AdminAnswer::WebhookSecret { secret } => Ok(with.out.line(&secret)?),
        _ => Err(unexpected_response()),
    }
}

async fn list(page: &Paging, remote: &RemoteServer, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let client = with.client(remote)?;
    let list = client.webhooks(page.request()).await?;
    if out.json() {
        return Ok(out.json_text(&list.text)?);
    }
    let (shown, total) = (list.items.len(), list.total);
    let rows = list.into_value().into_iter().map(|webhook| {
        let state = match (webhook.enabled, webhook.disabled_reason) {
            (true, _) => "enabled".to_owned(),
            (false, Some(why)) => format!("disabled: {why}"),
            (false, None) => "disabled".to_owned(),
        };
        let events: Vec<_> = webhook.events.iter().map(WebhookEvent::as_str).collect();
        [
            webhook.id.into(),
            webhook.url,
            events.join(", "),
            state,
            webhook.description.unwrap_or_default(),
        ]
    });
    out.table(&["id", "address", "events", "state", "description"], rows)?;
    note_more(with, shown, page.offset, total)
}

async fn create(args: Create, with: &CommandContext) -> Result<()> {
    let mut new = NewWebhook::of(args.address);
    new.events = args.events;
    new.description = args.description;
    let client = with.client(&args.remote)?;
    let made = client.create_webhook(&new).await?;
    if with.out.json() {
        return Ok(with.out.json_text(&made.text)?);
    }
    Ok(with.out.line(made.id.as_str())?)
}

async fn deliveries(args: Deliveries, with: &CommandContext) -> Result<()> {
    let (out, page) = (&with.out, &args.page);
    let of = match (&args.webhook, &args.run) {
        (_, Some(run)) => DeliveriesOf::Run(run),
        (Some(webhook), None) => DeliveriesOf::Webhook(webhook),
        (None, None) => bail!("a webhook or a run must be given"),
    };
    let client = with.client(&args.remote)?;
    let list = client.deliveries(of, page.request()).await?;
    if out.json() {
        return Ok(out.json_text(&list.text)?);
    }
    let (shown, total) = (list.items.len(), list.total);
    let rows = list.into_value().into_iter().map(row);
    out.table(
        &[
            "id", "event", "run", "address", "state", "attempts", "last", "next",
        ],
        rows,
    )?;
    note_more(with, shown, page.offset, total)
}

fn row(delivery: Delivery) -> [String; 8] {
    let attempts = delivery.attempts.len().to_string();
    let last = delivery.attempts.last().map(|attempt| {
        let status = attempt.status.map(|status| status.to_string());
        status.or_else(|| attempt.error.clone()).unwrap_or_default()
    });
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        delivery.id.into(),
        delivery.event.to_string(),
        or_none(delivery.run_id.map(String::from)),
        delivery.url,
        delivery.state.to_string(),
        attempts,
        or_none(last),
        or_none(delivery.next_attempt_at.map(|at| at.to_string())),
    ]
}
