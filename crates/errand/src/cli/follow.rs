//! A run as it goes: its transcript, printed while it grows.

use anyhow::{Context as _, Result, bail};
use errand_core::run::Status;
use errand_core::time::Timestamp;
use errand_core::wire::{MessageBody, PendingRequestBody, RunBody};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::out::{Out, Style};
use super::transcript::Transcript;
use crate::client::Client;
use crate::client::events::{Events, ServerEvent};

/// What has happened, where the caller may want to do something about it.
pub(super) enum Moment {
    /// A person is asked.
    Asked(Box<PendingRequestBody>),
    /// Anything else.
    Other,
}

/// Follows one run.
pub(super) struct Follow<'o> {
    out: &'o Out,
    events: Events,
    transcript: Transcript<'o>,
    status: Option<(Status, Option<String>)>,
}

impl<'o> Follow<'o> {
    /// `begin`: when the run was made, where that is known.
    pub(super) fn new(client: &Client, run: &str, begin: Option<Timestamp>, out: &'o Out) -> Self {
        Self { out, events: client.events(run), transcript: Transcript::new(out, begin), status: None }
    }

    /// Prints what happens next. None once the run has ended.
    pub(super) async fn next(&mut self) -> Result<Option<Moment>> {
        let Some(event) = self.events.next().await? else { return Ok(None) };
        if self.out.json() {
            let line = json!({ "id": event.id, "event": event.kind, "data": event.data });
            self.out.line(&line.to_string())?;
        }
        Ok(Some(match event.kind.as_str() {
            "message.created" => {
                self.print(|transcript| Ok(transcript.message(&read::<MessageBody>(&event)?)))?;
                Moment::Other
            }
            "run.updated" => {
                let run: RunBody = read(&event)?;
                self.transcript.begin(run.created_at);
                // What it waits for is worth a line; that it was told again is not.
                let status = (run.status, run.waiting_on.as_ref().map(|waiting| waiting.kind.clone()));
                if self.status.as_ref() != Some(&status) {
                    self.print(|transcript| Ok(transcript.status(&run)))?;
                    self.status = Some(status);
                }
                Moment::Other
            }
            "human_request.created" => Moment::Asked(Box::new(read(&event)?)),
            _ => Moment::Other,
        }))
    }

    fn print(&self, lines: impl FnOnce(&Transcript<'o>) -> Result<String>) -> Result<()> {
        if !self.out.json() {
            self.out.line(&lines(&self.transcript)?)?;
        }
        Ok(())
    }
}

/// The event's object. Its fields stand beside `run_id` and `created_at`.
fn read<T: DeserializeOwned>(event: &ServerEvent) -> Result<T> {
    T::deserialize(&event.data).with_context(|| format!("the event {} cannot be read", event.kind))
}

/// Follows a run to its end; where it asks a person, says how to answer.
///
/// # Errors
/// Where the run failed or was interrupted, too.
pub(super) async fn to_the_end(client: &Client, run: &str, out: &Out) -> Result<()> {
    let mut follow = Follow::new(client, run, None, out);
    while let Some(moment) = follow.next().await? {
        if let Moment::Asked(request) = moment
            && !out.json()
        {
            let how = if request.kind == "approval" { "--approve | --deny" } else { "--answer 'Question=Answer'" };
            let hint = format!("answer with: errand runs respond {run} {how}");
            out.note(&out.paint_note(Style::Dim, &hint))?;
        }
    }
    ended_well(&client.run(run).await?.value.run)
}

/// Nothing where a run is completed; else why not.
pub(super) fn ended_well(run: &RunBody) -> Result<()> {
    match (run.status, &run.error) {
        (Status::Completed, _) => Ok(()),
        (_, Some(error)) => bail!("run {} failed: {} ({})", run.id, error.message, error.code),
        (status, None) => bail!("run {} is {}", run.id, status.as_str()),
    }
}
