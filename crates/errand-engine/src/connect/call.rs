//! One call of a connection's tool: sending it, waiting for the result, asking a person for the server, and cancelling.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use errand_core::human::Resolution;
use errand_core::policy::Hints;
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::{Body, Outcome, ToolCall};
use errand_store::{Connection, Setup};
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest, ContentBlock,
    ElicitResult, ElicitationAction, RequestMetaObject, ServerResult,
};
use rmcp::service::{PeerRequestOptions, RequestHandle, RoleClient, ServiceError};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use url::Url;

use super::form::Form;
use super::handler::{Asked, UnderWay};
use super::{Connections, Session, Slot, locked, why};
use crate::tool::{CallResult, Source, Tool, ToolContext};
use errand_core::connection::ProbedTool;

/// Maximum size of a result, the same as for other tools.
const RESULT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How often in a row a server may be lost during calls of a run before further losses are final errors.
const LOST_MAX: u32 = 3;
/// Time limit for sending a cancellation to a server.
const CALL_OFF_TIME_MAX: Duration = Duration::from_secs(5);
/// Key in a call's `_meta` for the value `run_id:call_id`, which stays the same when the call is repeated. A server may
/// use it to execute the call only once. By itself it settles nothing: the server must also declare `idempotentHint`.
const IDEMPOTENCY_KEY: &str = "errand/idempotency-key";

/// A connection's tool, bound to one run's view of the connection.
pub struct ConnectionTool {
    connections: Connections,
    connection: Arc<Connection>,
    tool: ProbedTool,
}

/// A call for which the server waits for a person's answer.
pub(super) struct Parked {
    handle: RequestHandle<RoleClient>,
    under_way: UnderWay,
    reply: oneshot::Sender<ElicitResult>,
    form: Form,
}

impl Parked {
    /// Cancels the server's question and the call.
    pub(super) async fn call_off(self, session: &Session, why: &str) {
        // An error means that the server has withdrawn its question.
        let _ = self
            .reply
            .send(ElicitResult::new(ElicitationAction::Cancel));
        session.call_off(self.handle, why).await;
    }
}

impl Session {
    /// Cancels a call at the server. A server that does not even read the cancellation is disconnected, and a program
    /// is killed: otherwise the run's slot and sandbox, and the shutdown, would wait for it.
    async fn call_off(&self, handle: RequestHandle<RoleClient>, why: &str) {
        let canceled = handle.cancel(Some(why.to_owned()));
        match tokio::time::timeout(CALL_OFF_TIME_MAX, canceled).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::debug!("a call could not be cancelled at its server"),
            Err(_) => {
                tracing::info!("a server does not read its input and was disconnected");
                self.close().await;
            }
        }
    }
}

impl ConnectionTool {
    #[must_use]
    pub fn new(connections: Connections, connection: Arc<Connection>, tool: ProbedTool) -> Self {
        Self {
            connections,
            connection,
            tool,
        }
    }

    fn source(&self) -> Source {
        let host = match &self.connection.setup {
            Setup::Http { url, .. } => Url::parse(url)
                .ok()
                .and_then(|url| url.host_str().map(str::to_owned))
                .unwrap_or_default(),
            Setup::Stdio { command, .. } => format!("the program {command}"),
        };
        Source {
            from: format!("the connection {} ({host})", self.connection.name),
            trusted: !self.hints().untrusted,
            private: self.hints().private,
        }
    }

    fn done(&self, outcome: Outcome, notes: Vec<Body>) -> CallResult {
        CallResult::Done {
            outcome,
            source: Some(self.source()),
            notes,
        }
    }

