//! Rejects recursive schemas of which two copies apply to the same part of a value.
//!
//! Validation takes exponential time exactly if a schema leads back to itself in two ways that meet at the same part of
//! a value. The two ways may part at the same keyword (`allOf` with the same reference twice), or at different ones that
//! describe the same property (`properties` and `dependentSchemas`).
//!
//! Alternatives (`anyOf`, `oneOf`, `then` and `else`) count as the one that has the most, because many ordinary schemas
//! list variants with the same recursive property. [`super::work`] bounds what they cost for one value.

use std::collections::BTreeMap;

use serde_json::Value;

use super::graph::{Graph, id};

/// Why such a schema is rejected.
pub(super) const REPEATED: &str =
    "it applies a schema that contains itself more than once to the same value";

/// How many copies apply to each part of a value. Saturates, since two are too many.
#[derive(Clone, Default)]
struct Copies<'s> {
    /// By the name of the property, where it differs from `others`.
    named: BTreeMap<&'s str, u8>,
    others: u8,
    items: u8,
}

impl<'s> Copies<'s> {
    fn merge(&mut self, other: &Self, with: fn(u8, u8) -> u8) {
        for (name, count) in &other.named {
            let own = self.named.get(name).copied().unwrap_or(self.others);
            self.named.insert(name, with(own, *count));
        }
        for (name, own) in &mut self.named {
            if !other.named.contains_key(name) {
                *own = with(*own, other.others);
            }
        }
        self.others = with(self.others, other.others);
        self.items = with(self.items, other.items);
    }

    fn most(&self) -> u8 {
        let named = self.named.values().copied().max().unwrap_or(0);
        named.max(self.others).max(self.items)
    }
}

/// Rejects the schema if a part of a value gets two copies of a schema that contains both. `schemas`: all that can be
/// reached; their in-place keywords form no cycle.
pub(super) fn reject_overlaps<'s>(graph: &Graph<'s>, schemas: &[&'s Value]) -> Result<(), String> {
    let mut search = Search {
        graph,
        component: components(graph, schemas),
        known: BTreeMap::new(),
    };
    for schema in schemas {
        if search.copies(schema).most() > 1 {
            return Err(REPEATED.to_owned());
        }
    }
    Ok(())
}

struct Search<'g, 's> {
    graph: &'g Graph<'s>,
    /// Schemas with the same number lead to each other.
    component: BTreeMap<usize, usize>,
    known: BTreeMap<usize, Copies<'s>>,
}

impl<'s> Search<'_, 's> {
    fn returns(&self, from: &Value, to: &Value) -> bool {
        self.component.get(&id(from)) == self.component.get(&id(to))
    }

    fn own(&self, schema: &'s Value) -> Copies<'s> {
        let parts = self.graph.parts(schema);
        let count = |list: &[&'s Value]| {
            let returning = list.iter().filter(|to| self.returns(schema, to));
            u8::try_from(returning.count()).unwrap_or(u8::MAX)
        };
        let patterns = count(&parts.patterns);
        let names = parts.properties.iter().map(|(name, to)| {
            let own = u8::from(self.returns(schema, to));
            (*name, own.saturating_add(patterns))
        });
        // A property gets one of `additionalProperties` and `unevaluatedProperties`, and an item one of these, too.
        let others = count(&parts.other_properties).min(1);
        let items = count(&parts.first_items)
            .min(1)
            .max(count(&parts.other_items).min(1));
        Copies {
            named: names.collect(),
            others: patterns.saturating_add(others),
            items: items.saturating_add(count(parts.contains.as_slice())),
        }
    }

    fn copies(&mut self, schema: &'s Value) -> Copies<'s> {
        if let Some(known) = self.known.get(&id(schema)) {
            return known.clone();
        }
        let mut sum = self.own(schema);
        let in_place = self.graph.in_place(schema);
        for part in in_place.all.iter().chain(&in_place.tested) {
            if self.returns(schema, part) {
                sum.merge(&self.copies(part), u8::saturating_add);
            }
        }
        for group in in_place.choices.iter().chain(&in_place.targets) {
            let mut most = Copies::default();
            for part in group {
                if self.returns(schema, part) {
                    most.merge(&self.copies(part), u8::max);
                }
            }
            sum.merge(&most, u8::saturating_add);
        }
        self.known.insert(id(schema), sum.clone());
        sum
    }
}

/// Numbers the strongly connected components: first in the order of the ends of a depth-first search, then backwards
/// against the edges (Kosaraju's algorithm).
fn components<'s>(graph: &Graph<'s>, schemas: &[&'s Value]) -> BTreeMap<usize, usize> {
    let applied = |schema: &'s Value| -> Vec<usize> {
        let (in_place, parts) = (graph.in_place(schema), graph.parts(schema));
        in_place.each().chain(parts.each()).map(id).collect()
    };
    let forward: BTreeMap<usize, Vec<usize>> = schemas
        .iter()
        .map(|schema| (id(schema), applied(schema)))
        .collect();
    let mut backward: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (from, to) in &forward {
        for to in to {
            backward.entry(*to).or_default().push(*from);
        }
    }
    let order = ends(&forward, forward.keys().copied().collect()).0;
    ends(&backward, order.into_iter().rev().collect()).1
}

/// A depth-first search from each of `starts`: the schemas in the order in which it leaves them, and the number of the
/// start from which each was found.
fn ends(
    edges: &BTreeMap<usize, Vec<usize>>,
    starts: Vec<usize>,
) -> (Vec<usize>, BTreeMap<usize, usize>) {
    let mut order = Vec::new();
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    for (number, start) in starts.into_iter().enumerate() {
        let mut open = vec![(start, false)];
        while let Some((next, is_done)) = open.pop() {
            if is_done {
                order.push(next);
                continue;
            }
            if found.contains_key(&next) {
                continue;
            }
            found.insert(next, number);
            open.push((next, true));
            let to = edges.get(&next).into_iter().flatten();
            open.extend(to.map(|to| (*to, false)));
        }
    }
    (order, found)
}
