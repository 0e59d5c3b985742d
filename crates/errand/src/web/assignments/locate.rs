//! Finds the line of a playbook step in the text, for a path such as `steps[2].with.path`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::yaml;

/// A parsed document with the position of each key and item.
enum Node {
    Map(Vec<(Spanned<String>, Node)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Leaf)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
}

/// The line, starting at 1, of a path. If the path is incomplete in the text, the line of its longest part that exists.
pub(super) fn line_of(text: &str, path: &str) -> Option<u64> {
    let root: Node = yaml::parse(text).ok()?;
    let mut at = &root;
    let mut line = None;
    for part in parts(path) {
        match (at, part) {
            (Node::Map(fields), Part::Key(key)) => {
                let Some((name, value)) = fields.iter().find(|(name, _)| name.value == key) else {
                    break;
                };
                line = Some(name.referenced.line());
                at = value;
            }
            (Node::List(items), Part::Index(index)) => {
                let Some(item) = items.get(index) else {
                    break;
                };
                line = Some(item.referenced.line());
                at = &item.value;
            }
            _ => break,
        }
    }
    line.filter(|line| *line > 0)
}

enum Part<'a> {
    Key(&'a str),
    Index(usize),
}

/// Splits `steps[2].with` into a key, an index and a key.
fn parts(path: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for name in path.split('.') {
        let mut pieces = name.split('[');
        if let Some(key) = pieces.next().filter(|key| !key.is_empty()) {
            parts.push(Part::Key(key));
        }
        for piece in pieces {
            if let Ok(index) = piece.trim_end_matches(']').parse() {
                parts.push(Part::Index(index));
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A comment\nsteps:\n  - say: hello\n  - tool: read_file\n    with:\n      path: /workspace/a\n      limit: 3\n  - for_each: \"{{ x }}\"\n    steps:\n      - say: a\n      - say: b\n";

    #[test]
    fn a_path_leads_to_its_line() {
        for (path, line) in [
            ("steps", 2),
            ("steps[0]", 3),
            ("steps[1].tool", 4),
            ("steps[1].with.path", 6),
            ("steps[2].steps[1].say", 11),
            ("steps[1].no_such_key", 4),
            ("steps[9]", 2),
        ] {
            assert_eq!(line_of(TEXT, path), Some(line), "{path}");
        }
        assert_eq!(line_of("steps: [", "steps"), None);
    }

    #[test]
    fn json_is_yaml_too() {
        assert_eq!(
            line_of("{\"steps\": [\n{\"say\": 1},\n{\"x\": 2}]}", "steps[1].x"),
            Some(3)
        );
    }
}