    fn unavailable(&self, error: &(dyn std::error::Error + 'static)) -> ToolError {
        let (name, why) = (&self.connection.name, why::explain(error));
        ToolError::new(
            ToolErrorCode::Unavailable,
            format!("the connection {name}: {why}"),
        )
    }

    /// Compares the server's current tools with the probed ones. The error means that this tool was changed or removed.
    async fn look(&self, session: &Session) -> Result<Vec<Body>, ToolError> {
        let known = !locked(&session.offers).is_empty();
        if known && !session.inbox.take_changed() {
            return self.judge(&locked(&session.offers), Vec::new());
        }
        let tools = self
            .connections
            .tools_of(&session.peer, &self.connection, &session.secrets)
            .await
            .map_err(|error| ToolError::with_content(ToolErrorCode::ToolError, error))?;
        let offers: std::collections::BTreeMap<_, _> = tools
            .iter()
            .map(|tool| (tool.name.clone(), tool.digest()))
            .collect();
        let probed = self.connection.tools.as_deref().unwrap_or_default();
        let mut changed: Vec<String> = probed
            .iter()
            .filter(|tool| offers.get(&tool.name) != Some(&tool.digest()))
            .map(|tool| tool.name.clone())
            .collect();
        changed.extend(
            tools
                .iter()
                .filter(|tool| !probed.iter().any(|p| p.name == tool.name))
                .map(|tool| tool.name.clone()),
        );
        let notes = if changed.is_empty() {
            Vec::new()
        } else {
            tracing::info!(connection.id = %self.connection.id, tools = changed.len(), "tools of a connection have changed since it was probed");
            vec![Body::ToolsChanged {
                connection: self.connection.name.clone(),
                tools: changed,
            }]
        };
        (*locked(&session.offers)).clone_from(&offers);
        self.judge(&offers, notes)
    }

    fn judge(
        &self,
        offers: &std::collections::BTreeMap<String, String>,
        notes: Vec<Body>,
    ) -> Result<Vec<Body>, ToolError> {
        let name = &self.tool.name;
        match offers.get(name) {
            Some(digest) if *digest == self.tool.digest() => Ok(notes),
            Some(_) => Err(ToolError::new(
                ToolErrorCode::ToolChanged,
                format!(
                    "the server's description of {name} has changed since the connection was probed, and the tool was not called; an admin must check it and probe the connection again"
                ),
            )),
            None => Err(ToolError::new(
                ToolErrorCode::UnknownTool,
                format!(
                    "the connection {} no longer offers {name}; an admin must probe it again",
                    self.connection.name
                ),
            )),
        }
    }

    /// Waits for the result of a call that was sent.
    async fn wait(
        &self,
        session: &Arc<Session>,
        slot: &Slot,
        mut handle: RequestHandle<RoleClient>,
        under_way: UnderWay,
        (context, notes): (&ToolContext, Vec<Body>),
    ) -> CallResult {
        let time_ms = u64::try_from(self.connections.call_time.as_millis()).unwrap_or(u64::MAX);
        let ends = self.connections.clock.now().plus_ms(time_ms);
        loop {
            let answered = tokio::select! {
                // A result that has already arrived wins over a cancellation or a timeout.
                biased;
                answered = &mut handle.rx => answered.unwrap_or(Err(ServiceError::TransportClosed)),
                () = context.cancel.cancelled() => {
                    session.call_off(handle, "the run was stopped").await;
                    return self.done(Outcome::error(ToolErrorCode::Interrupted, "the call was cancelled; whether it took effect is unknown"), notes);
                }
                () = self.connections.clock.sleep_until(ends) => {
                    session.call_off(handle, "no answer in time").await;
                    let message = format!("the server did not answer within {} s, and the call was cancelled", time_ms / 1000);
                    return self.done(Outcome::error(ToolErrorCode::OutcomeUnknown, message), notes);
                }
                asked = session.inbox.next() => {
                    match self.ask(context, session, asked) {
                        Some((form, draft, reply)) => {
                            let parked = Parked { handle, under_way, reply, form };
                            locked(&session.parked).insert(context.call_id.clone(), parked);
                            self.watch(context, session);
                            return CallResult::Asks(Box::new(draft));
                        }
                        None => continue,
                    }
                }
            };
            locked(&session.tokens).retain(|_, call| *call != context.call_id);
            *locked(&session.used_at) = self.connections.clock.now();
            return match answered {
                Ok(ServerResult::CallToolResult(result)) => {
                    slot.lost.store(0, Ordering::SeqCst);
                    self.done(outcome_of(&result), notes)
                }
                Ok(_) => self.done(
                    Outcome::error(
                        ToolErrorCode::ToolError,
                        "the server's answer is not a result",
                    ),
                    notes,
                ),
                Err(ServiceError::McpError(error)) => self.done(
                    Outcome::Error(ToolError::with_content(
                        ToolErrorCode::ToolError,
                        error.message,
                    )),
                    notes,
                ),
                // No descriptor was free, so the call was not sent.
                Err(error) if why::note_exhausted(&error) => {
                    self.done(Outcome::Error(self.unavailable(&error)), notes)
                }
                // The server refused the call before executing it.
                Err(error) if why::wants_sign_in(&error) => {
                    self.done(Outcome::Error(self.unavailable(&error)), notes)
                }
                Err(_) => {
                    let lost = slot.lost.fetch_add(1, Ordering::SeqCst) + 1;
                    tracing::info!(connection.id = %self.connection.id, "the connection to a server was lost during a call");
                    if lost > LOST_MAX {
                        let message = format!(
                            "the server of the connection {} was lost {lost} times in a row during calls",
                            self.connection.name
                        );
                        let outcome = Outcome::error(ToolErrorCode::OutcomeUnknown, message);
                        return self.done(outcome, notes);
                    }
                    CallResult::Lost
                }
            };
        }
    }

    /// Converts a server's question to a human request. `None` if nobody can be asked; the server was then told so.
    fn ask(
        &self,
        context: &ToolContext,
        session: &Session,
        asked: Asked,
    ) -> Option<(
        Form,
        errand_core::human::RequestDraft,
        oneshot::Sender<ElicitResult>,
    )> {
        let people = context
            .build
            .as_ref()
            .is_some_and(|build| build.human_in_the_loop);
        let params = serde_json::to_value(&asked.params).unwrap_or_default();
        let call = ToolCall {
            id: context.call_id.clone(),
            name: self.tool.name.clone(),
            arguments: context.arguments.clone(),
        };
        let form = people
            .then(|| {
                Form::read(
                    &self.connection.name,
                    &call,
                    &session.secrets.mask_value(params),
                )
            })
            .flatten();
        match form {
            Some((form, draft)) => Some((form, draft, asked.reply)),
            None => {
                // An error means that the server has withdrawn its question.
                let _ = asked
                    .reply
                    .send(ElicitResult::new(ElicitationAction::Decline));
                None
            }
        }
    }

    /// Watches a call that waits for a person, and closes the session when its run ends.
    fn watch(&self, context: &ToolContext, session: &Arc<Session>) {
        // A weak reference, so that this task does not keep a closed session alive.
        let (connections, session) = (self.connections.clone(), Arc::downgrade(session));
        let (run, team, call_id) = (context.run, self.connection.team, context.call_id.clone());
        tokio::spawn(async move {
            let mut watch = connections.store.bell().watch(run);
            loop {
                let parked = session
                    .upgrade()
                    .is_some_and(|session| locked(&session.parked).contains_key(&call_id));
                if !parked {
                    return;
                }
                let ended = match connections.store.run(team, run).await {
                    Ok(view) => view.run.completed_at.is_some(),
                    Err(_) => false,
                };
                if ended {
                    connections.close_run(run);
                    return;
                }
                tokio::select! {
                    () = watch.changed() => {}
                    () = connections.ended.cancelled() => return,
                }
            }
        });
    }
}

#[async_trait]
impl Tool for ConnectionTool {
    fn name(&self) -> &str {
        &self.tool.name
    }

