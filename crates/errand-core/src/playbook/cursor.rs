//! Where a walk stands: the step, the rounds around it, and the names given so far; and the way to the next move.
//!
//! A [`Cursor`] is cheap to clone: what grows with the run (names, lists, values of rounds) is shared. The cost depends
//! on the playbook's size, not on the transcript's.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::json::from_json;
use super::template::{Fuel, Names, Users, Vars};
use crate::limits::PLAYBOOK_MOVES_MAX;

use super::{Action, Condition, Playbook, RunFacts, SET_BYTES_MAX, Step};

/// Fuel of a step that is looked at, beside its templates: an empty round costs something, too.
const STEP_FUEL: u64 = 10;

/// What a decision sees beside the names: the messages up to the newest one that it reads.
pub(super) struct View<'a> {
    pub(super) users: &'a Users,
    /// The position of the newest message that is read; 0 for none.
    pub(super) message: u64,
    pub(super) run: &'a RunFacts,
}

/// What is looked for.
pub(super) enum Goal<'a> {
    /// The next step that makes a move.
    Undecided,
    /// The step of a recorded move: what stands before it was left out, whatever its `if` says.
    Recorded(&'a [usize]),
}

/// What a kept value is counted with: its place in two lists, what holds them, and a small object.
const KEPT_VALUE_BYTES: u64 = 1024;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The cursor stands at the step.
    Step,
    /// The steps are at their end.
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// Outermost first; never empty.
    frames: Vec<Frame>,
    /// Moves that were recorded in this start.
    pub(super) moves: u32,
    /// Size of the values that `set` made in this start.
    made: u64,
}

/// A list of steps under way.
#[derive(Clone, Debug)]
struct Frame {
    steps: Arc<[Step]>,
    at: usize,
    names: Arc<Vars>,
    /// The value of the step before.
    last: Value,
    round: Option<Round>,
}

#[derive(Clone, Debug)]
struct Round {
    items: Arc<[Value]>,
    number: usize,
    given: Chain,
    /// Whether anybody reads the values of its rounds.
    keeps: bool,
}

/// A list that is shared by the cursors that hold it, and grows in constant time.
#[derive(Clone, Debug, Default)]
struct Chain(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    value: Value,
    before: Chain,
}

impl Chain {
    fn push(&mut self, value: Value) {
        let before = Self(self.0.take());
        self.0 = Some(Arc::new(Link { value, before }));
    }

    fn to_list(&self) -> Vec<Value> {
        let mut values = Vec::new();
        let mut link = self.0.as_ref();
        while let Some(here) = link {
            values.push(here.value.clone());
            link = here.before.0.as_ref();
        }
        values.reverse();
        values
    }
}

impl Drop for Chain {
    /// One link after the other: the derived way would go as deep into the stack as the chain is long.
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut link) = next.and_then(Arc::into_inner) {
            next = link.before.0.take();
        }
    }
}

impl Cursor {
    pub(super) fn start(playbook: &Playbook) -> Self {
        Self {
            frames: vec![Frame::new(Arc::clone(&playbook.steps), None)],
            moves: 0,
            made: 0,
        }
    }

    /// The steps that the cursor is in, and which of them it stands at (one past the last: at the end).
    pub(super) fn place(&self) -> (Arc<[Step]>, usize) {
        self.frames.last().map_or_else(
            || (Arc::from([]), 0),
            |frame| (Arc::clone(&frame.steps), frame.at),
        )
    }

    /// Steps and rounds in turn, outermost first.
    fn numbers(&self) -> impl Iterator<Item = usize> {
        let numbers = self.frames.iter().flat_map(|frame| {
            [
                frame.round.as_ref().map(|round| round.number),
                Some(frame.at),
            ]
        });
        numbers.flatten()
    }

    fn is_at(&self, path: &[usize]) -> bool {
        self.numbers().eq(path.iter().copied())
    }

    fn is_around(&self, path: &[usize]) -> bool {
        let mut path = path.iter().copied();
        self.numbers().all(|number| path.next() == Some(number)) && path.next().is_some()
    }

    /// The path as a mark has it, such as `1[3].0`.
    pub(super) fn path(&self) -> String {
        let mut path = String::new();
        for frame in &self.frames {
            if let Some(round) = &frame.round {
                let _ = write!(path, "[{}].", round.number);
            }
            let _ = write!(path, "{}", frame.at);
        }
        path
    }

