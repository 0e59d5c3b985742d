//! Endpoints for listing and downloading the files of a sandbox.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;

use axum::Json as Answered;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use errand_core::id::SandboxId;
use errand_core::path::SandboxPath;
use errand_core::transcript::hex;
use errand_sandbox::{Charged, Entry, FileError, Kind, OpenFile, Root};
use errand_store::model::Sandbox;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};

use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::query::{Given, Query, QueryParams};
use crate::http::compress::AsItIs;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::path::Path;
use crate::http::range::{Part, asked_for, is_known};
use crate::http::receive::blocking;

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
    let root = root_of(&app, &caller, sandbox).await?;
    let listing = blocking(move || root.list(&path).map_err(not_there)).await?;
    let files = listing.entries.into_iter().map(FileEntry::from).collect();
    Ok(Answered(FileListResponse {
        files,
        truncated: listing.truncated,
    }))
}

/// Opens a sandbox that the caller may use.
pub(crate) async fn root_of(
    app: &AppState,
    caller: &Caller,
    sandbox: SandboxId,
) -> Result<Root, ApiError> {
    let row = app
        .store
        .sandbox(caller.team(), &sandbox, app.clock.now())
        .await?;
    open_root(app, row).await
}

/// Opens an existing sandbox.
pub(crate) async fn open_root(app: &AppState, row: Sandbox) -> Result<Root, ApiError> {
    let sandboxes = app.sandboxes.clone();
    blocking(move || Ok(sandboxes.root(&row.id, charged(&row))?)).await
}

/// The team to whose quota a sandbox counts.
pub(crate) fn charged(row: &Sandbox) -> Charged {
    Charged {
        team: row.team,
        bytes: row.bytes,
    }
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
    let root = root_of(&app, &caller, sandbox).await?;
    let opened = path.clone();
    let open = blocking(move || root.open_file(&opened).map_err(not_there)).await?;
    let mut response = answer(open, &headers).await?;
    describe(response.headers_mut(), &path);
    Ok(response)
}

/// The response with a file or the requested range, or 304 if the client has the current version.
pub(crate) async fn answer(open: OpenFile, headers: &HeaderMap) -> Result<Response, ApiError> {
    let etag = etag_of(&open.file)?;
    let mut response = if is_known(headers, &etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let part = asked_for(headers, open.size_bytes, &etag);
        send(open, part).await?
    };
    response.extensions_mut().insert(AsItIs);
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, etag);
    Ok(response)
}

/// A tag that changes with the file's content: an upload replaces the inode, and a write changes the times.
fn etag_of(file: &File) -> Result<HeaderValue, ApiError> {
    let about = file.metadata().map_err(ApiError::internal)?;
    let exact = format!(
        "{}.{}.{}.{}.{}.{}",
        about.ino(),
        about.size(),
        about.mtime(),
        about.mtime_nsec(),
        about.ctime(),
        about.ctime_nsec()
    );
    let digest = hex(&Sha256::digest(exact.as_bytes()));
    Ok(text(&format!(
        "\"{}\"",
        digest.get(..32).unwrap_or_default()
    )))
}

async fn send(open: OpenFile, part: Part) -> Result<Response, ApiError> {
    let OpenFile {
        mut file,
        size_bytes,
        ..
    } = open;
    let (status, first, length) = match part {
        Part::Whole => (StatusCode::OK, 0, size_bytes),
        Part::Bytes { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Part::Unsatisfiable => {
            let range = ApiError::new(
                ErrorCode::RangeNotSatisfiable,
                format!("Range: the file has {size_bytes} bytes"),
            );
            return Err(range.with_header(
                header::CONTENT_RANGE,
                text(&format!("bytes */{size_bytes}")),
            ));
        }
    };
    let file = blocking(move || {
        file.seek(SeekFrom::Start(first))
            .map(|_| file)
            .map_err(ApiError::internal)
    })
    .await?;
    let stream = ReaderStream::new(tokio::fs::File::from_std(file).take(length));
    let mut response = (status, Body::from_stream(stream)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(
            header::CONTENT_RANGE,
            text(&format!(
                "bytes {first}-{}/{size_bytes}",
                first + length - 1
            )),
        );
    }
    Ok(response)
}

/// Headers that prevent a browser from executing the file, because its content is untrusted.
pub(crate) fn describe(headers: &mut HeaderMap, path: &SandboxPath) {
    let name = path.file_name().unwrap_or_default();
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    headers.insert(header::CONTENT_TYPE, text(kind.as_ref()));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CONTENT_DISPOSITION,
        text(&format!(
            "attachment; filename*=UTF-8''{}",
            percent_encoded(name)
        )),
    );
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

/// Encodes a file name for a header according to RFC 8187.
fn percent_encoded(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_leave_its_header() {
        assert_eq!(
            percent_encoded("a b\"\r\n;ü.csv"),
            "a%20b%22%0D%0A%3B%C3%BC.csv"
        );
    }

    #[test]
    fn downloads_cannot_be_executed() {
        let mut headers = HeaderMap::new();
        describe(&mut headers, &SandboxPath::parse("x/page.html").unwrap());
        assert_eq!(headers[header::CONTENT_TYPE], "text/html");
        assert_eq!(
            headers[header::CONTENT_DISPOSITION],
            "attachment; filename*=UTF-8''page.html"
        );
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(
            headers[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap()
                .starts_with("sandbox")
        );
    }
}
