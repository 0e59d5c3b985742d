//! Models of network providers, behind the [`Model`] trait.
//!
//! # Guarantees
//!
//! - A model is asked only after everything that the request depends on is committed (the session is not pure).
//! - Each answered call is recorded with its usage, in the same step as the decision.
//! - A failed attempt is recorded with its usage too. The run then releases its driver until the next attempt, so that
//!   an unavailable provider does not occupy driver slots.
//! - Transport errors are retried up to a limit. Any other error fails the run with a message that says what to do.
//!
//! # Modules
//!
//! `provider` (protocol, address, key), `catalog` (prices, windows), `conversation` (the transcript as items), `fit`
//! (what fits into the window), `render` (items as a request), `ask` (one call), `fault` (classification of errors),
//! `answer` (answer to moves), `concurrency_queue` (concurrency limits). The wire protocol itself is the client library's.

mod answer;
mod ask;
mod catalog;
mod concurrency_queue;
mod conversation;
mod fault;
mod fit;
mod provider;
mod render;
mod tap;
mod workspace;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::config::{BuildConfig, ModelName};
use errand_core::id::{MessageId, RunId, TeamId};
use errand_core::limits::{
    ANSWER_BYTES_MAX, EMPTY_SUMMARIES_MAX, LARGE_ANSWERS_MAX, LOST_CALLS_MAX,
};
use errand_core::retry::model_retry_delay_ms;
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry, ModelCall, Purpose};
use errand_store::StoreError;
use errand_store::model::Usage;
use url::Url;

use super::{Model, ModelError, Need, Offer, Session, Setup, Turn, TurnContext, TurnError};
use crate::net::{Blocked, ClientError};
use answer::Toolbox;
use ask::{Audience, Question};
use catalog::Known;
use conversation::Conversation;
use fault::Fault;

use concurrency_queue::ProviderQueues;
use provider::{Registry, Target};
use render::Frame;
use tap::Tap;

/// The delay after a call failed because this server had no free file descriptor or memory.
const EXHAUSTED_PAUSE_MS: u64 = 1_000;

pub use catalog::{Overrides, Price, Tokens};
pub use provider::{Kind, OwnProvider, OwnProviders, ProviderKey, ProviderSettings};

/// Settings for calls to network models.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// The operator's providers, with their names.
    pub providers: Vec<(String, ProviderSettings)>,
    /// The operator's prices, windows and capabilities of models.
    pub overrides: Overrides,
    /// Attempts before a run fails. Range: 1..=100.
    pub attempts: u32,
    /// The longest silence within an answer, in milliseconds. Range: 1_000..=3_600_000.
    pub idle_ms: u64,
    /// Maximum number of concurrent calls per provider. Range: 1..=10_000.
    pub concurrency: usize,
    /// Whether a team's provider address may be in a private network.
    pub allow_private: bool,
}

/// All network providers and the limits for calling them.
pub struct Network {
    registry: Registry,
    overrides: Overrides,
    attempts: u32,
    idle_ms: u64,
    queues: ProviderQueues,
}

impl Network {
    ///
    /// # Errors
    /// [`ClientError`] if TLS cannot be set up.
    pub fn new(settings: NetworkSettings) -> Result<Self, ClientError> {
        Ok(Self {
            registry: Registry::new(settings.providers, settings.allow_private)?,
            overrides: settings.overrides,
            attempts: settings.attempts.max(1),
            idle_ms: settings.idle_ms.max(1),
            queues: ProviderQueues::new(settings.concurrency),
        })
    }

    /// Checks an address that a team sets for a provider, as far as possible without resolving its name.
    ///
    /// # Errors
    /// [`Blocked`] if the address may not be called.
    pub fn check_base_url(&self, url: &Url) -> Result<(), Blocked> {
        self.registry.check_base_url(url)
    }

    /// Completes when a waiting run can get a permit of its provider.
    pub(crate) async fn freed(&self) {
        self.queues.freed().await;
    }

    /// The runs that can get a permit now and were not woken yet.
    pub(crate) fn turns(&self, now: Timestamp) -> Vec<RunId> {
        self.queues.turns(now)
    }

    /// Records the result of waking one of these runs. `is_there`: the run still waits.
    pub(crate) fn was_woken(&self, run: RunId, is_there: bool, now: Timestamp) {
        if is_there {
            self.queues.woken(run, now);
        } else {
            self.queues.forget(run);
        }
    }

