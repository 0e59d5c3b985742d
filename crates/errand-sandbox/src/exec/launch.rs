//! Starts bubblewrap and cleans up after it, on two threads that live as long as the server.
//!
//! The kernel kills a child with `--die-with-parent` when the *thread* that started it ends, so that thread must
//! stay.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::cgroup::{Cgroups, Group};
use super::helper::HELPER_ARGUMENT;
use super::order::{self, Order};
use super::output::{Output, collect};
use super::uids::Uids;
use super::{Limits, processes};

/// Maximum number of starts that wait for the thread.
const WAITING_MAX: usize = 1024;
/// Delay after a start before the next one is prepared. By then, the started command is running and is not delayed by
/// the preparation.
const PREPARE_DELAY: Duration = Duration::from_millis(30);
/// How long a prepared helper waits for the next command. An idle server keeps none.
const PREPARED_TIME: Duration = Duration::from_secs(60);
/// Maximum bytes read from bubblewrap's status output.
const STATUS_BYTES_MAX: usize = 4096;

struct Request {
    order: Order,
    descriptors: Vec<OwnedFd>,
    context: LaunchContext,
    /// Whether another start is likely to follow, so that it is worth preparing one.
    prepare_next: bool,
    answer: oneshot::Sender<io::Result<(Child, Group)>>,
}

/// Parameters of a start that are the same for all.
#[derive(Clone)]
pub(super) struct LaunchContext {
    pub(super) cgroups: Cgroups,
    pub(super) limits: Limits,
    pub(super) runtime: Handle,
}

/// A helper prepared ahead of its command, while commands keep coming. Starting a large program takes longer than
/// everything that the helper does. It waits for its order, and ends by itself when the server's end of the socket is
/// closed.
struct PreparedHelper {
    helper: Helper,
    group: Group,
}

impl PreparedHelper {
    fn make(program: &Path, context: &LaunchContext) -> io::Result<Self> {
        let _runtime = context.runtime.enter();
        // Errors with an error number, such as being out of descriptors, stay as they are: such a start is tried
        // again.
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(_) => error,
            None => io::Error::other(format!("create its cgroup: {error}")),
        };
        let group = context.cgroups.create(&context.limits).map_err(failed)?;
        Ok(Self {
            helper: Helper::start(program, &group)?,
            group,
        })
    }

    fn run_order(self, order: &Order, descriptors: &[OwnedFd]) -> io::Result<(Child, Group)> {
        match self.helper.run_order(order, descriptors) {
            Ok(child) => Ok((child, self.group)),
            Err(error) => {
                self.group.remove();
                Err(error)
            }
        }
    }

    /// Drops a helper that is not needed. It ends when the server's end of the socket is closed.
    fn discard(self) {
        drop(self.helper);
        self.group.remove();
    }
}

/// State of the preparation of the next start.
enum Next {
    Nothing,
    /// To be prepared when the last one has begun.
    Due(LaunchContext),
    Ready(PreparedHelper),
}

impl Next {
    fn discard(self) {
        if let Self::Ready(prepared) = self {
            prepared.discard();
        }
    }
}

/// Serves requests until all senders are gone.
fn serve_requests(program: &Path, requests: &mpsc::Receiver<Request>) {
    let mut next = Next::Nothing;
    let mut cgroups = Cgroups::default();
    loop {
        let timeout = match next {
            Next::Due(_) => PREPARE_DELAY,
            Next::Nothing | Next::Ready(_) => PREPARED_TIME,
        };
        next = match (requests.recv_timeout(timeout), next) {
            (Ok(request), next) => {
                cgroups = request.context.cgroups.clone();
                start(program, request, next)
            }
            (Err(RecvTimeoutError::Timeout), Next::Due(context)) => {
                PreparedHelper::make(program, &context).map_or(Next::Nothing, Next::Ready)
            }
            (Err(RecvTimeoutError::Timeout), next) => {
                next.discard();
                Next::Nothing
            }
            (Err(RecvTimeoutError::Disconnected), next) => {
                next.discard();
                return cgroups.remove_empty();
            }
        };
    }
}

fn start(program: &Path, request: Request, next: Next) -> Next {
    let context = request.context;
    let prepared = match next {
        Next::Ready(prepared) if prepared.helper.is_waiting() => Ok(prepared),
        next => {
            next.discard();
            PreparedHelper::make(program, &context)
        }
    };
    let _runtime = context.runtime.enter();
    let started =
        prepared.and_then(|prepared| prepared.run_order(&request.order, &request.descriptors));
    // The caller may have given up in the meantime.
    if let Err(Ok((mut child, group))) = request.answer.send(started) {
        kill_bubblewrap(&mut child);
        group.remove();
    }
    if request.prepare_next {
        Next::Due(context)
    } else {
        Next::Nothing
    }
}

