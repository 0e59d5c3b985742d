//! Starting bubblewrap, and clearing up after it: on two threads that live as long as the server.
//!
//! The kernel ends what is inside when the *thread* that started it ends, so that it must be one that stays.

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

/// Starts that wait for the thread.
const WAITING_MAX: usize = 1024;
/// How long after a start the next one is made ready: what was started has begun by then, and is not held up.
const BEGUN_AFTER: Duration = Duration::from_millis(30);
/// How long what is ready waits for the next command: an idle server has none.
const READY_TIME: Duration = Duration::from_secs(60);
/// Most bytes of what bubblewrap says of how it went.
const STATUS_BYTES_MAX: usize = 4096;

struct Request {
    order: Order,
    descriptors: Vec<OwnedFd>,
    means: Means,
    /// Whether another one is likely to follow.
    more_come: bool,
    answer: oneshot::Sender<io::Result<(Child, Group)>>,
}

/// What a start needs that is the same for all.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) cgroups: Cgroups,
    pub(super) limits: Limits,
    pub(super) runtime: Handle,
}

/// What is made ahead, while commands come: a large program takes longer to begin than all that the helper does. The
/// helper waits for its order, and ends by itself when nobody is left who could give it one.
struct Ready {
    helper: Helper,
    group: Group,
}

impl Ready {
    fn make(program: &Path, means: &Means) -> io::Result<Self> {
        let _runtime = means.runtime.enter();
        // What says that descriptors or memory have run out stays what it is: such a start is tried again.
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(_) => error,
            None => io::Error::other(format!("make its cgroup: {error}")),
        };
        let group = means.cgroups.create(&means.limits).map_err(failed)?;
        Ok(Self {
            helper: Helper::start(program, &group)?,
            group,
        })
    }

    fn obey(self, order: &Order, descriptors: &[OwnedFd]) -> io::Result<(Child, Group)> {
        match self.helper.obey(order, descriptors) {
            Ok(child) => Ok((child, self.group)),
            Err(error) => {
                self.group.remove();
                Err(error)
            }
        }
    }

    /// It is not needed: the helper ends when nobody is left who could give it an order.
    fn discard(self) {
        drop(self.helper);
        self.group.remove();
    }
}

/// How far the next start has been prepared.
enum Next {
    Nothing,
    /// It will be, when the last one has begun.
    Due(Means),
    Ready(Ready),
}

impl Next {
    fn discard(self) {
        if let Self::Ready(ready) = self {
            ready.discard();
        }
    }
}

/// Starts what is asked for, until nobody is left who could ask.
fn start_all(program: &Path, requests: &mpsc::Receiver<Request>) {
    let mut next = Next::Nothing;
    let mut cgroups = Cgroups::default();
    loop {
        let patience = match next {
            Next::Due(_) => BEGUN_AFTER,
            Next::Nothing | Next::Ready(_) => READY_TIME,
        };
        next = match (requests.recv_timeout(patience), next) {
            (Ok(request), next) => {
                cgroups = request.means.cgroups.clone();
                start(program, request, next)
            }
            (Err(RecvTimeoutError::Timeout), Next::Due(means)) => {
                Ready::make(program, &means).map_or(Next::Nothing, Next::Ready)
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
    let means = request.means;
    let ready = match next {
        Next::Ready(ready) if ready.helper.is_there() => Ok(ready),
        next => {
            next.discard();
            Ready::make(program, &means)
        }
    };
    let _runtime = means.runtime.enter();
    let started = ready.and_then(|ready| ready.obey(&request.order, &request.descriptors));
    // Whoever asked may have gone.
    if let Err(Ok((mut child, group))) = request.answer.send(started) {
        kill_outer(&mut child);
        group.remove();
    }
    if request.more_come {
        Next::Due(means)
    } else {
        Next::Nothing
    }
}

/// What is to be cleared up once a sandbox's processes are gone.
#[derive(Debug)]
struct Rest {
    group: Arc<Group>,
    uid: Option<GivenUid>,
}

/// A user that is given back when nothing of it is left.
#[derive(Debug)]
pub(super) struct GivenUid {
    pub(super) uids: Arc<Uids>,
    pub(super) uid: u32,
}

impl Drop for GivenUid {
    fn drop(&mut self) {
        self.uids.give_back(self.uid);
    }
}

/// The two threads. They end when this is dropped; what they started ends with them.
#[derive(Debug)]
pub(super) struct Launcher {
    /// None: it is being dropped.
    requests: Option<mpsc::SyncSender<Request>>,
    starter: Option<JoinHandle<()>>,
    rests: mpsc::Sender<Rest>,
}

impl Drop for Launcher {
    /// Waits for the thread that starts, so that what it has made ready is removed before the program ends.
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
        let (rests, to_clear) = mpsc::channel::<Rest>();
        let helper = helper.to_owned();
        let starter = std::thread::Builder::new()
            .name("errand-exec".to_owned())
            .spawn(move || start_all(&helper, &to_start))?;
        std::thread::Builder::new()
            .name("errand-exec-end".to_owned())
            .spawn(move || {
                for Rest { group, uid } in to_clear {
                    group.remove();
                    drop(uid);
                }
            })?;
        Ok(Self {
            requests: Some(requests),
            starter: Some(starter),
            rests,
        })
    }

    /// Starts what the order says, in a cgroup of its own. `order.stdin` and its status descriptor are made here, as the
    /// first two.
    pub(super) async fn launch(
        &self,
        order: Order,
        more: Vec<OwnedFd>,
        means: Means,
        uid: Option<GivenUid>,
        more_come: bool,
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
            means,
            more_come,
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
            rests: self.rests.clone(),
        })
    }
}

