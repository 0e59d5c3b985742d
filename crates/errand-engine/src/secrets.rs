//! Secrets at the moment of a call: put in for their marks, and taken out of whatever comes back.
//!
//! Promised: the values live as long as the call they are opened for; a call whose secret is not there, or not the
//! build's to use, does not begin; what comes back is masked for *every* secret of the team, since a server may give
//! back what another call gave it. Masked are a value itself and what it becomes in base64 (standard and URL-safe, at
//! any place in a longer text), in URLs, in JSON, in HTML, in hexadecimal.
//!
//! Masking is a net, not a proof: whoever is given a secret may give it back in a form that is not looked for.

use std::collections::{BTreeMap, BTreeSet};

mod view;

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use errand_core::id::TeamId;
use errand_core::secret::{self, VALUE_CHARS_MIN};
use errand_core::transcript::Outcome;
use errand_store::{Store, StoreError};
use serde_json::{Map, Value};
use url::Url;

use self::view::View;

/// The secrets of a team, opened. Without `Debug`.
pub(crate) struct Secrets {
    values: BTreeMap<String, String>,
    mask: Mask,
}

/// Finds values and their encodings in texts.
struct Mask {
    /// None where there is nothing to find, or so much that no automaton can be made.
    forms: Option<AhoCorasick>,
    /// The same forms as a [`View`] has them.
    seen: Option<AhoCorasick>,
    /// What stands in for each form, by its number.
    marks: Vec<String>,
    /// Nothing may come back: what is to be masked cannot be looked for.
    blind: bool,
}

impl Secrets {
    /// Opens those of a team.
    ///
    /// # Errors
    /// Of the store; [`StoreError::Seal`] where one cannot be opened.
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

    /// A call's arguments with the values in place of the marks. `may`: the names that the build may use.
    ///
    /// # Errors
    /// The error that the call gets, without being begun.
    pub(crate) fn fill_arguments(
        &self,
        arguments: &Map<String, Value>,
        may: &BTreeSet<String>,
    ) -> Result<Map<String, Value>, String> {
        let named = secret::marks_in_arguments(arguments);
        if let Some(name) = named.iter().find(|name| !may.contains(*name)) {
            return Err(format!(
                "not_run: this assignment may not use the secret {name}; its build names those that it may use in data.secrets"
            ));
        }
        secret::fill_arguments(arguments, &|name| self.values.get(name).cloned()).map_err(absent)
    }

    /// A text of a connection's setup with the values in place of the marks.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn fill_text(&self, text: &str) -> Result<String, String> {
        secret::fill_text(text, &|name| self.values.get(name).cloned())
            .map(std::borrow::Cow::into_owned)
            .map_err(absent)
    }

    /// An address with the values in place of the marks in its query, percent-encoded.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn fill_query(&self, address: &str) -> Result<String, String> {
        let value_of = |name: &str| {
            let value = self.values.get(name)?;
            Some(percent(value, "-._~", "0123456789ABCDEF"))
        };
        match address.split_once('?') {
            Some((place, query)) => {
                let filled = secret::fill_text(query, &value_of).map_err(absent)?;
                Ok(format!("{place}?{filled}"))
            }
            None => Ok(address.to_owned()),
        }
    }

    /// A text without secrets.
    pub(crate) fn mask(&self, text: &str) -> String {
        self.mask.text(text)
    }

    /// A value without secrets, in texts and in keys.
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
            // A secret of digits alone may come back as a number.
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

    /// What became of a call, without secrets.
    pub(crate) fn mask_outcome(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Result(value) => Outcome::Result(self.mask_value(value)),
            Outcome::Error(error) => Outcome::Error(self.mask.text(&error)),
        }
    }
}

fn absent(name: String) -> String {
    format!(
        "not_run: there is no secret {name}; an admin of the team sets it with POST /v1/secrets"
    )
}

