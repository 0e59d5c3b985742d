//! Handles requests from a server: questions for people, progress, and changes of its tools. Everything else is
//! refused.

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

/// Maximum number of a server's pending questions.
const ASKED_MAX: usize = 8;

/// A question from the server.
pub(super) struct Asked {
    pub(super) params: ElicitRequestParams,
    /// Receives the answer. Dropping it tells the server that the question was cancelled.
    pub(super) reply: oneshot::Sender<ElicitResult>,
}

/// A progress notification of a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Progress {
    pub(super) token: ProgressToken,
    pub(super) progress: f64,
    pub(super) total: Option<f64>,
    pub(super) message: Option<String>,
}

/// Callback for progress notifications.
pub(super) type Hears = Arc<dyn Fn(Progress) + Send + Sync>;

/// Incoming questions and notifications, shared between a session and its handler.
#[derive(Default)]
pub(super) struct Inbox {
    asked: Mutex<VecDeque<Asked>>,
    /// Notified when a question arrives.
    rung: Notify,
    /// Number of calls in progress. Without one, the server may not ask anything.
    calls: std::sync::atomic::AtomicUsize,
    changed: AtomicBool,
}

impl Inbox {
    fn asked(&self) -> MutexGuard<'_, VecDeque<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next question from the server.
    pub(super) async fn next(&self) -> Asked {
        loop {
            // Created before the queue is checked, so that a question that arrives in between is not missed.
            let rung = self.rung.notified();
            if let Some(asked) = self.asked().pop_front() {
                return asked;
            }
            rung.await;
        }
    }

    /// Counts a call as in progress until the returned guard is dropped.
    pub(super) fn call(self: &Arc<Self>) -> UnderWay {
        self.calls.fetch_add(1, Ordering::SeqCst);
        UnderWay(Arc::clone(self))
    }

    pub(super) fn is_calling(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > 0
    }

    /// Whether the server announced a change of its tools since the last call of this function.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }
}

/// Guard of [`Inbox::call`].
pub(super) struct UnderWay(Arc<Inbox>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

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
        // Declined: questions that refer the person to a web page, and questions outside a call.
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
