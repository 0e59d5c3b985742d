//! A small client of the API, for the command line and the demo.
//!
//! # Guarantees
//!
//! - An error of the API becomes [`ClientError::Api`] with its code and message.
//! - Redirects are not followed, so that the key is never sent elsewhere.
//! - Calls end within a minute. Uploads, downloads and streams last as long as data arrives.
//! - A response is available as the server sent it ([`Reply::text`]) beside the parsed value.
//!
//! # Non-goals
//!
//! Repeating calls, except the event stream ([`events`]), which resumes where it broke off.

pub mod connections;
pub mod events;
#[cfg(test)]
mod tests;
pub mod webhooks;

use std::time::Duration;

use bytes::Bytes;
use errand_core::warning::Warning;
use errand_core::wire::{AnsweredRequestBody, MessageBody, PendingRequestBody, RunBody};
use futures::{Stream, TryStreamExt as _};
use http::{Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::Url;

use crate::secret_key::ApiKeySecret;

/// Time limit for name resolution, connecting and TLS.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Time limit of a call without a file or a stream.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);
/// Maximum silence of an upload, a download or a stream. The server sends a comment every 15 s.
const STILL_TIME_MAX: Duration = Duration::from_secs(60);
/// Entries per page of a list.
const PAGE: u32 = 100;

/// The reason why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's address is invalid.
    #[error(
        "{url:?} is not the address of a server; set ERRAND_URL to one such as http://127.0.0.1:8700"
    )]
    Address { url: String },
    /// The key does not have the form of an API key.
    #[error(
        "the API key must be `dv_` and 32 letters or digits; `errand keys create --name NAME` creates one"
    )]
    Key,
    /// The HTTP client cannot be created.
    #[error("the HTTP client cannot be created")]
    SetUp(#[source] reqwest::Error),
    /// The server did not respond.
    #[error("{base} does not respond; is `errand serve` running there, and is ERRAND_URL correct?")]
    Unreachable {
        /// The server's address.
        base: String,
        /// Without the URL.
        #[source]
        source: reqwest::Error,
    },
    /// The server answered with an error.
    #[error("{message} ({code})")]
    Api {
        status: StatusCode,
        /// The documented error code.
        code: String,
        /// The server's message.
        message: String,
    },
    /// The response does not come from the API.
    #[error("the response of {base} does not come from the API ({what}); is ERRAND_URL correct?")]
    Strange {
        /// The server's address.
        base: String,
        /// A description of the problem.
        what: String,
    },
    /// The response broke off.
    #[error("the connection broke off during the response")]
    Broken(#[source] reqwest::Error),
}

/// A parsed response with its text.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    pub value: T,
    /// The body as the server sent it.
    pub text: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AgentBody {
    pub id: String,
    pub name: String,
    pub created_at: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct BuildBody {
    pub id: String,
    /// Counted from 1.
    pub number: u64,
    pub name: String,
    pub created_at: String,
    /// `live`, `historic` or `draft`.
    pub status: String,
    pub config: Value,
}

/// The response `{"agent", "build"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct AgentReply {
    pub agent: AgentBody,
    /// The build that new runs use.
    pub build: Option<BuildBody>,
    /// Settings that may not do what is expected, if a build was created.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// The response `{"agents", "total"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct AgentList {
    /// One page.
    pub agents: Vec<AgentBody>,
    /// The total number of agents.
    pub total: u64,
}

/// The response `{"builds", "total"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct BuildList {
    /// One page.
    pub builds: Vec<BuildBody>,
    /// The total number of builds.
    pub total: u64,
}

/// The response `{"build"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct BuildReply {
    pub build: BuildBody,
    /// Settings that may not do what is expected, if a build was created.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// The response `{"success"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct PromotedReply {
    /// Always true.
    pub success: bool,
}

/// The response `{"run"}` or `{"run", "pending_human_request"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct RunReply {
    pub run: RunBody,
    /// The request that waits for an answer.
    #[serde(default)]
    pub pending_human_request: Option<PendingRequestBody>,
}

/// The response `{"runs", "total"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct RunList {
    /// One page.
    pub runs: Vec<RunBody>,
    /// The total number of runs.
    pub total: u64,
}

/// The response `{"messages", "total"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct MessageList {
    /// One page.
    pub messages: Vec<MessageBody>,
    /// The total number of messages.
    pub total: u64,
}

/// The response `{"message"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct MessageReply {
    pub message: MessageBody,
}

