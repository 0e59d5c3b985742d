//! Prints a run's transcript while it grows.

use anyhow::{Result, bail};
use errand_client::{
    Client, EventBody, Events, HumanRequest, RequestKind, Run, RunId, RunStatus, Timestamp,
    WaitKind,
};
use serde_json::json;

use super::out::{Out, Style};
use super::transcript::Transcript;

/// An event, for callers that act on requests.
pub(super) enum FollowEvent {
    /// The run waits for an answer.
    Asked(Box<HumanRequest>),
    /// Anything else.
    Other,
}

/// Follows the events of one run.
pub(super) struct Follow<'o> {
    out: &'o Out,
    events: Events,
    transcript: Transcript<'o>,
    status: Option<(RunStatus, Option<WaitKind>)>,
}

impl<'o> Follow<'o> {
    /// `begin`: the creation time of the run.
    pub(super) fn new(client: &Client, run: &RunId, begin: Timestamp, out: &'o Out) -> Self {
        Self {
            out,
            events: client.events(run),
            transcript: Transcript::new(out, Some(begin)),
            status: None,
        }
    }

    /// Prints what happens next. Returns `None` once the run has ended.
    pub(super) async fn next(&mut self) -> Result<Option<FollowEvent>> {
        let Some(event) = self.events.next().await? else {
            return Ok(None);
        };
        if self.out.json() {
            let line = json!({ "id": event.id, "event": event.name, "data": event.data });
            self.out.line(&line.to_string())?;
        }
        Ok(Some(match event.body()? {
            EventBody::MessageCreated(message) => {
                self.print(Some(self.transcript.message(&message)))?;
                FollowEvent::Other
            }
            EventBody::RunUpdated(run) => {
                // What the run waits for is printed only when it changes.
                let waiting = run.waiting_on.as_ref().map(|waiting| waiting.kind.clone());
                let status = (run.status.clone(), waiting);
                if self.status.as_ref() != Some(&status) {
                    self.print(self.transcript.status(&run))?;
                    self.status = Some(status);
                }
                FollowEvent::Other
            }
            EventBody::HumanRequestCreated(request) => FollowEvent::Asked(request),
            _ => FollowEvent::Other,
        }))
    }

    fn print(&self, lines: Option<String>) -> Result<()> {
        match lines {
            Some(lines) if !self.out.json() => Ok(self.out.line(&lines)?),
            _ => Ok(()),
        }
    }
}

/// Follows a run to its end. If it waits for an answer, prints the command that answers.
///
/// # Errors
/// Also if the run failed or was interrupted.
pub(super) async fn follow_to_end(client: &Client, run: &RunId, out: &Out) -> Result<()> {
    let begin = client.run(run).await?.run.created_at;
    let mut follow = Follow::new(client, run, begin, out);
    while let Some(moment) = follow.next().await? {
        let FollowEvent::Asked(request) = moment else {
            continue;
        };
        // The event may be about an old request that was answered since.
        let pending = client.run(run).await?.into_value().pending_human_request;
        if !out.json() && pending.is_some_and(|pending| pending.id == request.id) {
            out.note(&out.paint_note(Style::Dim, &answer_hint(run, &request)))?;
        }
    }
    check_completed(&client.run(run).await?.run)
}

/// The command that answers a request.
pub(super) fn answer_hint(run: &RunId, request: &HumanRequest) -> String {
    let how = if request.kind == RequestKind::Approval {
        "--approve | --deny"
    } else {
        "--answer 'Question=Answer'"
    };
    format!("answer with: errand runs respond {run} {how}")
}

/// `Ok` if the run completed, otherwise an error with the reason.
pub(super) fn check_completed(run: &Run) -> Result<()> {
    match (&run.status, &run.error) {
        (RunStatus::Completed, _) => Ok(()),
        (_, Some(error)) => bail!("run {} failed: {} ({})", run.id, error.message, error.code),
        (status, None) => bail!("run {} is {status}", run.id),
    }
}
