//! The position of a walk: the current step, the iterations around it, and the names assigned so far; and the search
//! for the next move.
//!
//! A [`Cursor`] is cheap to clone: everything that grows with the run (names, lists, values of iterations) is shared.
//! The cost depends on the size of the playbook, not of the transcript.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::json::from_json;
use super::template::{Fuel, Names, Users, Vars};
use crate::limits::PLAYBOOK_MOVES_MAX;

use super::{Action, Condition, Playbook, RunFacts, SET_BYTES_MAX, Step};

/// Fuel of visiting a step, in addition to its templates: an empty iteration is not free, either.
const STEP_FUEL: u64 = 10;

/// The inputs of a decision besides names: the messages up to the newest one at that time.
pub(super) struct View<'a> {
    pub(super) users: &'a Users,
    /// The position of the newest message that is read; 0 for none.
    pub(super) message: u64,
    pub(super) run: &'a RunFacts,
}

/// The destination of a search.
pub(super) enum Goal<'a> {
    /// The next step that acts.
    Undecided,
    /// The step of a recorded move. Steps before it stay skipped even if their `if` is true now.
    Recorded(&'a [usize]),
}

/// The size that a kept value counts as: its slots in two lists, the list's node, and a small object.
const KEPT_VALUE_BYTES: u64 = 1024;

/// The result of a search.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SeekResult {
    /// The cursor is at a step that acts.
    Step,
    /// The list of steps has ended.
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// Outermost first; never empty.
    frames: Vec<Frame>,
    /// Moves recorded since the start.
    pub(super) moves: u32,
    /// Size of the values that `set` created since the start.
    bytes_set: u64,
}

/// A list of steps in progress.
#[derive(Clone, Debug)]
struct Frame {
    steps: Arc<[Step]>,
    at: usize,
    names: Arc<Vars>,
    /// The value of the previous step.
    last: Value,
    iteration: Option<Iteration>,
}

/// One iteration of a `for_each`.
#[derive(Clone, Debug)]
struct Iteration {
    items: Arc<[Value]>,
    number: usize,
    values: SharedList,
    /// Whether anything reads the values of its iterations.
    keeps_values: bool,
}

/// A persistent list: cursors share its nodes, and appending takes constant time.
#[derive(Clone, Debug, Default)]
struct SharedList(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    value: Value,
    before: SharedList,
}

