//! Runs that are held up at a gate: in their model, or in a payment.

use errand_core::turn::Move;
use serde_json::{Value, json};

use crate::app::{Team, TestApp};
use crate::script::{Gate, ScriptedModel};

/// A run to start, and to hold up. [`HeldRun::held`] starts it and waits until it is held up.
pub struct HeldRun<'a> {
    app: &'a TestApp,
    team: &'a Team,
    turns: Vec<Vec<Move>>,
    pays: bool,
    build: Value,
    body: Value,
    in_sandbox: bool,
}

/// A run that is held up.
pub struct Held {
    pub run: String,
    /// The run goes on when this is opened.
    pub gate: Gate,
    pub agent: String,
    /// The body of the request that started the run. It can start another one.
    pub body: Value,
}

impl TestApp {
    /// A run that is held up in its model at each turn. Its script is empty: it finishes in the first turn.
    #[must_use]
    pub fn thinking_run<'a>(&'a self, team: &'a Team) -> HeldRun<'a> {
        HeldRun {
            app: self,
            team,
            turns: Vec::new(),
            pays: false,
            build: json!({}),
            body: json!({}),
            in_sandbox: false,
        }
    }

    /// A run that is held up in a payment: a call of `run_command` with `{"eur": 7}`.
    #[must_use]
    pub fn paying_run<'a>(&'a self, team: &'a Team) -> HeldRun<'a> {
        HeldRun {
            turns: vec![vec![payment(7)]],
            pays: true,
            ..self.thinking_run(team)
        }
    }
}

/// A call of the tool that pays.
#[must_use]
pub fn payment(eur: u32) -> Move {
    let mut arguments = serde_json::Map::new();
    arguments.insert("eur".to_owned(), json!(eur));
    Move::Call {
        id: None,
        name: "run_command".to_owned(),
        arguments,
    }
}

impl HeldRun<'_> {
    /// The turns of its script. After them, it finishes.
    #[must_use]
    pub fn turns(mut self, turns: Vec<Vec<Move>>) -> Self {
        self.turns = turns;
        self
    }

    /// The data of its build.
    #[must_use]
    pub fn build(mut self, data: Value) -> Self {
        self.build = data;
        self
    }

    /// A field of the request that starts it.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.body[name] = value.into();
        self
    }

    /// It gets a new sandbox.
    #[must_use]
    pub fn in_sandbox(mut self) -> Self {
        self.in_sandbox = true;
        self
    }

    /// Starts it, and waits until it is held up.
    pub async fn held(self) -> Held {
        let held = self.started().await;
        held.gate.arrival().await;
        held
    }

    /// Starts it.
    pub async fn started(mut self) -> Held {
        let (app, team, gate) = (self.app, self.team, Gate::default());
        app.model.add("held", self.turns);
        if self.pays {
            app.payment.hold_at(Some(&gate));
        } else {
            app.model.hold_at(&gate);
        }
        let config = ScriptedModel::config("held", self.build);
        let agent = app.agent(team, config).await;
        self.body["agent_id"] = json!(agent);
        if self.in_sandbox {
            self.body["sandbox_id"] = json!(app.sandbox(team).await);
        }
        let run = app.run(team, self.body.clone()).await;
        Held {
            run,
            gate,
            agent,
            body: self.body,
        }
    }
}
