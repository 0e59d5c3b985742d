//! The graph of a schema: which schemas apply to the same value, and which to its parts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{DEPTH_MAX, EXPANSION_MAX, NODES_MAX, PATTERN_CHARS_MAX};

/// Maximum steps of the search for recursive schemas, which is quadratic in the worst case.
const SEARCH_STEPS_MAX: usize = 2_000_000;

const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
/// Keywords that need to know what the other keywords have looked at. A validator applies those once more for them.
const LOOKS_AGAIN: [&str; 2] = ["unevaluatedProperties", "unevaluatedItems"];

/// Identifies a schema by its address: equal text in two places is two nodes of the graph.
pub(super) fn id(value: &Value) -> usize {
    std::ptr::from_ref(value).addr()
}

/// The schemas that a schema applies to its own value.
#[derive(Default)]
pub(super) struct InPlace<'s> {
    /// Each of these.
    pub(super) all: Vec<&'s Value>,
    /// Schemas of which only the verdict counts (`if`, `not`).
    pub(super) tested: Vec<&'s Value>,
    /// Alternatives: `anyOf`, `oneOf`, `then` and `else`.
    pub(super) choices: Vec<Vec<&'s Value>>,
    /// The places to which each reference may lead. It leads to one of them.
    pub(super) targets: Vec<Vec<&'s Value>>,
    /// Whether a keyword applies all of them once more.
    pub(super) looks_again: bool,
}

impl<'s> InPlace<'s> {
    pub(super) fn each(&self) -> impl Iterator<Item = &'s Value> {
        let groups = self.choices.iter().chain(&self.targets).flatten();
        self.all.iter().chain(&self.tested).chain(groups).copied()
    }
}

/// The schemas that a schema applies to the parts of its value.
#[derive(Default)]
pub(super) struct Parts<'s> {
    pub(super) properties: BTreeMap<&'s str, &'s Value>,
    pub(super) patterns: Vec<&'s Value>,
    /// For properties that none of the two above describes.
    pub(super) other_properties: Vec<&'s Value>,
    pub(super) names: Option<&'s Value>,
    /// For the first items, in order.
    pub(super) first_items: Vec<&'s Value>,
    /// For the items after them.
    pub(super) other_items: Vec<&'s Value>,
    pub(super) contains: Option<&'s Value>,
}

impl<'s> Parts<'s> {
    pub(super) fn each(&self) -> impl Iterator<Item = &'s Value> {
        let properties = self.properties.values().chain(&self.patterns);
        let items = self.first_items.iter().chain(&self.other_items);
        properties
            .chain(&self.other_properties)
            .chain(items)
            .chain(&self.names)
            .chain(&self.contains)
            .copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.each().next().is_none()
    }
}

/// A schema, examined once.
pub(super) struct Graph<'s> {
    root: &'s Value,
    nodes: usize,
    is_heavy: bool,
    /// Schemas with an `$id`, to which others can refer.
    resources: Vec<(&'s str, &'s Value)>,
    anchors: BTreeMap<&'s str, Vec<&'s Value>>,
    /// Schemas that may be meant by a reference that depends on the way that led to it.
    dynamic: Vec<&'s Value>,
    /// For each schema with a reference: the resources around it, outermost first.
    around: BTreeMap<usize, Vec<&'s Value>>,
}

impl<'s> Graph<'s> {
    pub(super) fn of(root: &'s Value) -> Result<Self, String> {
        let mut graph = Self {
            root,
            nodes: 0,
            is_heavy: false,
            resources: Vec::new(),
            anchors: BTreeMap::new(),
            dynamic: Vec::new(),
            around: BTreeMap::new(),
        };
        graph.collect(root, 0, &mut vec![root])?;
        Ok(graph)
    }

    pub(super) fn root(&self) -> &'s Value {
        self.root
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    pub(super) fn is_heavy(&self) -> bool {
        self.is_heavy
    }

