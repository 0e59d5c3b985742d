//! Fills in secrets when a call is made, and masks them in everything that comes back.
//!
//! # Guarantees
//!
//! - Secret values are in memory only during the call for which they were decrypted.
//! - A call is not made if a secret is missing or the build may not use it.
//! - Results are masked for *every* secret of the team, because a server may return what another call sent to it. A
//!   value is masked as it is and in base64 (standard and URL-safe, at any offset in a longer text), URL, JSON, HTML
//!   and hexadecimal encoding.
//!
//! # Non-goals
//!
//! Proof: masking is a safety net. A server that receives a secret can return it in a form that is not detected.

use std::collections::{BTreeMap, BTreeSet};

mod view;

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use errand_core::id::TeamId;
use errand_core::secret::{self, VALUE_CHARS_MIN};
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::Outcome;
use errand_store::{Store, StoreError};
use serde_json::{Map, Value};
use url::Url;

use self::view::View;

/// The decrypted secrets of a team. Deliberately without `Debug`.
pub(crate) struct Secrets {
    values: BTreeMap<String, String>,
    mask: Mask,
}

/// Finds secret values and their encodings in text.
struct Mask {
    /// `None` if there are no secrets, or too many to build an automaton.
    forms: Option<AhoCorasick>,
    /// The same patterns, normalized by a [`View`].
    seen: Option<AhoCorasick>,
    /// The replacement for each pattern, by pattern number.
    marks: Vec<String>,
    /// Whether the automaton could not be built. Then every text is masked completely.
    blind: bool,
}

impl Secrets {
    /// Decrypts the secrets of a team.
    ///
    /// # Errors
    /// The store cannot be read, or a secret cannot be decrypted ([`StoreError::Seal`]).
    pub(crate) async fn of(store: &Store, team: TeamId) -> Result<Self, StoreError> {
        Ok(Self::new(store.open_secrets(team).await?))
    }

    pub(crate) fn new(secrets: Vec<(String, String)>) -> Self {
        let mask = Mask::new(&secrets);
        Self {
            values: secrets.into_iter().collect(),
            mask,
        }
    }

    /// Replaces the secret marks in a call's arguments with values. `may`: the names that the build may use.
    ///
    /// # Errors
    /// The error of the call, which is then not made.
    pub(crate) fn fill_arguments(
        &self,
        arguments: &Map<String, Value>,
        may: &BTreeSet<String>,
    ) -> Result<Map<String, Value>, ToolError> {
        let named = secret::marks_in_arguments(arguments);
        if let Some(name) = named.iter().find(|name| !may.contains(*name)) {
            let message = format!(
                "this assignment may not use the secret {name}; its build lists the secrets that it may use in data.secrets"
            );
            return Err(ToolError::new(ToolErrorCode::NotRun, message));
        }
        secret::fill_arguments(arguments, &|name| self.values.get(name).cloned()).map_err(absent)
    }

    /// Replaces the secret marks in a text of a connection's setup.
    ///
    /// # Errors
    /// A message that names the missing secret.
    pub(crate) fn fill_text(&self, text: &str) -> Result<String, String> {
        secret::fill_text(text, &|name| self.values.get(name).cloned())
            .map(std::borrow::Cow::into_owned)
            .map_err(|name| absent(name).to_string())
    }

    /// Replaces the secret marks in the query of an address with percent-encoded values.
    ///
    /// # Errors
    /// A message that names the missing secret.
    pub(crate) fn fill_query(&self, address: &str) -> Result<String, String> {
        let value_of = |name: &str| {
            let value = self.values.get(name)?;
            Some(percent(value, "-._~", Case::Upper))
        };
        match address.split_once('?') {
            Some((place, query)) => {
                let filled =
                    secret::fill_text(query, &value_of).map_err(|name| absent(name).to_string())?;
                Ok(format!("{place}?{filled}"))
            }
            None => Ok(address.to_owned()),
        }
    }

    /// Masks secrets in a text.
    pub(crate) fn mask(&self, text: &str) -> String {
        self.mask.text(text)
    }