    /// Checks the build's provider, and that its price is known if a spending limit requires it.
    pub(super) fn check(&self, build: &BuildConfig, own: &OwnProviders) -> Result<(), String> {
        self.registry.check(&build.model, own)?;
        let is_priced = self.overrides.known(&build.model).price.is_some();
        match price_unknown(
            &build.model,
            build.limits.cost_usd.is_some(),
            own.limits_month,
        ) {
            Some(message) if !is_priced => Err(message),
            _ => Ok(()),
        }
    }
}

/// The reason for refusing a model without a known price: a spending limit could not be enforced. `None` if no such
/// limit is set.
pub(crate) fn price_unknown(model: &ModelName, of_build: bool, of_month: bool) -> Option<String> {
    let (what, without) = match (of_build, of_month) {
        (true, _) => (
            "limits.cost_usd cannot be enforced",
            "limits.tokens works without a price",
        ),
        (false, true) => (
            "the team's monthly spending limit cannot be enforced",
            "or an admin of the team can remove that limit, on the page Usage or with PATCH /v1/usage/limits",
        ),
        (false, false) => return None,
    };
    Some(format!(
        "{what}: the model {model} has no price. The operator can set one with [models.prices.\"{model}\"], or one for all such models with [models.default_price], in errand.toml; {without}"
    ))
}

/// The [`Model`] of every network provider.
pub struct NetworkModel {
    network: Arc<Network>,
}

impl NetworkModel {
    pub(super) fn new(network: Arc<Network>) -> Self {
        Self { network }
    }
}

impl Model for NetworkModel {
    fn session(&self, setup: Setup<'_>) -> Result<Box<dyn Session>, ModelError> {
        let name = setup.build.model.clone();
        let known = self.network.overrides.known(&name);
        let tools = (setup.tools)();
        Ok(Box::new(NetworkSession {
            network: Arc::clone(&self.network),
            run: setup.run,
            team: setup.team,
            frame: Frame::new(&setup.build.input, &tools),
            toolbox: Toolbox::new(&tools),
            conversation: Conversation::new(known.window),
            known,
            name,
            target: None,
            under_way: None,
        }))
    }
}

struct NetworkSession {
    network: Arc<Network>,
    run: RunId,
    team: TeamId,
    name: ModelName,
    known: Known,
    frame: Frame,
    toolbox: Toolbox,
    conversation: Conversation,
    /// Looked up on first use.
    target: Option<Target>,
    /// The call that is in flight or has failed.
    under_way: Option<UnderWay>,
}

/// The state of a call in flight.
struct UnderWay {
    tap: Arc<Tap>,
    kind: Kind,
    purpose: Purpose,
    attempt: u32,
    read_to: u64,
    began: Timestamp,
    asked_bytes: usize,
}

#[async_trait]
impl Session for NetworkSession {
    fn feed(&mut self, entry: &Entry) {
        self.conversation.feed(entry);
    }

    fn is_pure(&self) -> bool {
        false
    }

    fn offer(&mut self, tools: Vec<Offer>) {
        self.frame.offer(&tools);
        self.toolbox = Toolbox::new(&tools);
    }

    fn costs(&self) -> bool {
        true
    }

    fn is_priced(&self) -> bool {
        self.known.price.is_some()
    }

    fn unanswered(&mut self, now: Timestamp) -> Option<ModelCall> {
        let call = self.under_way.take()?;
        Some(self.account(&call, false, now))
    }

    fn needs_workspace(&self) -> Need {
        if !self.conversation.unwritten.is_empty() {
            Need::Always
        } else if !self.conversation.has_begun || self.conversation.unread_images {
            Need::IfThere
        } else {
            Need::Never
        }
    }

    async fn turn(&mut self, context: &TurnContext<'_>) -> Result<Turn, TurnError> {
        if !self.conversation.has_begun {
            let text = workspace::opening(context.workspace.clone()).await;
            return Ok(Turn {
                notes: vec![Body::Opening { text }],
                ..Turn::default()
            });
        }
        workspace::write_results(&mut self.conversation, context.workspace.as_ref()).await;
        workspace::read_images(&mut self.conversation, context.workspace.as_ref()).await;
        let target = self.target(context).await?;
        let at = (self.name.provider.as_str(), target.endpoint.as_str());
        let now = context.clock.now();
        let caller = (self.team, self.run);
        let Some(_permit) = self.network.queues.enter(at, caller, now) else {
            return Err(TurnError::Full {
                pause_ms: concurrency_queue::LOOK_AGAIN_MS,
            });
        };
        let room = self.room();
        if room.holds(self.frame.bytes + self.conversation.bytes) {
            return self.next_turn(context, &target, None).await;
        }
        if let Some(cut) = fit::cut(&self.conversation, self.frame.bytes, room) {
            return self.summarize(context, &target, room, cut).await;
        }
        let model = (&self.name, self.known.window);
        let trim = fit::trim(&self.conversation, self.frame.bytes, room, model)?;
        self.next_turn(context, &target, Some(trim)).await
    }
}

