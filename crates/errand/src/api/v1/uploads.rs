//! Files into a sandbox: directly, as a form or raw, and by an upload URL.
//!
//! Promised: a file appears whole or not at all; a form's parts may come in any order. For an upload with an
//! `Idempotency-Key` the file is put first and the record after: doing it twice is harmless.

use std::net::SocketAddr;

use axum::Json as Answered;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{ConnectInfo, FromRequest as _, Multipart, Request, State};
use axum::response::{IntoResponse, Response};
use errand_core::id::{SandboxId, TeamId};
use errand_core::path::{PATH_BYTES_MAX, SandboxPath, means_directory};
use errand_sandbox::Root;
use errand_store::StoredAnswer;
use futures::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use http::header::{self, HeaderMap};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::files::{open_root, root_of};
use crate::api::AppState;
use crate::api::auth::{Caller, address_of, refuse};
use crate::api::body::{Json, RequestBody, content_length, refuse_compressed};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::idempotency::{IdempotencyKey, rendered, replayed, response};
use crate::api::outer::OuterUrl;
use crate::api::path::{Path, PathIds};
use crate::api::query::{Given, Query, QueryParams, check_names};
use crate::api::receive::{Received, Spooled, receive};
use crate::api::slots::Holder;
use crate::api::upload_token::{Grant, sign, verify};

/// What the parts of a form may have around the file, in bytes.
const FORM_BYTES_MAX: u64 = 1024 * 1024;

/// A file that was uploaded.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct UploadResponse {
    /// Where it is.
    #[schema(example = "/workspace/invoices.csv")]
    path: String,
    /// How large it is.
    size_bytes: u64,
}

/// A form with a file.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form")]
pub(crate) struct UploadForm {
    /// The file. Without a part of this name, the only part with a filename is taken.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// Where it goes: a file's path, or, ending with `/`, a directory's. Without it `/workspace/` and the filename.
    path: Option<String>,
}

/// Where a raw body goes.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what RawPath reads")]
pub(crate) struct UploadParams {
    /// The path of a raw body; not for forms.
    path: Option<String>,
}

pub(crate) struct RawPath(Option<String>);

impl QueryParams for RawPath {
    fn read(given: &Given) -> Result<Self, ApiError> {
        match given.one("path")? {
            Some("") => Err(not_a_file()),
            path => Ok(Self(path.map(str::to_owned))),
        }
    }
}

/// Uploads a file of at most 10 MiB: a form (`multipart/form-data`), or a raw body with `?path=`.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files", tag = "Sandboxes",
    params(("sandbox_id" = String, Path, description = "The sandbox."), UploadParams),
    request_body(content((UploadForm = "multipart/form-data"), (Vec<u8> = "application/octet-stream"))),
    responses((status = 201, description = "It is there, whole.", body = UploadResponse)))]
pub(crate) async fn upload_file(
    caller: Caller,
    State(app): State<AppState>,
    Path(sandbox): Path<SandboxId>,
    key: IdempotencyKey,
    Query(RawPath(path)): Query<RawPath>,
    request: Request,
) -> Result<Response, ApiError> {
    let _slot = app.begin_upload(caller.team(), Holder::Key(caller.api_key()))?;
    let root = root_of(&app, &caller, sandbox.clone()).await?;
    let received = if is_form(request.headers()) {
        from_form(&app, root, path, request).await?
    } else {
        let path = path.ok_or_else(|| {
            ApiError::invalid(
                "path",
                "a raw body needs it: `?path=/workspace/NAME`; or send multipart/form-data",
            )
        })?;
        let limit = app.settings.direct_upload_bytes_max;
        let (parts, body) = request.into_parts();
        receive_raw(root, file_path(&path)?, limit, &parts.headers, body).await?
    };
    finish(&app, &caller, &sandbox, &key, received).await
}

/// Puts the file, moves the sandbox's expiry, and records the answer: unless it was recorded before.
async fn finish(
    app: &AppState,
    caller: &Caller,
    sandbox: &SandboxId,
    key: &IdempotencyKey,
    received: Received,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let digest = received.digest();
    if let Some(idem) = key.idem(caller, digest)
        && let Some(stored) = app.store.recall(idem, now).await?
    {
        return Ok(replayed(stored));
    }
    let body = place(app, caller.team(), sandbox, received).await?;
    let answer = app
        .store
        .remember(body, key.once(caller, digest, render), now)
        .await?;
    Ok(response(answer, render))
}

