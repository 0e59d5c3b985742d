//! `errand webhooks`: the team's webhooks, their deliveries and their signing secret, through the API. The secret is
//! also available on the server's machine.

use anyhow::Result;
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Map, json};

use super::agents::{Paging, note_more};
use super::{CommandContext, LocalServer, RemoteServer, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, reach};
use crate::client::webhooks::DeliveryLine;

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
        delivery: String,
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
    events: Vec<String>,
    /// Description
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
pub(super) struct WebhookArgs {
    /// ID of the webhook
    webhook: String,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("of").required(true).args(["webhook", "run"])))]
pub(super) struct Deliveries {
    /// ID of the webhook
    webhook: Option<String>,
    /// Deliveries of this run, to all URLs
    #[arg(long, value_name = "ID")]
    run: Option<String>,
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
            Ok(out.line(&rolled.value.secret.unwrap_or_default())?)
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
            out.line(&sent.value.delivery.id)?;
            Ok(out
                .note("A test event was sent; see its result with `errand webhooks deliveries`.")?)
        }
        Command::Deliveries(args) => deliveries(args, with).await,
        Command::Resend { delivery, remote } => {
            let sent = with.client(&remote)?.resend(&delivery).await?;
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
    let list = client.webhooks(page.limit, page.offset).await?;
    if out.json() {
        return Ok(out.json_text(&list.text)?);
    }
    let shown = list.value.webhooks.len();
    let rows = list.value.webhooks.into_iter().map(|webhook| {
        let state = match (webhook.enabled, webhook.disabled_reason) {
            (true, _) => "enabled".to_owned(),
            (false, Some(why)) => format!("disabled: {why}"),
            (false, None) => "disabled".to_owned(),
        };
        [
            webhook.id,
            webhook.url,
            webhook.events.join(", "),
            state,
            webhook.description.unwrap_or_default(),
        ]
    });
    out.table(&["id", "address", "events", "state", "description"], rows)?;
    note_more(with, shown, page.offset, list.value.total)
}

async fn create(args: Create, with: &CommandContext) -> Result<()> {
    let mut body = Map::from_iter([("url".to_owned(), json!(args.address))]);
    if !args.events.is_empty() {
        body.insert("events".to_owned(), json!(args.events));
    }
    if let Some(description) = args.description {
        body.insert("description".to_owned(), json!(description));
    }
    let client = with.client(&args.remote)?;
    let made = client.create_webhook(&body.into()).await?;
    if with.out.json() {
        return Ok(with.out.json_text(&made.text)?);
    }
    Ok(with.out.line(&made.value.webhook.id)?)
}

async fn deliveries(args: Deliveries, with: &CommandContext) -> Result<()> {
    let (out, page) = (&with.out, &args.page);
    let (of, id) = match (&args.webhook, &args.run) {
        (_, Some(run)) => ("runs", run.as_str()),
        (webhook, None) => ("webhooks", webhook.as_deref().unwrap_or_default()),
    };
    let client = with.client(&args.remote)?;
    let list = client.deliveries(of, id, page.limit, page.offset).await?;
    if out.json() {
        return Ok(out.json_text(&list.text)?);
    }
    let shown = list.value.deliveries.len();
    let rows = list.value.deliveries.into_iter().map(row);
    out.table(
        &[
            "id", "event", "run", "address", "state", "attempts", "last", "next",
        ],
        rows,
    )?;
    note_more(with, shown, page.offset, list.value.total)
}

fn row(delivery: DeliveryLine) -> [String; 8] {
    let attempts = delivery.attempts.len().to_string();
    let last = delivery.attempts.last().map(|attempt| {
        let status = attempt.status.map(|status| status.to_string());
        status.or_else(|| attempt.error.clone()).unwrap_or_default()
    });
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        delivery.id,
        delivery.event,
        or_none(delivery.run_id),
        delivery.url,
        delivery.state,
        attempts,
        or_none(last),
        or_none(delivery.next_attempt_at),
    ]
}
