//! Models of providers on the network, behind the [`Model`] trait.
//!
//! Promised: a model is asked only after what its question rests on is on disk (its session is not pure); each call that
//! was answered is on record with what it used up, in the same step as what it decided; an attempt that failed on the way
//! is on record too, and the next one is made by whoever drives the run then, so that a provider that is down costs no
//! place. Faults of transport are tried again up to a bound; anything else ends the run with a sentence that says what to
//! do.
//!
//! The parts: `provider` (whose protocol, where, with which key), `catalog` (prices, windows), `conversation` (the
//! transcript as items), `fit` (what fits into the window), `render` (items as a request), `ask` (one call), `fault` (what
//! went wrong), `answer` (what was decided), `line` (how many calls at once). The wire itself is the client library's.

mod answer;
mod ask;
mod catalog;
mod conversation;
mod fault;
mod fit;
mod line;
mod provider;
mod render;
mod workspace;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::config::{BuildConfig, ModelName};
use errand_core::id::{MessageId, RunId, TeamId};
use errand_core::retry::model_retry_delay_ms;
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry, ModelCall, Purpose};
use errand_store::StoreError;
use errand_store::model::Usage;
use url::Url;

use super::{Model, ModelError, Need, Offer, Session, Setup, Turn, TurnContext, TurnError};
use crate::net::{Blocked, ClientError};
use answer::Toolbox;
use ask::{Audience, Question, Reply};
use catalog::Known;
use conversation::Conversation;
use fault::Fault;
use line::Lines;
use provider::{Registry, Target};
use render::Frame;

pub use catalog::{Overrides, Price, Tokens};
pub use provider::{Kind, OwnProvider, OwnProviders, ProviderKey, ProviderSettings};

/// How models on the network are called.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// The operator's providers, by name.
    pub providers: Vec<(String, ProviderSettings)>,
    /// What the operator says of models.
    pub overrides: Overrides,
    /// Attempts until a run fails. Range 1..=100.
    pub attempts: u32,
    /// How long an answer may be silent, in milliseconds. Range 1_000..=3_600_000.
    pub idle_ms: u64,
    /// Calls of one provider that are under way at once, at most. Range 1..=10_000.
    pub concurrency: usize,
    /// Whether addresses that teams give may be of private networks.
    pub allow_private: bool,
}

/// The providers on the network.
pub struct Network {
    registry: Registry,
    overrides: Overrides,
    attempts: u32,
    idle_ms: u64,
    lines: Lines,
}

impl Network {
    /// With these settings.
    ///
    /// # Errors
    /// [`ClientError`] where TLS cannot be set up at all.
    pub fn new(settings: NetworkSettings) -> Result<Self, ClientError> {
        Ok(Self {
            registry: Registry::new(settings.providers, settings.allow_private)?,
            overrides: settings.overrides,
            attempts: settings.attempts.max(1),
            idle_ms: settings.idle_ms.max(1),
            lines: Lines::new(settings.concurrency),
        })
    }

    /// Whether an address that a team gives for a provider may be called, as far as that is known before.
    ///
    /// # Errors
    /// [`Blocked`].
    pub fn check_base_url(&self, url: &Url) -> Result<(), Blocked> {
        self.registry.check_base_url(url)
    }

    /// Until a provider has room again that somebody waits for.
    pub(crate) async fn freed(&self) {
        self.lines.freed().await;
    }

    /// The runs that have room at their provider now, and were not woken yet.
    pub(crate) fn turns(&self, now: Timestamp) -> Vec<RunId> {
        self.lines.turns(now)
    }

    /// Notes what became of one of them: whether it was woken, or is not there any more.
    pub(crate) fn was_woken(&self, run: RunId, is_there: bool, now: Timestamp) {
        if is_there {
            self.lines.woken(run, now);
        } else {
            self.lines.forget(run);
        }
    }

    /// Whether a run of this build can be started here.
    pub(super) fn check(&self, build: &BuildConfig, own: &OwnProviders) -> Result<(), String> {
        self.registry.check(&build.model, own)?;
        let is_priced = self.overrides.known(&build.model).price.is_some();
        if build.limits.cost_usd.is_some() && !is_priced {
            return Err(format!(
                "limits.cost_usd cannot be kept: the model {0} has no price. The operator can set one with [models.prices.\"{0}\"] in errand.toml; limits.tokens needs none",
                build.model
            ));
        }
        Ok(())
    }
}

