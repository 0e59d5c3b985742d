//! Connects to a server: over streamable HTTP, or by starting a program and using its pipes.
//!
//! # Guarantees
//!
//! - The guard checks an address before each request. Redirects are not followed, and proxies from the environment are
//!   ignored.
//! - Only programs that the operator declared are started. They are isolated unless the operator disabled that, and see
//!   none of the server's environment variables.
//! - Both must be ready within [`READY_TIME_MAX`], and end with their session.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use errand_sandbox::exec::{Service, ServiceSpec};
use errand_store::{Connection, Setup};
use http::{HeaderName, HeaderValue};
use rmcp::service::{RoleClient, RunningService, serve_client};
use rmcp::transport::auth::AuthClient;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use url::Url;

use super::handler::Handler;
use super::why::explain;
use super::{Connections, Isolation, StdioServer};
use crate::secrets::Secrets;

/// Time limit for a server to become ready.
const READY_TIME_MAX: Duration = Duration::from_secs(30);
/// Maximum size of one message from a server.
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// An open connection to a server.
pub(super) struct Reached {
    pub(super) running: RunningService<RoleClient, Handler>,
    pub(super) program: Option<Program>,
}

pub(super) enum Program {
    Isolated(Box<Service>),
    Bare(Box<tokio::process::Child>),
}

impl Reached {
    /// Closes the session and ends the program.
    pub(super) async fn close(mut self) {
        // An orderly close is a courtesy. A server that does not answer is abandoned.
        let closed = self
            .running
            .close_with_timeout(Duration::from_secs(2))
            .await;
        if closed.is_err() {
            tracing::debug!("a session could not be closed in order");
        }
        match self.program {
            Some(Program::Isolated(service)) => service.stop().await,
            Some(Program::Bare(mut child)) => {
                let waited = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
                if waited.is_err() {
                    // An error means that the program has ended in the meantime.
                    let _ = child.kill().await;
                }
            }
            None => {}
        }
    }
}

/// Connects to a connection's server.
///
/// # Errors
/// A message without secrets.
pub(super) async fn open(
    connections: &Connections,
    connection: &Connection,
    secrets: &Secrets,
    handler: Handler,
) -> Result<Reached, String> {
    let opened = async {
        match &connection.setup {
            Setup::Http { url, headers, .. } => {
                let config = http_config(connections, url, headers, secrets)?;
                http(connections, connection, config, secrets, handler).await
            }
            Setup::Stdio { command, env } => {
                let server = connections.declared.get(command).ok_or_else(|| {
                    format!("no program {command} is declared in this server's settings ([connections.stdio.{command}])")
                })?;
                // The variable may have been stored before the operator changed the settings.
                if let Some(name) = connections.not_for_teams(command, env) {
                    return Err(format!(
                        "a team may not set {name}: this server's operator lists the permitted variables in team_env of [connections.stdio.{command}]"
                    ));
                }
                let mut all: Vec<(String, String)> = server.env.clone().into_iter().collect();
                for (name, value) in env {
                    all.push((name.clone(), secrets.fill_text(value)?));
                }
                stdio(connections, connection, server, all, handler).await
            }
        }
    };
    match tokio::time::timeout(READY_TIME_MAX, opened).await {
        Ok(opened) => opened.map_err(|error| secrets.mask(&error)),
        Err(_) => Err(format!(
            "the server was not ready within {} s",
            READY_TIME_MAX.as_secs()
        )),
    }
}

