//! `errand secrets`: the key that secrets are sealed under, on the server's machine.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::{Place, Surroundings, strange_answer};
use crate::admin::{AdminAnswer, AdminRequest, KeyText, reach};

/// Holds the new key, where the old one comes from `ERRAND_MASTER_KEY`.
const NEW_KEY: &str = "ERRAND_NEW_MASTER_KEY";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Seal every secret anew, under a new master key
    ///
    /// A server may be at work meanwhile. Where the key is in the data directory's file, the new one is drawn and replaces
    /// it. Where it comes from ERRAND_MASTER_KEY, put the new one into ERRAND_NEW_MASTER_KEY, and start the server with it
    /// from then on. Copies of the data that were made before need the old key.
    Rotate {
        #[command(flatten)]
        place: Place,
    },
}

pub(super) async fn run(command: &Command, with: &Surroundings) -> Result<()> {
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
        return Err(strange_answer());
    };
    if with.out.json() {
        return Ok(with
            .out
            .json_value(&json!({"secrets": secrets, "lost": lost, "key_id": key_id}))?);
    }
    with.out.line(&format!(
        "{secrets} secrets are sealed under the new master key {key_id}."
    ))?;
    if lost > 0 {
        with.out.note(&format!(
            "{lost} secrets could not be opened, and are as they were: set them anew."
        ))?;
    }
    if from_environment {
        with.out.note(
            "Start the server with the new key in ERRAND_MASTER_KEY from now on; the old one opens nothing any more.",
        )?;
    }
    Ok(())
}
