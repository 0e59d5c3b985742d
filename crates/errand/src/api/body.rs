//! JSON request bodies.
//!
//! # Guarantees
//!
//! - A body has at most 4 MiB, and a wrong content type is refused (415) before it is read.
//! - An invalid body is refused with the name of the field and the expected type.
//! - An unknown field is refused with the name of the nearest known field, unless `api.unknown_fields = "ignore"` is
//!   set.
//! - A call without a body accepts any body and uses only its digest.

use std::collections::BTreeMap;
use std::fmt;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use errand_core::limits::BODY_BYTES_MAX;
use futures::StreamExt as _;
use http::header::{self, HeaderMap};
use http::request::Parts;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use sha2::{Digest as _, Sha256};

use super::{exact, hint};
use crate::http::bodies::{content_length, cut_off, refuse_compressed};
use crate::http::body_memory::{Charge, FREE_BYTES};
use crate::http::error::ApiError;
use crate::state::AppState;

/// Extractor for a body of type `T`.
pub(crate) struct Json<T> {
    pub(crate) value: T,
    /// The digest of the exact bytes, for idempotency.
    pub(crate) sha256: [u8; 32],
    /// Whether the body had an unknown field that was ignored.
    pub(crate) is_lossy: bool,
    /// Keeps the body's memory charged as long as the value exists.
    _charge: Charge,
}

/// Extractor for an optional body: the default of `T` if there is no body, or if it is not a JSON object.
///
/// By the API contract, a client may send any body of any type with a call that needs none. A JSON object is
/// nevertheless parsed strictly, so that a wish of the client is not silently ignored.
pub(crate) struct MaybeJson<T> {
    pub(crate) value: T,
    /// The digest of the exact bytes, for idempotency.
    pub(crate) sha256: [u8; 32],
}

/// A type of request body, with rules beyond its fields.
pub(crate) trait RequestBody: DeserializeOwned {
    /// Fields of the hosted product that would change the meaning of the request. They are refused even if unknown
    /// fields are ignored.
    const REFUSED: &'static [&'static str] = &[];

    /// Whether unknown fields are refused even if the setting is to ignore them, because one of them might change a
    /// person's decision.
    const STRICT: bool = false;

    /// The fields of a nested object, for hints about unknown fields. Empty for objects whose fields are not checked.
    fn fields_within(_field: &str) -> &'static [&'static str] {
        &[]
    }
}

impl<T: RequestBody> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            return Err(ApiError::unsupported(
                "this endpoint requires JSON: send it with `content-type: application/json`",
            ));
        }
        refuse_compressed(&parts.headers)?;
        let (bytes, charge) = read(&parts, body).await?;
        let (value, is_lossy) = parse(&bytes, app.settings.unknown_fields_refused)?;
        Ok(Self {
            value,
            sha256: Sha256::digest(&bytes).into(),
            is_lossy,
            _charge: charge,
        })
    }
}

impl<T: RequestBody + Default> FromRequest<AppState> for MaybeJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let (bytes, _charge) = read(&parts, body).await?;
        let text = without_bom(&bytes).trim_ascii();
        if !text.is_empty() {
            refuse_compressed(&parts.headers)?;
        }
        let is_object = text.starts_with(b"{");
        let value = if is_object && is_json(&parts.headers) {
            parse(&bytes, app.settings.unknown_fields_refused)?.0
        } else if is_object && names_a_field::<T>(text) {
            return Err(ApiError::unsupported(
                "this endpoint requires JSON or no body: send JSON with `content-type: application/json`",
            ));
        } else {
            T::default()
        };
        Ok(Self {
            value,
            sha256: Sha256::digest(&bytes).into(),
        })
    }
}

/// Whether a text is a JSON object with at least one field of `T`.
fn names_a_field<T: RequestBody>(text: &[u8]) -> bool {
    let object = serde_json::from_slice::<BTreeMap<String, de::IgnoredAny>>(text);
    object.is_ok_and(|object| {
        fields_of::<T>()
            .iter()
            .any(|name| object.contains_key(*name))
    })
}

/// The bytes after a byte order mark, which some tools put first.
fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Extractor for calls without a body.
pub(crate) struct NoBody {
    /// The digest of the bytes that were sent nevertheless.
    pub(crate) sha256: [u8; 32],
}

impl FromRequest<AppState> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _app: &AppState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let (bytes, _charge) = read(&parts, body).await?;
        Ok(Self {
            sha256: Sha256::digest(&bytes).into(),
        })
    }
}

