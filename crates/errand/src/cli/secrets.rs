//! `errand secrets`: the key that encrypts secrets, on the server's machine.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::{CommandContext, LocalServer, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, KeyText, reach};

/// Environment variable with the new key, if the old one comes from `ERRAND_MASTER_KEY`.
const NEW_KEY: &str = "ERRAND_NEW_MASTER_KEY";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Encrypt all secrets again with a new master key
    ///
    /// The server can keep running. If the key is in the data directory's file, a new one is generated and replaces it.
    /// If the key comes from ERRAND_MASTER_KEY, set the new one as ERRAND_NEW_MASTER_KEY, and start the server with it
    /// from then on. Earlier backups still need the old key.
    Rotate {
        #[command(flatten)]
        place: LocalServer,
    },
}

pub(super) async fn run(command: &Command, with: &CommandContext) -> Result<()> {
    let Command::Rotate { place } = command;
    let settings = with.settings_of(place)?;
    let new_key = with
        .env
        .get(NEW_KEY)
        .filter(|text| !text.is_empty())
        .map(|text| KeyText(text.clone()));
    let from_environment = new_key.is_some();
    let request = AdminRequest::RotateMasterKey { new_key };
    let AdminAnswer::Rotated {
        secrets,
        lost,
        key_id,
    } = reach::execute(&settings, request).await?
    else {
        return Err(unexpected_response());
    };
    if with.out.json() {
        return Ok(with
            .out
            .json_value(&json!({"secrets": secrets, "lost": lost, "key_id": key_id}))?);
    }
    with.out.line(&format!(
        "{secrets} secrets were encrypted again with the new master key {key_id}."
    ))?;
    if lost > 0 {
        with.out.note(&format!(
            "{lost} secrets could not be decrypted and were not changed. Set them again."
        ))?;
    }
    if from_environment {
        with.out.note(
            "From now on, start the server with the new key in ERRAND_MASTER_KEY. The old key no longer works.",
        )?;
    }
    Ok(())
}