    fn description(&self) -> &str {
        &self.tool.description
    }

    fn hints(&self) -> Hints {
        let settings = self.connection.settings_of(&self.tool.name);
        self.tool.engine_hints(settings, self.connection.trusted)
    }

    fn target(&self) -> Option<String> {
        let place = match &self.connection.setup {
            Setup::Http { url, .. } => url,
            Setup::Stdio { command, .. } => command,
        };
        let id = self.connection.id.to_string();
        let exact = json!([id, place, self.tool.digest()]).to_string();
        Some(hex::encode(Sha256::digest(exact.as_bytes())))
    }

    fn takes_secrets(&self) -> bool {
        true
    }

    fn schema(&self) -> Value {
        self.tool.input_schema.clone()
    }

    async fn run(&self, context: &ToolContext, arguments: Map<String, Value>) -> Outcome {
        self.call(context, arguments).await.into_outcome()
    }

    async fn call(&self, context: &ToolContext, arguments: Map<String, Value>) -> CallResult {
        let opened = tokio::select! {
            opened = self.connections.session(context.run, &self.connection) => opened,
            () = context.cancel.cancelled() => return CallResult::of(Outcome::error(ToolErrorCode::NotRun, "the run was taken from its driver before the call was sent")),
        };
        let (session, slot) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let message = format!(
                    "the connection {} cannot be reached, and nothing was called: {error}",
                    self.connection.name
                );
                let outcome = Outcome::error(ToolErrorCode::Unavailable, message);
                return self.done(outcome, Vec::new());
            }
        };
        let notes = match self.look(&session).await {
            Ok(notes) => notes,
            Err(error) => return self.done(Outcome::Error(error), Vec::new()),
        };
        let under_way = session.inbox.call();
        let params =
            CallToolRequestParams::new(self.tool.server_name.clone()).with_arguments(arguments);
        let key = format!("{}:{}", context.run, context.call_id);
        let mut options = PeerRequestOptions::no_options();
        let mut meta = RequestMetaObject::default();
        meta.insert(IDEMPOTENCY_KEY.to_owned(), Value::String(key));
        options.meta = Some(meta);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let sent = session
            .peer
            .send_cancellable_request(request, options)
            .await;
        let handle = match sent {
            Ok(handle) => handle,
            Err(error) => {
                return self.done(Outcome::Error(self.unavailable(&error)), notes);
            }
        };
        locked(&session.tokens)
            .insert(handle.progress_token.0.to_string(), context.call_id.clone());
        self.wait(&session, &slot, handle, under_way, (context, notes))
            .await
    }

    async fn reply(&self, context: &ToolContext, resolution: &Resolution) -> CallResult {
        let slot = self.connections.slot(context.run, self.connection.id);
        let session = slot.session.lock().await.clone();
        let parked = session
            .as_ref()
            .and_then(|session| locked(&session.parked).remove(&context.call_id));
        let (Some(session), Some(parked)) = (session, parked) else {
            return CallResult::Lost;
        };
        let answer = match parked.form.answer(resolution) {
            Some(content) => ElicitResult::new(ElicitationAction::Accept).with_content(content),
            None => ElicitResult::new(ElicitationAction::Decline),
        };
        // If the server no longer waits for the answer, it still owes the result.
        let _ = parked.reply.send(answer);
        self.wait(
            &session,
            &slot,
            parked.handle,
            parked.under_way,
            (context, Vec::new()),
        )
        .await
    }
}