    /// Masks secrets in all strings and keys of a value.
    pub(crate) fn mask_value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.mask.text(&text)),
            Value::Array(items) => Value::Array(
                items
                    .into_iter()
                    .map(|item| self.mask_value(item))
                    .collect(),
            ),
            Value::Object(map) => Value::Object(
                map.into_iter()
                    .map(|(key, item)| (self.mask.text(&key), self.mask_value(item)))
                    .collect(),
            ),
            // A secret that consists of digits may come back as a number.
            Value::Number(number) => {
                let text = number.to_string();
                let masked = self.mask.text(&text);
                if masked == text {
                    Value::Number(number)
                } else {
                    Value::String(masked)
                }
            }
            Value::Null | Value::Bool(_) => value,
        }
    }

    /// Masks secrets in a call's outcome.
    pub(crate) fn mask_outcome(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Result(value) => Outcome::Result(self.mask_value(value)),
            Outcome::Error(error) => Outcome::Error(error.map_message(|text| self.mask.text(text))),
        }
    }
}

fn absent(name: String) -> ToolError {
    let message =
        format!("there is no secret {name}; an admin of the team sets it with POST /v1/secrets");
    ToolError::new(ToolErrorCode::NotRun, message)
}

impl Mask {
    fn new(secrets: &[(String, String)]) -> Self {
        let (mut forms, mut seen, mut marks) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in secrets {
            for form in forms_of(value) {
                // Both automata use one list of replacements. A view that is too short to search for is replaced by the
                // plain form, which never occurs in a view.
                let view = View::of(&form, 0).text;
                let is_long = view.chars().count() >= VALUE_CHARS_MIN;
                seen.push(if is_long { view } else { form.clone() });
                forms.push(form);
                marks.push(secret::mark(name));
            }
        }
        if forms.is_empty() {
            return Self {
                forms: None,
                seen: None,
                marks,
                blind: false,
            };
        }
        // The longest match wins, so that no part of a longer form remains.
        let automaton = |forms: &[String]| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(forms)
        };
        let (forms, seen) = (automaton(&forms), automaton(&seen));
        Self {
            blind: forms.is_err() || seen.is_err(),
            forms: forms.ok(),
            seen: seen.ok(),
            marks,
        }
    }

    fn text(&self, text: &str) -> String {
        if self.blind {
            return "masked: the team's secrets could not be searched for".to_owned();
        }
        let (Some(forms), Some(seen)) = (&self.forms, &self.seen) else {
            return text.to_owned();
        };
        let plain = forms
            .find_iter(text)
            .map(|found| (found.range(), found.pattern().as_usize()));
        let mut found: Vec<(Range<usize>, usize)> = plain.collect();
        for window in windows(text) {
            let view = View::of(text.get(window.clone()).unwrap_or_default(), window.start);
            found.extend(seen.find_iter(&view.text).filter_map(|found| {
                Some((view.range(found.range())?, found.pattern().as_usize()))
            }));
        }
        if found.is_empty() {
            return text.to_owned();
        }
        found.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        for (range, pattern) in found {
            if range.start >= done {
                out.push_str(text.get(done..range.start).unwrap_or_default());
                let mark = self.marks.get(pattern);
                out.push_str(mark.map_or("masked", String::as_str));
            }
            // A match that overlaps a masked secret is also a part of one.
            done = done.max(range.end);
        }
        out.push_str(text.get(done..).unwrap_or_default());
        out
    }
}

/// Splits a text into windows. Consecutive windows overlap by more than the longest pattern.
fn windows(text: &str) -> impl Iterator<Item = Range<usize>> {
    const STEP: usize = 512 * 1024;
    const OVERLAP: usize = 128 * 1024;
    (0..text.len()).step_by(STEP).map(|start| {
        let end = text.len().min(start + STEP + OVERLAP);
        text.floor_char_boundary(start)..text.ceil_char_boundary(end)
    })
}

