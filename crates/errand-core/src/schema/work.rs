//! Bounds the work of validating one value, before it is done.

use std::collections::HashMap;
use std::rc::Rc;

use serde_json::Value;

use super::graph::{Graph, InPlace, Parts, id};

/// Maximum number of times that validation of one value may apply a schema.
pub const WORK_MAX: u64 = 5_000_000;
/// Maximum pairs of a schema and a part of the value that are looked at to find out.
const STEPS_MAX: usize = 1_000_000;
/// Maximum schemas that are open at once, which bounds the stack.
const OPEN_MAX: usize = 800;

/// An upper bound of how often validating a value against a schema applies a schema. The bound itself is computed with
/// little work: each pair of a schema and a part of the value is looked at once.
///
/// # Errors
/// The reason why it is too much, as a clause about "it".
pub fn work(schema: &Value, value: &Value) -> Result<u64, String> {
    let graph = Graph::of(schema)?;
    let mut counter = Counter {
        graph: &graph,
        shapes: HashMap::new(),
        known: HashMap::new(),
        steps: 0,
        open: 0,
    };
    counter.cost(graph.root(), value, Pass::Errors)
}

/// The question that a validator asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Pass {
    /// Only whether the value fits.
    Verdict,
    /// The errors of the value. Alternatives are tried first, and examined if none fits.
    Errors,
}

struct Shape<'s> {
    in_place: InPlace<'s>,
    parts: Parts<'s>,
    /// Applies no other schema.
    is_leaf: bool,
}

struct Counter<'g, 's> {
    graph: &'g Graph<'s>,
    shapes: HashMap<usize, Rc<Shape<'s>>>,
    known: HashMap<(usize, usize, Pass), u64>,
    steps: usize,
    open: usize,
}

fn too_much() -> String {
    format!("checking a value against it may apply more than {WORK_MAX} schemas")
}

impl<'s> Counter<'_, 's> {
    fn shape(&mut self, schema: &'s Value) -> Rc<Shape<'s>> {
        let graph = self.graph;
        let made = self.shapes.entry(id(schema)).or_insert_with(|| {
            let (in_place, parts) = (graph.in_place(schema), graph.parts(schema));
            let is_leaf = in_place.each().next().is_none() && parts.is_empty();
            Rc::new(Shape {
                in_place,
                parts,
                is_leaf,
            })
        });
        Rc::clone(made)
    }

    fn cost(&mut self, schema: &'s Value, value: &Value, pass: Pass) -> Result<u64, String> {
        let shape = self.shape(schema);
        if shape.is_leaf {
            return Ok(1);
        }
        let key = (id(schema), id(value), pass);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        self.steps += 1;
        self.open += 1;
        if self.steps > STEPS_MAX || self.open > OPEN_MAX {
            return Err(too_much());
        }
        let in_place = self.in_place(&shape.in_place, value, pass)?;
        let parts = self.parts(&shape.parts, value, pass)?;
        let sum = 1_u64.saturating_add(in_place).saturating_add(parts);
        if sum > WORK_MAX {
            return Err(too_much());
        }
        self.open -= 1;
        self.known.insert(key, sum);
        Ok(sum)
    }

    fn each<'a>(
        &mut self,
        schemas: impl IntoIterator<Item = &'a &'s Value>,
        value: &Value,
        pass: Pass,
    ) -> Result<u64, String>
    where
        's: 'a,
    {
        let mut sum = 0_u64;
        for schema in schemas {
            sum = sum.saturating_add(self.cost(schema, value, pass)?);
        }
        Ok(sum)
    }

    fn in_place(&mut self, of: &InPlace<'s>, value: &Value, pass: Pass) -> Result<u64, String> {
        let mut sum = self.each(&of.all, value, pass)?;
        sum = sum.saturating_add(self.dearest_targets(&of.targets, value, pass)?);
        sum = sum.saturating_add(self.each(&of.tested, value, Pass::Verdict)?);
        let choices = || of.choices.iter().flatten();
        sum = sum.saturating_add(self.each(choices(), value, Pass::Verdict)?);
        if pass == Pass::Errors {
            sum = sum.saturating_add(self.each(choices(), value, Pass::Errors)?);
        }
        if of.looks_again {
            let again = of.all.iter().chain(&of.tested).chain(choices());
            sum = sum.saturating_add(self.each(again, value, Pass::Verdict)?);
            sum = sum.saturating_add(self.dearest_targets(&of.targets, value, Pass::Verdict)?);
        }
        Ok(sum)
    }

    /// A reference leads to one of its targets.
    fn dearest_targets(
        &mut self,
        references: &[Vec<&'s Value>],
        value: &Value,
        pass: Pass,
    ) -> Result<u64, String> {
        let mut sum = 0_u64;
        for targets in references {
            let mut most = 0;
            for target in targets {
                most = most.max(self.cost(target, value, pass)?);
            }
            sum = sum.saturating_add(most);
        }
        Ok(sum)
    }

    fn parts(&mut self, of: &Parts<'s>, value: &Value, pass: Pass) -> Result<u64, String> {
        let mut sum = 0_u64;
        match value {
            Value::Object(map) => {
                for (name, part) in map {
                    let own = of.properties.get(name.as_str());
                    sum = sum.saturating_add(self.each(own, part, pass)?);
                    sum = sum.saturating_add(self.each(&of.patterns, part, pass)?);
                    if own.is_none() {
                        sum = sum.saturating_add(self.each(&of.other_properties, part, pass)?);
                    }
                    if let Some(names) = of.names {
                        // A name is a string, which has no parts.
                        sum = sum.saturating_add(self.cost(names, &Value::Null, pass)?);
                    }
                }
            }
            Value::Array(items) => {
                for (index, part) in items.iter().enumerate() {
                    let own = of.first_items.get(index);
                    sum = sum.saturating_add(self.each(own, part, pass)?);
                    if own.is_none() {
                        sum = sum.saturating_add(self.each(&of.other_items, part, pass)?);
                    }
                    sum = sum.saturating_add(self.each(&of.contains, part, Pass::Verdict)?);
                }
            }
            _ => {}
        }
        if sum > WORK_MAX {
            return Err(too_much());
        }
        Ok(sum)
    }
}
