//! Sandboxes and their files.

use std::pin::pin;

use http::{Method, header};
use reqwest::Url;
use serde::Deserialize;
use tokio::time::timeout;

use crate::backoff::Repeat;
use crate::client::Client;
use crate::content::{Download, FileContent};
use crate::error::Error;
use crate::id::SandboxId;
use crate::names::names;
use crate::reply::Reply;
use crate::time::Timestamp;
use crate::transport::{Received, Transport};

/// Larger files go to an upload URL.
const DIRECT_UPLOAD_BYTES_MAX: u64 = 10 * 1024 * 1024;

names! {
    /// The kind of an entry of a directory.
    FileKind {
        /// A file.
        File = "file",
        /// A directory.
        Dir = "dir",
    }
}

/// A directory of files that runs work in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Sandbox {
    /// The sandbox's id.
    pub sandbox_id: SandboxId,
    /// When it is deleted with its files, unless it is used before.
    pub expires_at: Timestamp,
}

/// The entries of a directory, by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct FileList {
    /// The entries.
    pub files: Vec<FileEntry>,
    /// Whether the directory has more entries than one response can contain.
    #[serde(default)]
    pub truncated: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct FileEntry {
    /// The last component of the path.
    pub name: String,
    /// The complete path, beginning with `/workspace`.
    pub path: String,
    /// Whether it is a file or a directory.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// The size. `None` or 0 for a directory.
    pub size_bytes: Option<u64>,
}

/// A file that was uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct UploadedFile {
    /// The complete path, beginning with `/workspace`.
    pub path: String,
    /// The size.
    pub size_bytes: u64,
}

#[derive(Deserialize)]
struct UploadUrl {
    upload_url: String,
}

impl Client {
    /// Creates a sandbox.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_sandbox(&self) -> Result<Reply<Sandbox>, Error> {
        self.post(["sandboxes"]).send().await
    }

    /// Deletes a sandbox and its files.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_sandbox(&self, sandbox: &SandboxId) -> Result<(), Error> {
        self.delete(["sandboxes", sandbox.as_str()])
            .send_empty()
            .await?;
        Ok(())
    }

    /// Lists a directory, such as `/workspace`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn files(&self, sandbox: &SandboxId, dir: &str) -> Result<Reply<FileList>, Error> {
        let path = ["sandboxes", sandbox.as_str(), "files"];
        self.get(path).query("path", dir).send().await
    }

    /// Uploads a file, and replaces the one that is there. `path`: the file's path, such as `/workspace/invoices.csv`.
    ///
    /// It lasts as long as data is transferred. A file of more than 10 MiB is sent to an upload URL of the server.
    ///
    /// # Errors
    /// See [`Error`]. If a stream of content fails, its error is a cause of [`Error::Unreachable`].
    pub async fn upload(
        &self,
        sandbox: &SandboxId,
        path: &str,
        content: impl Into<FileContent>,
    ) -> Result<Reply<UploadedFile>, Error> {
        let content = content.into();
        let target = if content.size_bytes() <= DIRECT_UPLOAD_BYTES_MAX {
            let parts = ["sandboxes", sandbox.as_str(), "files"];
            let mut url = self.transport.url(parts)?;
            url.query_pairs_mut().append_pair("path", path);
            Target::Api(url)
        } else {
            let parts = ["sandboxes", sandbox.as_str(), "upload-urls"];
            let body = serde_json::json!({ "path": path });
            let reply = self.post(parts).json(&body).send::<UploadUrl>().await?;
            let url = Url::parse(&reply.upload_url);
            Target::UploadUrl(url.map_err(|_| self.transport.unexpected("an invalid upload URL"))?)
        };
        send_file(&self.transport, &target, content).await
    }

    /// Downloads a file.
    ///
    /// # Errors
    /// See [`Error`]. The stream has errors of its own, if the connection breaks off.
    pub async fn download(&self, sandbox: &SandboxId, path: &str) -> Result<Download, Error> {
        let parts = ["sandboxes", sandbox.as_str(), "files", "content"];
        let mut url = self.transport.url(parts)?;
        url.query_pairs_mut().append_pair("path", path);
        let open = || {
            let request = self.transport.request(Method::GET, url.clone());
            self.transport.open(request)
        };
        let response = self.transport.repeat(Repeat::Always, open).await?;
        Ok(Download::new(
            response.content_length(),
            self.transport.pieces(response),
        ))
    }
}

/// Where a file is sent.
enum Target {
    /// The endpoint for files.
    Api(Url),
    /// An address that is its own permission, so that the API key is not sent.
    UploadUrl(Url),
}

/// Sends a file. Content in memory is sent again if that may help: the second upload replaces the first.
async fn send_file(
    transport: &Transport,
    target: &Target,
    content: FileContent,
) -> Result<Reply<UploadedFile>, Error> {
    let received = match content.in_memory() {
        Some(bytes) => {
            let attempt = || attempt(transport, target, bytes.clone().into());
            transport.repeat(Repeat::Always, attempt).await?
        }
        None => attempt(transport, target, content).await?,
    };
    let value = serde_json::from_str(&received.text)
        .map_err(|error| transport.unexpected(error.to_string()))?;
    Ok(received.reply(value))
}

/// Sends a file once. Gives up when nothing was sent for a while, and no response came.
async fn attempt(
    transport: &Transport,
    target: &Target,
    content: FileContent,
) -> Result<Received, Error> {
    let size_bytes = content.size_bytes();
    let (body, progress) = content.into_body();
    let request = match target {
        Target::Api(url) => transport.request(Method::POST, url.clone()),
        Target::UploadUrl(url) => transport.http.put(url.clone()),
    };
    let request = request
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, size_bytes)
        .body(body);
    let mut exchange = pin!(transport.exchange(request));
    loop {
        let before = progress.bytes();
        match timeout(transport.stall_timeout, &mut exchange).await {
            Ok(received) => return received,
            Err(_) if progress.bytes() > before => {}
            Err(_) => return Err(transport.stalled()),
        }
    }
}
