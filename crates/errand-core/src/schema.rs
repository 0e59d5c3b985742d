//! Bounds for JSON schemas from third parties: how expensive it can be to validate a value against one.
//!
//! A schema is treated as a graph. *In-place* keywords (`$ref`, `allOf`, `anyOf`, `not` and similar) apply further
//! schemas to the same value; all others apply them to a part of it. Rejected are schemas whose in-place keywords form
//! a cycle or expand to too many schemas, and schemas that apply a recursive schema to one value more than once,
//! because each level of the value then doubles the work.
//!
//! # Non-goals
//!
//! A proof that validation is fast. A schema that is not [`Weight::Light`] is validated in a process with a time limit.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// Maximum values in a schema.
pub const NODES_MAX: usize = 20_000;
/// Maximum nesting of a schema, and maximum length of a chain of references.
pub const DEPTH_MAX: usize = 100;
/// Maximum schemas that in-place keywords apply to one value.
pub const EXPANSION_MAX: u64 = 10_000;
/// Maximum length of a regular expression, in characters.
pub const PATTERN_CHARS_MAX: usize = 1_000;
/// Maximum values in a light schema.
const LIGHT_NODES_MAX: usize = 1_000;
/// Maximum steps of the search for recursive schemas, which is quadratic in the worst case.
const SEARCH_STEPS_MAX: usize = 2_000_000;

const IN_PLACE_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const IN_PLACE: [&str; 4] = ["not", "if", "then", "else"];
const IN_PLACE_MAPS: [&str; 2] = ["dependentSchemas", "dependencies"];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
const PARTS: [&str; 8] = [
    "items",
    "additionalItems",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "prefixItems",
];
const PART_MAPS: [&str; 2] = ["properties", "patternProperties"];

/// How values are validated against a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// In this process: the work is at most the schema's size times the value's size.
    Light {
        /// The number of values in the schema.
        nodes: usize,
    },
    /// In a process with a time limit.
    Heavy,
}

/// Classifies a schema.
///
/// # Errors
/// The reason why the schema is rejected, as a clause about "it".
pub fn weigh(schema: &Value) -> Result<Weight, String> {
    let mut graph = Graph::default();
    graph.collect(schema, 0)?;
    let mut classifier = Classifier {
        graph: &graph,
        root: schema,
        sums: BTreeMap::new(),
        open: BTreeSet::new(),
        recursive: BTreeMap::new(),
        steps: 0,
    };
    let schemas = classifier.reachable()?;
    // Must come first: the second loop uses its sums, and relies on the absence of in-place cycles.
    for node in &schemas {
        classifier.expansion(node, 0)?;
    }
    for node in &schemas {
        classifier.reject_repeated_recursion(node)?;
    }
    let light = !graph.heavy && graph.nodes <= LIGHT_NODES_MAX;
    Ok(if light {
        Weight::Light { nodes: graph.nodes }
    } else {
        Weight::Heavy
    })
}

/// Counts the values in a JSON value, including itself. Stops at `most`.
#[must_use]
pub fn size(value: &Value, most: usize) -> usize {
    let mut count = 0_usize;
    let mut open = vec![value];
    while let Some(next) = open.pop() {
        count += 1;
        if count >= most {
            break;
        }
        match next {
            Value::Array(items) => open.extend(items),
            Value::Object(map) => open.extend(map.values()),
            _ => {}
        }
    }
    count
}

fn id(value: &Value) -> usize {
    // Schemas are compared by address: equal text in two places is two nodes of the graph.
    std::ptr::from_ref(value).addr()
}

#[derive(Default)]
struct Graph<'s> {
    nodes: usize,
    anchors: BTreeMap<&'s str, &'s Value>,
    heavy: bool,
}

impl<'s> Graph<'s> {
    fn collect(&mut self, value: &'s Value, depth: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(format!("it holds more than {NODES_MAX} values"));
        }
        if depth > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
        }
        match value {
            Value::Array(items) => items
                .iter()
                .try_for_each(|item| self.collect(item, depth + 1)),
            Value::Object(map) => {
                self.inspect_keywords(map, value)?;
                map.values()
                    .try_for_each(|part| self.collect(part, depth + 1))
            }
            _ => Ok(()),
        }
    }

    fn inspect_keywords(
        &mut self,
        map: &'s Map<String, Value>,
        value: &'s Value,
    ) -> Result<(), String> {
        for (key, part) in map {
            match (key.as_str(), part) {
                ("$anchor" | "$dynamicAnchor" | "$id" | "id", Value::String(name)) => {
                    self.anchors.entry(name.trim_matches('#')).or_insert(value);
                }
                ("pattern", Value::String(pattern)) => {
                    self.heavy = true;
                    pattern_fits(pattern)?;
                }
                ("patternProperties", Value::Object(patterns)) => {
                    self.heavy = true;
                    patterns
                        .keys()
                        .try_for_each(|pattern| pattern_fits(pattern))?;
                }
                ("uniqueItems", Value::Bool(true)) => self.heavy = true,
                (key, _) if REFERENCES.contains(&key) => self.heavy = true,
                _ => {}
            }
        }
        Ok(())
    }
}