/// The index of the descriptor that is the standard input.
pub(super) const STDIN: usize = 0;
/// The index of the descriptor to which bubblewrap tells how it went.
pub(super) const STATUS: usize = 1;
/// The index of the first of the others.
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

    /// Whether it still waits: an operator may have ended it.
    fn is_there(&self) -> bool {
        // It says nothing before it has its order, so that what can be read is its end.
        let mut ends = [PollFd::new(&self.orders, PollFlags::IN)];
        matches!(poll(&mut ends, Some(&Timespec::default())), Ok(0))
    }

    fn obey(mut self, order: &Order, descriptors: &[OwnedFd]) -> io::Result<Child> {
        if let Err(error) = order::send(&self.orders, order, descriptors) {
            let _ = self.child.start_kill();
            return Err(error);
        }
        Ok(self.child)
    }
}

/// What bubblewrap tells: a line of JSON when the first process is there, and one when the command has ended.
#[derive(Debug)]
struct Status {
    pipe: pipe::Receiver,
    text: Vec<u8>,
}

impl Status {
    /// A number by its name, from what has come so far.
    fn number(&mut self, name: &str) -> Option<i64> {
        let mut buffer = [0; 512];
        while self.text.len() < STATUS_BYTES_MAX {
            // An empty read attempt is what makes the pipe's readiness known to be stale; it never blocks.
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

    /// Until something has come, or the other end is closed.
    async fn changed(&self) {
        let _ = self.pipe.ready(Interest::READABLE).await;
    }
}

/// A bubblewrap that was started. Dropped, everything in it is killed.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
    status: Status,
    /// The process that holds the namespace, as soon as it is known.
    first: Option<(u32, OwnedFd)>,
    pub(super) group: Arc<Group>,
    uid: Option<GivenUid>,
    rests: mpsc::Sender<Rest>,
}

impl Launched {
    /// The first process inside, by its number outside. None as long as there is none.
    pub(super) fn first(&mut self) -> Option<u32> {
        if self.first.is_none() {
            let pid = u32::try_from(self.status.number("child-pid")?).ok()?;
            let held = processes::hold(pid)?;
            // Held first and looked at after: it is bubblewrap's child, which nobody else is.
            if processes::children_of(self.child.id()?).contains(&pid) {
                self.first = Some((pid, held));
            }
        }
        self.first.as_ref().map(|(pid, _)| *pid)
    }

    /// How the command ended, as bubblewrap says. None where it did not begin, or was killed with bubblewrap.
    pub(super) fn exit_code(&mut self) -> Option<i32> {
        i32::try_from(self.status.number("exit-code")?).ok()
    }

    /// Whether there has been a process inside, also where all are gone.
    pub(super) fn has_begun(&mut self) -> bool {
        self.status.number("child-pid").is_some()
    }

    /// Until the first process is there, or bubblewrap has failed.
    pub(super) async fn begun(&mut self) {
        while self.first().is_none() && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            tokio::select! {
                () = self.status.changed() => {}
                _ = self.child.wait() => return,
            }
        }
    }

    /// What it said on its standard error, where it failed before anything began.
    pub(super) async fn last_words(&mut self) -> Output {
        match self.stderr.take() {
            Some(stderr) => collect(stderr).await,
            None => Output::default(),
        }
    }

    /// Asks everything inside to end.
    pub(super) fn terminate(&mut self) {
        if let Some(first) = self.first() {
            processes::signal_below(first, Signal::TERM);
        }
    }

    /// Kills everything inside at once: the kernel does it with the first process. Bubblewrap then ends by itself, and
    /// takes the first process with it; killed before that, it would leave it to whoever inherits orphans.
    pub(super) fn kill(&mut self) {
        match self.first() {
            Some(_) => {
                if let Some((_, held)) = &self.first {
                    processes::signal(held, Signal::KILL);
                }
            }
            None => self.kill_outer(),
        }
    }

    /// The harder way, where [`Launched::kill`] was not enough, or nothing is known of the first process yet.
    pub(super) fn kill_outer(&mut self) {
        kill_outer(&mut self.child);
    }
}

/// Kills bubblewrap, and what it has made. It is stopped first: killed between making the first process and setting it up,
/// it would leave it waiting for ever.
fn kill_outer(child: &mut Child) {
    if let Some(outer) = child.id()
        && let Some(held) = processes::hold(outer)
    {
        processes::signal(&held, Signal::STOP);
        processes::until_stopped(outer);
        for inner in processes::children_of(outer) {
            // A child of one that is stopped is waited for by nobody: its number stays its own.
            if let Some(inner) = processes::hold(inner) {
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
        // The thread may be gone with the server: then the group's own drop does what it can.
        let _ = self.rests.send(Rest {
            group: Arc::clone(&self.group),
            uid: self.uid.take(),
        });
    }
}