impl NetworkSession {
    fn room(&self) -> fit::Room {
        let sent = self.frame.bytes + self.conversation.sent_bytes;
        let per_token = fit::bytes_per_token(sent, self.conversation.last_input_tokens);
        fit::Room::of(self.known.window, self.known.answer, per_token)
    }

    async fn target(&mut self, context: &TurnContext<'_>) -> Result<Target, TurnError> {
        if let Some(target) = &self.target {
            return Ok(target.clone());
        }
        let unavailable = |message: String| ModelError {
            code: "model_unavailable",
            message,
        };
        let own = context
            .store
            .provider_setting(self.team, &self.name.provider)
            .await
            .map_err(|error| unavailable(unreadable(&self.name, &error)))?;
        let own = own.and_then(|own| {
            Some(ProviderSettings {
                kind: Kind::parse(&own.kind)?,
                base_url: own.base_url,
                key: own.key.map(ProviderKey),
            })
        });
        let target = self.network.registry.target(&self.name, own.as_ref());
        let target = target.map_err(unavailable)?;
        self.target = Some(target.clone());
        Ok(target)
    }

    async fn next_turn(
        &mut self,
        context: &TurnContext<'_>,
        target: &Target,
        trim: Option<fit::Trim>,
    ) -> Result<Turn, TurnError> {
        let (position, at) = self.conversation.basis.unwrap_or((0, context.clock.now()));
        let message = MessageId::of_turn(self.run, position, at);
        let attempt = context.failures + 1;
        let audience = Audience {
            deltas: context.deltas,
            run: self.run,
            message,
            attempt,
        };
        let request = render::request(
            &self.frame,
            &self.conversation,
            target.kind,
            self.known.sees,
            trim,
        );
        let sent_bytes = trim.map_or(self.conversation.bytes, |trim| trim.sent_bytes);
        let asked_bytes = self.frame.bytes + sent_bytes;
        let tap = self.begin(context, target, Purpose::Turn, asked_bytes);
        let question = Question {
            name: &self.name,
            target,
            request,
            answer_tokens: self.known.answer,
            idle_ms: self.network.idle_ms,
            tap: &tap,
        };
        let reply = ask::ask(question, Some(audience), context.clock).await;
        let reply = reply.map_err(|fault| self.failed(fault, attempt, context))?;
        let mut call = self.answered(context.clock.now());
        let usage = Usage::of_call(&call, true);
        call.sent_bytes = trim.map_or(0, |trim| trim.sent_bytes as u64);
        let empty = self.conversation.empty;
        let id = || {
            let id = context.ids.message(context.clock.now());
            format!("call_{}", id.as_uuid().simple())
        };
        let evaluators = || context.parsers.evaluators(context.team);
        let checked = self.toolbox.check(&reply, evaluators).await;
        let turn = answer::turn(reply, (&self.toolbox, &checked), call, empty, id);
        Ok(Turn {
            message: Some(message),
            usage,
            ..turn
        })
    }

    async fn summarize(
        &mut self,
        context: &TurnContext<'_>,
        target: &Target,
        room: fit::Room,
        cut: fit::Cut,
    ) -> Result<Turn, TurnError> {
        let attempt = context.failures + 1;
        let request = fit::summary_request(&self.conversation, &cut, room);
        let asked_bytes = request.messages.iter().map(|m| m.content.size()).sum();
        let tap = self.begin(context, target, Purpose::Summary, asked_bytes);
        let question = Question {
            name: &self.name,
            target,
            request,
            answer_tokens: fit::SUMMARY_TOKENS.min(self.known.answer),
            idle_ms: self.network.idle_ms,
            tap: &tap,
        };
        let reply = ask::ask(question, None, context.clock).await;
        let reply = reply.and_then(|reply| match &reply.filtered {
            // A truncated summary would silently lose part of the conversation.
            Some(word) => Err(Fault::Final(ask::refused(&self.name, word))),
            None if reply.text.trim().is_empty() => Err(Fault::EmptySummary),
            None => Ok(reply),
        });
        let reply = reply.map_err(|fault| self.failed(fault, attempt, context))?;
        let call = self.answered(context.clock.now());
        let usage = Usage::of_call(&call, true);
        let mut text = reply.text;
        if reply.cut {
            text.push_str("\n[… this summary was cut off here …]");
        }
        Ok(Turn {
            notes: vec![
                Body::ModelCall { call },
                Body::Summary {
                    text,
                    up_to: cut.up_to,
                },
            ],
            usage,
            ..Turn::default()
        })
    }

