//! Actions on a run: message, stop, retry, run again.

use axum::extract::State;
use errand_core::id::{AgentId, RunId, SandboxId};
use errand_core::run::RunSource;
use errand_core::transcript::Body;
use errand_store::model::PostMessage;
use errand_store::{Idempotent, Reach, StoreError};

use super::to_run;
use crate::usecase::start_run::{FirstMessage, NewRun, start_run};
use crate::web::Web;
use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Form, Path};
use crate::web::guard::Visitor;

/// Entries searched for a run's first message.
const FIRST_ENTRIES: u32 = 20;

pub(in crate::web) async fn message(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Form(fields): Form,
) -> PageResult {
    let Some(text) = fields.given("message") else {
        return Err(PageError::bad("The message is empty."));
    };
    let now = web.clock.now();
    let message = PostMessage {
        team: visitor.team_id(),
        run,
        id: web.ids.message(now),
        text: text.to_owned(),
        untrusted: fields.is_on("untrusted"),
        by: visitor.user_id().into(),
        now,
    };
    web.store
        .post_message(message, Idempotent::not_recorded())
        .await?;
    Ok(to_run(run))
}

pub(in crate::web) async fn stop(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Form(_): Form,
) -> PageResult {
    let (team, by, now) = (visitor.team_id(), visitor.user_id(), web.clock.now());
    web.store
        .stop(team, run, by, now, Idempotent::not_recorded())
        .await?;
    Ok(to_run(run))
}

pub(in crate::web) async fn retry(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Form(_): Form,
) -> PageResult {
    let (team, by, now) = (visitor.team_id(), visitor.user_id(), web.clock.now());
    web.store
        .retry(team, run, by, now, Idempotent::not_recorded())
        .await?;
    Ok(to_run(run))
}

/// Starts the assignment's latest build with the first message of this run, and on the same files if they still exist
/// and no other run uses them.
pub(in crate::web) async fn again(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Form(_): Form,
) -> PageResult {
    let team = visitor.team_id();
    let view = web.store.run(team, run).await?;
    let part = web
        .store
        .transcript(team, run, Reach::After(0), FIRST_ENTRIES)
        .await?;
    let first = part.entries.into_iter().find_map(|entry| match entry.body {
        // A message without an author was written by the model of the parent run. What that model had read is unknown
        // here, so its words count as untrusted.
        Body::User {
            text,
            by,
            untrusted,
        } => Some(FirstMessage {
            text,
            untrusted: untrusted || by.is_none(),
        }),
        _ => None,
    });
    let sandbox = view.run.sandbox_id.as_deref().and_then(SandboxId::parse);
    let agent = AgentId::from_stored(view.run.agent_id);
    let started = begin(&web, &visitor, agent, first.clone(), sandbox).await;
    let started = match started {
        Err(
            StoreError::Conflict(_)
            | StoreError::Invalid {
                field: "sandbox_id",
                ..
            },
        ) => begin(&web, &visitor, agent, first, None).await?,
        other => other?,
    };
    Ok(to_run(started))
}

/// Starts a run from a page.
pub(in crate::web) async fn begin(
    web: &Web,
    visitor: &Visitor,
    agent: AgentId,
    message: Option<FirstMessage>,
    sandbox: Option<SandboxId>,
) -> Result<RunId, StoreError> {
    let new = NewRun {
        team: visitor.team_id(),
        agent,
        source: RunSource::Web,
        sandbox,
        sandbox_ttl_ms: web.settings.sandbox_ttl_ms,
        webhook_url: None,
        human_request_webhook_url: None,
        message,
        by: visitor.user_id().into(),
        api_key: None,
    };
    let started = start_run(web, new, Idempotent::not_recorded()).await?;
    Ok(RunId::from_stored(started.executed()?.run.id))
}
