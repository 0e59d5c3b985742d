//! Tools of the outside world with names of built-in ones, so that builds may name them. Some are slow, some hang, some
//! fail, some react to cancellation. The world records what they really did.

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::id::RunId;
use errand_core::policy::{Hints, Settle};
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::Outcome;
use errand_engine::tool::{LookedUp, Tool, ToolContext};
use serde_json::{Map, Value, json};

use super::Sabotage;
use super::invariants::{Invariant, may_begin};
use super::world::{State, World, short};

/// The kind of a simulated tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Changes nothing.
    Reads,
    /// Repeating a call has no further effect.
    Idempotent,
    /// The tool can check whether a call was done.
    LooksUp,
    /// Only the model can find out.
    TellsModel,
    /// Only a person can find out: a payment.
    AsksPerson,
}

/// The tools and their kinds.
pub(crate) const TOOLS: [(&str, Kind); 6] = [
    ("list_files", Kind::Reads),
    ("read_file", Kind::Reads),
    ("write_file", Kind::Idempotent),
    ("edit_file", Kind::LooksUp),
    ("search_files", Kind::TellsModel),
    ("run_command", Kind::AsksPerson),
];

/// The names for models to choose from; those that occur twice are chosen twice as often.
pub(crate) const NAMES: [&str; 8] = [
    "list_files",
    "read_file",
    "write_file",
    "edit_file",
    "edit_file",
    "search_files",
    "run_command",
    "run_command",
];

pub(crate) fn kind_of(name: &str) -> Option<Kind> {
    TOOLS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, kind)| *kind)
}

pub(crate) fn tools(world: &Arc<World>) -> Vec<Arc<dyn Tool>> {
    let tool = |(name, kind)| -> Arc<dyn Tool> {
        Arc::new(SimTool {
            world: Arc::clone(world),
            name,
            kind,
        })
    };
    TOOLS.into_iter().map(tool).collect()
}

struct SimTool {
    world: Arc<World>,
    name: &'static str,
    kind: Kind,
}

/// The course of one call.
#[derive(Clone, Copy, Debug)]
enum Course {
    Quick,
    Slow(u64),
    Hangs,
    /// Hangs until it is canceled.
    TakesCancel,
}

#[async_trait]
impl Tool for SimTool {
    fn name(&self) -> &str {
        self.name
    }

    fn description(&self) -> &str {
        "Simulated."
    }

    fn hints(&self) -> Hints {
        // Sabotage: the payment claims that it may be repeated.
        let lies = self.kind == Kind::AsksPerson && self.world.sabotages(Sabotage::RepeatsPayments);
        let reads = self.kind == Kind::Reads;
        Hints {
            read_only: reads,
            destructive: !reads,
            idempotent: reads || lies || self.kind == Kind::Idempotent,
            open_world: true,
            asks: false,
            untrusted: reads,
            private: reads,
            settle: match self.kind {
                Kind::Reads | Kind::Idempotent => Settle::RunAgain,
                Kind::LooksUp => Settle::LookUp,
                Kind::TellsModel => Settle::TellModel,
                Kind::AsksPerson => Settle::AskPerson,
            },
        }
    }

    fn schema(&self) -> Value {
        json!({"type": "object"})
    }

