//! Adapter that puts `builtin/playbook` behind the [`Model`] trait. The logic is in `errand_core::playbook`.

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::playbook::Walk;
use errand_core::transcript::Entry;
use errand_store::model::Usage;

use crate::evaluate::Blocking;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Model, ModelError, Session, Setup, Turn, TurnContext, TurnError};

pub struct PlaybookModel;

impl Model for PlaybookModel {
    fn session(&self, setup: Setup<'_>) -> Result<Box<dyn Session>, ModelError> {
        let playbook = setup.build.playbook.as_ref().ok_or_else(|| ModelError {
            code: "playbook_missing",
            message: "the build has no data.playbook; add one and start a new run".to_owned(),
        })?;
        Ok(Box::new(PlaybookSession {
            walk: Some(Walk::new(Arc::clone(playbook))),
        }))
    }
}

struct PlaybookSession {
    /// `None` while a thread computes the turn: templates may compute for a long time, so that work leaves the async
    /// thread.
    walk: Option<Walk>,
}

#[async_trait]
impl Session for PlaybookSession {
    fn feed(&mut self, entry: &Entry) {
        if let Some(walk) = &mut self.walk {
            walk.feed(entry);
        }
    }

    fn is_pure(&self) -> bool {
        true
    }

    async fn turn(&mut self, context: &TurnContext<'_>) -> Result<Turn, TurnError> {
        let run = context.facts;
        let failed = || ModelError {
            code: "internal",
            message: "the playbook's turn was interrupted; retry the run".to_owned(),
        };
        let mut walk = self.walk.take().ok_or_else(failed)?;
        let (walk, action) = match walk.next_at_once(run) {
            Some(action) => (walk, action),
            None => {
                let run = run.clone();
                let cancel = CancellationToken::new();
                let evaluator = Blocking {
                    evaluators: context.parsers.evaluators(context.team),
                    runtime: Handle::current(),
                    cancel: cancel.clone(),
                };
                let place = evaluator.evaluators.place_to_walk().await;
                // Dropping this future cancels the evaluation: the result is no longer needed.
                let _waits = cancel.drop_guard();
                let decided = tokio::task::spawn_blocking(move || {
                    let _place = place;
                    let action = walk.next_with(&run, &evaluator);
                    (walk, action)
                });
                decided.await.map_err(|_| failed())?
            }
        };
        self.walk = Some(walk);
        let usage = Usage {
            model_calls: 1,
            ..Usage::default()
        };
        Ok(Turn::of(vec![action], usage))
    }
}