impl Mask {
    fn new(secrets: &[(String, String)]) -> Self {
        let (mut forms, mut seen, mut marks) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in secrets {
            for form in forms_of(value) {
                // One list of marks serves both automata: what is too short to be looked for in a view is never found.
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
        // The longest first, so that no end of a longer form is left over.
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
            return "masked: the team's secrets cannot be looked for".to_owned();
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
            // What overlaps a secret that was masked is a part of one, too.
            done = done.max(range.end);
        }
        out.push_str(text.get(done..).unwrap_or_default());
        out
    }
}

/// The pieces of a text that are looked at one by one, each overlapping the next by more than any form of a value has.
fn windows(text: &str) -> impl Iterator<Item = Range<usize>> {
    const STEP: usize = 512 * 1024;
    const OVERLAP: usize = 128 * 1024;
    (0..text.len()).step_by(STEP).map(|start| {
        let end = text.len().min(start + STEP + OVERLAP);
        text.floor_char_boundary(start)..text.ceil_char_boundary(end)
    })
}

/// A value as it may come back.
fn forms_of(value: &str) -> BTreeSet<String> {
    let mut forms = BTreeSet::from([
        value.to_owned(),
        value.trim().to_owned(),
        in_json(value),
        in_json(&in_json(value)),
        in_json_ascii(value),
        in_html(value),
        hex(value.as_bytes(), "0123456789abcdef"),
        hex(value.as_bytes(), "0123456789ABCDEF"),
    ]);
    for keep in [
        "-._~",
        "-._*",
        "-._~!*'()",
        "",
        "-._~!$&'()*+,;=:@/?",
        "-_.!~*'();/?:@&=+$,#",
    ] {
        for digits in ["0123456789ABCDEF", "0123456789abcdef"] {
            let plain = percent(value, keep, digits);
            forms.insert(plain.replace("%20", "+"));
            forms.insert(plain);
        }
    }
    forms.extend(in_addresses(value));
    // Lines of a key may come back with other ends.
    if value.contains('\n') {
        forms.insert(value.replace("\r\n", "\n"));
        forms.insert(value.replace("\r\n", "\n").replace('\n', "\r\n"));
        // And each line that is long enough to be one, by itself.
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
    // Encoded twice. A second round of escapes is undone by the view.
    let lower_hex = hex(value.as_bytes(), "0123456789abcdef");
    let upper_hex = hex(value.as_bytes(), "0123456789ABCDEF");
    for once in [
        STANDARD_NO_PAD.encode(value),
        STANDARD.encode(value),
        URL_SAFE_NO_PAD.encode(value),
        percent(value, "-._~", "0123456789ABCDEF"),
        lower_hex,
        upper_hex,
    ] {
        forms.extend(in_base64(once.as_bytes()));
        forms.extend(in_base32(once.as_bytes()));
        forms.insert(hex(once.as_bytes(), "0123456789abcdef"));
        forms.insert(once.chars().rev().collect());
    }
    // The user's part of a basic authentication is not known: what stands after it is found at any offset.
    forms.retain(|form| form.chars().count() >= VALUE_CHARS_MIN);
    forms
}

/// The parts of base64 that depend on the value alone, at each of the three places where it can begin.
fn in_base64(value: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend(value);
        // Characters that bytes before it, or after it, have a share in are left out.
        let skip = [0, 2, 3].get(before).copied().unwrap_or_default();
        let whole = padded.len() * 8 / 6;
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = engine.encode(&padded);
            if let Some(form) = text.get(skip..whole.min(text.len())) {
                forms.push(form.to_owned());
            }
        }
    }
    // In full, so that the last characters go as well where the value ends the text.
    forms.push(STANDARD_NO_PAD.encode(value));
    forms.push(URL_SAFE_NO_PAD.encode(value));
    forms
}

/// The parts of base32 (RFC 4648) that depend on the value alone, at each of the five places where it can begin.
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

/// As a JSON writer does it that keeps to ASCII, and escapes slashes.
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

fn hex(bytes: &[u8], digits: &str) -> String {
    let digits = digits.as_bytes();
    let digit = |of: u8| digits.get(usize::from(of)).copied().map_or('0', char::from);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// As an address has it that this program reads, asks and tells: in its path, and in its query.
fn in_addresses(value: &str) -> Vec<String> {
    let begins = ["http://x/", "http://x/?"];
    let forms = begins.iter().filter_map(|begin| {
        let mut url = Url::parse(&format!("{begin}{value}")).ok()?;
        url.set_fragment(None);
        url.as_str().strip_prefix(begin).map(str::to_owned)
    });
    forms.collect()
}

/// As in a URL, where letters, digits and `keep` stay.
fn percent(value: &str, keep: &str, digits: &str) -> String {
    value
        .bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || keep.as_bytes().contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{}", hex(&[byte], digits))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
