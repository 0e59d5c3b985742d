//! Runs one command in its sandbox: passes it in, reads its output, watches its limits, and ends it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval_at, sleep, timeout};

use super::cgroup::{Group, Keeper};
use super::launch::Launched;
use super::output::{Output, collect_counted};
use super::watch::{INTERVAL, OverLimit, Watch};
use super::{Bound, Command, EndedBy, ExecError, Finished, GRACE, Limits, Shell, Stop};
use crate::root::Root;

/// Time that an output may stay open after the last process of the sandbox is gone: enough to read what is left in
/// the pipe.
const READ_REMAINING_TIMEOUT: Duration = Duration::from_secs(1);

/// A launched shell, and what is needed to watch it.
pub(super) struct ShellParts {
    pub(super) launched: Launched,
    pub(super) workspace: Root,
    pub(super) limits: Limits,
    pub(super) over: OverLimit,
    pub(super) group: Arc<Group>,
    pub(super) keepers: (Keeper, Keeper),
}

#[async_trait]
impl Shell for ShellParts {
    fn is_alive(&mut self) -> bool {
        self.launched
            .child
            .try_wait()
            .is_ok_and(|ended| ended.is_none())
    }

    async fn run(self: Box<Self>, command: &Command, stop: Stop) -> Result<Finished, ExecError> {
        Running::begin(*self, command)?
            .run_to_end(command.timeout, stop)
            .await
    }
}

/// A command in progress.
struct Running {
    launched: Launched,
    began: Instant,
    input: JoinHandle<()>,
    stdout: JoinHandle<Output>,
    stderr: JoinHandle<Output>,
    watch: Option<Watch>,
}

/// How far the command has been brought to its end.
#[derive(Clone, Copy)]
enum End {
    NotYet,
    /// It was asked to end.
    Asked(EndedBy),
    /// It was killed.
    Killed(EndedBy),
}

impl Running {
    fn begin(parts: ShellParts, command: &Command) -> Result<Self, ExecError> {
        let ShellParts {
            mut launched,
            workspace,
            limits,
            over,
            group,
            keepers,
        } = parts;
        let used = || ExecError::SetUp("the shell was used already".to_owned());
        let mut stdin = launched.stdin.take().ok_or_else(used)?;
        let stdout = launched.stdout.take().ok_or_else(used)?;
        let stderr = launched.stderr.take().ok_or_else(used)?;
        let mut message = Vec::with_capacity(command.script.len() + 64);
        message.extend_from_slice(command.cwd.to_string().as_bytes());
        message.push(0);
        message.extend_from_slice(command.script.as_bytes());
        message.push(0);
        // If the shell is gone, nothing reads this. The exit status then tells what happened.
        let input = tokio::spawn(async move {
            let _ = stdin.write_all(&message).await;
        });
        let read = Arc::new(AtomicU64::new(0));
        let stdout = tokio::spawn(collect_counted(stdout, Arc::clone(&read)));
        let stderr = tokio::spawn(collect_counted(stderr, Arc::clone(&read)));
        let watch = Watch::new(workspace, limits, over, group, keepers, read);
        Ok(Self {
            launched,
            began: Instant::now(),
            input,
            stdout,
            stderr,
            watch: Some(watch),
        })
    }

    async fn run_to_end(mut self, limit: Duration, mut stop: Stop) -> Result<Finished, ExecError> {
        let mut end = End::NotYet;
        let mut ticks = ticks();
        let mut time_limit = Box::pin(sleep(limit));
        // Never fires before `ask_to_end` or a kill replaces it.
        let mut grace_timer = Box::pin(sleep(Duration::MAX));
        let failed = ExecError::io("wait for the command");
        loop {
            tokio::select! {
                biased;
                ended = self.launched.child.wait() => {
                    ended.map_err(failed)?;
                    break;
                }
                () = &mut stop, if matches!(end, End::NotYet) => {
                    end = self.ask_to_end(EndedBy::Stop, &mut grace_timer);
                }
                () = &mut time_limit, if matches!(end, End::NotYet) => {
                    end = self.ask_to_end(EndedBy::TimeLimit, &mut grace_timer);
                }
                () = &mut grace_timer, if !matches!(end, End::NotYet) => match end {
                    End::NotYet => {}
                    End::Asked(by) => {
                        self.launched.kill();
                        grace_timer = Box::pin(sleep(GRACE));
                        end = End::Killed(by);
                    }
                    End::Killed(_) => {
                        self.launched.kill_bubblewrap();
                        grace_timer = Box::pin(sleep(GRACE));
                    }
                },
                _ = ticks.tick(), if !matches!(end, End::Killed(_)) => {
                    if let Some(bound) = self.check().await {
                        self.launched.kill();
                        grace_timer = Box::pin(sleep(GRACE));
                        end = End::Killed(EndedBy::Bound(bound));
                    }
                }
            }
        }
        self.finish(end).await
    }

