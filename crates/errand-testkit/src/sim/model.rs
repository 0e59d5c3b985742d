//! Models with random decisions that are the same after a crash: a turn follows from the script's seed and its number.

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::human::{Ask, OnExpire, Origin, Question, QuestionOption, RequestDraft};
use errand_core::id::RunId;
use errand_core::playbook::RunFacts;
use errand_core::transcript::{Body, Entry, Mark};
use errand_core::turn::{MarkedMove, Move};
use errand_engine::model::{Model, ModelError, Session, Setup, Turn, TurnContext, TurnError};
use errand_store::model::Usage;
use serde_json::{Value, json};

use super::Sabotage;
use super::invariants::Invariant;
use super::random::Random;
use super::tools::NAMES;
use super::world::{World, short};

/// An endless script: it finishes after every `len` turns, and continues when a message resumes the run.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    /// Turns up to a finish. At least 1.
    pub(crate) len: u64,
    /// Whether its turns may share a commit with the step before.
    pub(crate) pure: bool,
    /// Probability of a slow turn, in permille.
    pub(crate) slow: u64,
    /// Probability that a turn fails the first time, in permille.
    pub(crate) fails: u64,
}

/// The model of all scripts, `sim/N`.
pub(crate) struct SimModel(pub(crate) Arc<World>);

impl Model for SimModel {
    fn session(&self, setup: Setup<'_>) -> Result<Box<dyn Session>, ModelError> {
        let agent = setup.build.model.name.parse::<usize>().ok();
        let script = agent.and_then(|n| self.0.state().agents.get(n).map(|a| a.script.clone()));
        let script = script.ok_or_else(|| ModelError {
            code: "no_script",
            message: format!("there is no script {}", setup.build.model.name),
        })?;
        Ok(Box::new(Following {
            world: Arc::clone(&self.0),
            script,
            next: 0,
            newest: 0,
            read: 0,
        }))
    }
}

