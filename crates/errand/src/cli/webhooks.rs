//! `errand webhooks`: what a receiver of webhooks needs.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::{Place, Surroundings, strange_answer};
use crate::admin::{AdminAnswer, AdminRequest, reach};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the secret that webhooks are signed with
    Secret {
        #[command(flatten)]
        place: Place,
    },
}

pub(super) async fn run(command: &Command, with: &Surroundings) -> Result<()> {
    let Command::Secret { place } = command;
    match reach::execute(&with.settings_of(place)?, AdminRequest::WebhookSecret).await? {
        AdminAnswer::WebhookSecret { secret } if with.out.json() => {
            Ok(with.out.json_value(&json!({ "webhook_secret": secret }))?)
        }
        AdminAnswer::WebhookSecret { secret } => Ok(with.out.line(&secret)?),
        _ => Err(strange_answer()),
    }
}
