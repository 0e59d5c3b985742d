//! Commands that reach a run from outside: start, message, answer, stop, retry.

use errand_core::author::By;
use errand_core::budget;
use errand_core::human::{HumanRequest, Origin, Resolution, check_answer};
use errand_core::id::{HumanRequestId, RunId, SandboxId, TeamId};
use errand_core::run::{Event, Status};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry};
use errand_core::wire::{AnsweredRequestBody, MessageBody};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::agents::live::live_build_of;
use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, json};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{PostMessage, Principal, Respond, RunView, StartRun};
use crate::runs::change::{Change, Closing};
use crate::runs::create::{NewRun, create_run, title_of};
use crate::runs::expected_build::check_expected;
use crate::runs::lineage;
use crate::runs::losses;
use crate::runs::queries::view_of;
use crate::runs::settle::settle;
use crate::sandboxes::UNKNOWN_SANDBOX;

impl Store {
    /// Starts a run of the agent's live build. Writes the run, the first message, the event and the idempotency
    /// record in one transaction.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown agent; `Invalid` for an agent without a build, a build with a model
    /// that cannot be used, and an unknown or expired sandbox; `Conflict` if the sandbox is in use; `BuildChanged` if
    /// the caller has checked another build than the live one.
    pub async fn start_run(
        &self,
        start: StartRun,
        recorded: Idempotent<RunView>,
    ) -> Result<Outcome<RunView>> {
        self.write(move |tx| idempotent(tx, &recorded, start.now, || start_run(tx, &start)))
            .await
    }

    /// Stores a message, and resumes the run if it has ended.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn post_message(
        &self,
        message: PostMessage,
        recorded: Idempotent<MessageBody>,
    ) -> Result<Outcome<MessageBody>> {
        self.write(move |tx| idempotent(tx, &recorded, message.now, || post_message(tx, &message)))
            .await
    }

    /// Answers the pending human request of a run.
    ///
    /// # Errors
    /// `NotFound`; `Refused` if the run is not waiting or the request is not the pending one (the message says who
    /// responded, and when), or if the answer does not fit (the message names the question).
    pub async fn respond(
        &self,
        respond: Respond,
        recorded: Idempotent<AnsweredRequestBody>,
    ) -> Result<Outcome<AnsweredRequestBody>> {
        self.write(move |tx| idempotent(tx, &recorded, respond.now, || answer(tx, &respond)))
            .await
    }

    /// Stops a run. The result is `true` if it had already ended and was left unchanged.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn stop(
        &self,
        team: TeamId,
        run: RunId,
        by: impl Into<By>,
        now: Timestamp,
        recorded: Idempotent<bool>,
    ) -> Result<Outcome<bool>> {
        let by = by.into();
        // Must work even if the disk is full, because a run keeps using resources until it is stopped.
        self.write_at_all_costs(move |tx| {
            idempotent(tx, &recorded, now, || stop(tx, team, run, &by, now))
        })
        .await
    }

    /// Queues a failed run again. It continues from the step that failed.
    ///
    /// # Errors
    /// `NotFound`; `Refused` unless the run failed.
    pub async fn retry(
        &self,
        team: TeamId,
        run: RunId,
        by: impl Into<By>,
        now: Timestamp,
        recorded: Idempotent<RunView>,
    ) -> Result<Outcome<RunView>> {
        let by = by.into();
        self.write(move |tx| idempotent(tx, &recorded, now, || retry(tx, team, run, &by, now)))
            .await
    }
}