    /// Which rounds it is in, for an error's text; empty outside of all.
    pub(super) fn rounds(&self) -> String {
        let numbers: Vec<_> = self
            .frames
            .iter()
            .filter_map(|f| f.round.as_ref())
            .map(|r| r.number.to_string())
            .collect();
        if numbers.is_empty() {
            String::new()
        } else {
            format!(" (index {})", numbers.join(", "))
        }
    }

    /// The names that the step's templates see.
    pub(super) fn names(&self, view: &View<'_>, with_sandbox: bool) -> Names {
        let round = self
            .frames
            .iter()
            .rev()
            .find_map(|frame| frame.round.as_ref());
        Names {
            scopes: self
                .frames
                .iter()
                .rev()
                .map(|frame| Arc::clone(&frame.names))
                .collect(),
            round: round.and_then(|round| {
                round
                    .items
                    .get(round.number)
                    .map(|item| (item.clone(), round.number))
            }),
            users: Arc::clone(view.users),
            read: view
                .users
                .partition_point(|(position, _)| *position <= view.message),
            run: view.run.clone(),
            with_sandbox,
        }
    }

    /// Leaves the step behind, with its value.
    pub(super) fn complete(&mut self, value: Value) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        if let Some(name) = frame
            .steps
            .get(frame.at)
            .and_then(|step| step.gives.as_ref())
        {
            Arc::make_mut(&mut frame.names).insert(Arc::clone(name), value.clone());
        }
        frame.last = value;
        frame.at += 1;
    }

    /// At the end of a round's steps: the next round, or the step after the `for_each`. False at the end of all.
    ///
    /// # Errors
    /// More values are kept than a start may make.
    fn end_list(&mut self) -> Result<bool, String> {
        let Some(frame) = self.frames.last_mut() else {
            return Ok(false);
        };
        let Some(round) = &mut frame.round else {
            return Ok(false);
        };
        let last = std::mem::take(&mut frame.last);
        if round.keeps {
            self.made = self.made.saturating_add(KEPT_VALUE_BYTES);
            if self.made > SET_BYTES_MAX {
                return Err(format!(
                    "playbook: this start has kept values of more than {SET_BYTES_MAX} bytes"
                ));
            }
            round.given.push(last);
        }
        round.number += 1;
        if round.number < round.items.len() {
            frame.at = 0;
            frame.names = Arc::default();
            frame.last = Value::from(());
        } else {
            let list = round.given.to_list();
            self.frames.pop();
            self.complete(list.into());
        }
        Ok(true)
    }

    /// Whether the value of the step is read: it has a name, or it is the value of a round that is.
    fn is_read(&self) -> bool {
        let Some(frame) = self.frames.last() else {
            return false;
        };
        let named = frame
            .steps
            .get(frame.at)
            .is_some_and(|step| step.gives.is_some());
        let ends_round = frame.at + 1 == frame.steps.len();
        named || (ends_round && frame.round.as_ref().is_some_and(|round| round.keeps))
    }

    fn enter(&mut self, steps: &Arc<[Step]>, items: Vec<Value>) {
        if items.is_empty() {
            self.complete(Vec::<Value>::new().into());
        } else {
            let round = Round {
                items: items.into(),
                number: 0,
                given: Chain::default(),
                keeps: self.is_read(),
            };
            self.frames.push(Frame::new(Arc::clone(steps), Some(round)));
        }
    }

    /// Goes on to the next move, and carries out the silent steps on the way.
    ///
    /// # Errors
    /// A sentence that begins with the path of what failed. The cursor then stands at that step.
    pub(super) fn seek(
        &mut self,
        goal: &Goal<'_>,
        view: &View<'_>,
        fuel: &mut Fuel<'_>,
    ) -> Result<Found, String> {
        loop {
            let (steps, at) = self.place();
            let Some(step) = steps.get(at) else {
                if self
                    .end_list()
                    .map_err(|e| format!("{e}{}", self.rounds()))?
                {
                    continue;
                }
                return Ok(Found::End);
            };
            let in_rounds = |error: String| format!("{error}{}", self.rounds());
            fuel.burn(STEP_FUEL)
                .map_err(|e| in_rounds(format!("{}: {e}", step.path)))?;
            let wanted = match goal {
                Goal::Recorded(path) if step.is_silent() && self.is_around(path) => true,
                Goal::Recorded(path) if !step.is_silent() => self.is_at(path),
                Goal::Undecided | Goal::Recorded(_) => {
                    self.wants(step, view, fuel).map_err(in_rounds)?
                }
            };
            if !wanted {
                self.complete(Value::from(()));
                continue;
            }
            match &step.action {
                Action::ForEach { list, steps: inner } => {
                    let (value, _) = list
                        .value(&self.names(view, false), fuel)
                        .map_err(in_rounds)?;
                    let items = items_of(&value)
                        .map_err(|e| in_rounds(format!("{}.for_each: {e}", step.path)))?;
                    if matches!(goal, Goal::Undecided) {
                        self.check_moves(&step.path, inner, items.len())
                            .map_err(in_rounds)?;
                    }
                    self.enter(inner, items);
                }
                Action::Set(values) => {
                    let names = self.names(view, false);
                    let mut given = Map::new();
                    let mut made = self.made;
                    for (name, node) in values {
                        let (value, units) = node.value(&names, fuel).map_err(in_rounds)?;
                        made = made.saturating_add(units);
                        given.insert(name.to_string(), value);
                    }
                    if made > SET_BYTES_MAX {
                        return Err(in_rounds(format!(
                            "{}.set: this start has made values of more than {SET_BYTES_MAX} bytes",
                            step.path
                        )));
                    }
                    self.made = made;
                    self.give(&given);
                }
                _ => return Ok(Found::Step),
            }
        }
    }

    /// Refuses a list before the first round if its rounds are sure to make more moves than a start may.
    fn check_moves(&self, path: &str, inner: &[Step], rounds: usize) -> Result<(), String> {
        let Some(each) = moves_of_round(inner) else {
            return Ok(());
        };
        let left = PLAYBOOK_MOVES_MAX.saturating_sub(self.moves);
        if each.saturating_mul(rounds as u64) > u64::from(left) {
            return Err(format!(
                "{path}.for_each: {rounds} rounds make more moves than the {left} that this start has left of {PLAYBOOK_MOVES_MAX}; take a shorter list, or start a run for each part"
            ));
        }
        Ok(())
    }

    fn give(&mut self, given: &Map<String, Json>) {
        if let Some(frame) = self.frames.last_mut() {
            let names = Arc::make_mut(&mut frame.names);
            for (name, value) in given {
                names.insert(Arc::from(name.as_str()), from_json(value));
            }
        }
        let whole = Value::from_pairs(
            given
                .iter()
                .map(|(name, value)| (name.as_str(), from_json(value))),
        );
        self.complete(whole);
    }

    fn wants(&self, step: &Step, view: &View<'_>, fuel: &mut Fuel<'_>) -> Result<bool, String> {
        match &step.only_if {
            None => Ok(true),
            Some(Condition::Fixed(wanted)) => Ok(*wanted),
            Some(Condition::Expression(expression)) => {
                let names = self.names(view, !step.is_silent());
                let (value, _) = expression.value(&names, fuel)?;
                Ok(value == Json::Bool(true))
            }
        }
    }
}

