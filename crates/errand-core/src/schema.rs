//! Bounds for JSON schemas from third parties: how expensive it can be to validate a value against one.
//!
//! A schema is treated as a graph. *In-place* keywords (`$ref`, `allOf`, `anyOf`, `not` and similar) apply further
//! schemas to the same value; all others apply them to a part of it. Rejected are schemas whose in-place keywords form
//! a cycle or expand to too many schemas, and recursive schemas of which two copies apply to the same part of a value,
//! because each level of the value then doubles the work ([`recursion`]). Where a reference may lead to several places
//! (`$id` changes what it is relative to, `$dynamicRef` depends on the way), all of them count.
//!
//! # Guarantees
//!
//! [`work`] bounds the work for one value before it is done. It also covers what [`weigh`] accepts because ordinary
//! schemas have that form, such as two alternatives that describe the same recursive property.
//!
//! # Non-goals
//!
//! The time that regular expressions take, and what `unevaluatedProperties` and `unevaluatedItems` cost exactly (they are
//! counted as applying everything on the same value once more). A schema that is not [`Weight::Light`] is validated in a process with a time
//! limit.

mod graph;
mod recursion;
mod work;

use serde_json::Value;

use graph::{Classifier, Graph};
pub use work::{WORK_MAX, work};

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
    let graph = Graph::of(schema)?;
    let mut classifier = Classifier::of(&graph);
    let schemas = classifier.reachable()?;
    // Must come first: what follows uses its sums, and relies on the absence of in-place cycles.
    for node in &schemas {
        classifier.expansion(node, 0)?;
    }
    for node in &schemas {
        classifier.reject_repeated_recursion(node)?;
    }
    recursion::reject_overlaps(&graph, &schemas)?;
    let light = !graph.is_heavy() && graph.nodes() <= LIGHT_NODES_MAX;
    Ok(if light {
        Weight::Light {
            nodes: graph.nodes(),
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

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

    /// Forms that double the work with each level of a value, one for each way to write it.
    fn doubling() -> Vec<Value> {
        let a = || json!({"$ref": "#/$defs/a"});
        let defined = |a: Value| json!({"$defs": {"a": a}, "$ref": "#/$defs/a"});
        let own = |key: &str, of: Value| {
            let mut schema = json!({"properties": {"a": {"$ref": "#/$defs/a"}}});
            schema[key] = of;
            schema
        };
        let again = || json!({"properties": {"a": {"$ref": "#/$defs/a"}}});
        vec![
            // What a tester found.
            json!({"$id": "http://x/y", "$defs": {"a": {"$id": "z", "type": "object", "additionalProperties":
                {"allOf": [{"$ref": "http://x/z"}, {"$ref": "z"}]}}}, "$ref": "z"}),
            defined(own("dependentSchemas", json!({"a": again()}))),
            // The same in other words.
            json!({"$id": "http://x/y", "$defs": {"a": {"$id": "z", "additionalProperties":
                {"allOf": [{"$ref": "%7A"}, {"$ref": "./q/../z"}]}}}, "$ref": "z"}),
            json!({"$id": "http://x/y", "$defs": {"a": {"$id": "sub/", "additionalProperties":
                {"allOf": [{"$ref": "#"}, {"$ref": "http://x/sub/"}]}}}, "$ref": "sub/"}),
            defined(own("dependencies", json!({"a": again()}))),
            defined(own("allOf", json!([again()]))),
            defined(own("not", again())),
            defined(own("if", again())),
            defined(own("then", again())),
            defined(own("anyOf", json!([again()]))),
            defined(own("$ref", json!("#/$defs/a/allOf/0")))
                .merged("/$defs/a/allOf", json!([again()])),
            defined(own("patternProperties", json!({"^a$": a()}))),
            defined(json!({"patternProperties": {"^a$": a(), "a": a()}})),
            defined(
                json!({"patternProperties": {"^a$": a()}, "additionalProperties": a(), "allOf": [{"additionalProperties": a()}]}),
            ),
            defined(json!({"items": a(), "contains": a()})),
            defined(json!({"items": a(), "allOf": [{"prefixItems": [a()]}]})),
            defined(
                json!({"additionalProperties": {"allOf": [{"$ref": "#x"}, {"$dynamicRef": "#x"}]}, "$dynamicAnchor": "x"}),
            ),
            defined(
                json!({"$anchor": "x", "additionalProperties": {"allOf": [{"$ref": "#x"}, a()]}}),
            ),
            defined(json!({"if": {"properties": {"a": a()}}, "then": {"properties": {"a": a()}}})),
            json!({"$recursiveAnchor": true, "properties": {"a": {"$recursiveRef": "#"}}, "allOf": [{"properties": {"a": {"$ref": "#"}}}]}),
            json!({"$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/b"}}, "allOf": [{"properties": {"a": {"$ref": "#/$defs/c"}}}]},
                "b": {"$ref": "#/$defs/a"}, "c": {"items": a(), "properties": {"a": a()}}}, "$ref": "#/$defs/a"}),
            json!({"$dynamicAnchor": "meta", "allOf": [{"$ref": "https://json-schema.org/draft/2020-12/schema"}]}),
        ]
    }

    trait Merged {
        fn merged(self, at: &str, value: Value) -> Value;
    }

    impl Merged for Value {
        fn merged(mut self, at: &str, value: Value) -> Value {
            let (parent, key) = at.rsplit_once('/').unwrap();
            self.pointer_mut(parent).unwrap()[key] = value;
            self
        }
    }

    #[test]
    fn each_form_of_doubling_is_refused() {
        for schema in doubling() {
            assert!(weigh(&schema).is_err(), "{schema}");
        }
        // Nothing refers to anything here.
        let again = (0..20).fold(
            json!({}),
            |inner, _| json!({"unevaluatedProperties": false, "allOf": [inner]}),
        );
        assert!(weigh(&again).unwrap_err().contains("expand"));
    }

    #[test]
    fn alternatives_with_the_same_recursive_part_are_bounded_for_each_value() {
        let node = |kind: &str| json!({"properties": {"type": {"const": kind}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}});
        let schema =
            json!({"$defs": {"node": {"anyOf": [node("a"), node("b")]}}, "$ref": "#/$defs/node"});
        assert_eq!(weigh(&schema), Ok(Weight::Heavy));
        let tree = |depth: usize| {
            (0..depth).fold(
                json!({"type": "a"}),
                |inner, _| json!({"type": "b", "children": [inner]}),
            )
        };
        assert!(work(&schema, &tree(8)).unwrap() < WORK_MAX);
        assert!(work(&schema, &tree(50)).is_err());
        let wide = json!({"type": "a", "children": vec![json!({"type": "b"}); 10_000]});
        assert!(work(&schema, &wide).is_ok());
    }

    #[test]
    fn work_grows_with_the_value_and_not_faster() {
        let tree = json!({"$defs": {"node": {"type": "object", "properties": {
            "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}, "$ref": "#/$defs/node"});
        let value = |depth: usize| {
            (0..depth).fold(json!({}), |inner, _| json!({"left": {"children": [inner]}}))
        };
        let (short, long) = (
            work(&tree, &value(10)).unwrap(),
            work(&tree, &value(40)).unwrap(),
        );
        // The passes for a verdict and for the errors make it quadratic in the depth at most.
        assert!(long < 20 * short, "{short}, {long}");
        let numbers = json!(vec![1; 1_000_000]);
        let list = json!({"type": "array", "items": {"type": "number"}});
        assert_eq!(work(&list, &numbers), Ok(1_000_001));
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
                "other.json",
                "z",
                "http://x/z"
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
                    prop::sample::select(vec![
                        "not",
                        "items",
                        "additionalProperties",
                        "if",
                        "contains",
                        "unevaluatedProperties"
                    ]),
                    inner.clone()
                )
                    .prop_map(|(key, one)| json!({key: one})),
                (inner.clone(), inner.clone()).prop_map(
                    |(a, b)| json!({"$anchor": "x", "properties": {"p": a}, "$defs": {"a": b}})
                ),
                (inner.clone(), inner).prop_map(
                    |(a, b)| json!({"dependentSchemas": {"p": a}, "patternProperties": {"p": b}})
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
