//! Finds JSON that cannot be stored and returned exactly: a repeated name in an object, and a number with more digits
//! than 64 bits can represent.
//!
//! A build's `config` is returned as it was sent, and a setting that is silently overridden by its second occurrence is
//! a mistake that nobody would notice. Both are refused, with the path. The text has already been parsed, so it is
//! valid JSON and its depth is bounded.

use std::collections::HashSet;

/// The path and a description of the first problem.
pub(crate) fn inexact(text: &[u8]) -> Option<(String, String)> {
    let mut scan = Scan {
        text,
        at: 0,
        frames: Vec::new(),
    };
    scan.run()
}

/// An open object or array.
enum Frame {
    Object {
        names: HashSet<String>,
        name: String,
        /// Whether the next string is a name.
        wants_name: bool,
    },
    Array(usize),
}

struct Scan<'t> {
    text: &'t [u8],
    at: usize,
    frames: Vec<Frame>,
}

impl Scan<'_> {
    fn run(&mut self) -> Option<(String, String)> {
        while let Some(byte) = self.text.get(self.at).copied() {
            match byte {
                b'{' => self.frames.push(Frame::Object {
                    names: HashSet::new(),
                    name: String::new(),
                    wants_name: true,
                }),
                b'[' => self.frames.push(Frame::Array(0)),
                b'}' | b']' => {
                    self.frames.pop();
                }
                b',' => match self.frames.last_mut() {
                    Some(Frame::Object { wants_name, .. }) => *wants_name = true,
                    Some(Frame::Array(index)) => *index += 1,
                    None => {}
                },
                b'"' => {
                    let string = self.string();
                    if let Some(found) = self.named(string) {
                        return Some(found);
                    }
                    continue;
                }
                b'-' | b'0'..=b'9' => {
                    let number = self.number();
                    if !is_kept(number) {
                        let number = String::from_utf8_lossy(number);
                        let shown: String = number.chars().take(40).collect();
                        return Some((
                            self.path(),
                            format!(
                                "the number {shown} has more digits than can be stored; send it as a string"
                            ),
                        ));
                    }
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        None
    }

    /// Scans the string that begins here. Returns its range including the quotes.
    fn string(&mut self) -> (usize, usize) {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.text.get(self.at) {
            self.at += 1;
            match byte {
                b'\\' => self.at += 1,
                b'"' => break,
                _ => {}
            }
        }
        (start, self.at.min(self.text.len()))
    }

    /// Uses a string as a member's name, if a name is expected here. Returns a problem if the name is a repetition.
    fn named(&mut self, (start, end): (usize, usize)) -> Option<(String, String)> {
        let Some(Frame::Object {
            names,
            name,
            wants_name,
        }) = self.frames.last_mut()
        else {
            return None;
        };
        if !*wants_name {
            return None;
        }
        let quoted = self.text.get(start..end).unwrap_or_default();
        *name = serde_json::from_slice(quoted).unwrap_or_default();
        *wants_name = false;
        if names.insert(name.clone()) {
            return None;
        }
        Some((self.path(), "it is given twice; send it once".to_owned()))
    }

    /// Scans the number that begins here.
    fn number(&mut self) -> &[u8] {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_of_number =
            |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.iter().take_while(is_of_number).count();
        self.at += length.max(1);
        rest.get(..length).unwrap_or_default()
    }

    fn path(&self) -> String {
        use std::fmt::Write as _;
        let mut path = String::new();
        for frame in &self.frames {
            let written = match frame {
                Frame::Object { name, .. } if path.is_empty() => write!(path, "{name}"),
                Frame::Object { name, .. } => write!(path, ".{name}"),
                Frame::Array(index) => write!(path, "[{index}]"),
            };
            // Writing to a string does not fail.
            let _ = written;
        }
        path
    }
}

/// Whether a number keeps its value: a 64-bit integer, or a decimal that a double represents uniquely.
fn is_kept(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else {
        return false;
    };
    if !text.contains(['.', 'e', 'E']) {
        return text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
    }
    let Ok(double) = text.parse::<f64>() else {
        return false;
    };
    double.is_finite() && decimal(text) == decimal(&format!("{double:e}"))
}

/// The significant digits of a decimal, and the exponent of the last one.
fn decimal(text: &str) -> (String, i64) {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: String = whole
        .chars()
        .chain(fraction.chars())
        .filter(char::is_ascii_digit)
        .collect();
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return (String::new(), 0);
    }
    let dropped = digits.len() - significant.len();
    let shift = i64::try_from(dropped).unwrap_or(0) - i64::try_from(fraction.len()).unwrap_or(0);
    (significant.to_owned(), exponent.saturating_add(shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(text: &str) -> Option<String> {
        serde_json::from_str::<serde_json::Value>(text).unwrap();
        inexact(text.as_bytes()).map(|(path, _)| path)
    }

    #[test]
    fn representable_values_pass() {
        for text in [
            "{}",
            r#"{"a": {"b": 1}, "b": [1, {"a": 2}, {"a": 3}], "c": "{\"c\": 1, \"c\": 2}"}"#,
            r#"{"a": [18446744073709551615, -9223372036854775808, 0, -0, 5.0, 1.50, 0.1, 1e3, 1E+3, 1.25e-7, 0.000, 1e300]}"#,
            r#"{"a": "\\", "b": "\"", "c": 0.30000000000000004, "d": 123456789.12345678}"#,
        ] {
            assert_eq!(path_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_repeated_name_is_found_at_any_depth() {
        assert_eq!(path_of(r#"{"a": 1, "a": 2}"#).as_deref(), Some("a"));
        assert_eq!(
            path_of(r#"{"c": {"d": [0, {"x": {}, "\u0078": 1}]}}"#).as_deref(),
            Some("c.d[1].x")
        );
    }

    #[test]
    fn a_number_that_would_change_is_found() {
        for number in [
            "123456789012345678901234567890",
            "18446744073709551616",
            "-9223372036854775809",
            "0.1000000000000000055511151231257827",
            "123456789012345678.5",
            "1.7976931348623157001e308",
        ] {
            let text = format!(r#"{{"c": {{"n": [1, {number}]}}}}"#);
            assert_eq!(path_of(&text).as_deref(), Some("c.n[1]"), "{number}");
        }
    }
}