/// The response `{"human_request"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct AnsweredReply {
    /// The answered request.
    pub human_request: AnsweredRequestBody,
}

/// The response `{"success", "message"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct StoppedReply {
    /// Additional information, for example that the run had already ended.
    #[serde(default)]
    pub message: Option<String>,
}

/// The response `{"matched", "changed", "more", "runs"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct ManyRunsReply {
    /// Number of matching runs, at most the limit.
    pub matched: u64,
    /// Number of changed runs.
    pub changed: u64,
    /// Whether more runs match than the limit.
    pub more: bool,
    /// Ids of the changed runs; in a dry run, of those that would be changed.
    pub runs: Vec<String>,
}

/// The response `{"sandbox_id", "expires_at"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct SandboxReply {
    pub sandbox_id: String,
}

/// The response `{"files"}`.
#[derive(Clone, Debug, Deserialize)]
pub struct FileList {
    /// The entries of one directory.
    pub files: Vec<FileBody>,
}

/// An entry of a directory.
#[derive(Clone, Debug, Deserialize)]
pub struct FileBody {
    pub name: String,
    /// The complete path, beginning with `/workspace`.
    pub path: String,
    /// `file` or `dir`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes; none or 0 for a directory.
    pub size_bytes: Option<u64>,
}

/// An uploaded file.
#[derive(Clone, Debug, Deserialize)]
pub struct UploadedReply {
    pub path: String,
    pub size_bytes: u64,
}

#[derive(Deserialize)]
struct UploadUrlReply {
    upload_url: String,
}

#[derive(Deserialize)]
struct ErrorReply {
    error: String,
    message: String,
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: ApiKeySecret,
}

impl Client {
    /// `base`: the server's address, such as `http://127.0.0.1:8700`.
    ///
    /// # Errors
    /// [`ClientError::Address`], [`ClientError::Key`], [`ClientError::SetUp`].
    pub fn new(base: &str, key: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::Address {
            url: base.to_owned(),
        };
        let url = Url::parse(base.trim()).map_err(|_| bad())?;
        let host = url
            .host_str()
            .filter(|_| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(bad)?;
        let key = ApiKeySecret::parse(key.trim()).ok_or(ClientError::Key)?;
        errand_engine::net::install_crypto_provider();
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME_MAX)
            .read_timeout(STILL_TIME_MAX)
            .user_agent(concat!("errand/", env!("CARGO_PKG_VERSION")));
        let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        if host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()) {
            // A proxy could not reach the loopback address of this machine.
            builder = builder.no_proxy();
        }
        if url.scheme() == "http" {
            // Plain HTTP needs no root certificates, and the machine may have none.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(ClientError::SetUp)?;
        Ok(Self {
            http,
            base: url.as_str().trim_end_matches('/').to_owned(),
            key,
        })
    }

    /// The server's address, without a trailing slash.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `POST /v1/agents`.
    ///
    /// # Errors
    /// As for any call: [`ClientError::Api`], [`ClientError::Unreachable`], [`ClientError::Strange`].
    pub async fn create_agent(&self, body: &Value) -> Result<Reply<AgentReply>, ClientError> {
        self.post("/v1/agents", body).await
    }

    /// `GET /v1/agents`, one page.
    ///
    /// # Errors
    /// As for any call.
    pub async fn agents(&self, limit: u32, offset: u64) -> Result<Reply<AgentList>, ClientError> {
        self.get("/v1/agents", &page(limit, offset)).await
    }

