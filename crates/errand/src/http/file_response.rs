//! Responses with a file: complete, a range, or 304.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use errand_core::path::SandboxPath;
use errand_sandbox::OpenFile;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::compress::AsItIs;
use super::error::{ApiError, ErrorCode};
use super::range::{Part, asked_for, is_known};
use crate::usecase::blocking::blocking;

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
    let digest = hex::encode(Sha256::digest(exact.as_bytes()));
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

/// A download of a CSV file. `name`: ASCII only.
pub(crate) fn csv(name: &str, text: String) -> Result<Response, ApiError> {
    let disposition = format!("attachment; filename=\"{name}\"");
    let disposition = HeaderValue::try_from(disposition).map_err(ApiError::internal)?;
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/csv; charset=utf-8"),
        ),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, text).into_response())
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