async fn place(
    app: &AppState,
    team: TeamId,
    sandbox: &SandboxId,
    received: Received,
) -> Result<UploadResponse, ApiError> {
    let body = UploadResponse {
        path: received.path().to_string(),
        size_bytes: received.size_bytes(),
    };
    received.place().await?;
    let now = app.clock.now();
    let expires_at = now.plus_ms(app.settings.sandbox_ttl_ms);
    let bytes = app.sandboxes.bytes_of(sandbox);
    app.store
        .touch_sandbox(team, sandbox, expires_at, bytes, now)
        .await?;
    if let Some(bytes) = bytes {
        app.sandboxes.has_recorded(sandbox, bytes);
    }
    Ok(body)
}

fn render(body: &UploadResponse) -> StoredAnswer {
    rendered(StatusCode::CREATED, body)
}

async fn receive_raw(
    root: Root,
    path: SandboxPath,
    limit: u64,
    headers: &HeaderMap,
    body: Body,
) -> Result<Received, ApiError> {
    refuse_compressed(headers)?;
    if content_length(headers).is_some_and(|length| length > limit) {
        return Err(ApiError::too_large("this upload", limit));
    }
    receive(root, path, limit, body).await
}

fn not_a_file() -> ApiError {
    ApiError::invalid(
        "path",
        "it takes the path of a file, such as /workspace/data.csv",
    )
}

fn file_path(text: &str) -> Result<SandboxPath, ApiError> {
    let path = SandboxPath::parse(text)?;
    if text.is_empty() || means_directory(text) || path.is_root() {
        return Err(not_a_file());
    }
    Ok(path)
}

fn is_form(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("multipart/form-data")
}

/// What was found in a form so far.
#[derive(Default)]
struct Form {
    file: Option<(Spooled, String)>,
    /// Whether the file is of the part called `file`, which wins over others.
    is_named_file: bool,
    others: u32,
    path: Option<String>,
}

async fn from_form(
    app: &AppState,
    root: Root,
    query_path: Option<String>,
    request: Request,
) -> Result<Received, ApiError> {
    refuse_compressed(request.headers())?;
    let limit = app.settings.direct_upload_bytes_max;
    let whole = limit.saturating_add(FORM_BYTES_MAX);
    if content_length(request.headers()).is_some_and(|length| length > whole) {
        return Err(ApiError::too_large(
            "a file that is uploaded directly",
            limit,
        ));
    }
    let mut multipart = Multipart::from_request(bounded(request, whole), app)
        .await
        .map_err(|error| {
            ApiError::bad_request(format!("the body is not a form: {}", error.body_text()))
        })?;
    let mut form = Form {
        path: query_path,
        ..Form::default()
    };
    while let Some(field) = multipart
        .next_field()
        .await
        .map_err(|error| of_form(&error, limit))?
    {
        form.take(app, field, limit).await?;
    }
    if form.others > 1 && !form.is_named_file {
        return Err(ApiError::bad_request(
            "the form has several files and none in a part called `file`: call one of them so",
        ));
    }
    let (spooled, filename) = form.file.ok_or_else(|| {
        ApiError::bad_request("the form has no file: send it in a part called `file`")
    })?;
    let path = SandboxPath::parse_upload(form.path.as_deref(), &filename)?;
    spooled.into_received(root, path, limit).await
}

impl Form {
    async fn take(&mut self, app: &AppState, field: Field<'_>, limit: u64) -> Result<(), ApiError> {
        let filename = field.file_name().map(str::to_owned);
        match (field.name().unwrap_or_default(), filename) {
            ("file", _) if self.is_named_file => {
                return Err(ApiError::bad_request(
                    "the form has two parts called `file`: send one file with each request",
                ));
            }
            ("file", filename) => {
                let spooled = spool(app, field, limit).await?;
                self.file = Some((spooled, filename.unwrap_or_default()));
                self.is_named_file = true;
            }
            ("path", None) => self.path = Some(path_part(field, limit).await?),
            (_, Some(filename)) if !self.is_named_file && self.others == 0 => {
                self.file = Some((spool(app, field, limit).await?, filename));
                self.others = 1;
            }
            // Counted, since none of several is *the* file.
            (_, Some(_)) => self.others += 1,
            _ => {}
        }
        Ok(())
    }
}

async fn spool(app: &AppState, field: Field<'_>, limit: u64) -> Result<Spooled, ApiError> {
    Spooled::receive(app, limit, field.map_err(|error| of_form(&error, limit))).await
}