impl SharedList {
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

impl Drop for SharedList {
    /// Drops the nodes in a loop: the derived destructor would recurse as deep as the chain is long.
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
            bytes_set: 0,
        }
    }

    /// The innermost list of steps and the index in it (one past the last: at the end).
    pub(super) fn position(&self) -> (Arc<[Step]>, usize) {
        self.frames.last().map_or_else(
            || (Arc::from([]), 0),
            |frame| (Arc::clone(&frame.steps), frame.at),
        )
    }

    /// Indices of steps and iterations alternately, outermost first.
    fn numbers(&self) -> impl Iterator<Item = usize> {
        let numbers = self.frames.iter().flat_map(|frame| {
            [
                frame.iteration.as_ref().map(|iteration| iteration.number),
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

    /// The path in the form of a [`Mark`](crate::transcript::Mark), such as `1[3].0`.
    pub(super) fn path(&self) -> String {
        let mut path = String::new();
        for frame in &self.frames {
            if let Some(iteration) = &frame.iteration {
                let _ = write!(path, "[{}].", iteration.number);
            }
            let _ = write!(path, "{}", frame.at);
        }
        path
    }

    /// The indices of the enclosing iterations, for an error message; empty outside of any.
    pub(super) fn iteration_suffix(&self) -> String {
        let numbers: Vec<_> = self
            .frames
            .iter()
            .filter_map(|f| f.iteration.as_ref())
            .map(|r| r.number.to_string())
            .collect();
        if numbers.is_empty() {
            String::new()
        } else {
            format!(" (index {})", numbers.join(", "))
        }
    }

    /// The names that the templates of the current step see.
    pub(super) fn names(&self, view: &View<'_>, with_sandbox: bool) -> Names {
        let iteration = self
            .frames
            .iter()
            .rev()
            .find_map(|frame| frame.iteration.as_ref());
        Names {
            scopes: self
                .frames
                .iter()
                .rev()
                .map(|frame| Arc::clone(&frame.names))
                .collect(),
            iteration: iteration.and_then(|iteration| {
                iteration
                    .items
                    .get(iteration.number)
                    .map(|item| (item.clone(), iteration.number))
            }),
            users: Arc::clone(view.users),
            read: view
                .users
                .partition_point(|(position, _)| *position <= view.message),
            run: view.run.clone(),
            with_sandbox,
        }
    }

    /// Moves past the current step, whose value is `value`.
    pub(super) fn complete(&mut self, value: Value) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        if let Some(name) = frame
            .steps
            .get(frame.at)
            .and_then(|step| step.assigns_to.as_ref())
        {
            Arc::make_mut(&mut frame.names).insert(Arc::clone(name), value.clone());
        }
        frame.last = value;
        frame.at += 1;
    }

    /// At the end of an iteration: moves to the next one, or past the `for_each`. Returns false at the end of all
    /// steps.
    ///
    /// # Errors
    /// If more values are kept than one start may create.
    fn end_list(&mut self) -> Result<bool, String> {
        let Some(frame) = self.frames.last_mut() else {
            return Ok(false);
        };
        let Some(iteration) = &mut frame.iteration else {
            return Ok(false);
        };
        let last = std::mem::take(&mut frame.last);
        if iteration.keeps_values {
            self.bytes_set = self.bytes_set.saturating_add(KEPT_VALUE_BYTES);
            if self.bytes_set > SET_BYTES_MAX {
                return Err(format!(
                    "playbook: the values kept since the start exceed {SET_BYTES_MAX} bytes"
                ));
            }
            iteration.values.push(last);
        }
        iteration.number += 1;
        if iteration.number < iteration.items.len() {
            frame.at = 0;
            frame.names = Arc::default();
            frame.last = Value::from(());
        } else {
            let list = iteration.values.to_list();
            self.frames.pop();
            self.complete(list.into());
        }
        Ok(true)
    }

    /// Whether the value of the current step is used: it has a name, or it is the result of an iteration whose value
    /// is.
    fn is_read(&self) -> bool {
        let Some(frame) = self.frames.last() else {
            return false;
        };
        let named = frame
            .steps
            .get(frame.at)
            .is_some_and(|step| step.assigns_to.is_some());
        let ends_iteration = frame.at + 1 == frame.steps.len();
        named
            || (ends_iteration
                && frame
                    .iteration
                    .as_ref()
                    .is_some_and(|iteration| iteration.keeps_values))
    }

    fn enter(&mut self, steps: &Arc<[Step]>, items: Vec<Value>) {
        if items.is_empty() {
            self.complete(Vec::<Value>::new().into());
        } else {
            let iteration = Iteration {
                items: items.into(),
                number: 0,
                values: SharedList::default(),
                keeps_values: self.is_read(),
            };
            self.frames
                .push(Frame::new(Arc::clone(steps), Some(iteration)));
        }
    }

    /// Advances to the next move, executing the silent steps on the way.
    ///
    /// # Errors
    /// A sentence that begins with the path of the step that failed. The cursor then stays at that step.
    pub(super) fn seek(
        &mut self,
        goal: &Goal<'_>,
        view: &View<'_>,
        fuel: &mut Fuel<'_>,
    ) -> Result<SeekResult, String> {
        loop {
            let (steps, at) = self.position();
            let Some(step) = steps.get(at) else {
                if self
                    .end_list()
                    .map_err(|e| format!("{e}{}", self.iteration_suffix()))?
                {
                    continue;
                }
                return Ok(SeekResult::End);
            };
            let in_iterations = |error: String| format!("{error}{}", self.iteration_suffix());
            fuel.burn(STEP_FUEL)
                .map_err(|e| in_iterations(format!("{}: {e}", step.path)))?;
            // The path of a recorded move proves that the steps around it were entered, so their `if` is not
            // evaluated again. Steps that act are taken from the path; only silent steps besides it are decided again.
            let wanted = match goal {
                Goal::Recorded(path) if step.is_silent() && self.is_around(path) => true,
                Goal::Recorded(path) if !step.is_silent() => self.is_at(path),
                Goal::Undecided | Goal::Recorded(_) => {
                    self.is_enabled(step, view, fuel).map_err(in_iterations)?
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
                        .map_err(in_iterations)?;
                    let items = items_of(&value)
                        .map_err(|e| in_iterations(format!("{}.for_each: {e}", step.path)))?;
                    if matches!(goal, Goal::Undecided) {
                        self.check_moves(&step.path, inner, items.len())
                            .map_err(in_iterations)?;
                    }
                    self.enter(inner, items);
                }
                Action::Set(values) => {
                    let names = self.names(view, false);
                    let mut given = Map::new();
                    let mut bytes_set = self.bytes_set;
                    for (name, node) in values {
                        let (value, units) = node.value(&names, fuel).map_err(in_iterations)?;
                        bytes_set = bytes_set.saturating_add(units);
                        given.insert(name.to_string(), value);
                    }
                    if bytes_set > SET_BYTES_MAX {
                        return Err(in_iterations(format!(
                            "{}.set: the values created since the start exceed {SET_BYTES_MAX} bytes",
                            step.path
                        )));
                    }
                    self.bytes_set = bytes_set;
                    self.assign(&given);
                }
                _ => return Ok(SeekResult::Step),
            }
        }
    }

    /// Fails before the first iteration if the iterations are certain to exceed the moves that one start may take.
    fn check_moves(&self, path: &str, inner: &[Step], rounds: usize) -> Result<(), String> {
        let Some(each) = moves_of_iteration(inner) else {
            return Ok(());
        };
        let left = PLAYBOOK_MOVES_MAX.saturating_sub(self.moves);
        if each.saturating_mul(rounds as u64) > u64::from(left) {
            return Err(format!(
                "{path}.for_each: {rounds} iterations need more moves than the {left} that remain of {PLAYBOOK_MOVES_MAX} since the start; use a shorter list, or start a run for each part"
            ));
        }
        Ok(())
    }

    fn assign(&mut self, given: &Map<String, Json>) {
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

    fn is_enabled(
        &self,
        step: &Step,
        view: &View<'_>,
        fuel: &mut Fuel<'_>,
    ) -> Result<bool, String> {
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
    fn new(steps: Arc<[Step]>, iteration: Option<Iteration>) -> Self {
        Self {
            steps,
            at: 0,
            names: Arc::default(),
            last: Value::from(()),
            iteration,
        }
    }
}

impl Step {
    /// Whether the step makes no move of its own.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.action, Action::Set(_) | Action::ForEach { .. })
    }
}

/// The number of moves that an iteration makes at least. `None` if it may end the run.
fn moves_of_iteration(steps: &[Step]) -> Option<u64> {
    let mut moves = 0;
    for step in steps {
        match &step.action {
            Action::Finish(_) | Action::Fail(_) => return None,
            // The length of the inner list is unknown, but its steps may end the run.
            Action::ForEach { steps, .. } => drop(moves_of_iteration(steps)?),
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
        Json::String(_) => "a string",
        Json::Object(_) => "an object",
    };
    Err(format!("must be a list, not {kind}"))
}

/// Parses the path of a mark: `1[3].0` becomes 1, 3, 0.
pub(super) fn read_path(path: &str) -> Option<Vec<usize>> {
    let numbers: Option<Vec<usize>> = path
        .split(['[', '.'])
        .map(|part| part.trim_end_matches(']').parse().ok())
        .collect();
    numbers.filter(|numbers| numbers.len() % 2 == 1)
}