    /// Asks the command to end, and gives it [`GRACE`].
    fn ask_to_end(
        &mut self,
        by: EndedBy,
        grace_timer: &mut std::pin::Pin<Box<tokio::time::Sleep>>,
    ) -> End {
        self.launched.terminate();
        *grace_timer = Box::pin(sleep(GRACE));
        End::Asked(by)
    }

    async fn check(&mut self) -> Option<Bound> {
        let first = self.launched.first();
        self.with_watch(move |watch| watch.check(first))
            .await
            .flatten()
    }

    async fn check_after_exit(&mut self, exit_code: i32) -> Option<Bound> {
        let watch = self.watch.as_ref()?;
        match watch.kernel_bound(exit_code) {
            None if watch.must_measure() => {
                self.with_watch(Watch::check_after_exit).await.flatten()
            }
            bound => bound,
        }
    }

    /// Runs blocking work on the watch.
    async fn with_watch<R: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Watch) -> R + Send + 'static,
    ) -> Option<R> {
        let mut watch = self.watch.take()?;
        let looked = tokio::task::spawn_blocking(move || {
            let found = work(&mut watch);
            (watch, found)
        });
        let (watch, found) = looked.await.ok()?;
        self.watch = Some(watch);
        Some(found)
    }

    async fn finish(mut self, end: End) -> Result<Finished, ExecError> {
        if let Some(watch) = &self.watch {
            watch.workspace().has_changed();
        }
        let duration = self.began.elapsed();
        let stdout = remaining_output(&mut self.stdout).await;
        let stderr = remaining_output(&mut self.stderr).await;
        self.input.abort();
        let reported = self.launched.exit_code();
        let exit_code = match (reported, end) {
            (Some(code), _) => code,
            // Killed from outside while the shell was running, for example by the machine's OOM killer or by a
            // person. Whatever the command did has happened, so this is a result and not an error.
            (None, End::NotYet) if self.launched.has_begun() => 128 + libc::SIGKILL,
            (None, End::NotYet) => return Err(ExecError::SetUp(error_line(&stderr))),
            (None, End::Asked(_) | End::Killed(_)) => 128 + libc::SIGKILL,
        };
        let ended_by = match end {
            End::NotYet => self.check_after_exit(exit_code).await.map(EndedBy::Bound),
            End::Asked(by) | End::Killed(by) => {
                if matches!(
                    by,
                    EndedBy::Bound(Bound::Disk | Bound::TeamDisk | Bound::Files)
                ) {
                    self.with_watch(Watch::record_after_stop).await;
                }
                Some(by)
            }
        };
        Ok(Finished {
            exit_code,
            stdout,
            stderr,
            ended_by,
            duration,
        })
    }
}

/// The error message of the helper or bubblewrap, in one line.
pub(super) fn error_line(stderr: &Output) -> String {
    let text = stderr.text.trim();
    let text: String = text.chars().take(500).collect();
    if text.is_empty() {
        "bubblewrap ended without an error message".to_owned()
    } else {
        text.replace('\n', "; ")
    }
}

fn ticks() -> Interval {
    let mut ticks = interval_at(tokio::time::Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The output that was read before its writers were gone.
async fn remaining_output(reading: &mut JoinHandle<Output>) -> Output {
    match timeout(READ_REMAINING_TIMEOUT, &mut *reading).await {
        Ok(Ok(output)) => output,
        Ok(Err(_)) | Err(_) => {
            reading.abort();
            Output {
                truncated: true,
                ..Output::default()
            }
        }
    }
}