async fn read(parts: &Parts, body: Body) -> Result<(Vec<u8>, Charge), ApiError> {
    let limit = BODY_BYTES_MAX;
    let too_large = || ApiError::too_large("a JSON body", limit as u64);
    let length = content_length(&parts.headers);
    let mut charge = Charge::of(&parts.extensions);
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    // The declared length is unverified: beyond the free part, memory is allocated only for bytes that have arrived.
    let expected = length.and_then(|length| usize::try_from(length).ok());
    let mut bytes = Vec::with_capacity(expected.unwrap_or(0).min(FREE_BYTES));
    let mut pieces = body.into_data_stream();
    while let Some(part) = pieces.next().await {
        let part = part.map_err(|error| cut_off(&error))?;
        if bytes.len() + part.len() > limit {
            return Err(too_large());
        }
        charge.add(part.len())?;
        bytes.extend_from_slice(&part);
    }
    Ok((bytes, charge))
}

/// Whether the type is `application/json`, `application/…+json`, or missing.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let Ok(text) = value.to_str() else {
        return false;
    };
    let essence = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Parses a body. Returns the value, and whether an unknown field was ignored.
fn parse<T: RequestBody>(bytes: &[u8], refuse_unknown: bool) -> Result<(T, bool), ApiError> {
    let refuse_unknown = refuse_unknown || T::STRICT;
    let bytes = without_bom(bytes);
    let known = fields_of::<T>();
    // Serde would accept an array as the fields in order, which no client intends.
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => {}
        None => {
            return Err(ApiError::bad_request(format!(
                "the body is empty: send a JSON object with {}",
                known.join(", ")
            )));
        }
        Some(_) => {
            return Err(ApiError::bad_request(format!(
                "the body is not a JSON object: send one with {}",
                known.join(", ")
            )));
        }
    }
    let mut unknown = None;
    let mut refused = None;
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut note = |path: serde_ignored::Path<'_>| {
        let path = path.to_string();
        if T::REFUSED.contains(&path.as_str()) {
            refused.get_or_insert_with(|| path.clone());
        }
        unknown.get_or_insert(path);
    };
    let read = T::deserialize(serde_ignored::Deserializer::new(
        serde_path_to_error::Deserializer::new(&mut json, &mut track),
        &mut note,
    ));
    // A missing field is usually present under a misspelled name, so the unknown field is reported first.
    let value = match (read, &unknown) {
        (Ok(value), _) => value,
        (Err(error), Some(path)) if refuse_unknown && error.is_data() => {
            return Err(unknown_field::<T>(path));
        }
        (Err(error), _) => return Err(does_not_fit(&track.path().to_string(), &error)),
    };
    json.end().map_err(|error| does_not_fit(".", &error))?;
    match (unknown, refused) {
        (Some(path), _) if refuse_unknown => Err(unknown_field::<T>(&path)),
        (_, Some(path)) => Err(ApiError::invalid(
            &path,
            "this server does not support this field; leave it out",
        )),
        (unknown, None) => match exact::inexact(bytes) {
            Some((path, what)) => Err(ApiError::invalid(&path, what)),
            None => Ok((value, unknown.is_some())),
        },
    }
}

fn unknown_field<T: RequestBody>(path: &str) -> ApiError {
    // `serde_ignored` shows an optional object as a path part `?`.
    let path = path.replace(".?", "");
    match path.split_once('.') {
        Some((outer, inner)) => ApiError::invalid(
            outer,
            hint::unknown("field", inner, T::fields_within(outer)),
        ),
        None => ApiError::bad_request(hint::unknown("field", &path, fields_of::<T>())),
    }
}

fn does_not_fit(path: &str, error: &serde_json::Error) -> ApiError {
    let whole = error.to_string();
    if error.is_syntax() || error.is_eof() || error.is_io() {
        return ApiError::bad_request(format!("the body is not JSON: {whole}"));
    }
    let what = whole
        .rsplit_once(" at line ")
        .map_or(whole.as_str(), |(what, _)| what);
    let what = match what
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        Some((given, taken)) => format!("must be {taken}, not {given}"),
        None => what.to_owned(),
    };
    match path {
        "." | "" => ApiError::bad_request(format!("the body is invalid: {what}")),
        path => ApiError::invalid(path, what),
    }
}

/// The field names of a struct, as its `Deserialize` implementation requests them.
pub(crate) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    match T::deserialize(FieldNames) {
        Ok(_) => &[],
        Err(Names(names)) => names,
    }
}

/// A deserializer that only captures the field names that a type requests.
struct FieldNames;

#[derive(Debug)]
struct Names(&'static [&'static str]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Names {}