struct Following {
    world: Arc<World>,
    script: Script,
    next: u64,
    /// The position of the newest user message.
    newest: u64,
    /// How many user messages it has read.
    read: u64,
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
                let unread = self.world.sabotages(Sabotage::FinishesUnread) && self.read > 0;
                self.newest = entry.position;
                self.read += u64::from(!unread);
                return;
            }
            _ => return,
        };
        if let Some(turn) = mark.as_ref().and_then(|m| m.path.parse::<u64>().ok()) {
            self.next = self.next.max(turn + 1);
        }
    }

    fn is_pure(&self) -> bool {
        self.script.pure
    }

    async fn turn(&mut self, context: &TurnContext<'_>) -> Result<Turn, TurnError> {
        let run = context.facts;
        let (turn, read) = (self.next, self.read);
        {
            let now = self.world.now();
            let mut state = self.world.state();
            let id = run.id.parse::<RunId>().ok();
            if id
                .and_then(|id| state.runs.get(&id))
                .is_some_and(|run| run.halted)
            {
                let detail = format!("turn {turn} of {}", run.id);
                state.broken(now, Invariant::StopHolds, detail);
            }
        }
        if self.world.sabotages(Sabotage::Panics) && turn == 2 {
            // Without a message on standard error.
            std::panic::resume_unwind(Box::new("a simulated panic"));
        }
        if !self.script.pure {
            self.be_slow_or_fail(run, turn).await?;
        }
        let now = self.world.now();
        let mut moves = self.script.turn(turn);
        for action in &mut moves {
            match action {
                Move::Finish { text } => *text = finish_text(turn, read),
                action => self.sabotage(action),
            }
        }
        self.world.state().note(
            now,
            &format!(
                "model of {}: turn {turn}, {} moves, read {read}",
                short(&run.id),
                moves.len()
            ),
        );
        let mark = Mark {
            path: turn.to_string(),
            message: self.newest,
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

impl Following {
    /// Alters a move, if the world has such a defect.
    fn sabotage(&self, action: &mut Move) {
        match action {
            Move::Call { id, .. } if self.world.sabotages(Sabotage::RepeatsCallIds) => {
                *id = Some("c".to_owned());
            }
            Move::Ask(draft)
                if self.world.sabotages(Sabotage::LapsesSilently)
                    && draft.on_expire == Some(OnExpire::Fail) =>
            {
                draft.on_expire = Some(OnExpire::Continue);
            }
            _ => {}
        }
    }

    async fn be_slow_or_fail(&self, run: &RunFacts, turn: u64) -> Result<(), ModelError> {
        enum Mood {
            Quick,
            Slow(u64),
            Hangs,
        }
        let (mood, fails) = {
            let mut state = self.world.state();
            state.activity += 1;
            let healed = state.healed;
            let slow = !healed && state.random.chance(self.script.slow);
            let mood = match state.random.below(4) {
                _ if !slow => Mood::Quick,
                0 => Mood::Hangs,
                _ => Mood::Slow(1 + state.random.below(60_000)),
            };
            let fails = !healed && state.random.chance(self.script.fails);
            (mood, fails)
        };
        match mood {
            Mood::Quick => self.world.give_way().await,
            Mood::Slow(ms) => self.world.linger(ms).await,
            Mood::Hangs => self.world.hold().await,
        }
        if fails {
            self.world
                .note(&format!("model of {}: turn {turn} fails", short(&run.id)));
            return Err(ModelError {
                code: "model_unavailable",
                message: "the simulated model failed; retry the run".to_owned(),
            });
        }
        Ok(())
    }
}

/// The last message of a turn that ends the run, which states how many user messages were read.
pub(crate) fn finish_text(turn: u64, read: u64) -> String {
    format!("end {turn} read {read}")
}

/// The number of user messages that a last message states.
pub(crate) fn read_by(text: &str) -> Option<u64> {
    text.rsplit_once(" read ")?.1.parse().ok()
}

impl Script {
    pub(crate) fn draw(random: &mut Random) -> Self {
        Self {
            seed: random.next(),
            len: 1 + random.below(7),
            pure: random.chance(250),
            slow: *random.pick(&[0, 50, 300]),
            fails: *random.pick(&[0, 0, 40]),
        }
    }

    fn turn(&self, number: u64) -> Vec<Move> {
        let mut random = Random::of(self.seed, number);
        if number % self.len == self.len - 1 {
            return vec![finish()];
        }
        match random.below(100) {
            0..54 => {
                let count = if random.chance(300) {
                    2 + random.below(2)
                } else {
                    1
                };
                let mut moves: Vec<_> = (0..count)
                    .map(|index| call(&mut random, number, index))
                    .collect();
                if random.chance(200) {
                    moves.insert(0, say(number));
                }
                moves
            }
            54..62 => vec![say(number)],
            62..76 => vec![Move::Ask(Box::new(ask(&mut random, number)))],
            76..88 => vec![Move::Wait {
                ms: *random.pick(&[500, 5_000, 60_000, 3_600_000]),
            }],
            88..92 => vec![Move::Fail {
                code: "playbook_failed",
                message: "the script fails here".to_owned(),
            }],
            _ => vec![finish()],
        }
    }
}

fn say(number: u64) -> Move {
    Move::Say {
        text: format!("turn {number}"),
    }
}

fn finish() -> Move {
    Move::Finish {
        text: String::new(),
    }
}

fn call(random: &mut Random, number: u64, index: u64) -> Move {
    let name = match random.below(100) {
        0..8 => "request_approval",
        8..14 => "ask_human",
        _ => random.pick(&NAMES),
    };
    let mut arguments = json!({"turn": number, "call": index});
    if name == "request_approval" {
        let on_expire = *random.pick(&["deny", "fail", "continue"]);
        arguments = json!({"title": format!("May I, turn {number}? ({on_expire})"), "expires_in": "20m", "on_expire": on_expire});
    } else if name == "ask_human" {
        arguments = json!({"title": format!("Turn {number}"), "questions": [{"question": "Which?", "options": [{"label": "A"}, {"label": "B"}]}]});
    }
    let Value::Object(arguments) = arguments else {
        return say(number);
    };
    Move::Call {
        id: random.chance(500).then(|| format!("c{number}_{index}")),
        name: (*name).to_owned(),
        arguments,
    }
}

fn ask(random: &mut Random, number: u64) -> RequestDraft {
    let ask = if random.chance(500) {
        Ask::Approval
    } else {
        let option = |label: &str| QuestionOption {
            label: label.to_owned(),
            description: None,
        };
        Ask::Question {
            questions: vec![Question {
                question: "Which one?".to_owned(),
                header: None,
                options: vec![option("A"), option("B")],
                multi_select: false,
                free_text: random.chance(500),
            }],
        }
    };
    let (on_expire, word) = *random.pick(&[
        (OnExpire::Deny, "deny"),
        (OnExpire::Fail, "fail"),
        (OnExpire::Continue, "continue"),
    ]);
    RequestDraft {
        title: format!("Turn {number} asks ({word})"),
        description: None,
        ask,
        origin: Origin::Model,
        tool_call: None,
        expires_in_ms: random.chance(600).then(|| 1_000 + random.below(1_800_000)),
        on_expire: Some(on_expire),
        reason: None,
        quote: None,
    }
}
