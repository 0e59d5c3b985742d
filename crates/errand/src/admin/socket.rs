//! The running server's admin socket: `DATA_DIR/admin.sock`, a Unix socket with mode 0600.
//!
//! The protocol: the caller sends one [`AdminRequest`] as JSON in one line; the server answers with one line, either
//! `{"ok": {…}}` or `{"error": "<sentence>"}`, and closes. A caller of another user than the server's (or root) gets no
//! answer at all.
//!
//! Left out: versions of the protocol. Both sides are the same program.

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

/// The socket's name in the data directory.
const NAME: &str = "admin.sock";
/// Most bytes of a line: hundreds of keys fit.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// How many callers are served at once; the others wait.
const CALLERS_MAX: usize = 16;
/// How long a caller may take to send its request, and to take the answer.
const LINE_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest path that a socket can be bound to, less a little: the system's own bound is 107 bytes.
const PATH_BYTES_MAX: usize = 100;

/// The second line of the protocol.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Ok(AdminAnswer),
    Error(String),
}

/// The server's side. Dropping it leaves the socket's file behind, which the next start replaces.
pub struct AdminSocket {
    path: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl AdminSocket {
    /// Listens in `dir`, whose lock the caller holds: a socket that lies there already is dead, and is replaced.
    ///
    /// # Errors
    /// Where the socket cannot be made, such as on a file system without sockets.
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

    /// Takes no more callers, ends the calls in progress, and removes the socket.
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
                            tracing::debug!(%error, "a call of the admin socket broke off");
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin socket takes no caller now");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, admin: &Admin) -> io::Result<()> {
    // The file's mode is set after the socket is made; until then, and where a file system ignores modes, this holds.
    let caller = stream.peer_cred()?.uid();
    if caller != rustix::process::geteuid().as_raw() && caller != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a caller of another user",
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
                    // A caller sends nothing more before it has its answer.
                    _ = reader.read_u8() => return Err(io::ErrorKind::BrokenPipe.into()),
                }
            } else {
                Box::pin(executed).await
            };
            match executed? {
                Ok(answer) => Reply::Ok(answer),
                Err(error) => Reply::Error(errand_core::cause::chain(&error)),
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
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it took too long"))
}

/// Why the socket gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No server listens: the socket is not there, or dead.
    #[error("no server listens on the admin socket")]
    NoServer,
    /// The server refused the request: what it said.
    #[error("{0}")]
    Refused(String),
    /// The call broke off.
    #[error("the call of the admin socket failed; look at the server's log")]
    Broken(#[source] io::Error),
}

/// The caller's side: asks the server that works on `dir`.
///
/// # Errors
/// [`SocketError`].
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
        "no whole line came",
    ))
}

fn line_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// The socket's address. A path that is too long for a socket is reached by way of its open directory, which the second
/// member keeps open.
fn address(dir: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(NAME);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path, None));
    }
    let dir = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(NAME);
    Ok((path, Some(dir)))
}