/// All forms in which a value may come back.
fn forms_of(value: &str) -> BTreeSet<String> {
    let mut forms = BTreeSet::from([
        value.to_owned(),
        value.trim().to_owned(),
        in_json(value),
        in_json(&in_json(value)),
        in_json_ascii(value),
        in_html(value),
        hex::encode(value),
        hex::encode_upper(value),
    ]);
    for keep in [
        "-._~",
        "-._*",
        "-._~!*'()",
        "",
        "-._~!$&'()*+,;=:@/?",
        "-_.!~*'();/?:@&=+$,#",
    ] {
        for case in [Case::Upper, Case::Lower] {
            let plain = percent(value, keep, case);
            forms.insert(plain.replace("%20", "+"));
            forms.insert(plain);
        }
    }
    forms.extend(in_addresses(value));
    // The lines of a key may come back with other line breaks.
    if value.contains('\n') {
        forms.insert(value.replace("\r\n", "\n"));
        forms.insert(value.replace("\r\n", "\n").replace('\n', "\r\n"));
        // Each line that is long enough to be a secret by itself.
        forms.extend(
            value
                .lines()
                .map(|line| line.trim().to_owned())
                .filter(|line| line.len() >= 32),
        );
    }
    forms.extend(in_base64(value.as_bytes()));
    forms.extend(in_base32(value.as_bytes()));
    forms.insert(value.chars().rev().collect());
    // Two encodings on top of each other. Nested escapes are undone by the view.
    let lower_hex = hex::encode(value);
    let upper_hex = hex::encode_upper(value);
    for once in [
        STANDARD_NO_PAD.encode(value),
        STANDARD.encode(value),
        URL_SAFE_NO_PAD.encode(value),
        percent(value, "-._~", Case::Upper),
        lower_hex,
        upper_hex,
    ] {
        forms.extend(in_base64(once.as_bytes()));
        forms.extend(in_base32(once.as_bytes()));
        forms.insert(hex::encode(&once));
        forms.insert(once.chars().rev().collect());
    }
    // In basic authentication, the unknown user name shifts the value. `in_base64` covers every offset.
    forms.retain(|form| form.chars().count() >= VALUE_CHARS_MIN);
    forms
}

/// The base64 characters that depend only on the value, for each of the three offsets at which it can begin.
fn in_base64(value: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend(value);
        // Characters that also encode neighboring bytes are left out.
        let skip = [0, 2, 3].get(before).copied().unwrap_or_default();
        let whole = padded.len() * 8 / 6;
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = engine.encode(&padded);
            if let Some(form) = text.get(skip..whole.min(text.len())) {
                forms.push(form.to_owned());
            }
        }
    }
    // The complete encoding too, so that the last characters are masked if the value ends the text.
    forms.push(STANDARD_NO_PAD.encode(value));
    forms.push(URL_SAFE_NO_PAD.encode(value));
    forms
}

/// The base32 characters (RFC 4648) that depend only on the value, for each of the five offsets at which it can begin.
fn in_base32(value: &[u8]) -> Vec<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let encode = |bytes: &[u8]| -> String {
        let (mut text, mut bits, mut count) = (String::new(), 0_u32, 0_u32);
        let mut push = |index: u32| {
            let letter = ALPHABET.get((index & 31) as usize);
            text.push(char::from(letter.copied().unwrap_or(b'A')));
        };
        for byte in bytes {
            bits = (bits << 8) | u32::from(*byte);
            count += 8;
            while count >= 5 {
                count -= 5;
                push(bits >> count);
            }
            bits &= 0xff;
        }
        if count > 0 {
            push(bits << (5 - count));
        }
        text
    };
    let mut forms = vec![encode(value)];
    for before in 0..5 {
        let mut padded = vec![0; before];
        padded.extend(value);
        let (skip, whole) = ((before * 8).div_ceil(5), padded.len() * 8 / 5);
        let text = encode(&padded);
        forms.extend(text.get(skip..whole.min(text.len())).map(str::to_owned));
    }
    forms
}

fn in_json(value: &str) -> String {
    let quoted = Value::String(value.to_owned()).to_string();
    quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(value)
        .to_owned()
}

/// JSON with non-ASCII characters and slashes escaped.
fn in_json_ascii(value: &str) -> String {
    use std::fmt::Write as _;
    in_json(value).chars().fold(String::new(), |mut out, c| {
        if c == '/' {
            out.push_str("\\/");
        } else if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
        out
    })
}

fn in_html(value: &str) -> String {
    value
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// The value as this program's URL parser normalizes it, in a path and in a query.
fn in_addresses(value: &str) -> Vec<String> {
    let begins = ["http://x/", "http://x/?"];
    let forms = begins.iter().filter_map(|begin| {
        let mut url = Url::parse(&format!("{begin}{value}")).ok()?;
        url.set_fragment(None);
        url.as_str().strip_prefix(begin).map(str::to_owned)
    });
    forms.collect()
}

/// The case of hexadecimal digits.
#[derive(Clone, Copy)]
enum Case {
    Upper,
    Lower,
}

/// Percent-encodes everything except letters, digits and `keep`.
fn percent(value: &str, keep: &str, case: Case) -> String {
    value
        .bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || keep.as_bytes().contains(&byte) {
                char::from(byte).to_string()
            } else {
                match case {
                    Case::Upper => format!("%{byte:02X}"),
                    Case::Lower => format!("%{byte:02x}"),
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