fn http_config(
    connections: &Connections,
    url: &str,
    headers: &std::collections::BTreeMap<String, String>,
    secrets: &Secrets,
) -> Result<StreamableHttpClientTransportConfig, String> {
    let url = secrets.fill_query(url)?;
    let url = Url::parse(&url).map_err(|error| format!("the address is invalid: {error}"))?;
    // Literal IP addresses never reach the resolver, so they are checked here.
    connections
        .guard
        .check_url(&url)
        .map_err(|blocked| blocked.to_string())?;
    let mut given = HashMap::new();
    for (name, value) in headers {
        let filled = secrets.fill_text(value)?;
        let named = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{name:?} is not a valid header name"))?;
        let mut value = HeaderValue::from_str(&filled)
            .map_err(|_| format!("the header {name} must not contain line breaks"))?;
        value.set_sensitive(true);
        given.insert(named, value);
    }
    Ok(StreamableHttpClientTransportConfig::with_uri(url.as_str())
        .custom_headers(given)
        .max_sse_event_size(MESSAGE_BYTES_MAX)
        .max_json_response_size(MESSAGE_BYTES_MAX)
        // The library must not repeat failed requests: whether a call may be repeated depends on the tool.
        .reinit_on_expired_session(false))
}

async fn http(
    connections: &Connections,
    connection: &Connection,
    config: StreamableHttpClientTransportConfig,
    secrets: &Secrets,
    handler: Handler,
) -> Result<Reached, String> {
    if let Some(manager) = connections.authorized(connection, secrets).await? {
        let client = AuthClient::new(connections.client()?, manager);
        let transport = StreamableHttpClientTransport::with_client(client, config);
        let running = serve_client(handler, transport)
            .await
            .map_err(|error| explain(&error))?;
        return Ok(Reached {
            running,
            program: None,
        });
    }
    let transport = StreamableHttpClientTransport::with_client(connections.client()?, config);
    let running = serve_client(handler, transport)
        .await
        .map_err(|error| explain(&error))?;
    Ok(Reached {
        running,
        program: None,
    })
}

async fn stdio(
    connections: &Connections,
    connection: &Connection,
    server: &StdioServer,
    env: Vec<(String, String)>,
    handler: Handler,
) -> Result<Reached, String> {
    match server.isolation {
        Isolation::Sandbox => {
            let exec = connections.exec().map_err(|why| {
                format!("the program cannot be isolated here, and was not started: {why}")
            })?;
            let mut argv = vec![server.command.clone()];
            argv.extend(server.args.iter().cloned());
            let spec = ServiceSpec {
                argv,
                env,
                read_only: server.read_only.iter().map(PathBuf::from).collect(),
            };
            let started = exec.service(&spec).await;
            let mut service = started.map_err(|error| explain(&error))?;
            let pipes = service.pipes().ok_or("the program has no pipes")?;
            drain_stderr(connection, pipes.stderr);
            let running = serve_client(handler, (pipes.stdout, pipes.stdin))
                .await
                .map_err(|error| explain(&error))?;
            Ok(Reached {
                running,
                program: Some(Program::Isolated(Box::new(service))),
            })
        }
        Isolation::None => {
            let mut command = tokio::process::Command::new(&server.command);
            command
                .args(&server.args)
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin")
                .env("HOME", "/nonexistent")
                .env("LANG", "C.UTF-8")
                .envs(env)
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true);
            let mut child = command
                .spawn()
                .map_err(|error| format!("the program cannot be started: {error}"))?;
            let pipes = (child.stdout.take(), child.stdin.take(), child.stderr.take());
            let (Some(stdout), Some(stdin), Some(stderr)) = pipes else {
                return Err("the program has no pipes".to_owned());
            };
            drain_stderr(connection, stderr);
            let running = serve_client(handler, (stdout, stdin))
                .await
                .map_err(|error| explain(&error))?;
            Ok(Reached {
                running,
                program: Some(Program::Bare(Box::new(child))),
            })
        }
    }
}

/// Drains a program's standard error, so that the program does not block. Only the amount is logged: the text may
/// contain secrets that the program was given.
fn drain_stderr(connection: &Connection, mut stderr: impl AsyncRead + Unpin + Send + 'static) {
    let id = connection.id;
    tokio::spawn(async move {
        let (mut buffer, mut bytes) = (vec![0; 8192], 0_usize);
        while let Ok(read) = stderr.read(&mut buffer).await {
            if read == 0 {
                break;
            }
            bytes += read;
        }
        tracing::debug!(connection.id = %id, bytes, "a program's standard error has ended");
    });
}
