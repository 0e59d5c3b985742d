//! What a server may ask of this side: answers of people, to be told of progress and of changes. Nothing else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rmcp::handler::client::ClientHandler;
use rmcp::model::{
    ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, ElicitationAction,
    ElicitationCapability, ErrorData, Implementation, ProgressNotificationParam, ProgressToken,
};
use rmcp::service::{NotificationContext, RequestContext, RoleClient};
use tokio::sync::{Notify, oneshot};

/// Most questions of a server that wait at once.
const ASKED_MAX: usize = 8;

/// A question of the server.
pub(super) struct Asked {
    pub(super) params: ElicitRequestParams,
    /// Where the answer goes. Dropped: the server hears that the question was called off.
    pub(super) reply: oneshot::Sender<ElicitResult>,
}

/// A note on how far a call has come.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Progress {
    pub(super) token: ProgressToken,
    pub(super) progress: f64,
    pub(super) total: Option<f64>,
    pub(super) message: Option<String>,
}

/// Who hears of progress.
pub(super) type Hears = Arc<dyn Fn(Progress) + Send + Sync>;

/// What came from the server and nobody has taken yet. Shared between a session and its handler.
#[derive(Default)]
pub(super) struct Inbox {
    asked: Mutex<VecDeque<Asked>>,
    /// Rung when something was asked.
    rung: Notify,
    /// Calls that are under way: without one, nothing may be asked.
    calls: std::sync::atomic::AtomicUsize,
    changed: AtomicBool,
}

impl Inbox {
    fn asked(&self) -> MutexGuard<'_, VecDeque<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the server asks something.
    pub(super) async fn next(&self) -> Asked {
        loop {
            let rung = self.rung.notified();
            if let Some(asked) = self.asked().pop_front() {
                return asked;
            }
            rung.await;
        }
    }

    /// A call is under way as long as what this gives is kept.
    pub(super) fn call(self: &Arc<Self>) -> UnderWay {
        self.calls.fetch_add(1, Ordering::SeqCst);
        UnderWay(Arc::clone(self))
    }

    /// Whether a call is under way.
    pub(super) fn is_calling(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > 0
    }

    /// Whether the server has said that its tools changed, since this was asked last.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }
}

/// See [`Inbox::call`].
pub(super) struct UnderWay(Arc<Inbox>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The handler of one session.
pub(super) struct Handler {
    pub(super) inbox: Arc<Inbox>,
    pub(super) hears: Hears,
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::default();
        capabilities.elicitation = Some(ElicitationCapability::default());
        let version = env!("CARGO_PKG_VERSION");
        ClientConfig::new(capabilities, Implementation::new("errand", version))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        // Who asks to be visited elsewhere, or outside a call, asks nobody.
        let is_form = matches!(request, ElicitRequestParams::FormElicitationParams { .. });
        if !is_form || self.inbox.calls.load(Ordering::SeqCst) == 0 {
            return Ok(ElicitResult::new(ElicitationAction::Decline));
        }
        let (reply, answer) = oneshot::channel();
        {
            let mut asked = self.inbox.asked();
            if asked.len() >= ASKED_MAX {
                return Ok(ElicitResult::new(ElicitationAction::Decline));
            }
            asked.push_back(Asked {
                params: request,
                reply,
            });
        }
        self.inbox.rung.notify_one();
        Ok(answer
            .await
            .unwrap_or_else(|_| ElicitResult::new(ElicitationAction::Cancel)))
    }

    async fn on_progress(
        &self,
        params: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        (self.hears)(Progress {
            token: params.progress_token,
            progress: params.progress,
            total: params.total,
            message: params.message,
        });
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.inbox.changed.store(true, Ordering::SeqCst);
    }
}
