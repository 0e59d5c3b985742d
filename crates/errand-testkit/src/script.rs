//! A model that follows a script turn by turn, and makes the same turns again after a crash.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use errand_core::transcript::{Body, Entry, Mark};
use errand_core::turn::{MarkedMove, Move};
use errand_engine::model::{Model, ModelError, Session, Setup, Turn, TurnContext, TurnError};
use errand_store::model::Usage;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Makes tasks wait until it is opened, and counts those that wait.
#[derive(Clone)]
pub struct Gate {
    open: Arc<Semaphore>,
    arrived: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            open: Arc::new(Semaphore::new(0)),
            arrived: Arc::new(Semaphore::new(0)),
            waiting: Arc::default(),
        }
    }
}

impl Gate {
    /// Lets one task pass.
    pub fn open(&self) {
        self.open.add_permits(1);
    }

    /// Lets all tasks pass from now on.
    pub fn open_for_good(&self) {
        self.open.add_permits(1 << 20);
    }

    /// How many tasks are waiting now. Dropped tasks do not count.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Waits for the next arrival. Each arrival counts once.
    pub async fn arrival(&self) {
        self.arrived
            .acquire()
            .await
            .expect("a gate is never closed")
            .forget();
    }

    pub(crate) async fn pass(&self) {
        let _here = WaitingGuard::at(&self.waiting);
        self.arrived.add_permits(1);
        self.open
            .acquire()
            .await
            .expect("a gate is never closed")
            .forget();
    }
}

/// Counts a waiting task; also stops counting if the task is dropped.
struct WaitingGuard(Arc<AtomicUsize>);

impl WaitingGuard {
    fn at(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(waiting))
    }
}

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One model for all scripts: `script/NAME` follows the script with that name.
#[derive(Clone, Default)]
pub struct ScriptedModel {
    scripts: Arc<Mutex<HashMap<String, Vec<Vec<Move>>>>>,
    gate: Arc<Mutex<Option<Held>>>,
}

/// Which turns wait at which gate.
#[derive(Clone)]
struct Held {
    /// `None`: every turn.
    turn: Option<usize>,
    gate: Gate,
}

impl ScriptedModel {
    /// Adds a script: a run of `script/name` makes these turns, and then finishes with `Done.`
    pub fn add(&self, name: &str, turns: Vec<Vec<Move>>) {
        self.scripts.lock().unwrap().insert(name.to_owned(), turns);
    }

    /// Makes every turn from now on wait at the gate.
    pub fn hold_at(&self, gate: &Gate) {
        self.hold(None, gate);
    }

    /// Makes the turn with this number (from 0) wait at the gate, in every script.
    pub fn hold_turn_at(&self, turn: usize, gate: &Gate) {
        self.hold(Some(turn), gate);
    }

    fn hold(&self, turn: Option<usize>, gate: &Gate) {
        let gate = gate.clone();
        *self.gate.lock().unwrap() = Some(Held { turn, gate });
    }

    /// The config of a build that runs a script.
    #[must_use]
    pub fn config(name: &str, data: Value) -> Value {
        let mut data = data;
        data["models"] = json!({"agent": {"model": format!("script/{name}")}});
        json!({"version": "v2", "data": data})
    }
}

impl Model for ScriptedModel {
    fn session(&self, setup: Setup<'_>) -> Result<Box<dyn Session>, ModelError> {
        let build = setup.build;
        let turns = self.scripts.lock().unwrap().get(&build.model.name).cloned();
        let turns = turns.ok_or_else(|| ModelError {
            code: "no_script",
            message: format!("there is no script {}", build.model.name),
        })?;
        Ok(Box::new(Following {
            turns,
            next: 0,
            message: 0,
            held: self.gate.lock().unwrap().clone(),
        }))
    }
}

struct Following {
    turns: Vec<Vec<Move>>,
    next: usize,
    message: u64,
    held: Option<Held>,
}

#[async_trait]
impl Session for Following {
    fn feed(&mut self, entry: &Entry) {
        let mark = match &entry.body {
            Body::Assistant { mark, .. }
            | Body::ToolCall { mark, .. }
            | Body::HumanRequest { mark, .. }
            | Body::Error { mark, .. }
            | Body::Wait { mark, .. } => mark,
            Body::User { .. } => {
                self.message = entry.position;
                return;
            }
            _ => return,
        };
        // Turns in the transcript are not made again.
        if let Some(turn) = mark.as_ref().and_then(|m| m.path.parse::<usize>().ok()) {
            self.next = self.next.max(turn + 1);
        }
    }

    fn is_pure(&self) -> bool {
        false
    }

    async fn turn(&mut self, _context: &TurnContext<'_>) -> Result<Turn, TurnError> {
        if let Some(held) = &self.held
            && held.turn.is_none_or(|turn| turn == self.next)
        {
            held.gate.pass().await;
        }
        let moves = self.turns.get(self.next).cloned().unwrap_or_else(|| {
            vec![Move::Finish {
                text: "Done.".to_owned(),
            }]
        });
        let mark = Mark {
            path: self.next.to_string(),
            message: self.message,
        };
        let moves = moves
            .into_iter()
            .map(|action| MarkedMove {
                action,
                mark: Some(mark.clone()),
            })
            .collect();
        let usage = Usage {
            model_calls: 1,
            input_tokens: 10,
            output_tokens: 5,
            ..Usage::default()
        };
        Ok(Turn::of(moves, usage))
    }
}
