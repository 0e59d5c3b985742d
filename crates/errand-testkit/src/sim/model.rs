//! Models with random decisions that are the same after a crash: a turn follows from the script's seed and its number.

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::human::{Ask, OnExpire, Origin, Question, QuestionOption, RequestDraft};
use errand_core::id::{MessageId, RunId};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry, Mark, ModelCall};
use errand_core::turn::{MarkedMove, Move};
use errand_engine::model::{Model, ModelError, Session, Setup, Turn, TurnContext, TurnError};
use errand_store::model::Usage;
use serde_json::{Value, json};

use super::Sabotage;
use super::invariants::Invariant;
use super::network::Asked;
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
    /// Whether its turns come from a provider on the network.
    pub(crate) network: bool,
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
            agent: agent.unwrap_or_default(),
            script,
            next: 0,
            newest: 0,
            read: 0,
            caller: None,
            has_begun: false,
            basis: (0, self.0.now()),
            under_way: None,
        }))
    }
}

/// A script at work on one run.
pub(crate) struct Following {
    pub(crate) world: Arc<World>,
    agent: usize,
    script: Script,
    next: u64,
    /// The position of the newest user message.
    newest: u64,
    /// How many user messages it has read.
    read: u64,
    /// The run that started this one.
    caller: Option<RunId>,
    /// Whether a network model has its opening.
    pub(crate) has_begun: bool,
    /// The last entry that a turn can rest on.
    basis: (u64, Timestamp),
    /// The call of a network model that has no answer yet.
    pub(crate) under_way: Option<ModelCall>,
}

