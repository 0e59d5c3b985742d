//! A model that follows a script: turn after turn, the same after a crash.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use errand_core::config::BuildConfig;
use errand_core::playbook::RunFacts;
use errand_core::transcript::{Body, Entry, Mark};
use errand_core::turn::{MarkedMove, Move};
use errand_engine::model::{Model, ModelError, Session, Turn};
use errand_store::model::Usage;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Holds up whoever passes until it is opened; says how many wait at it.
#[derive(Clone)]
pub struct Gate {
    open: Arc<Semaphore>,
    arrived: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            open: Arc::new(Semaphore::new(0)),
            arrived: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Gate {
    /// Lets one pass.
    pub fn open(&self) {
        self.open.add_permits(1);
    }

    /// Until somebody has come to it (each arrival counts once).
    pub async fn arrival(&self) {
        self.arrived
            .acquire()
            .await
            .expect("a gate is never closed")
            .forget();
    }

    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open
            .acquire()
            .await
            .expect("a gate is never closed")
            .forget();
    }
}

/// One model for all scripts: `script/NAME` follows the script of that name.
#[derive(Clone, Default)]
pub struct ScriptedModel {
    scripts: Arc<Mutex<HashMap<String, Vec<Vec<Move>>>>>,
    gate: Arc<Mutex<Option<Gate>>>,
}

impl ScriptedModel {
    /// Adds a script; a run of `script/name` makes these turns. After the last it finishes with `Done.`
    pub fn add(&self, name: &str, turns: Vec<Vec<Move>>) {
        self.scripts.lock().unwrap().insert(name.to_owned(), turns);
    }

    /// Each turn from now on waits at the gate.
    pub fn hold_at(&self, gate: &Gate) {
        *self.gate.lock().unwrap() = Some(gate.clone());
    }

    /// A build's config that runs a script.
    #[must_use]
    pub fn config(name: &str, data: Value) -> Value {
        let mut data = data;
        data["models"] = json!({"agent": {"model": format!("script/{name}")}});
        json!({"version": "v2", "data": data})
    }
}

impl Model for ScriptedModel {
    fn session(&self, build: &BuildConfig) -> Result<Box<dyn Session>, ModelError> {
        let turns = self.scripts.lock().unwrap().get(&build.model.name).cloned();
        let turns = turns.ok_or_else(|| ModelError {
            code: "no_script",
            message: format!("there is no script {}", build.model.name),
        })?;
        Ok(Box::new(Following {
            turns,
            next: 0,
            message: 0,
            gate: self.gate.lock().unwrap().clone(),
        }))
    }
}

struct Following {
    turns: Vec<Vec<Move>>,
    next: usize,
    message: u64,
    gate: Option<Gate>,
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
        // A turn that is on record is not made again.
        if let Some(turn) = mark.as_ref().and_then(|m| m.path.parse::<usize>().ok()) {
            self.next = self.next.max(turn + 1);
        }
    }

    fn is_pure(&self) -> bool {
        false
    }

    async fn turn(&mut self, _run: &RunFacts) -> Result<Turn, ModelError> {
        if let Some(gate) = &self.gate {
            gate.pass().await;
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
        Ok(Turn {
            moves,
            usage: Usage {
                model_calls: 1,
                input_tokens: 10,
                output_tokens: 5,
                ..Usage::default()
            },
        })
    }
}
