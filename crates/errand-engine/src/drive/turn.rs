//! A turn of the model: asks it, and records its moves.

use errand_core::human::HumanRequest;
use errand_core::id::MessageId;
use errand_core::limits::CALLS_PER_TURN_MAX;
use errand_core::playbook::RunFacts;
use errand_core::run::{RunError, WaitReason};
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::{AttemptOutcome, Body, Mark, Outcome, ToolCall};
use errand_core::turn::{MarkedMove, Move};
use errand_store::model::{LateResults, StepEnd};
use tracing::Span;
use tracing::field::Empty;

use super::{DriveError, Driver, result_of};
use crate::model::{Need, Turn, TurnContext, TurnError};

/// Details of a move.
struct Made {
    mark: Option<Mark>,
    /// The id of the message, if it was announced while the message streamed.
    id: Option<MessageId>,
    /// Number of calls in the turn so far, including this one.
    calls: usize,
    /// The error of a call that must not be executed.
    refused: Option<ToolError>,
}

impl Driver<'_> {
    /// The span of one question to the model. What it used is recorded when the answer is there.
    pub(super) fn turn_span(&self) -> Span {
        tracing::debug_span!(
            "run.turn",
            run.id = %self.run.id,
            team.id = %self.run.team,
            model = %self.build.model,
            step = self.step + 1,
            tokens.in = Empty,
            tokens.out = Empty,
        )
    }

    pub(super) async fn model_turn(&mut self) -> Result<bool, DriveError> {
        if !self.buffer.entries.is_empty()
            && (!self.session.is_pure() || self.buffer.is_full(self.now()))
        {
            self.commit(StepEnd::Go {
                doing: WaitReason::Model,
                who: None,
            })
            .await?;
        }
        let workspace = match self.session.needs_workspace() {
            Need::Never => None,
            Need::IfThere if self.sandbox.is_none() => None,
            Need::IfThere | Need::Always => {
                let workspace = self.workspace();
                self.commit_sandbox().await?;
                Some(workspace)
            }
        };
        let read_to = self.ledger.newest_user;
        let facts = RunFacts {
            id: self.run.id.to_string(),
            sandbox_id: self.sandbox.as_ref().map(ToString::to_string),
        };
        let context = TurnContext {
            facts: &facts,
            workspace,
            failures: self.ledger.failures,
            read_to: self.known,
            clock: &self.engine.clock,
            ids: &self.engine.ids,
            store: &self.engine.store,
            deltas: &self.engine.deltas,
            team: self.run.team,
            parsers: &self.engine.parsers,
        };
        let ended = tokio::select! {
            biased;
            // First, so that a run that was stopped during the last commit does not call the model.
            () = self.revocation.revoked() => Err(true),
            turn = self.session.turn(&context) => Ok(turn),
            () = self.cancel.cancelled() => Err(false),
        };
        let now = self.now();
        let turn = match ended {
            Ok(turn) => turn,
            Err(is_fenced) => {
                if is_fenced {
                    let call = self.session.unanswered(now);
                    return Err(DriveError::Fenced(LateResults {
                        model_calls: call.into_iter().collect(),
                        ..LateResults::default()
                    }));
                }
                self.count_unanswered(AttemptOutcome::Canceled, "");
                return self.commit(StepEnd::Release).await;
            }
        };
        match turn {
            Ok(turn) => self.take_turn(turn, read_to).await,
            Err(TurnError::Fails(error)) => {
                self.count_unanswered(AttemptOutcome::Failed, &error.message);
                Err(error.into())
            }
            Err(TurnError::Again {
                error,
                attempt,
                pause_ms,
            }) => {
                // The part after a colon or a parenthesis may be the provider's text, which is not logged.
                let cause = error
                    .split([':', '('])
                    .next()
                    .unwrap_or_default()
                    .trim_end();
                tracing::info!(run.id = %self.run.id, model = %self.build.model, attempt, pause_ms, cause, "a model call failed; it is retried");
                let until = self.now().plus_ms(pause_ms);
                self.count_unanswered(AttemptOutcome::Failed, &error);
                self.push(Body::ModelFailed {
                    attempt,
                    error,
                    until,
                });
                self.commit(self.sleep(until)).await
            }
            Err(TurnError::Full { pause_ms }) => {
                let until = self.now().plus_ms(pause_ms);
                self.commit(self.ask_again(until)).await
            }
        }
    }

    /// Records the moves of a turn.
    async fn take_turn(&mut self, turn: Turn, read_to: u64) -> Result<bool, DriveError> {
        let span = Span::current();
        span.record("tokens.in", turn.usage.input_tokens);
        span.record("tokens.out", turn.usage.output_tokens);
        self.buffer.turn |= !turn.moves.is_empty();
        self.buffer.usage.add(&turn.usage);
        turn.notes.into_iter().for_each(|note| self.push(note));
        let (mut calls, mut message) = (0, turn.message);
        for (index, MarkedMove { action, mark }) in turn.moves.into_iter().enumerate() {
            let is_text = matches!(action, Move::Say { .. } | Move::Finish { .. });
            let id = message.take_if(|_| is_text);
            calls += usize::from(matches!(action, Move::Call { .. }));
            let error = turn.refused.iter().find(|(of, _)| *of == index);
            let made = Made {
                mark,
                id,
                calls,
                refused: error.map(|(_, error)| error.clone()),
            };
            if let Some(end) = self.make(action, made, read_to) {
                return self.commit(end).await;
            }
        }
        Ok(true)
    }

    /// Records a move. Returns the end of the step if the turn ends with this move.
    fn make(&mut self, action: Move, made: Made, read_to: u64) -> Option<StepEnd> {
        let now = self.now();
        let Made { mark, id, .. } = made;
        let id = id.unwrap_or_else(|| self.engine.ids.message(now));
        match action {
            Move::Say { text } => self.push_as(
                id,
                Body::Assistant {
                    text,
                    ends: false,
                    mark,
                },
            ),
            Move::Call {
                id,
                name,
                arguments,
            } => {
                let id = id.unwrap_or_else(|| {
                    format!("call_{}", self.engine.ids.message(now).as_uuid().simple())
                });
                let call = ToolCall {
                    id,
                    name,
                    arguments,
                };
                self.push(Body::ToolCall {
                    call: call.clone(),
                    mark,
                });
                let too_many = (made.calls > CALLS_PER_TURN_MAX).then(|| {
                    let message = format!("more than {CALLS_PER_TURN_MAX} calls in one turn");
                    ToolError::new(ToolErrorCode::NotRun, message)
                });
                if let Some(error) = made.refused.or(too_many) {
                    self.push(result_of(&call, Outcome::Error(error)));
                }
            }
            Move::Ask(draft) => {
                let defaults = self.build.human_requests;
                let draft = draft.or_defaults(defaults.expires_in_ms, defaults.on_expire);
                let request = HumanRequest::new(self.engine.ids.human_request(now), draft, now);
                self.push(Body::HumanRequest {
                    request: request.clone(),
                    mark,
                });
                return Some(StepEnd::Ask(Box::new(request)));
            }
            Move::Wait { ms } => self.push(Body::Wait {
                until: now.plus_ms(ms),
                mark,
            }),
            Move::Finish { text } => {
                let body = Body::Assistant {
                    text,
                    ends: true,
                    mark,
                };
                self.push_as(id, body);
                return Some(StepEnd::Complete { read_to });
            }
            Move::Fail { code, message } => {
                let error = RunError::new(code, message);
                self.push(Body::Error {
                    error: error.clone(),
                    mark,
                });
                return Some(StepEnd::Fail(error));
            }
        }
        None
    }
}