fn start_run(tx: &Tx<'_>, start: &StartRun) -> Result<RunView> {
    let build = live_build_of(tx, start.team, start.agent)?;
    let config = tx
        .builds()
        .get(tx, build)?
        .map_err(|e| StoreError::Invalid {
            field: "agent_id",
            message: format!("the agent's live build cannot be run: {e}"),
        })?;
    check_expected(start.expected_build.as_ref(), build)?.map_err(|message| {
        StoreError::Invalid {
            field: "agent_id",
            message,
        }
    })?;
    if let Some(sandbox) = &start.sandbox {
        check_sandbox(tx, start.team, sandbox, start.now)?;
    }
    let new = NewRun {
        team: start.team,
        id: start.id,
        agent: start.agent,
        build,
        config: &config,
        source: Some(start.source),
        started_by: Some(start.by.user),
        api_key: start.api_key,
        principal: Principal::of(start.api_key, start.by.user),
        title: start.message.as_ref().and_then(|(_, text)| title_of(text)),
        sandbox: start.sandbox.clone(),
        sandbox_ttl_ms: start.sandbox_ttl_ms,
        webhook_url: start.webhook_url.clone(),
        human_webhook_url: start.human_request_webhook_url.clone(),
        human_in_the_loop: config.human_in_the_loop,
        now: start.now,
    };
    let run = create_run(tx, new, |change| {
        let Some((id, text)) = &start.message else {
            return Ok(());
        };
        let body = Body::User {
            text: text.clone(),
            untrusted: start.untrusted,
            by: Some(start.by.clone()),
        };
        change.append(Some(*id), body).map(drop)
    })?;
    Ok(RunView { run, pending: None })
}

fn check_sandbox(
    conn: &Connection,
    team: TeamId,
    sandbox: &SandboxId,
    now: Timestamp,
) -> Result<()> {
    let found = conn
        .prepare_cached(
            // An owner that has ended is about to release the sandbox, and a run that is started now waits for that.
            "SELECT s.expires_at, r.id FROM sandboxes s
             LEFT JOIN runs r ON r.id = s.owner_run AND r.status NOT IN ('completed', 'failed', 'interrupted')
             WHERE s.id = ?1 AND s.team_id = ?2 AND s.deleted_at IS NULL",
        )?
        .query_row(params![sandbox.as_str(), Blob(team.as_uuid())], |row| Ok((row.get::<_, Ms>(0)?.0, row.get::<_, Option<Blob>>(1)?)))
        .optional()?;
    let invalid = |message: &str| StoreError::Invalid {
        field: "sandbox_id",
        message: message.to_owned(),
    };
    match found {
        None => Err(invalid(UNKNOWN_SANDBOX)),
        Some((_, Some(owner))) => Err(StoreError::Conflict(format!(
            "the sandbox is in use by run {}; wait until it has ended, or create another sandbox",
            owner.0
        ))),
        Some((expires_at, None)) if expires_at <= now => Err(invalid(
            "the sandbox has expired; create a new one and upload the files again",
        )),
        Some(_) => Ok(()),
    }
}

fn post_message(tx: &Tx<'_>, message: &PostMessage) -> Result<MessageBody> {
    let mut change = Change::of_team(tx, message.team, message.run, message.now)?;
    let pending = change.pending()?;
    let resolution = Resolution::Message {
        text: message.text.clone(),
    };
    let closing = pending.as_ref().map(|request| Closing {
        request,
        resolution: &resolution,
        by: Some(&message.by),
    });
    change.apply_closing(Event::Message, closing)?;
    let entry: Entry = change.append(
        Some(message.id),
        Body::User {
            text: message.text.clone(),
            untrusted: message.untrusted,
            by: Some(message.by.clone()),
        },
    )?;
    settle(change)?;
    MessageBody::of(&entry).ok_or(StoreError::NotFound)
}

fn answer(tx: &Tx<'_>, respond: &Respond) -> Result<AnsweredRequestBody> {
    let mut change = Change::of_team(tx, respond.team, respond.run, respond.now)?;
    // A parent run shows the requests of its child runs. The answer goes to the run that asked.
    if let Some(below) = lineage::asked_below(tx, respond.run, respond.request)? {
        let mut respond = respond.clone();
        respond.run = below;
        return answer(tx, &respond);
    }
    let pending = match change.pending()? {
        Some(pending) if pending.id == respond.request && change.row.status == Status::Waiting => {
            pending
        }
        _ => return Err(not_the_pending_one(tx, respond.run, respond.request)?),
    };
    // The request has expired, even if that is not recorded yet.
    if let Some(expired) = pending.expires_at.filter(|at| *at <= respond.now) {
        return Err(StoreError::Refused(format!(
            "the request is not pending: it expired at {expired}; this answer changed nothing"
        )));
    }
    let resolution =
        // The error message names the question.
        check_answer(&pending.ask, respond.answer.clone()).map_err(|e| StoreError::Refused(e.0))?;
    let closing = Closing {
        request: &pending,
        resolution: &resolution,
        by: Some(&respond.by),
    };
    let answered = change.apply_closing(Event::Answered, Some(closing))?;
    if gives_time(&pending, &resolution) {
        change.row.active_ms = 0;
    }
    settle(change)?;
    answered.ok_or(StoreError::NotFound)
}

