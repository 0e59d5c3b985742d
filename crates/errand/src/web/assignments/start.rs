//! *Run now*: starts a run with a message and files.
//!
//! Guarantees: the form's token is the first part, and is checked before anything else is read. All files are
//! completely in the run's sandbox before the run starts. If a file does not arrive, no run is started.

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::response::{IntoResponse as _, Json, Redirect, Response};
use errand_core::id::{AgentId, SandboxId};
use errand_core::path::SandboxPath;
use errand_core::role::Permission;
use errand_store::Idempotent;
use futures::TryStreamExt as _;
use http::StatusCode;
use http::header;
use maud::{Markup, html};
use serde_json::json;

use super::overview;
use crate::http::error::ApiError;
use crate::http::receive::Spooled;
use crate::http::slots::Holder;
use crate::usecase::sandbox_files::root_of;
use crate::usecase::start_run::FirstMessage;
use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Path, TOKEN_FIELD, check_token};
use crate::web::guard::Visitor;
use crate::web::run::act::begin;
use crate::web::{Web, ui};

const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
const FILES_MAX: usize = 50;

/// The card with the form that starts a run. `message`: why a run could not be started.
pub(super) fn card(visitor: &Visitor, agent: AgentId, message: Option<&str>) -> Markup {
    if !visitor.may(Permission::ManageRuns) {
        return html! {};
    }
    html! {
        section.card.pad {
            div.head { h2 { "Run now" } }
            form.form method="post" action={ "/assignments/" (agent) "/runs" } enctype="multipart/form-data" data-upload {
                (ui::form_token(visitor))
                div.field.wide {
                    label for="start-message" { "Message " span.hint { "optional; what this run is about" } }
                    textarea #start-message name="message" rows="3" {}
                }
                (ui::untrusted_choice(false))
                div.drop {
                    label for="start-files" { "Files " span.hint { "drop files here or choose them; the run finds them in /workspace" } }
                    input #start-files type="file" name="files" multiple;
                    p.small data-files aria-live="polite" {}
                    button.plain type="button" data-none hidden { "Remove all files" }
                }
                progress hidden value="0" max="1" aria-label="Upload" {}
                p.wrong data-wrong role="alert" { @if let Some(message) = message { (message) } }
                div.buttons { button.main { (ui::icon("play")) "Run now" } }
            }
        }
    }
}

pub(in crate::web) async fn start(
    State(web): State<Web>,
    visitor: Visitor,
    Path(agent): Path<AgentId>,
    request: Request,
) -> PageResult {
    let by_script = request
        .headers()
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes().starts_with(b"application/json"));
    match received(&web, &visitor, agent, request).await {
        Ok(run) => Ok(gone_to(&format!("/runs/{run}"), by_script)),
        Err(error) => {
            let message = error.into_message()?;
            if by_script {
                let answer = Json(json!({ "message": message }));
                return Ok((StatusCode::BAD_REQUEST, answer).into_response());
            }
            overview(&web, &visitor, agent, Some(&message)).await
        }
    }
}

/// A script gets the address as text, because it would otherwise follow the redirect and load the page twice.
fn gone_to(address: &str, by_script: bool) -> Response {
    if by_script {
        Json(json!({ "go": address })).into_response()
    } else {
        Redirect::to(address).into_response()
    }
}

