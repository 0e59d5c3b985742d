//! Endpoints for listing and downloading the files of a sandbox.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::SandboxId;
use errand_core::path::SandboxPath;
use errand_sandbox::{Entry, FileError, Kind};
use http::header::HeaderMap;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::api::auth::Caller;
use crate::api::query::{Given, Query, QueryParams};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::file_response::{answer, describe};
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::blocking::blocking;
use crate::usecase::sandbox_files::root_of;

/// An entry of a directory.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileEntry {
    /// The last component of the path.
    name: String,
    /// The complete path.
    #[schema(example = "/workspace/invoices.csv")]
    path: String,
    /// `file` or `dir`.
    #[serde(rename = "type")]
    kind: String,
    /// 0 for a directory.
    size_bytes: u64,
}

impl From<Entry> for FileEntry {
    fn from(entry: Entry) -> Self {
        let kind = match entry.kind {
            Kind::File => "file",
            Kind::Dir => "dir",
        };
        Self {
            name: entry.name,
            path: entry.path,
            kind: kind.to_owned(),
            size_bytes: entry.size_bytes,
        }
    }
}

/// The entries of a directory.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileListResponse {
    /// Sorted by name.
    files: Vec<FileEntry>,
    /// True if the directory has more entries than one response can contain.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    truncated: bool,
}

/// Query parameters of the file list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what DirectoryPath reads")]
pub(crate) struct ListFilesParams {
    /// The path of the directory.
    #[param(default = "/workspace")]
    path: Option<String>,
}

pub(crate) struct DirectoryPath(SandboxPath);

impl QueryParams for DirectoryPath {
    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self(SandboxPath::parse(
            given.one("path")?.unwrap_or_default(),
        )?))
    }
}

/// Lists the files and directories in one directory of a sandbox, sorted by name.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/files", tag = "Sandboxes",
    params(("sandbox_id" = String, Path, description = "The sandbox."), ListFilesParams),
    responses((status = 200, description = "The entries of the directory.", body = FileListResponse)))]
pub(crate) async fn list_files(
    caller: Caller,
    State(app): State<AppState>,
    Path(sandbox): Path<SandboxId>,
    Query(DirectoryPath(path)): Query<DirectoryPath>,
) -> Result<Answered<FileListResponse>, ApiError> {
    let root = root_of(&app, caller.team(), &sandbox).await?;
    let listing = blocking(move || root.list(&path).map_err(not_there)).await?;
    let files = listing.entries.into_iter().map(FileEntry::from).collect();
    Ok(Answered(FileListResponse {
        files,
        truncated: listing.truncated,
    }))
}

/// Maps a path that leads through a file to "not found", because for a reader there is nothing at that path.
fn not_there(error: FileError) -> ApiError {
    match error {
        FileError::NotADirectory { .. } => ApiError::new(ErrorCode::NotFound, error.to_string()),
        error => error.into(),
    }
}

/// Query parameters of a download.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what FilePath reads")]
pub(crate) struct ContentParams {
    /// The path of the file.
    path: String,
}

pub(crate) struct FilePath(SandboxPath);

impl QueryParams for FilePath {
    fn read(given: &Given) -> Result<Self, ApiError> {
        let text = given
            .one("path")?
            .ok_or_else(|| ApiError::invalid("path", "it is missing: send the path of a file"))?;
        Ok(Self(SandboxPath::parse(text)?))
    }
}

/// Downloads a file, or one range of its bytes.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/files/content", tag = "Sandboxes",
    params(
        ("sandbox_id" = String, Path, description = "The sandbox."),
        ContentParams,
        ("Range" = Option<String>, Header, description = "One range of bytes."),
        ("If-Range" = Option<String>, Header, description = "An `ETag`. If the file has another one, the complete file is returned."),
        ("If-None-Match" = Option<String>, Header, description = "An `ETag`. If the file still has it, the response is 304."),
    ),
    responses(
        (status = 200, description = "The file.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The range.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 304, description = "The client has the current version."),
        (status = 416, description = "The range is outside the file.", body = crate::http::error::ErrorResponse),
    ))]
pub(crate) async fn get_content(
    caller: Caller,
    State(app): State<AppState>,
    Path(sandbox): Path<SandboxId>,
    Query(FilePath(path)): Query<FilePath>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let root = root_of(&app, caller.team(), &sandbox).await?;
    let opened = path.clone();
    let open = blocking(move || root.open_file(&opened).map_err(not_there)).await?;
    let mut response = answer(open, &headers).await?;
    describe(response.headers_mut(), &path);
    Ok(response)
}