/// Resources to clean up once the processes of a sandbox are gone.
#[derive(Debug)]
struct Cleanup {
    group: Arc<Group>,
    uid: Option<UidGuard>,
}

/// A user id that is released when this is dropped.
#[derive(Debug)]
pub(super) struct UidGuard {
    pub(super) uids: Arc<Uids>,
    pub(super) uid: u32,
}

impl Drop for UidGuard {
    fn drop(&mut self) {
        self.uids.give_back(self.uid);
    }
}

/// The two threads. They end when this is dropped, and what they started ends with them.
#[derive(Debug)]
pub(super) struct Launcher {
    /// `None` while being dropped.
    requests: Option<mpsc::SyncSender<Request>>,
    starter: Option<JoinHandle<()>>,
    cleanups: mpsc::Sender<Cleanup>,
}

impl Drop for Launcher {
    /// Waits for the starting thread, so that a prepared helper and its cgroup are removed before the program ends.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(starter) = self.starter.take() {
            let _ = starter.join();
        }
    }
}

impl Launcher {
    pub(super) fn start(helper: &Path) -> io::Result<Self> {
        let (requests, to_start) = mpsc::sync_channel::<Request>(WAITING_MAX);
        let (cleanups, to_clear) = mpsc::channel::<Cleanup>();
        let helper = helper.to_owned();
        let starter = std::thread::Builder::new()
            .name("errand-exec".to_owned())
            .spawn(move || serve_requests(&helper, &to_start))?;
        std::thread::Builder::new()
            .name("errand-exec-end".to_owned())
            .spawn(move || {
                for Cleanup { group, uid } in to_clear {
                    group.remove();
                    drop(uid);
                }
            })?;
        Ok(Self {
            requests: Some(requests),
            starter: Some(starter),
            cleanups,
        })
    }

    /// Starts an order in a new cgroup. Creates the pipes for standard input and for the status, which become the
    /// first two descriptors.
    pub(super) async fn launch(
        &self,
        order: Order,
        more: Vec<OwnedFd>,
        context: LaunchContext,
        uid: Option<UidGuard>,
        prepare_next: bool,
    ) -> io::Result<Launched> {
        let (input, to_input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (from_status, status) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let stdin = pipe::Sender::from_file(to_input.into())?;
        let status_end = pipe::Receiver::from_file(from_status.into())?;
        let mut descriptors = vec![input, status];
        descriptors.extend(more);
        let (answer, started) = oneshot::channel();
        let request = Request {
            order,
            descriptors,
            context,
            prepare_next,
            answer,
        };
        let gone = || io::Error::other("the thread that starts commands is gone");
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests
            .try_send(request)
            .map_err(|_| io::Error::other("too many commands are being started"))?;
        let (mut child, group) = started.await.map_err(|_| gone())??;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Launched {
            child,
            stdin: Some(stdin),
            stdout,
            stderr,
            status: Status {
                pipe: status_end,
                text: Vec::new(),
            },
            first: None,
            group: Arc::new(group),
            uid,
            cleanups: self.cleanups.clone(),
        })
    }
}

/// Index of the descriptor that becomes standard input.
pub(super) const STDIN: usize = 0;
/// Index of the descriptor to which bubblewrap reports its status.
pub(super) const STATUS: usize = 1;
/// Index of the first additional descriptor.
pub(super) const MORE: usize = 2;

/// A helper that waits for its order.
struct Helper {
    child: Child,
    orders: UnixStream,
}

impl Helper {
    fn start(program: &Path, group: &Group) -> io::Result<Self> {
        let (orders, theirs) = UnixStream::pair()?;
        let cgroups: Vec<&str> = group.join().filter_map(Path::to_str).collect();
        order::send(&orders, &cgroups, &[])?;
        let child = Command::new(program)
            .arg(HELPER_ARGUMENT)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { child, orders })
    }

    /// Whether it is still waiting. It may have been killed from outside.
    fn is_waiting(&self) -> bool {
        // It sends nothing before it has its order, so a readable socket means that it has ended.
        let mut ends = [PollFd::new(&self.orders, PollFlags::IN)];
        matches!(poll(&mut ends, Some(&Timespec::default())), Ok(0))
    }

    fn run_order(mut self, order: &Order, descriptors: &[OwnedFd]) -> io::Result<Child> {
        if let Err(error) = order::send(&self.orders, order, descriptors) {
            let _ = self.child.start_kill();
            return Err(error);
        }
        Ok(self.child)
    }
}

