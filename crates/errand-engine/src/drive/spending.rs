//! Spending: checks the limits before a step, and counts model calls that gave no turn.

use errand_core::budget::{self, Used, Verdict};
use errand_core::next::Next;
use errand_core::progress;
use errand_core::run::RunError;
use errand_core::transcript::{AttemptOutcome, Body, ModelCall, NewEntry};
use errand_store::model::Usage;

use super::{DriveError, Driver};
use crate::model::network::price_unknown;
use crate::store_retry::retry_while_unavailable;

impl Driver<'_> {
    /// Whether the limits of the build and the team allow a step.
    pub(super) async fn room_for(&self, what: &Next) -> Result<Verdict, DriveError> {
        let is_step = match what {
            Next::Model => true,
            Next::Calls(calls) => !calls.iter().all(|call| self.has_started(call)),
            _ => false,
        };
        if !is_step {
            return Ok(Verdict::Within);
        }
        let asks_network = matches!(what, Next::Model) && self.session.costs();
        let (limits, people) = (&self.build.limits, self.build.human_in_the_loop);
        if asks_network {
            let verdict = progress::check(&self.ledger, limits.steps.is_some(), people);
            if verdict != Verdict::Within {
                return Ok(verdict);
            }
        }
        let is_blind = asks_network && !self.session.is_priced();
        let team = if asks_network {
            let (team, now) = (self.run.team, self.now());
            let read = || self.engine.store.team_month(team, now);
            let mut month = retry_while_unavailable(self.engine, read).await?;
            // The cost of the last turn is not on disk yet.
            month.spent_usd += self.buffer.usage.cost_usd;
            // A start checks this, too. The limit may have been set, or the price removed, after that.
            let limited = (limits.cost_usd.is_some(), month.limit_usd.is_some());
            if is_blind
                && let Some(message) = price_unknown(&self.build.model, limited.0, limited.1)
            {
                let message = format!("{message}; then retry the run");
                return Ok(Verdict::Fail(RunError::new("model_price_unknown", message)));
            }
            Some(month)
        } else {
            None
        };
        Ok(budget::check(
            limits,
            self.used(),
            team,
            &self.ledger,
            people,
        ))
    }

    /// The usage that counts toward the build's limits. Tokens and cost include those of child runs.
    pub(super) fn used(&self) -> Used {
        let buffered = &self.buffer.usage;
        Used {
            steps: self.steps + buffered.model_calls + buffered.tool_calls,
            tokens: self.tokens + buffered.input_tokens + buffered.output_tokens,
            cost_usd: self.cost_usd + buffered.cost_usd,
        }
    }

    /// Records a model call that gave no turn, and counts its usage.
    pub(super) fn count_unanswered(&mut self, outcome: AttemptOutcome, error: &str) {
        let now = self.now();
        if let Some(call) = self.session.unanswered(now) {
            self.buffer.usage.add(&Usage::of_call(&call, false));
            self.push(Body::ModelAttempt {
                call,
                outcome,
                error: error.to_owned(),
            });
        }
    }
}

/// The model calls among entries that cannot be committed. Their answers are lost, but they were paid for.
pub(super) fn model_calls(entries: &[NewEntry]) -> impl Iterator<Item = ModelCall> {
    entries.iter().filter_map(|entry| match &entry.body {
        Body::ModelCall { call } | Body::ModelAttempt { call, .. } => Some(call.clone()),
        _ => None,
    })
}