    /// `GET /v1/agents/{agent_id}`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn agent(&self, agent: &str) -> Result<Reply<AgentReply>, ClientError> {
        self.get(&path(&["agents", agent]), &[]).await
    }

    /// The agents with this name, from all pages.
    ///
    /// # Errors
    /// As for any call.
    pub async fn agents_named(&self, name: &str) -> Result<Vec<AgentBody>, ClientError> {
        let (mut found, mut seen) = (Vec::new(), 0);
        loop {
            let list = self.agents(PAGE, seen).await?.value;
            seen += list.agents.len() as u64;
            let last = list.agents.is_empty() || seen >= list.total;
            found.extend(list.agents.into_iter().filter(|agent| agent.name == name));
            if last {
                return Ok(found);
            }
        }
    }

    /// `DELETE /v1/agents/{agent_id}`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn delete_agent(&self, agent: &str) -> Result<(), ClientError> {
        self.delete(&path(&["agents", agent])).await
    }

    /// `GET /v1/agents/{agent_id}/builds`, one page.
    ///
    /// # Errors
    /// As for any call.
    pub async fn builds(
        &self,
        agent: &str,
        limit: u32,
        offset: u64,
    ) -> Result<Reply<BuildList>, ClientError> {
        self.get(&path(&["agents", agent, "builds"]), &page(limit, offset))
            .await
    }

    /// `POST /v1/agents/{agent_id}/revisions`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn create_build(
        &self,
        agent: &str,
        body: &Value,
    ) -> Result<Reply<BuildReply>, ClientError> {
        self.post(&path(&["agents", agent, "revisions"]), body)
            .await
    }

    /// `GET /v1/revisions/{build_id}`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn build(&self, build: &str) -> Result<Reply<BuildReply>, ClientError> {
        self.get(&path(&["revisions", build]), &[]).await
    }

    /// `POST /v1/revisions/{build_id}/promote`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn promote_build(
        &self,
        build: &str,
        body: &Value,
    ) -> Result<Reply<PromotedReply>, ClientError> {
        self.post(&path(&["revisions", build, "promote"]), body)
            .await
    }

    /// `POST /v1/runs`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn start_run(&self, body: &Value) -> Result<Reply<RunReply>, ClientError> {
        self.post("/v1/runs", body).await
    }

    /// `GET /v1/runs`, with a query.
    ///
    /// # Errors
    /// As for any call.
    pub async fn runs(&self, query: &[(&str, String)]) -> Result<Reply<RunList>, ClientError> {
        self.get("/v1/runs", query).await
    }

    /// `GET /v1/runs/{run_id}`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn run(&self, run: &str) -> Result<Reply<RunReply>, ClientError> {
        self.get(&path(&["runs", run]), &[]).await
    }

    /// `GET /v1/runs/{run_id}/messages`, one page of at most 50.
    ///
    /// # Errors
    /// As for any call.
    pub async fn messages(
        &self,
        run: &str,
        limit: u32,
        offset: u64,
    ) -> Result<Reply<MessageList>, ClientError> {
        self.get(&path(&["runs", run, "messages"]), &page(limit, offset))
            .await
    }

    /// `POST /v1/runs/{run_id}/messages`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn post_message(
        &self,
        run: &str,
        body: &Value,
    ) -> Result<Reply<MessageReply>, ClientError> {
        self.post(&path(&["runs", run, "messages"]), body).await
    }

    /// `POST /v1/runs/{run_id}/human-requests/{request_id}/respond`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn respond(
        &self,
        run: &str,
        request: &str,
        body: &Value,
    ) -> Result<Reply<AnsweredReply>, ClientError> {
        self.post(
            &path(&["runs", run, "human-requests", request, "respond"]),
            body,
        )
        .await
    }

    /// `POST /v1/runs/{run_id}/stop`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn stop(&self, run: &str) -> Result<Reply<StoppedReply>, ClientError> {
        self.post(&path(&["runs", run, "stop"]), &json!({})).await
    }

    /// `POST /v1/runs/{run_id}/retry`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn retry(&self, run: &str) -> Result<Reply<RunReply>, ClientError> {
        self.post(&path(&["runs", run, "retry"]), &json!({})).await
    }

    /// `POST /v1/runs/{run_id}/fork`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn fork(&self, run: &str, body: &Value) -> Result<Reply<RunReply>, ClientError> {
        self.post(&path(&["runs", run, "fork"]), body).await
    }

    /// `POST /v1/runs/stop`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn stop_many(&self, body: &Value) -> Result<Reply<ManyRunsReply>, ClientError> {
        self.post("/v1/runs/stop", body).await
    }

    /// `POST /v1/runs/retry`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn retry_many(&self, body: &Value) -> Result<Reply<ManyRunsReply>, ClientError> {
        self.post("/v1/runs/retry", body).await
    }

    /// `POST /v1/sandboxes`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn create_sandbox(&self) -> Result<Reply<SandboxReply>, ClientError> {
        self.post("/v1/sandboxes", &json!({})).await
    }

    /// `DELETE /v1/sandboxes/{sandbox_id}`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn delete_sandbox(&self, sandbox: &str) -> Result<(), ClientError> {
        self.delete(&path(&["sandboxes", sandbox])).await
    }

    /// `GET /v1/sandboxes/{sandbox_id}/files`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn files(&self, sandbox: &str, dir: &str) -> Result<Reply<FileList>, ClientError> {
        self.get(
            &path(&["sandboxes", sandbox, "files"]),
            &[("path", dir.to_owned())],
        )
        .await
    }

    /// Uploads a file of `size_bytes`: directly up to the API's limit, otherwise to an upload URL.
    ///
    /// # Errors
    /// As for any call.
    pub async fn upload(
        &self,
        sandbox: &str,
        to: &str,
        size_bytes: u64,
        body: reqwest::Body,
    ) -> Result<Reply<UploadedReply>, ClientError> {
        let files = path(&["sandboxes", sandbox, "files"]);
        let sent = if size_bytes <= errand_core::limits::DIRECT_UPLOAD_BYTES_MAX {
            let request = self.request(
                Method::POST,
                &with_query(&files, &[("path", to.to_owned())]),
            );
            request.header(header::CONTENT_TYPE, "application/octet-stream")
        } else {
            let urls = path(&["sandboxes", sandbox, "upload-urls"]);
            let url: Reply<UploadUrlReply> = self.post(&urls, &json!({ "path": to })).await?;
            // The URL itself is the permission, so the key is not sent.
            self.http.put(url.value.upload_url)
        };
        let response = self
            .send(sent.header(header::CONTENT_LENGTH, size_bytes).body(body))
            .await?;
        self.read(response).await
    }

    /// `GET /v1/sandboxes/{sandbox_id}/files/content`: a stream of the file's bytes, and its size.
    ///
    /// # Errors
    /// As for any call. The stream's errors are [`ClientError::Broken`].
    pub async fn download(
        &self,
        sandbox: &str,
        file: &str,
    ) -> Result<
        (
            Option<u64>,
            impl Stream<Item = Result<Bytes, ClientError>> + use<>,
        ),
        ClientError,
    > {
        let content = path(&["sandboxes", sandbox, "files", "content"]);
        let content = with_query(&content, &[("path", file.to_owned())]);
        let response = self.send(self.request(Method::GET, &content)).await?;
        let length = response.content_length();
        Ok((
            length,
            response
                .bytes_stream()
                .map_err(|error| ClientError::Broken(error.without_url())),
        ))
    }

    /// The events of a run, from the first.
    #[must_use]
    pub fn events(&self, run: &str) -> events::Events {
        events::Events::new(self.clone(), run.to_owned())
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Reply<T>, ClientError> {
        let request = self
            .request(Method::GET, &with_query(path, query))
            .timeout(CALL_TIME_MAX);
        let response = self.send(request).await?;
        self.read(response).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<Reply<T>, ClientError> {
        self.with_body(Method::POST, path, body).await
    }

    async fn with_body<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Reply<T>, ClientError> {
        let request = self.request(method, path).json(body).timeout(CALL_TIME_MAX);
        let response = self.send(request).await?;
        self.read(response).await
    }

    async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, path).timeout(CALL_TIME_MAX))
            .await
            .map(drop)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.key.expose())
    }

    /// Sends a request. A status of 400 or above becomes an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let sent = request.send().await;
        let response = sent.map_err(|error| ClientError::Unreachable {
            base: self.base.clone(),
            source: error.without_url(),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(match serde_json::from_slice::<ErrorReply>(&body) {
            Ok(ErrorReply { error, message }) => ClientError::Api {
                status,
                code: error,
                message,
            },
            Err(_) => self.strange(format!("status {status}")),
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<Reply<T>, ClientError> {
        let text = response
            .text()
            .await
            .map_err(|error| ClientError::Broken(error.without_url()))?;
        let value = serde_json::from_str(&text).map_err(|error| self.strange(error.to_string()))?;
        Ok(Reply { value, text })
    }

    fn strange(&self, what: String) -> ClientError {
        ClientError::Strange {
            base: self.base.clone(),
            what,
        }
    }
}

fn page(limit: u32, offset: u64) -> [(&'static str, String); 2] {
    [("limit", limit.to_string()), ("offset", offset.to_string())]
}

/// A path below `/v1`. Each part is escaped, so that it stays one part.
fn path(parts: &[&str]) -> String {
    let mut path = "/v1".to_owned();
    for part in parts {
        path.push('/');
        path.extend(
            url::form_urlencoded::byte_serialize(part.as_bytes())
                .map(|text| text.replace('+', "%20")),
        );
    }
    path
}

fn with_query(path: &str, query: &[(&str, String)]) -> String {
    if query.is_empty() {
        return path.to_owned();
    }
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(query)
        .finish();
    format!("{path}?{query}")
}