    /// Registers a call before it starts, so that its usage is recorded even if the call fails or is dropped.
    fn begin(
        &mut self,
        context: &TurnContext<'_>,
        target: &Target,
        purpose: Purpose,
        asked_bytes: usize,
    ) -> Arc<Tap> {
        let tap = Arc::new(Tap::new(target.kind));
        self.under_way = Some(UnderWay {
            tap: Arc::clone(&tap),
            kind: target.kind,
            purpose,
            attempt: context.failures + 1,
            read_to: context.read_to,
            began: context.clock.now(),
            asked_bytes,
        });
        tap
    }

    /// Finishes the call in flight as answered and returns its record.
    fn answered(&mut self, now: Timestamp) -> ModelCall {
        let call = self.under_way.take();
        call.map_or_else(ModelCall::default, |call| self.account(&call, true, now))
    }

    /// The record of a call. `is_whole`: the answer is complete.
    fn account(&self, under_way: &UnderWay, is_whole: bool, now: Timestamp) -> ModelCall {
        let seen = under_way.tap.seen();
        let spent = seen.spent(under_way.kind, under_way.asked_bytes, is_whole);
        drop(seen);
        let tokens = spent.tokens;
        let mut call = ModelCall {
            model: self.name.to_string(),
            input_tokens: tokens.input,
            cached_tokens: tokens.cached,
            output_tokens: tokens.output,
            cost_usd: self.known.price.map_or(0.0, |price| price.of(tokens)),
            estimated: spent.estimated,
            ms: now.ms_since(under_way.began),
            attempt: under_way.attempt,
            read_to: under_way.read_to,
            purpose: under_way.purpose,
            ..ModelCall::default()
        };
        call.unpriced = self.known.price.is_none() && call.used_tokens();
        call
    }

    fn failed(&self, fault: Fault, attempt: u32, context: &TurnContext<'_>) -> TurnError {
        let fails =
            |code: &'static str, message: String| TurnError::Fails(ModelError { code, message });
        let name = &self.name;
        let (what, retry_after_ms) = match fault {
            Fault::Final(error) => return TurnError::Fails(error),
            Fault::LostCall if attempt >= LOST_CALLS_MAX => {
                return fails(
                    "model_call_lost",
                    format!(
                        "{LOST_CALLS_MAX} answers in a row of {name} announced a tool call but contained none that can be read: the provider's server is not compatible. Use another server or model, then retry the run"
                    ),
                );
            }
            Fault::EmptySummary if attempt >= EMPTY_SUMMARIES_MAX => {
                return fails(
                    "model_no_summary",
                    format!(
                        "the conversation is longer than the window of {name}, and {EMPTY_SUMMARIES_MAX} summaries in a row were empty. Use a model with a larger window, or correct models.windows, then retry the run"
                    ),
                );
            }
            Fault::TooLarge if attempt >= LARGE_ANSWERS_MAX => {
                return fails(
                    "model_answer_too_large",
                    format!(
                        "{LARGE_ANSWERS_MAX} answers in a row of {name} had more than {} MiB. Set max_output_tokens, or use another model, then retry the run",
                        ANSWER_BYTES_MAX >> 20
                    ),
                );
            }
            Fault::TooLarge => ("the answer exceeds the size limit".to_owned(), None),
            Fault::LostCall => (
                "the answer announced a tool call but contained none that can be read".to_owned(),
                None,
            ),
            Fault::EmptySummary => ("the requested summary is empty".to_owned(), None),
            Fault::Transport {
                what,
                retry_after_ms,
            } => (what, retry_after_ms),
            // The provider was not asked, so this does not count as an attempt.
            Fault::Exhausted => {
                return TurnError::Again {
                    error: "the server has run out of open files or memory".to_owned(),
                    attempt: attempt.saturating_sub(1).max(1),
                    pause_ms: EXHAUSTED_PAUSE_MS,
                };
            }
        };
        if attempt >= self.network.attempts {
            return TurnError::Fails(ModelError {
                code: "model_unreachable",
                message: format!(
                    "the model {} did not answer in {attempt} attempts; at the last one, {what}. The provider may be down or overloaded: retry the run later",
                    self.name
                ),
            });
        }
        let jitter = context.ids.jitter_permille();
        TurnError::Again {
            error: what,
            attempt,
            pause_ms: model_retry_delay_ms(attempt, retry_after_ms, jitter),
        }
    }
}

fn unreadable(name: &ModelName, error: &StoreError) -> String {
    format!(
        "the team's settings for the provider {} cannot be read ({error}); set them again with PUT /v1/providers/{0}",
        name.provider
    )
}