async fn received(
    web: &Web,
    visitor: &Visitor,
    agent: AgentId,
    request: Request,
) -> Result<errand_core::id::RunId, PageError> {
    let by = Holder::Person(visitor.user_id());
    let _slot = web.begin_upload(visitor.team_id(), by)?;
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|_| PageError::bad("The form arrived incomplete. Send it again."))?;
    let first = form.next_field().await.map_err(|e| broken(&e))?;
    let token = match first.filter(|field| field.name() == Some(TOKEN_FIELD)) {
        Some(field) => text_of(field).await?,
        None => String::new(),
    };
    check_token(Some(visitor), &token)?;
    web.store.agent(visitor.team_id(), agent).await?;
    let mut message = None;
    let mut untrusted = false;
    let mut sandbox = None;
    let mut count = 0;
    while let Some(field) = form.next_field().await.map_err(|e| broken(&e))? {
        let filename = field.file_name().unwrap_or_default().to_owned();
        match field.name() {
            Some("message") => {
                message = Some(text_of(field).await?).filter(|text| !text.trim().is_empty());
            }
            Some("untrusted") => untrusted = text_of(field).await? == "on",
            // If no file was chosen, browsers send one empty file without a name.
            Some("files") if !filename.is_empty() => {
                count += 1;
                if count > FILES_MAX {
                    return Err(PageError::bad(format!(
                        "This form accepts at most {FILES_MAX} files. Upload more through the API."
                    )));
                }
                let into = sandbox_for(web, visitor, &mut sandbox).await?;
                put(web, visitor, &into, &filename, field).await?;
            }
            _ => {}
        }
    }
    let message = message.map(|text| FirstMessage { text, untrusted });
    Ok(begin(web, visitor, agent, message, sandbox).await?)
}

/// Returns the form's sandbox, creating it for the first file.
async fn sandbox_for(
    web: &Web,
    visitor: &Visitor,
    made: &mut Option<SandboxId>,
) -> Result<SandboxId, PageError> {
    if let Some(sandbox) = made {
        return Ok(sandbox.clone());
    }
    let now = web.clock.now();
    let id = web.ids.sandbox(now);
    let expires_at = now.plus_ms(web.settings.sandbox_ttl_ms);
    web.store
        .create_sandbox(
            visitor.team_id(),
            id.clone(),
            expires_at,
            now,
            Idempotent::not_recorded(),
        )
        .await?;
    *made = Some(id.clone());
    Ok(id)
}

async fn put(
    web: &Web,
    visitor: &Visitor,
    sandbox: &SandboxId,
    filename: &str,
    field: Field<'_>,
) -> Result<(), PageError> {
    let limit = web.settings.direct_upload_bytes_max;
    let path = SandboxPath::parse_upload(None, filename)
        .map_err(|error| PageError::bad(error.to_string()))?;
    let parts =
        field.map_err(|_| ApiError::bad_request("the form arrived incomplete; send it again"));
    let too_large = || {
        PageError::bad(format!(
            "The file {filename} is larger than {}, the limit of this form. Upload it through the API.",
            ui::size(limit)
        ))
    };
    let spooled = Spooled::receive(&web.sandboxes, limit, parts)
        .await
        .map_err(|error| upload_error(error, &too_large))?;
    let root = root_of(web, visitor.team_id(), sandbox).await?;
    // The size was checked already, so a refusal means that the sandbox or the team has no room. The error says which.
    let received = spooled
        .into_received(root, path, limit)
        .await
        .map_err(space_error)?;
    received.place().await.map_err(space_error)?;
    Ok(())
}

fn upload_error(error: ApiError, too_large: &dyn Fn() -> PageError) -> PageError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        StatusCode::BAD_REQUEST => PageError::bad(error.message().to_owned()),
        _ => PageError::Internal(error),
    }
}

fn space_error(error: ApiError) -> PageError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST => {
            PageError::bad(error.message().to_owned())
        }
        _ => PageError::Internal(error),
    }
}

async fn text_of(mut field: Field<'_>) -> Result<String, PageError> {
    let mut bytes = Vec::new();
    while let Some(part) = field.chunk().await.map_err(|e| broken(&e))? {
        bytes.extend_from_slice(&part);
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(PageError::bad(
                "The message is too long. Put it in a file instead.",
            ));
        }
    }
    String::from_utf8(bytes).map_err(|_| PageError::bad("The message is not valid UTF-8."))
}

fn broken(error: &MultipartError) -> PageError {
    PageError::bad(format!(
        "The form arrived incomplete: {}",
        error.body_text()
    ))
}