/// A server's result as a tool's outcome: the structured content if there is any, otherwise the text.
fn outcome_of(result: &CallToolResult) -> Outcome {
    let text = || {
        let parts: Vec<String> = result.content.iter().map(text_of).collect();
        parts.join("\n")
    };
    if result.is_error == Some(true) {
        return Outcome::Error(ToolError::with_content(ToolErrorCode::ToolError, text()));
    }
    let value = match &result.structured_content {
        Some(value) => value.clone(),
        None => Value::String(text()),
    };
    if value.to_string().len() > RESULT_BYTES_MAX {
        let mib = RESULT_BYTES_MAX / (1024 * 1024);
        let message = format!("the tool was called, and its result has more than {mib} MiB");
        return Outcome::error(ToolErrorCode::TooLarge, message);
    }
    Outcome::Result(value)
}

fn text_of(block: &ContentBlock) -> String {
    let bytes = |data: &str| data.len() / 4 * 3;
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => format!(
            "[image, {}, about {} bytes]",
            image.mime_type,
            bytes(&image.data)
        ),
        ContentBlock::Audio(audio) => format!(
            "[audio, {}, about {} bytes]",
            audio.mime_type,
            bytes(&audio.data)
        ),
        other => serde_json::to_value(other)
            .map(|value| {
                let resource = value.get("resource").unwrap_or(&value);
                match resource.get("text").and_then(Value::as_str) {
                    Some(text) => text.to_owned(),
                    None => resource.get("uri").map_or_else(
                        || "[content that is not text]".to_owned(),
                        |uri| format!("[{}]", uri.as_str().unwrap_or_default()),
                    ),
                }
            })
            .unwrap_or_default(),
    }
}
