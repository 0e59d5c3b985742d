//! A tool with an effect outside the sandbox that counts its executions.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use errand_core::policy::{Hints, Settle};
use errand_core::tool_error::ToolError;
use errand_core::transcript::Outcome;
use errand_engine::tool::{Tool, ToolContext};
use serde_json::{Map, Value, json};

use crate::script::Gate;

/// A tool that acts on the outside world. It has the name of a built-in tool, so that builds may name it.
#[derive(Clone)]
pub struct OutsideTool {
    name: &'static str,
    hints: Hints,
    count: Arc<AtomicU32>,
    gate: Arc<Mutex<Option<Gate>>>,
    fails: Arc<Mutex<Option<String>>>,
}

impl OutsideTool {
    /// A tool that is neither read-only nor idempotent; only a person can settle a call in doubt. Replaces
    /// `run_command`.
    #[must_use]
    pub fn payment() -> Self {
        let hints = Hints {
            read_only: false,
            destructive: true,
            idempotent: false,
            open_world: true,
            asks: false,
            untrusted: true,
            private: true,
            settle: Settle::AskPerson,
        };
        Self {
            name: "run_command",
            hints,
            count: Arc::default(),
            gate: Arc::default(),
            fails: Arc::default(),
        }
    }

    /// How often execution has begun.
    #[must_use]
    pub fn begun(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// Makes calls wait at the gate after they have begun. `None`: they do not wait.
    pub fn hold_at(&self, gate: Option<&Gate>) {
        *self.gate.lock().unwrap() = gate.cloned();
    }

    /// Makes calls fail with this error. `None`: they succeed.
    pub fn fail_with(&self, error: Option<&str>) {
        *self.fails.lock().unwrap() = error.map(str::to_owned);
    }
}

#[async_trait]
impl Tool for OutsideTool {
    fn name(&self) -> &str {
        self.name
    }

    fn description(&self) -> &str {
        "Pays."
    }

    fn hints(&self) -> Hints {
        self.hints
    }

    fn schema(&self) -> Value {
        json!({"type": "object"})
    }

    async fn run(&self, _context: &ToolContext, arguments: Map<String, Value>) -> Outcome {
        self.count.fetch_add(1, Ordering::SeqCst);
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        match self.fails.lock().unwrap().clone() {
            Some(error) => Outcome::Error(ToolError::from_text(error)),
            None => Outcome::Result(json!({"paid": arguments})),
        }
    }
}