/// Whether the answer resets the active time. An approval lets the run continue; after a denial, the run needs time
/// to fail.
fn gives_time(request: &HumanRequest, resolution: &Resolution) -> bool {
    let of_time = matches!(&request.origin, Origin::Limit { limit } if limit == budget::SECONDS);
    of_time
        && matches!(
            resolution,
            Resolution::Approved { .. } | Resolution::Denied { .. }
        )
}

/// Why a request cannot be answered: it does not exist, or was closed earlier.
fn not_the_pending_one(
    conn: &Connection,
    run: RunId,
    request: HumanRequestId,
) -> Result<StoreError> {
    let found = conn
        .prepare_cached(
            "SELECT h.closed_at, h.resolution, h.responded_by, u.email,
                 (SELECT name FROM named_api_keys WHERE id = h.responded_key)
             FROM human_requests h LEFT JOIN users u ON u.id = h.responded_by
             WHERE h.id = ?1 AND h.run_id = ?2",
        )?
        .query_row(
            params![Blob(request.as_uuid()), Blob(run.as_uuid())],
            |row| {
                let by = (
                    row.get::<_, Option<Blob>>(2)?.map(|b| b.0),
                    row.get::<_, Option<String>>(3)?,
                    row.get::<_, Option<String>>(4)?,
                );
                Ok((
                    row.get::<_, Option<Ms>>(0)?.map(|ms| ms.0),
                    row.get::<_, Option<String>>(1)?,
                    by,
                ))
            },
        )
        .optional()?;
    let Some((closed_at, resolution, (user, email, key))) = found else {
        return Ok(StoreError::NotFound);
    };
    let (Some(closed_at), Some(resolution)) = (closed_at, resolution) else {
        return Ok(StoreError::Refused(
            "the run is not waiting for an answer".to_owned(),
        ));
    };
    let resolution: Resolution = json("human_requests", "resolution", &resolution)?;
    let who = email.or_else(|| user.map(|u| format!("user {u}")));
    let who = match (key, who) {
        (Some(key), Some(who)) => format!(" with the API key {key:?} of {who}"),
        (_, Some(who)) => format!(" by {who}"),
        (_, None) => String::new(),
    };
    let how = match resolution {
        Resolution::Message { .. } => "closed by a message",
        Resolution::Stopped => "closed when the run was stopped",
        Resolution::Expired { .. } => "expired",
        Resolution::Approved { .. } => "approved",
        Resolution::Denied { .. } => "denied",
        Resolution::Answered { .. } => "answered",
    };
    Ok(StoreError::Refused(format!(
        "the request is not pending: it was {how}{who} at {closed_at}; this answer changed nothing"
    )))
}

/// Stops a run. Returns `true` if it had already ended.
pub(crate) fn stop(tx: &Tx<'_>, team: TeamId, run: RunId, by: &By, now: Timestamp) -> Result<bool> {
    let mut change = Change::of_team(tx, team, run, now)?;
    if !change.stop(Some(by))? {
        return Ok(true);
    }
    settle(change)?;
    Ok(false)
}

/// Queues a failed run again.
pub(crate) fn retry(
    tx: &Tx<'_>,
    team: TeamId,
    run: RunId,
    by: &By,
    now: Timestamp,
) -> Result<RunView> {
    let mut change = Change::of_team(tx, team, run, now)?;
    if change.row.status != Status::Failed {
        return Err(StoreError::Refused(format!(
            "only a failed run can be retried; this one is {}. A message resumes a run that is completed or interrupted",
            change.row.status.as_str()
        )));
    }
    losses::check_not_parked(change.row.error.as_ref(), "retried")?;
    change.apply(Event::Retry)?;
    change.append(
        None,
        Body::Retried {
            by: Some(by.clone()),
        },
    )?;
    settle(change)?;
    view_of(tx, team, run)
}
