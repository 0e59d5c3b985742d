//! The running server's admin socket: `DATA_DIR/admin.sock`, a Unix socket with mode 0600.
//!
//! Protocol: the caller sends one [`AdminRequest`] as one line of JSON. The server answers with one line, either
//! `{"ok": {…}}` or `{"error": "<message>"}`, and closes the connection. A caller that runs as another user than the
//! server (or root) gets no answer.
//!
//! # Non-goals
//!
//! Protocol versions: both sides are the same program.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Admin, AdminAnswer, AdminRequest};

const NAME: &str = "admin.sock";
/// Maximum length of a line, enough for hundreds of keys.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Maximum number of concurrent callers. Others wait.
const CALLERS_MAX: usize = 16;
/// Time limit for receiving a request, and for sending the answer.
const LINE_TIME_MAX: Duration = Duration::from_secs(10);
/// Maximum path length for binding a socket, slightly below the system's limit of 107 bytes.
const PATH_BYTES_MAX: usize = 100;

/// The server's answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Ok(AdminAnswer),
    Error(String),
}

/// The server's side. Dropping it leaves the socket's file behind; the next start replaces it.
pub struct AdminSocket {
    path: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl AdminSocket {
    /// Listens in `dir`. The caller must hold its lock, so an existing socket file is stale and is replaced.
    ///
    /// # Errors
    /// The socket cannot be created, for example because the file system does not support sockets.
    pub fn start(dir: &Path, admin: Admin) -> io::Result<Self> {
        let path = dir.join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = {
            let (address, _dir) = address(dir)?;
            UnixListener::bind(address)?
        };
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(
            listener,
            Arc::new(admin),
            stop.clone(),
            tasks.clone(),
        ));
        Ok(Self { path, stop, tasks })
    }

    /// Stops accepting callers, cancels running requests, and removes the socket.
    pub async fn shut_down(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the admin socket could not be removed");
        }
    }
}

async fn accept(
    listener: UnixListener,
    admin: Arc<Admin>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CALLERS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match accepted {
            Ok((stream, _)) => {
                let (admin, stop) = (Arc::clone(&admin), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        served = Box::pin(serve(stream, &admin)) => if let Err(error) = served {
                            tracing::debug!(%error, "a connection to the admin socket broke off");
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin socket cannot accept a connection now");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, admin: &Admin) -> io::Result<()> {
    // The file's mode is set only after the socket is created, and some file systems ignore modes. This check covers
    // both.
    let caller = stream.peer_cred()?.uid();
    if caller != rustix::process::geteuid().as_raw() && caller != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the caller is another user",
        ));
    }
    let (mut reader, mut writer) = stream.split();
    let line = in_time(LINE_TIME_MAX, read_line(&mut reader)).await??;
    let reply = match serde_json::from_str::<AdminRequest>(&line) {
        Err(error) => Reply::Error(format!("the request cannot be read: {error}")),
        Ok(request) => {
            let (time_max, ends_with_caller) = (request.time_max(), request.ends_with_caller());
            let executed = in_time(time_max, admin.execute(request));
            let executed = if ends_with_caller {
                tokio::select! {
                    executed = Box::pin(executed) => executed,
                    // A caller sends nothing before it has its answer, so input means that it disconnected.
                    _ = reader.read_u8() => return Err(io::ErrorKind::BrokenPipe.into()),
                }
            } else {
                Box::pin(executed).await
            };
            match executed? {
                Ok(answer) => Reply::Ok(answer),
                Err(error) => Reply::Error(errand_core::error_chain::error_chain(&error)),
            }
        }
    };
    let line = line_of(&reply)?;
    in_time(LINE_TIME_MAX, async {
        writer.write_all(&line).await?;
        writer.shutdown().await
    })
    .await?
}

async fn in_time<T>(time_max: Duration, work: impl Future<Output = T>) -> io::Result<T> {
    tokio::time::timeout(time_max, work)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the time limit was exceeded"))
}

/// The reason why the socket gave no result.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No server listens: the socket does not exist, or is stale.
    #[error("no server listens on the admin socket")]
    NoServer,
    /// The server refused the request with this message.
    #[error("{0}")]
    Refused(String),
    /// The connection broke off.
    #[error("the connection to the admin socket broke off; see the server's log")]
    Broken(#[source] io::Error),
}

/// Sends a request to the server that runs on `dir`.
///
/// # Errors
/// [`SocketError`] if there was no result.
pub async fn call(dir: &Path, request: &AdminRequest) -> Result<AdminAnswer, SocketError> {
    let connected = async {
        let (address, _dir) = address(dir)?;
        UnixStream::connect(address).await
    };
    let mut stream = connected.await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => SocketError::NoServer,
        _ => SocketError::Broken(error),
    })?;
    let asked = async {
        let (reader, mut writer) = stream.split();
        writer.write_all(&line_of(request)?).await?;
        read_line(reader).await
    };
    let line = asked.await.map_err(SocketError::Broken)?;
    match serde_json::from_str(&line) {
        Ok(Reply::Ok(answer)) => Ok(answer),
        Ok(Reply::Error(message)) => Err(SocketError::Refused(message)),
        Err(error) => Err(SocketError::Broken(error.into())),
    }
}

async fn read_line(reader: impl tokio::io::AsyncRead + Unpin) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(reader.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    if line.ends_with('\n') {
        return Ok(line);
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the line is incomplete",
    ))
}

fn line_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// The socket's address. If the path is too long, the socket is reached through its open directory, which the second
/// element keeps open.
fn address(dir: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(NAME);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path, None));
    }
    let dir = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(NAME);
    Ok((path, Some(dir)))
}