    fn collect(
        &mut self,
        value: &'s Value,
        depth: usize,
        around: &mut Vec<&'s Value>,
    ) -> Result<(), String> {
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
                .try_for_each(|item| self.collect(item, depth + 1, around)),
            Value::Object(map) => {
                let is_resource = self.inspect_keywords(map, value)?;
                if is_resource {
                    around.push(value);
                }
                if REFERENCES.iter().any(|key| map.contains_key(*key)) {
                    self.is_heavy = true;
                    self.around.insert(id(value), around.clone());
                }
                map.values()
                    .try_for_each(|part| self.collect(part, depth + 1, around))?;
                if is_resource {
                    around.pop();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns whether references inside are relative to this schema.
    fn inspect_keywords(
        &mut self,
        map: &'s Map<String, Value>,
        value: &'s Value,
    ) -> Result<bool, String> {
        let mut is_resource = false;
        for (key, part) in map {
            match (key.as_str(), part) {
                ("$anchor", Value::String(name)) => self.anchor(name, value),
                ("$dynamicAnchor", Value::String(name)) => {
                    self.anchor(name, value);
                    self.dynamic.push(value);
                }
                ("$recursiveAnchor", Value::Bool(true)) => self.dynamic.push(value),
                ("$id" | "id", Value::String(name)) => {
                    if let Some(anchor) = name.strip_prefix('#') {
                        self.anchor(anchor, value);
                    } else {
                        self.resources.push((name, value));
                        is_resource = true;
                    }
                }
                ("pattern", Value::String(pattern)) => {
                    self.is_heavy = true;
                    pattern_fits(pattern)?;
                }
                ("patternProperties", Value::Object(patterns)) => {
                    self.is_heavy = true;
                    patterns
                        .keys()
                        .try_for_each(|pattern| pattern_fits(pattern))?;
                }
                ("uniqueItems", Value::Bool(true)) => self.is_heavy = true,
                (key, _) if LOOKS_AGAIN.contains(&key) => self.is_heavy = true,
                _ => {}
            }
        }
        Ok(is_resource)
    }

    fn anchor(&mut self, name: &'s str, value: &'s Value) {
        self.anchors.entry(name).or_default().push(value);
    }

    /// The schemas of this document to which a reference may lead.
    fn targets(&self, schema: &Value, keyword: &str, reference: &str) -> Vec<&'s Value> {
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let mut bases = if base.is_empty() {
            self.around.get(&id(schema)).cloned().unwrap_or_default()
        } else {
            self.resources_named(base)
        };
        let fragment = percent_decoded(fragment);
        let mut found = if fragment.is_empty() {
            bases
        } else if fragment.starts_with('/') {
            bases.retain_mut(|base| match base.pointer(&fragment) {
                Some(target) => {
                    *base = target;
                    true
                }
                None => false,
            });
            bases
        } else {
            self.anchors
                .get(fragment.as_ref() as &str)
                .cloned()
                .unwrap_or_default()
        };
        if keyword != "$ref" {
            found.extend(&self.dynamic);
        }
        let mut seen = BTreeSet::new();
        found.retain(|target| seen.insert(id(target)));
        found
    }

    /// The resources that an address may mean. An address that needs a closer look may mean each of them.
    fn resources_named(&self, base: &str) -> Vec<&'s Value> {
        let wanted = last_segment(base);
        let may_be = |name: &str| match (&wanted, last_segment(name)) {
            (Some(wanted), Some(name)) => *wanted == name,
            _ => true,
        };
        let named = self.resources.iter().filter(|(name, _)| may_be(name));
        named.map(|(_, value)| *value).collect()
    }

    /// Whether a schema refers to one of the schemas that every validator knows, although this document has dynamic
    /// anchors: the references of the other one may mean these.
    fn may_be_meant_elsewhere(&self, schema: &Value) -> bool {
        let known = |key: &&str| {
            let to = schema.get(*key).and_then(Value::as_str);
            to.is_some_and(|to| to.contains("json-schema.org"))
        };
        !self.dynamic.is_empty() && REFERENCES.iter().any(known)
    }

    pub(super) fn in_place(&self, schema: &'s Value) -> InPlace<'s> {
        let mut found = InPlace::default();
        let Some(map) = schema.as_object() else {
            return found;
        };
        for (key, part) in map {
            match (key.as_str(), part) {
                ("allOf", Value::Array(list)) => found.all.extend(list),
                ("anyOf" | "oneOf", Value::Array(list)) => {
                    found.choices.push(list.iter().collect());
                }
                ("not" | "if", part) => found.tested.push(part),
                ("dependentSchemas" | "dependencies", Value::Object(of)) => {
                    found.all.extend(of.values());
                }
                (key, Value::String(to)) if REFERENCES.contains(&key) => {
                    found.targets.push(self.targets(schema, key, to));
                }
                (key, _) if LOOKS_AGAIN.contains(&key) => found.looks_again = true,
                _ => {}
            }
        }
        let branches = ["then", "else"].into_iter().filter_map(|key| map.get(key));
        let branches: Vec<_> = branches.collect();
        if !branches.is_empty() {
            found.choices.push(branches);
        }
        found
    }

    pub(super) fn parts(&self, schema: &'s Value) -> Parts<'s> {
        let mut found = Parts::default();
        let Some(map) = schema.as_object() else {
            return found;
        };
        for (key, part) in map {
            match (key.as_str(), part) {
                ("properties", Value::Object(of)) => {
                    found.properties = of.iter().map(|(name, of)| (name.as_str(), of)).collect();
                }
                ("patternProperties", Value::Object(of)) => found.patterns.extend(of.values()),
                ("additionalProperties" | "unevaluatedProperties", of) => {
                    found.other_properties.push(of);
                }
                ("propertyNames", of) => found.names = Some(of),
                ("items" | "prefixItems", Value::Array(list)) => found.first_items.extend(list),
                ("items" | "additionalItems" | "unevaluatedItems", of) => {
                    found.other_items.push(of);
                }
                ("contains", of) => found.contains = Some(of),
                _ => {}
            }
        }
        found
    }
}

/// The last segment of an address, in lower case. `None` if it takes more than a glance to say what that is.
fn last_segment(address: &str) -> Option<String> {
    let address = address.trim_end_matches('#');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_~:/.".contains(c);
    if !address.chars().all(is_plain) || address.ends_with(['/', '.']) {
        return None;
    }
    let path = address.split_once("://").map_or(address, |(_, path)| path);
    if path.len() < address.len() && !path.contains('/') {
        // A host without a path.
        return None;
    }
    path.rsplit('/').next().map(str::to_ascii_lowercase)
}

/// Fragments are percent-encoded.
fn percent_decoded(fragment: &str) -> std::borrow::Cow<'_, str> {
    if !fragment.contains('%') {
        return fragment.into();
    }
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%')
            .then(|| std::str::from_utf8(after.get(..2)?).ok())
            .flatten()
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = match code {
            Some(_) => after.get(2..).unwrap_or_default(),
            None => after,
        };
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

fn pattern_fits(pattern: &str) -> Result<(), String> {
    if pattern.chars().nth(PATTERN_CHARS_MAX).is_some() {
        return Err(format!(
            "a pattern in it has more than {PATTERN_CHARS_MAX} characters"
        ));
    }
    Ok(())
}

/// The search for schemas that expand without bound.
pub(super) struct Classifier<'g, 's> {
    graph: &'g Graph<'s>,
    sums: BTreeMap<usize, u64>,
    open: BTreeSet<usize>,
    recursive: BTreeMap<usize, bool>,
    steps: usize,
}

impl<'g, 's> Classifier<'g, 's> {
    pub(super) fn of(graph: &'g Graph<'s>) -> Self {
        Self {
            graph,
            sums: BTreeMap::new(),
            open: BTreeSet::new(),
            recursive: BTreeMap::new(),
            steps: 0,
        }
    }

    fn applied(&self, schema: &'s Value) -> Vec<&'s Value> {
        let in_place = self.graph.in_place(schema);
        let parts = self.graph.parts(schema);
        in_place.each().chain(parts.each()).collect()
    }

    /// All schemas that are applied to the value or to a part of it.
    pub(super) fn reachable(&mut self) -> Result<Vec<&'s Value>, String> {
        let root = self.graph.root;
        let mut seen = BTreeSet::from([id(root)]);
        let mut found = vec![root];
        let mut at = 0;
        while let Some(next) = found.get(at).copied() {
            at += 1;
            if self.graph.may_be_meant_elsewhere(next) {
                return Err(
                    "it refers to another document, whose references may lead back to it"
                        .to_owned(),
                );
            }
            for part in self.applied(next) {
                self.step()?;
                if seen.insert(id(part)) {
                    found.push(part);
                }
            }
        }
        Ok(found)
    }

    /// The number of schemas that are applied to one value.
    pub(super) fn expansion(&mut self, schema: &'s Value, depth: usize) -> Result<u64, String> {
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
        let in_place = self.graph.in_place(schema);
        let times = if in_place.looks_again { 2 } else { 1 };
        let mut sum = 1_u64;
        for part in in_place.each() {
            let inner = self.expansion(part, depth + 1)?;
            sum = sum.saturating_add(inner.saturating_mul(times));
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
    pub(super) fn reject_repeated_recursion(&mut self, schema: &'s Value) -> Result<(), String> {
        if self.sums.get(&id(schema)).is_none_or(|sum| *sum < 3) {
            // Applying a schema twice takes at least three: this one and two others.
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        let mut open: Vec<_> = self.graph.in_place(schema).each().collect();
        while let Some(next) = open.pop() {
            self.step()?;
            open.extend(self.graph.in_place(next).each());
            if !seen.insert(id(next)) && self.contains_itself(next)? {
                return Err(super::recursion::REPEATED.to_owned());
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
            for part in self.applied(next) {
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