/// A model on the network.
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
    /// Looked up when it is first needed.
    target: Option<Target>,
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
        let Some(_room) = self.network.lines.enter(at, self.run, now) else {
            return Err(TurnError::Full {
                pause_ms: line::LOOK_AGAIN_MS,
            });
        };
        let room = self.room();
        if !room.holds(self.frame.bytes + self.conversation.bytes)
            && let Some(cut) = fit::cut(&self.conversation, self.frame.bytes, room)
        {
            return self.summarise(context, &target, room, cut).await;
        }
        self.next_turn(context, &target).await
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
        );
        let question = Question {
            name: &self.name,
            target,
            request,
            answer_tokens: self.known.answer,
            idle_ms: self.network.idle_ms,
        };
        let began = context.clock.now();
        let reply = ask::ask(question, Some(audience), context.clock).await;
        let reply = reply.map_err(|fault| self.failed(fault, attempt, context))?;
        let ms = context.clock.now().ms_since(began);
        let (call, usage) = self.account(&reply, Purpose::Turn, (attempt, context.read_to), ms);
        let empty = self.conversation.empty;
        let id = || {
            let id = context.ids.message(context.clock.now());
            format!("call_{}", id.as_uuid().simple())
        };
        let turn = answer::turn(reply, &self.toolbox, call, empty, id);
        Ok(Turn {
            message: Some(message),
            usage,
            ..turn
        })
    }

    async fn summarise(
        &mut self,
        context: &TurnContext<'_>,
        target: &Target,
        room: fit::Room,
        cut: fit::Cut,
    ) -> Result<Turn, TurnError> {
        let attempt = context.failures + 1;
        let question = Question {
            name: &self.name,
            target,
            request: fit::summary_request(&self.conversation, &cut, room),
            answer_tokens: fit::SUMMARY_TOKENS.min(self.known.answer),
            idle_ms: self.network.idle_ms,
        };
        let began = context.clock.now();
        let reply = ask::ask(question, None, context.clock).await;
        let reply = reply.and_then(|reply| {
            if reply.text.trim().is_empty() {
                Err(Fault::transport("the summary that was asked for is empty"))
            } else {
                Ok(reply)
            }
        });
        let reply = reply.map_err(|fault| self.failed(fault, attempt, context))?;
        let ms = context.clock.now().ms_since(began);
        let (call, usage) = self.account(&reply, Purpose::Summary, (attempt, context.read_to), ms);
        Ok(Turn {
            notes: vec![
                Body::ModelCall { call },
                Body::Summary {
                    text: reply.text,
                    up_to: cut.up_to,
                },
            ],
            usage,
            ..Turn::default()
        })
    }

    /// What a call used up, for the transcript and for the sums.
    fn account(
        &self,
        reply: &Reply,
        purpose: Purpose,
        (attempt, read_to): (u32, u64),
        ms: u64,
    ) -> (ModelCall, Usage) {
        let tokens = reply.tokens;
        let cost_usd = self.known.price.map_or(0.0, |price| price.of(tokens));
        let call = ModelCall {
            model: self.name.to_string(),
            input_tokens: tokens.input,
            cached_tokens: tokens.cached,
            output_tokens: tokens.output,
            cost_usd,
            ms,
            attempt,
            read_to,
            purpose,
            ..ModelCall::default()
        };
        let usage = Usage {
            model_calls: 1,
            input_tokens: tokens.input,
            cached_tokens: tokens.cached,
            output_tokens: tokens.output,
            cost_usd,
            model_ms: ms,
            ..Usage::default()
        };
        (call, usage)
    }

    fn failed(&self, fault: Fault, attempt: u32, context: &TurnContext<'_>) -> TurnError {
        let (what, retry_after_ms) = match fault {
            Fault::Final(error) => return TurnError::Fails(error),
            Fault::Transport {
                what,
                retry_after_ms,
            } => (what, retry_after_ms),
        };
        if attempt >= self.network.attempts {
            return TurnError::Fails(ModelError {
                code: "model_unreachable",
                message: format!(
                    "the model {} gave no answer at {attempt} attempts; at the last one, {what}. The provider may be down or overloaded: retry the run later",
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
        "the team's settings of the provider {} cannot be read ({error}); set them anew with PUT /v1/providers/{0}",
        name.provider
    )
}