impl de::Error for Names {
    fn custom<T: fmt::Display>(_message: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for FieldNames {
    type Error = Names;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Names> {
        Err(Names(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Names> {
        Err(Names(fields))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map enum identifier ignored_any
    }
}

/// Deserializes a field that may be absent (keep), null (remove) or a value (set).
pub(crate) fn absent_or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

/// Deserializes an integer, which may be written as `5.0`. Null counts as absent.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(deserializer)?;
    let fitting = |number: serde_json::Number| {
        errand_core::config::whole_number(&serde_json::Value::Number(number.clone()))
            .and_then(|whole| u32::try_from(whole).ok())
            .ok_or_else(|| de::Error::custom(format!("must be an integer, not {number}")))
    };
    number.map(fitting).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Outer {
        agent_id: String,
        webhook_url: Option<String>,
        inner: Option<Inner>,
        #[serde(default, deserialize_with = "absent_or_null")]
        note: Option<Option<String>>,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    struct Inner {
        config: serde_json::Value,
    }

    impl RequestBody for Outer {
        const REFUSED: &'static [&'static str] = &["pinned"];

        fn fields_within(field: &str) -> &'static [&'static str] {
            if field == "inner" {
                fields_of::<Inner>()
            } else {
                &[]
            }
        }
    }

    fn refused(text: &str) -> String {
        let error: ApiError = parse::<Outer>(text.as_bytes(), true).unwrap_err();
        format!("{error:?}").replace('\\', "")
    }

    #[test]
    fn the_fields_of_a_struct_are_known() {
        assert_eq!(
            fields_of::<Outer>(),
            ["agent_id", "webhook_url", "inner", "note"]
        );
        assert_eq!(fields_of::<String>(), [""; 0]);
    }

    #[test]
    fn an_unknown_field_is_reported_with_the_nearest() {
        assert!(
            refused(r#"{"agent_id": "a", "webhok_url": "x"}"#)
                .contains(r#""webhok_url" is not a field here; did you mean "webhook_url"?"#)
        );
        assert!(
            refused(r#"{"agentId": "a"}"#)
                .contains(r#""agentId" is not a field here; did you mean "agent_id"?"#)
        );
        assert!(
            refused(r#"{"agent_id": "a", "inner": {"config": {"x": 1}, "confg": 1}}"#)
                .contains(r#"inner: "confg" is not a field here; did you mean "config"?"#)
        );
        let ignored = br#"{"agent_id": "a", "webhok_url": "x"}"#;
        let (ignoring, is_lossy): (Outer, bool) = parse(ignored, false).unwrap();
        assert_eq!((ignoring.agent_id.as_str(), is_lossy), ("a", true));
    }

    #[test]
    fn an_invalid_field_is_reported_with_its_type() {
        assert!(
            refused(r#"{"agent_id": 5}"#).contains("agent_id: must be a string, not integer `5`")
        );
        assert!(refused("{}").contains("missing field `agent_id`"));
        assert!(refused("").contains("the body is empty"));
        assert!(refused("[]").contains("not a JSON object"));
        assert!(refused("\"x\"").contains("not a JSON object"));
        assert!(refused(r#"{"agent_id": "#).contains("not JSON"));
        assert!(refused(r#"{"agent_id": "a"} x"#).contains("not JSON"));
        assert!(refused(r#"{"agent_id": "a", "agent_id": "b"}"#).contains("duplicate field"));
    }

    #[test]
    fn refused_fields_are_never_ignored() {
        let error = parse::<Outer>(br#"{"agent_id": "a", "x": 1, "pinned": true}"#, false);
        assert!(format!("{error:?}").contains("pinned: this server does not support this field"));
        for text in [
            r#"{"agent_id": "a", "inner": {"config": {"x": 1, "x": 2}}}"#,
            r#"{"agent_id": "a", "inner": {"config": {"x": 123456789012345678901234567890}}}"#,
        ] {
            assert!(refused(text).contains("inner.config.x: "), "{text}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let (value, _): (Outer, bool) =
            parse("\u{feff}{\"agent_id\": \"a\"}".as_bytes(), true).unwrap();
        assert_eq!(value.agent_id, "a");
    }

    #[test]
    fn absent_and_null_are_distinguished() {
        let note = |text: &str| parse::<Outer>(text.as_bytes(), true).unwrap().0.note;
        assert_eq!(note(r#"{"agent_id": "a"}"#), None);
        assert_eq!(note(r#"{"agent_id": "a", "note": null}"#), Some(None));
        assert_eq!(
            note(r#"{"agent_id": "a", "note": "x"}"#),
            Some(Some("x".to_owned()))
        );
    }

    #[test]
    fn types_of_json() {
        let is = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, text.parse().unwrap());
            is_json(&headers)
        };
        assert!(is("application/json"));
        assert!(is("Application/JSON; charset=utf-8"));
        assert!(is("application/vnd.api+json"));
        assert!(!is("text/plain"));
        assert!(!is("application/x-www-form-urlencoded"));
        assert!(is_json(&HeaderMap::new()));
    }
}