async fn path_part(mut field: Field<'_>, limit: u64) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(part) = field
        .chunk()
        .await
        .map_err(|error| of_form(&error, limit))?
    {
        bytes.extend_from_slice(&part);
        if bytes.len() > PATH_BYTES_MAX {
            return Err(ApiError::invalid(
                "path",
                format!("it takes at most {PATH_BYTES_MAX} bytes"),
            ));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("path", "it takes UTF-8"))
}

/// A body that breaks off beyond a number of bytes: parts that are passed over have no limit of their own.
fn bounded(request: Request, bytes_max: u64) -> Request {
    let (parts, body) = request.into_parts();
    let mut left = bytes_max;
    let stream = body.into_data_stream().map(move |part| {
        let part = part.map_err(std::io::Error::other)?;
        left = left
            .checked_sub(part.len() as u64)
            .ok_or_else(|| std::io::Error::other(FormTooLarge))?;
        Ok::<_, std::io::Error>(part)
    });
    Request::from_parts(parts, Body::from_stream(stream))
}

#[derive(Debug, thiserror::Error)]
#[error("the form is larger than a file that is uploaded directly may be")]
struct FormTooLarge;

fn of_form(error: &MultipartError, limit: u64) -> ApiError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if error.is::<FormTooLarge>() || inner.is_some_and(|inner| inner.is::<FormTooLarge>()) {
            return ApiError::too_large("a file that is uploaded directly", limit);
        }
        cause = error.source();
    }
    ApiError::bad_request(format!("the form cannot be read: {}", error.body_text()))
}

/// Where a file will go.
#[derive(Deserialize, ToSchema)]
pub(crate) struct UploadUrlRequest {
    /// The file's path.
    #[schema(example = "/workspace/large.csv")]
    path: String,
}

impl RequestBody for UploadUrlRequest {}

/// A permission to upload one file.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct UploadUrlResponse {
    /// `PUT` the bytes here, without a key.
    upload_url: String,
    /// Where the file will be.
    path: String,
    /// How long the address is good; the upload must begin by then.
    expires_in_seconds: u64,
}

/// An address to which one file of up to 5 GiB can be sent without a key.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/upload-urls", tag = "Sandboxes",
    params(("sandbox_id" = String, Path, description = "The sandbox.")), request_body = UploadUrlRequest,
    responses((status = 200, description = "The address.", body = UploadUrlResponse)))]
pub(crate) async fn create_upload_url(
    caller: Caller,
    State(app): State<AppState>,
    Path(sandbox): Path<SandboxId>,
    key: IdempotencyKey,
    OuterUrl(outer): OuterUrl,
    body: Json<UploadUrlRequest>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    app.store.sandbox(caller.team(), &sandbox, now).await?;
    let path = file_path(&body.value.path)?;
    let ttl_s = app.settings.url_ttl_s;
    let grant = Grant {
        team: caller.team(),
        sandbox,
        path: path.clone(),
        limit_bytes: app.settings.url_upload_bytes_max,
        expires_at_ms: now.plus_ms(ttl_s.saturating_mul(1000)).as_millis(),
    };
    let token = sign(&app.upload_key, &grant).map_err(ApiError::internal)?;
    let upload_url = format!("{outer}/v1/uploads/{token}");
    let url = UploadUrlResponse {
        upload_url,
        path: path.to_string(),
        expires_in_seconds: ttl_s,
    };
    let answer = app
        .store
        .remember(url, key.once(&caller, body.sha256, render_url), now)
        .await?;
    Ok(response(answer, render_url))
}

fn render_url(url: &UploadUrlResponse) -> StoredAnswer {
    rendered(StatusCode::OK, url)
}

/// The token of an upload URL.
pub(crate) struct Token(String);

impl PathIds for Token {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        part("token").map(Self).ok_or_else(ApiError::not_found)
    }
}

/// Takes the bytes of a file. The address is the permission; it may be used again until it expires, and the last whole
/// upload wins.
#[utoipa::path(put, path = "/v1/uploads/{token}", tag = "Sandboxes", security(()),
    params(("token" = String, Path, description = "As `upload_url` has it.")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "It is there, whole.", body = UploadResponse)))]
pub(crate) async fn put_upload(
    State(app): State<AppState>,
    Path(Token(token)): Path<Token>,
    request: Request,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let Some(grant) = verify(&app.upload_key, &token, now) else {
        let peer = address_of(request.extensions().get::<ConnectInfo<SocketAddr>>());
        let refusal = ApiError::new(
            ErrorCode::Unauthorized,
            "the upload URL is not valid, or not any more: ask for a new one",
        );
        return Err(refuse(&app, request.headers(), peer, now, refusal));
    };
    if app.settings.unknown_fields_refused {
        check_names(request.uri().query(), &[])?;
    }
    let url = Holder::Url(Sha256::digest(token.as_bytes()).into());
    let _slot = app.begin_upload(grant.team, url)?;
    let row = app.store.sandbox(grant.team, &grant.sandbox, now).await?;
    let root = open_root(&app, row).await?;
    let (parts, body) = request.into_parts();
    let received = receive_raw(root, grant.path, grant.limit_bytes, &parts.headers, body).await?;
    let body = place(&app, grant.team, &grant.sandbox, received).await?;
    Ok((StatusCode::OK, Answered(body)).into_response())
}