#[async_trait]
impl Session for Following {
    fn feed(&mut self, entry: &Entry) {
        let is_of_model = matches!(
            entry.body,
            Body::Opening { .. } | Body::ModelFailed { .. } | Body::ModelAttempt { .. }
        );
        if !is_of_model {
            self.basis = (entry.position, entry.at);
        }
        let mark = match &entry.body {
            Body::Opening { .. } => {
                self.has_begun = true;
                return;
            }
            Body::Caller { run, .. } => {
                self.caller = Some(*run);
                return;
            }
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

    fn costs(&self) -> bool {
        self.script.network
    }

    fn unanswered(&mut self, _now: Timestamp) -> Option<ModelCall> {
        self.under_way.take()
    }

    async fn turn(&mut self, context: &TurnContext<'_>) -> Result<Turn, TurnError> {
        let (turn, read) = (self.next, self.read);
        let Ok(run) = context.facts.id.parse::<RunId>() else {
            return Err(failed("the run has no id").into());
        };
        self.begins(run, turn);
        if self.world.sabotages(Sabotage::Panics) && turn == 2 {
            // Without a message on standard error.
            std::panic::resume_unwind(Box::new("a simulated panic"));
        }
        let asked = if self.script.network {
            self.ask_network(context, run, turn).await?
        } else {
            self.ask_script(run, turn).await?
        };
        let (notes, mut usage, message) = match asked {
            Asked::Instead(turn) => return Ok(turn),
            Asked::Answered {
                notes,
                usage,
                message,
            } => (notes, usage, message),
        };
        if self.world.sabotages(Sabotage::ReportsUsageTwice) {
            let again = usage;
            usage.add(&again);
        }
        let now = self.world.now();
        let mut moves = self.script.turn(turn);
        for action in &mut moves {
            self.complete(action, run, turn, read);
        }
        self.world.state().note(
            now,
            &format!(
                "model of {}: turn {turn}, {} moves, read {read}",
                short(run),
                moves.len()
            ),
        );
        let mark = self.mark(turn);
        Ok(Turn {
            notes,
            moves: moves.into_iter().map(|action| mark.moved(action)).collect(),
            message,
            usage,
            ..Turn::default()
        })
    }
}

impl Following {
    /// Checks that the turn may begin, and registers the run of a child.
    fn begins(&self, run: RunId, turn: u64) {
        let now = self.world.now();
        let mut state = self.world.state();
        state.meet_child(run, self.agent, self.caller);
        if state.runs.get(&run).is_some_and(|run| run.halted) {
            let detail = format!("turn {turn} of {run}");
            state.broken(now, Invariant::StopHolds, detail);
        }
    }

    /// The mark of a turn's moves.
    pub(crate) fn mark(&self, turn: u64) -> TurnMark {
        TurnMark(Mark {
            path: turn.to_string(),
            message: self.newest,
        })
    }

    /// The id of the first message of the next turn.
    pub(crate) fn message_id(&self, run: RunId) -> MessageId {
        let (position, at) = self.basis;
        MessageId::of_turn(run, position, at)
    }

    /// Adds what the script does not know. Alters the move, if the world has such a defect.
    fn complete(&self, action: &mut Move, run: RunId, turn: u64, read: u64) {
        match action {
            Move::Finish { text } => *text = finish_text(turn, read),
            Move::Call { name, .. } if name.as_str() == CHILD_TOOL => {
                let below = self.world.state().may_start(self.agent);
                let Some(agent) =
                    below.get(usize::try_from(turn).unwrap_or(0) % below.len().max(1))
                else {
                    *action = say(format!("turn {turn}"));
                    return;
                };
                let message = format!("{CHILD_TEXT}{turn} of {}", short(run));
                if let Move::Call { arguments, .. } = action {
                    arguments.clear();
                    arguments.insert("assignment".to_owned(), json!(agent.to_string()));
                    arguments.insert("message".to_owned(), json!(message));
                }
            }
            _ => {}
        }
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

    /// Takes its time, as the script says.
    pub(crate) async fn be_slow(&self) {
        enum Mood {
            Quick,
            Slow(u64),
            Hangs,
        }
        let mood = {
            let mut state = self.world.state();
            state.activity += 1;
            let slow = !state.healed && state.random.chance(self.script.slow);
            match state.random.below(4) {
                _ if !slow => Mood::Quick,
                0 => Mood::Hangs,
                _ => Mood::Slow(1 + state.random.below(60_000)),
            }
        };
        match mood {
            Mood::Quick => self.world.give_way().await,
            Mood::Slow(ms) => self.world.linger(ms).await,
            Mood::Hangs => self.world.hold().await,
        }
    }

    /// Asks a model of this program, which may be slow or fail unless it is pure.
    async fn ask_script(&self, run: RunId, turn: u64) -> Result<Asked, ModelError> {
        if !self.script.pure {
            self.be_slow().await;
            let fails = {
                let mut state = self.world.state();
                !state.healed && state.random.chance(self.script.fails)
            };
            if fails {
                self.world
                    .note(&format!("model of {}: turn {turn} fails", short(run)));
                return Err(failed("the simulated model failed; retry the run"));
            }
        }
        self.world.state().spent(run, 15);
        Ok(Asked::Answered {
            notes: Vec::new(),
            usage: Usage {
                model_calls: 1,
                input_tokens: 10,
                output_tokens: 5,
                ..Usage::default()
            },
            message: None,
        })
    }
}

fn failed(message: &str) -> ModelError {
    ModelError {
        code: "model_unavailable",
        message: message.to_owned(),
    }
}

/// The mark of a turn.
pub(crate) struct TurnMark(Mark);

impl TurnMark {
    /// A move with this mark.
    pub(crate) fn moved(&self, action: Move) -> MarkedMove {
        MarkedMove {
            action,
            mark: Some(self.0.clone()),
        }
    }
}

/// The tool that starts the run of another agent.
pub(crate) const CHILD_TOOL: &str = "run_assignment";
/// The beginning of the first message of a child run.
const CHILD_TEXT: &str = "task ";

/// Whether a text is the first message of a child run.
pub(crate) fn is_task(text: &str) -> bool {
    text.starts_with(CHILD_TEXT)
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
        let script = Self {
            seed: random.next(),
            len: 1 + random.below(7),
            pure: random.chance(250),
            slow: *random.pick(&[0, 50, 300]),
            fails: *random.pick(&[0, 0, 40]),
            network: false,
        };
        Self {
            network: !script.pure && random.chance(350),
            ..script
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
                    moves.insert(0, say(format!("turn {number}")));
                }
                moves
            }
            54..62 => vec![say(format!("turn {number}"))],
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

pub(crate) fn say(text: String) -> Move {
    Move::Say { text }
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
        14..25 => CHILD_TOOL,
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
        return finish();
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