impl Frame {
    fn new(steps: Arc<[Step]>, round: Option<Round>) -> Self {
        Self {
            steps,
            at: 0,
            names: Arc::default(),
            last: Value::from(()),
            round,
        }
    }
}

impl Step {
    /// Whether it makes no move of its own.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.action, Action::Set(_) | Action::ForEach { .. })
    }
}

/// How many moves a round is sure to make. `None` where it may end the run.
fn moves_of_round(steps: &[Step]) -> Option<u64> {
    let mut moves = 0;
    for step in steps {
        match &step.action {
            Action::Finish(_) | Action::Fail(_) => return None,
            // The length of its list is not known, but its steps may end the run.
            Action::ForEach { steps, .. } => drop(moves_of_round(steps)?),
            Action::Set(_) => {}
            _ if matches!(step.only_if, None | Some(Condition::Fixed(true))) => moves += 1,
            _ => {}
        }
    }
    Some(moves)
}

fn items_of(value: &Json) -> Result<Vec<Value>, String> {
    let kind = match value {
        Json::Array(items) => return Ok(items.iter().map(from_json).collect()),
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Object(_) => "an object",
    };
    Err(format!("it takes a list, not {kind}"))
}

/// Reads a mark's path: `1[3].0` is 1, 3, 0.
pub(super) fn read_path(path: &str) -> Option<Vec<usize>> {
    let numbers: Option<Vec<usize>> = path
        .split(['[', '.'])
        .map(|part| part.trim_end_matches(']').parse().ok())
        .collect();
    numbers.filter(|numbers| numbers.len() % 2 == 1)
}
