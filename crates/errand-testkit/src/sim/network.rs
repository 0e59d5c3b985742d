//! Turns as of a model on the network: the provider has no room, fails, or breaks its answer off.
//!
//! The script still decides each turn. Only the way to the program is random.

use errand_core::id::{MessageId, RunId};
use errand_core::transcript::{Body, ModelCall};
use errand_engine::deltas::Delta;
use errand_engine::model::{ModelError, Turn, TurnContext, TurnError};
use errand_store::model::Usage;

use super::Sabotage;
use super::model::{Following, say};
use super::world::short;

/// Attempts until the run fails: few, so that some runs get there.
const ATTEMPTS_MAX: u32 = 3;
/// Tokens of each question, and of the two parts of its answer.
const TOKENS: (u64, u64, u64) = (10, 2, 3);
/// The beginning of the text that a model sends before its answer breaks off.
const PART: &str = "part of ";

/// The fate of one question.
#[derive(Clone, Copy)]
enum Fate {
    Answered,
    /// The provider has no room for another call.
    Full,
    /// The provider fails before it answers.
    Fails,
    /// The answer breaks off.
    BreaksOff,
}

impl Following {
    /// Asks the provider.
    pub(crate) async fn ask_network(
        &mut self,
        context: &TurnContext<'_>,
        run: RunId,
        turn: u64,
    ) -> Result<Asked, TurnError> {
        if !self.has_begun {
            let text = "Begin.".to_owned();
            return Ok(Asked::Instead(Turn {
                notes: vec![Body::Opening { text }],
                ..Turn::default()
            }));
        }
        let fate = self.fate();
        if matches!(fate, Fate::Full) {
            self.world.state().saw("provider without room");
            return Err(TurnError::Full { pause_ms: 15_000 });
        }
        let attempt = context.failures + 1;
        if attempt > 1 {
            self.world.state().saw("model asked again");
        }
        self.under_way = Some(ModelCall {
            model: "sim".to_owned(),
            attempt,
            read_to: context.read_to,
            ..ModelCall::default()
        });
        self.world.give_way().await;
        if matches!(fate, Fate::Fails) {
            return Err(self.again(attempt, "the simulated provider failed"));
        }
        let (message, first) = (self.message_id(run), format!("{PART}turn {turn}"));
        self.received(run, TOKENS.0, TOKENS.1);
        context.deltas.publish(run, || Delta {
            message,
            attempt,
            offset: 0,
            text: first.clone(),
        });
        self.be_slow().await;
        if matches!(fate, Fate::BreaksOff) {
            let what = format!("model of {}: turn {turn} breaks off", short(run));
            self.world.note(&what);
            self.world.state().saw("answer of a model broken off");
            if self.world.sabotages(Sabotage::TakesPartsForAnswers) {
                let mark = self.mark(turn);
                return Ok(Asked::Instead(Turn::of(
                    vec![mark.moved(say(first))],
                    Usage::default(),
                )));
            }
            return Err(self.again(attempt, "the answer broke off"));
        }
        self.received(run, 0, TOKENS.2);
        let call = self.under_way.take().unwrap_or_default();
        Ok(Asked::Answered {
            usage: Usage::of_call(&call, true),
            notes: vec![Body::ModelCall { call }],
            message: Some(message),
        })
    }

    fn fate(&self) -> Fate {
        let mut state = self.world.state();
        state.activity += 1;
        if state.healed {
            return Fate::Answered;
        }
        state.random.weighted(&[
            (62, Fate::Answered),
            (8, Fate::Full),
            (12, Fate::Fails),
            (18, Fate::BreaksOff),
        ])
    }

    /// Counts tokens that the program has seen, also if it loses the call.
    fn received(&mut self, run: RunId, input: u64, output: u64) {
        if let Some(call) = &mut self.under_way {
            call.input_tokens += input;
            call.output_tokens += output;
        }
        self.world.state().spent(run, input + output);
    }

    fn again(&self, attempt: u32, error: &str) -> TurnError {
        if attempt >= ATTEMPTS_MAX {
            self.world.state().saw("model given up");
            return TurnError::Fails(ModelError {
                code: "model_unreachable",
                message: format!("{error} at {attempt} attempts; retry the run later"),
            });
        }
        let pause_ms = 500 + self.world.state().random.below(30_000);
        TurnError::Again {
            error: error.to_owned(),
            attempt,
            pause_ms,
        }
    }
}

/// The result of a question.
pub(crate) enum Asked {
    /// The provider has answered.
    Answered {
        notes: Vec<Body>,
        usage: Usage,
        /// The id of the turn's first message.
        message: Option<MessageId>,
    },
    /// The turn is this one.
    Instead(Turn),
}

/// Whether a text is a part of an answer that broke off.
pub(crate) fn is_part(text: &str) -> bool {
    text.starts_with(PART)
}