/// bubblewrap's status output: a line of JSON when the first process is running, and one when the command has ended.
#[derive(Debug)]
struct Status {
    pipe: pipe::Receiver,
    text: Vec<u8>,
}

impl Status {
    /// Looks up a number by name in what has arrived so far.
    fn number(&mut self, name: &str) -> Option<i64> {
        let mut buffer = [0; 512];
        while self.text.len() < STATUS_BYTES_MAX {
            // Never blocks. A read that finds nothing also tells tokio that the pipe is not readable any more.
            match self.pipe.try_read(&mut buffer) {
                Ok(read) if read > 0 => {
                    self.text
                        .extend_from_slice(buffer.get(..read).unwrap_or_default());
                }
                _ => break,
            }
        }
        let text = String::from_utf8_lossy(&self.text);
        let values = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        values
            .map_while(Result::ok)
            .find_map(|value| value.get(name)?.as_i64())
    }

    /// Waits until more has arrived, or the other end is closed.
    async fn changed(&self) {
        let _ = self.pipe.ready(Interest::READABLE).await;
    }
}

/// A running bubblewrap. Dropping it kills everything in it.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
    status: Status,
    /// The process that holds the namespace, once it is known, with its pidfd.
    first: Option<(u32, OwnedFd)>,
    pub(super) group: Arc<Group>,
    uid: Option<UidGuard>,
    cleanups: mpsc::Sender<Cleanup>,
}

impl Launched {
    /// Process id, outside, of the first process inside. `None` until it exists.
    pub(super) fn first(&mut self) -> Option<u32> {
        if self.first.is_none() {
            let pid = u32::try_from(self.status.number("child-pid")?).ok()?;
            let held = processes::open_pidfd(pid)?;
            // Opened first, examined second: this is certainly bubblewrap's child, and not a process that reused its
            // id.
            if processes::children_of(self.child.id()?).contains(&pid) {
                self.first = Some((pid, held));
            }
        }
        self.first.as_ref().map(|(pid, _)| *pid)
    }

    /// Exit code of the command as bubblewrap reports it. `None` if it did not begin, or was killed together with
    /// bubblewrap.
    pub(super) fn exit_code(&mut self) -> Option<i32> {
        i32::try_from(self.status.number("exit-code")?).ok()
    }

    /// Whether a process inside has ever been started.
    pub(super) fn has_begun(&mut self) -> bool {
        self.status.number("child-pid").is_some()
    }

    /// Waits until the first process is running, or bubblewrap has failed.
    pub(super) async fn begun(&mut self) {
        while self.first().is_none() && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            tokio::select! {
                () = self.status.changed() => {}
                _ = self.child.wait() => return,
            }
        }
    }

    /// Reads standard error, after bubblewrap has failed to start anything.
    pub(super) async fn read_stderr(&mut self) -> Output {
        match self.stderr.take() {
            Some(stderr) => collect(stderr).await,
            None => Output::default(),
        }
    }

    /// Asks everything inside to end.
    pub(super) fn terminate(&mut self) {
        if let Some(first) = self.first() {
            processes::signal_descendants(first, Signal::TERM);
        }
    }

    /// Kills everything inside at once, by killing the first process: the kernel then ends its namespace. bubblewrap
    /// ends by itself after that and reaps the first process. If bubblewrap were killed first, the first process
    /// would be left to whichever process inherits orphans.
    pub(super) fn kill(&mut self) {
        match self.first() {
            Some(_) => {
                if let Some((_, held)) = &self.first {
                    processes::signal(held, Signal::KILL);
                }
            }
            None => self.kill_bubblewrap(),
        }
    }

    /// Kills bubblewrap itself, if [`Launched::kill`] was not enough, or the first process is not known yet.
    pub(super) fn kill_bubblewrap(&mut self) {
        kill_bubblewrap(&mut self.child);
    }
}

/// Kills bubblewrap and its children. It is stopped first: if it were killed between creating the first process and
/// setting it up, that process would wait forever.
fn kill_bubblewrap(child: &mut Child) {
    if let Some(outer) = child.id()
        && let Some(held) = processes::open_pidfd(outer)
    {
        processes::signal(&held, Signal::STOP);
        processes::wait_until_stopped(outer);
        for inner in processes::children_of(outer) {
            // A stopped parent reaps no children, so their ids cannot be reused.
            if let Some(inner) = processes::open_pidfd(inner) {
                processes::signal(&inner, Signal::KILL);
            }
        }
    }
    let _ = child.start_kill();
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            self.kill();
        }
        // The thread may have ended with the server. Dropping the group then removes what it can.
        let _ = self.cleanups.send(Cleanup {
            group: Arc::clone(&self.group),
            uid: self.uid.take(),
        });
    }
}