fn pattern_fits(pattern: &str) -> Result<(), String> {
    if pattern.chars().nth(PATTERN_CHARS_MAX).is_some() {
        return Err(format!(
            "a pattern in it has more than {PATTERN_CHARS_MAX} characters"
        ));
    }
    Ok(())
}

struct Classifier<'g, 's> {
    graph: &'g Graph<'s>,
    root: &'s Value,
    sums: BTreeMap<usize, u64>,
    open: BTreeSet<usize>,
    recursive: BTreeMap<usize, bool>,
    steps: usize,
}

impl<'s> Classifier<'_, 's> {
    /// The schema that a reference points to, if it is in the same document.
    fn target(&self, reference: &str) -> Option<&'s Value> {
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let within = if base.is_empty() {
            self.root
        } else {
            self.graph.anchors.get(base).copied()?
        };
        if fragment.is_empty() {
            return Some(within);
        }
        if !fragment.starts_with('/') {
            return self.graph.anchors.get(fragment).copied();
        }
        let plain = fragment.replace("%25", "%").replace("%24", "$");
        // Pointers in URLs are percent-encoded; only the encodings that occur in practice are decoded.
        within.pointer(&plain).or_else(|| within.pointer(fragment))
    }

    fn in_place(&self, schema: &'s Value) -> Vec<&'s Value> {
        let Some(map) = schema.as_object() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (key, part) in map {
            match (key.as_str(), part) {
                (key, Value::Array(list)) if IN_PLACE_LISTS.contains(&key) => found.extend(list),
                (key, part) if IN_PLACE.contains(&key) => found.push(part),
                (key, Value::Object(of)) if IN_PLACE_MAPS.contains(&key) => {
                    found.extend(of.values());
                }
                (key, Value::String(to)) if REFERENCES.contains(&key) => {
                    found.extend(self.target(to));
                }
                _ => {}
            }
        }
        found
    }

    fn parts(&self, schema: &'s Value) -> Vec<&'s Value> {
        let Some(map) = schema.as_object() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (key, part) in map {
            match (key.as_str(), part) {
                (key, Value::Array(list)) if PARTS.contains(&key) => found.extend(list),
                (key, part) if PARTS.contains(&key) => found.push(part),
                (key, Value::Object(of)) if PART_MAPS.contains(&key) => found.extend(of.values()),
                _ => {}
            }
        }
        found
    }

    /// All schemas that are applied to the value or to a part of it.
    fn reachable(&mut self) -> Result<Vec<&'s Value>, String> {
        let mut seen = BTreeSet::from([id(self.root)]);
        let mut found = vec![self.root];
        let mut at = 0;
        while let Some(next) = found.get(at).copied() {
            at += 1;
            for part in self.in_place(next).into_iter().chain(self.parts(next)) {
                self.step()?;
                if seen.insert(id(part)) {
                    found.push(part);
                }
            }
        }
        Ok(found)
    }

    /// The number of schemas that are applied to one value.
    fn expansion(&mut self, schema: &'s Value, depth: usize) -> Result<u64, String> {
        if let Some(known) = self.sums.get(&id(schema)) {
            return Ok(*known);
        }
        if depth > DEPTH_MAX {
            return Err(format!(
                "its references lead from one to the next more than {DEPTH_MAX} times"
            ));
        }
        if !self.open.insert(id(schema)) {
            return Err("it refers to itself without looking at a part of the value".to_owned());
        }
        let mut sum = 1_u64;
        for part in self.in_place(schema) {
            sum = sum.saturating_add(self.expansion(part, depth + 1)?);
            if sum > EXPANSION_MAX {
                return Err(format!(
                    "its references and combinations expand to more than {EXPANSION_MAX} schemas"
                ));
            }
        }
        self.open.remove(&id(schema));
        self.sums.insert(id(schema), sum);
        Ok(sum)
    }

    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > SEARCH_STEPS_MAX {
            return Err("its references are too many to follow".to_owned());
        }
        Ok(())
    }

    /// Rejects a schema that applies a recursive schema to one value more than once.
    fn reject_repeated_recursion(&mut self, schema: &'s Value) -> Result<(), String> {
        if self.sums.get(&id(schema)).is_none_or(|sum| *sum < 3) {
            // Applying a schema twice takes at least three: this one and two others.
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        let mut open = self.in_place(schema);
        while let Some(next) = open.pop() {
            self.step()?;
            open.extend(self.in_place(next));
            if !seen.insert(id(next)) && self.contains_itself(next)? {
                return Err(
                    "it applies a schema that contains itself more than once to the same value"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }

    fn contains_itself(&mut self, schema: &'s Value) -> Result<bool, String> {
        if let Some(known) = self.recursive.get(&id(schema)) {
            return Ok(*known);
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![schema];
        let mut found = false;
        while let Some(next) = open.pop() {
            self.step()?;
            for part in self.in_place(next).into_iter().chain(self.parts(next)) {
                found |= id(part) == id(schema);
                if seen.insert(id(part)) {
                    open.push(part);
                }
            }
            if found {
                break;
            }
        }
        self.recursive.insert(id(schema), found);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// An `allOf` of ten references to the next level, for each level.
    fn tower(levels: usize) -> Value {
        let mut defs = Map::new();
        for level in 0..levels {
            let next = json!({"$ref": format!("#/$defs/a{}", level + 1)});
            defs.insert(format!("a{level}"), json!({"allOf": vec![next; 10]}));
        }
        defs.insert(format!("a{levels}"), json!({}));
        json!({"type": "object", "$defs": defs, "allOf": [{"$ref": "#/$defs/a0"}]})
    }

    #[test]
    fn schemas_that_expand_without_bound_are_refused() {
        assert_eq!(weigh(&tower(2)), Ok(Weight::Heavy));
        for levels in [4, 9, 13, 90] {
            assert!(weigh(&tower(levels)).is_err());
        }
        assert!(weigh(&tower(150)).is_err());
        let a = json!({"$ref": "#/$defs/a"});
        for key in ["additionalProperties", "items"] {
            for combination in ["allOf", "anyOf", "oneOf"] {
                let doubled =
                    json!({"$defs": {"a": {key: {combination: [a, a]}}}, "$ref": "#/$defs/a"});
                assert!(
                    weigh(&doubled).unwrap_err().contains("more than once"),
                    "{doubled}"
                );
            }
        }
        for circle in [
            json!({"$ref": "#"}),
            json!({"allOf": [{"$ref": "#"}]}),
            json!({"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"if": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}),
            json!({"$anchor": "x", "anyOf": [{"$ref": "#x"}]}),
        ] {
            assert!(weigh(&circle).unwrap_err().contains("itself"), "{circle}");
        }
        let deep = (0..200).fold(json!({}), |inner, _| json!({"items": inner}));
        assert!(weigh(&deep).unwrap_err().contains("deeper"));
        assert!(weigh(&json!({"pattern": "a".repeat(2_000)})).is_err());
        assert!(weigh(&json!({"enum": vec![1; NODES_MAX]})).is_err());
    }

    fn schema() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!({})),
            Just(json!(true)),
            prop::sample::select(vec![
                "#",
                "#/$defs/a",
                "#/$defs/b",
                "#x",
                "#/nowhere",
                "other.json"
            ])
            .prop_map(|to| json!({"$ref": to})),
        ];
        leaf.prop_recursive(5, 40, 3, |inner| {
            let list = prop::collection::vec(inner.clone(), 1..3);
            prop_oneof![
                (
                    prop::sample::select(vec!["allOf", "anyOf", "oneOf", "prefixItems"]),
                    list
                )
                    .prop_map(|(key, list)| json!({key: list})),
                (
                    prop::sample::select(vec!["not", "items", "additionalProperties", "if"]),
                    inner.clone()
                )
                    .prop_map(|(key, one)| json!({key: one})),
                (inner.clone(), inner).prop_map(
                    |(a, b)| json!({"$anchor": "x", "properties": {"p": a}, "$defs": {"a": b}})
                ),
            ]
        })
    }

    proptest! {
        #[test]
        fn classifying_any_schema_terminates_with_the_same_result(a in schema(), b in schema(), root in schema()) {
            let whole = json!({"$defs": {"a": a, "b": b}, "allOf": [root]});
            let weighed = weigh(&whole);
            prop_assert_eq!(weigh(&whole), weighed);
        }
    }

    #[test]
    fn ordinary_schemas_are_accepted() {
        let plain =
            json!({"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]});
        assert_eq!(weigh(&plain), Ok(Weight::Light { nodes: 7 }));
        let tree = json!({"$defs": {"node": {"type": "object", "properties": {
            "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "right": {"$ref": "#/$defs/node"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}},
            "properties": {"root": {"$ref": "#/$defs/node"}}});
        assert_eq!(weigh(&tree), Ok(Weight::Heavy));
        let filter = json!({"$defs": {"filter": {"oneOf": [
            {"properties": {"and": {"type": "array", "items": {"$ref": "#/$defs/filter"}}}},
            {"properties": {"or": {"type": "array", "items": {"$ref": "#/$defs/filter"}}}},
            {"properties": {"not": {"$ref": "#/$defs/filter"}}},
            {"properties": {"field": {"type": "string", "pattern": "^[a-z]+$"}}}]}},
            "properties": {"filter": {"$ref": "#/$defs/filter"}}});
        assert_eq!(weigh(&filter), Ok(Weight::Heavy));
        assert_eq!(weigh(&Value::Bool(true)), Ok(Weight::Light { nodes: 1 }));
    }
}