    async fn run(&self, context: &ToolContext, arguments: Map<String, Value>) -> Outcome {
        let exact = exact(self.name, &arguments);
        let (course, at_once, fails) = self.begin(context, &exact);
        if self.world.sabotages(Sabotage::NeverReturns) && self.kind == Kind::TellsModel {
            std::future::pending::<()>().await;
        }
        if at_once {
            self.has_effect(context.run, &exact);
        }
        let ended = match course {
            Course::Quick => {
                self.world.give_way().await;
                true
            }
            Course::Slow(ms) => {
                self.world.linger(ms).await;
                true
            }
            Course::Hangs => {
                self.world.hold().await;
                true
            }
            Course::TakesCancel => tokio::select! {
                biased;
                () = context.cancel.cancelled() => false,
                () = self.world.hold() => true,
            },
        };
        let call = format!("{} of {}", self.name, short(context.run));
        if !ended {
            if self.world.sabotages(Sabotage::BeginsAfterStop) {
                // Only after the stop has been answered.
                for _ in 0..500 {
                    tokio::task::yield_now().await;
                    let halted =
                        |state: &State| state.runs.get(&context.run).is_some_and(|r| r.halted);
                    if halted(&self.world.state()) {
                        self.begin(context, &exact);
                        break;
                    }
                }
            }
            self.world.note(&format!("{call} breaks off"));
            self.world.state().saw("call broken off");
            return Outcome::error(ToolErrorCode::Interrupted, "the tool was canceled");
        }
        if fails && !at_once {
            self.world.note(&format!("{call} fails"));
            return Outcome::Error(ToolError::from_text("failed: the simulated tool failed"));
        }
        if !at_once {
            self.has_effect(context.run, &exact);
        }
        self.world.note(&format!("{call} is done"));
        Outcome::Result(json!({"ok": exact}))
    }

    async fn look_up(
        &self,
        context: &ToolContext,
        arguments: &Map<String, Value>,
        _evidence: Option<&Value>,
    ) -> LookedUp {
        self.world.give_way().await;
        let now = self.world.now();
        let exact = exact(self.name, arguments);
        let mut state = self.world.state();
        let cannot_tell = state.random.chance(100);
        let call = state.calls.entry((context.run, exact.clone())).or_default();
        let (found, word) = if call.done {
            (LookedUp::Done(json!({"ok": exact})), "done")
        } else if cannot_tell {
            let unknown = ToolError::new(
                ToolErrorCode::OutcomeUnknown,
                "the simulated tool cannot tell",
            );
            (LookedUp::Unknown(unknown), "unknown")
        } else {
            call.found_undone += 1;
            (LookedUp::NotDone, "not done")
        };
        state.saw(match word {
            "done" => "look-up: done",
            "not done" => "look-up: not done",
            _ => "look-up: unknown",
        });
        state.note(
            now,
            &format!("look-up of {exact} of {}: {word}", short(context.run)),
        );
        found
    }
}

/// A text that is equal for calls that do the same.
pub(crate) fn exact(name: &str, arguments: &Map<String, Value>) -> String {
    format!("{name} {}", Value::Object(arguments.clone()))
}

impl SimTool {
    /// Checks that the call may begin, counts it, and draws its course, whether its effect comes immediately, and
    /// whether it fails.
    fn begin(&self, context: &ToolContext, exact: &str) -> (Course, bool, bool) {
        let now = self.world.now();
        let mut state = self.world.state();
        let id = &context.call_id;
        state.note(
            now,
            &format!("{exact} of {} begins ({id})", short(context.run)),
        );
        let call = state
            .calls
            .entry((context.run, exact.to_owned()))
            .or_default();
        call.begun += 1;
        let again = call.begun > 1;
        if !call.ids.contains(id) {
            call.ids.push(id.clone());
        }
        if again {
            state.saw("call begun again");
        }
        if let Err((invariant, detail)) = may_begin(&state, context.run, id, self.name, exact) {
            state.broken(now, invariant, detail);
        }
        if state.healed {
            return (Course::Quick, false, false);
        }
        let course = match state.random.below(100) {
            0..60 => Course::Quick,
            _ if self.world.sabotages(Sabotage::BeginsAfterStop) => Course::TakesCancel,
            60..80 => Course::Slow(1 + state.random.below(90_000)),
            80..92 => Course::Hangs,
            _ => Course::TakesCancel,
        };
        (course, state.random.chance(400), state.random.chance(100))
    }

    /// Records that the call takes effect now.
    fn has_effect(&self, run: RunId, exact: &str) {
        let now = self.world.now();
        let mut state = self.world.state();
        let call = state.calls.entry((run, exact.to_owned())).or_default();
        let twice = std::mem::replace(&mut call.done, true);
        if twice && self.kind == Kind::LooksUp {
            let detail =
                format!("{exact} of {run} took effect twice, although its tool can look it up");
            state.broken(now, Invariant::NoSilentRepeat, detail);
        }
    }
}
