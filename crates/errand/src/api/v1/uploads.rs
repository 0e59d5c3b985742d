//! Endpoints for uploading files into a sandbox: directly, as a form or a raw body, and with an upload URL.
//!
//! # Guarantees
//!
//! - A file appears completely or not at all.
//! - The parts of a form can have any order.
//! - With an `Idempotency-Key`, the file is written first and the record after it. A crash in between is harmless,
//!   because writing the file twice has the same result.

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

use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::idempotency::{IdempotencyKey, rendered, replayed, response};
use crate::api::outer::OuterUrl;
use crate::api::query::{Given, Query, QueryParams, check_names};
use crate::api::upload_token::{Grant, sign, verify};
use crate::http::bodies::{content_length, refuse_compressed};
use crate::http::client_address::address_of;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::path::{Path, PathIds};
use crate::http::receive::{Received, Spooled, receive};
use crate::http::slots::Holder;
use crate::state::AppState;
use crate::usecase::sandbox_files::{open_root, root_of};

/// Maximum size of a form apart from the file.
const FORM_BYTES_MAX: u64 = 1024 * 1024;

/// An uploaded file.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct UploadResponse {
    /// The path of the file.
    #[schema(example = "/workspace/invoices.csv")]
    path: String,
    size_bytes: u64,
}

/// A form with a file.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form")]
pub(crate) struct UploadForm {
    /// The file. If there is no part with this name, the only part with a filename is used.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// The destination: the path of a file, or of a directory if it ends with `/`. Default: `/workspace/` and the
    /// filename.
    path: Option<String>,
}

/// Query parameters of an upload.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what RawPath reads")]
pub(crate) struct UploadParams {
    /// The path for a raw body. Not permitted for forms.
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

/// Uploads a file of at most 10 MiB.
///
/// The body is a form (`multipart/form-data`), or the file itself with `?path=`.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files", tag = "Sandboxes",
    params(("sandbox_id" = String, Path, description = "The sandbox."), UploadParams),
    request_body(content((UploadForm = "multipart/form-data"), (Vec<u8> = "application/octet-stream"))),
    responses((status = 201, description = "The stored file.", body = UploadResponse)))]
pub(crate) async fn upload_file(
    caller: Caller,
    State(app): State<AppState>,
    Path(sandbox): Path<SandboxId>,
    key: IdempotencyKey,
    Query(RawPath(path)): Query<RawPath>,
    request: Request,
) -> Result<Response, ApiError> {
    let _slot = app.begin_upload(caller.team(), Holder::Key(caller.api_key()))?;
    let root = root_of(&app, caller.team(), &sandbox).await?;
    let received = if is_form(request.headers()) {
        from_form(&app, root, path, request).await?
    } else {
        let path = path.ok_or_else(|| {
            ApiError::invalid(
                "path",
                "a raw body requires it: `?path=/workspace/NAME`; or send multipart/form-data",
            )
        })?;
        let limit = app.settings.direct_upload_bytes_max;
        let (parts, body) = request.into_parts();
        receive_raw(root, file_path(&path)?, limit, &parts.headers, body).await?
    };
    finish(&app, &caller, &sandbox, &key, received).await
}

/// Moves the file into place, extends the sandbox's life, and records the response, unless it was already recorded.
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
        && let Some(stored) = app.store.lookup_idempotent(idem, now).await?
    {
        return Ok(replayed(stored));
    }
    let body = place(app, caller.team(), sandbox, received).await?;
    let answer = app
        .store
        .record_idempotent(body, key.once(caller, digest, render), now)
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
        "must be the path of a file, such as /workspace/data.csv",
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

/// The parts of a form that have been read.
#[derive(Default)]
struct Form {
    file: Option<(Spooled, String)>,
    /// Whether the file is from the part called `file`, which takes precedence over other parts.
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
        return Err(ApiError::too_large("a directly uploaded file", limit));
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
            "the form has several files, but none in a part called `file`: give one of the parts this name",
        ));
    }
    let (spooled, filename) = form.file.ok_or_else(|| {
        ApiError::bad_request("the form has no file: send one in a part called `file`")
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
                    "the form has two parts called `file`: send one file per request",
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
            // Further files are only counted: if there are several, none is chosen.
            (_, Some(_)) => self.others += 1,
            _ => {}
        }
        Ok(())
    }
}

async fn spool(app: &AppState, field: Field<'_>, limit: u64) -> Result<Spooled, ApiError> {
    Spooled::receive(
        &app.sandboxes,
        limit,
        field.map_err(|error| of_form(&error, limit)),
    )
    .await
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
                format!("must be at most {PATH_BYTES_MAX} bytes long"),
            ));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("path", "must be UTF-8"))
}

/// The request with a total size limit: skipped parts have no limit of their own.
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
#[error("the form is too large for a direct upload")]
struct FormTooLarge;

fn of_form(error: &MultipartError, limit: u64) -> ApiError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if error.is::<FormTooLarge>() || inner.is_some_and(|inner| inner.is::<FormTooLarge>()) {
            return ApiError::too_large("a directly uploaded file", limit);
        }
        cause = error.source();
    }
    ApiError::bad_request(format!("the form cannot be read: {}", error.body_text()))
}

/// The request for an upload URL.
#[derive(Deserialize, ToSchema)]
pub(crate) struct UploadUrlRequest {
    /// The path of the file.
    #[schema(example = "/workspace/large.csv")]
    path: String,
}

impl RequestBody for UploadUrlRequest {}

/// A permission to upload one file.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct UploadUrlResponse {
    /// The address for a `PUT` request with the file's bytes. It needs no key.
    upload_url: String,
    /// The path of the file.
    path: String,
    /// The time for which the address is valid. The upload must begin within it.
    expires_in_seconds: u64,
}

/// Creates an address for uploading one file of up to 5 GiB without a key.
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
        .record_idempotent(url, key.once(&caller, body.sha256, render_url), now)
        .await?;
    Ok(response(answer, render_url))
}

fn render_url(url: &UploadUrlResponse) -> StoredAnswer {
    rendered(StatusCode::OK, url)
}

/// The token in an upload URL.
pub(crate) struct Token(String);

impl PathIds for Token {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        part("token").map(Self).ok_or_else(ApiError::not_found)
    }
}

/// Uploads a file to an upload URL.
///
/// The address itself is the permission. It can be used again until it expires; the last complete upload wins.
#[utoipa::path(put, path = "/v1/uploads/{token}", tag = "Sandboxes", security(()),
    params(("token" = String, Path, description = "The token in `upload_url`.")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "The stored file.", body = UploadResponse)))]
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
            "the upload URL is invalid or has expired: request a new one",
        );
        return Err(app
            .failed_authentications
            .refuse(request.headers(), peer, now, refusal));
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
