//! Bodies of JSON.
//!
//! Promised: a body is at most 4 MiB, is refused by its type (415) before it is looked at, and, where it does not fit, by
//! the name of the field and what that takes. A field that is not known is named with the nearest known one; the setting
//! `api.unknown_fields = "ignore"` passes it over. A call that takes no body reads any, and only its digest.

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

use super::AppState;
use super::body_memory::{Charge, FREE_BYTES};
use super::error::ApiError;
use super::{exact, hint};

/// A body, read into `T`.
pub(crate) struct Json<T> {
    /// What it says.
    pub(crate) value: T,
    /// The digest of its bytes.
    pub(crate) sha256: [u8; 32],
    /// Whether it has a field that is not known and was passed over.
    pub(crate) is_lossy: bool,
    /// What it counts of the memory for bodies, as long as the value is there.
    _charge: Charge,
}

/// A body of a call that needs none: the default of `T` where none is sent, or anything but a JSON object.
///
/// The contract lets a client send any body, of any type, with a call that takes none. What is an object of JSON is read
/// all the same, and strictly: what a client asks for is not lost in silence.
pub(crate) struct MaybeJson<T> {
    /// What it says.
    pub(crate) value: T,
    /// The digest of its bytes.
    pub(crate) sha256: [u8; 32],
}

/// What a body may be.
pub(crate) trait RequestBody: DeserializeOwned {
    /// Fields that change the meaning of a request and that this server does not have: they are refused also where
    /// unknown fields are ignored.
    const REFUSED: &'static [&'static str] = &[];

    /// Whether fields that are not known are refused also where unknown fields are ignored, because one of them could
    /// have changed what a person decides.
    const STRICT: bool = false;

    /// The fields of the object in one of its fields; none where that is not ours to judge.
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
                "this endpoint reads JSON: send it with `content-type: application/json`",
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
                "this endpoint reads JSON, or no body: send it with `content-type: application/json`",
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

/// Whether a text is a JSON object with one of the fields of `T`.
fn names_a_field<T: RequestBody>(text: &[u8]) -> bool {
    let object = serde_json::from_slice::<BTreeMap<String, de::IgnoredAny>>(text);
    object.is_ok_and(|object| {
        fields_of::<T>()
            .iter()
            .any(|name| object.contains_key(*name))
    })
}

/// Refuses a body that is sent in another form than it is read in.
pub(crate) fn refuse_compressed(headers: &HeaderMap) -> Result<(), ApiError> {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    let is_plain = |value: &http::HeaderValue| {
        value
            .to_str()
            .is_ok_and(|text| text.trim().eq_ignore_ascii_case("identity"))
    };
    match encodings.iter().find(|value| !is_plain(value)) {
        None => Ok(()),
        Some(value) => {
            let shown: String = String::from_utf8_lossy(value.as_bytes())
                .chars()
                .take(40)
                .collect();
            Err(ApiError::unsupported(format!(
                "content-encoding: {shown:?} is not read here: send the body uncompressed, without that header"
            )))
        }
    }
}

/// The bytes after a byte order mark, which tools of some systems put first.
fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The body of a call that takes none.
pub(crate) struct NoBody {
    /// The digest of what was sent all the same.
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

/// The length that a request says its body has.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// A body that was cut off. Nobody hears this but the log.
pub(crate) fn cut_off(error: &axum::Error) -> ApiError {
    ApiError::bad_request(format!(
        "the body ended before its length, or could not be read: {error}"
    ))
}

async fn read(parts: &Parts, body: Body) -> Result<(Vec<u8>, Charge), ApiError> {
    let limit = BODY_BYTES_MAX;
    let too_large = || ApiError::too_large("a body of JSON", limit as u64);
    let length = content_length(&parts.headers);
    let mut charge = Charge::of(&parts.extensions);
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    // The length is the client's word: beyond the free part, memory is taken for what has come.
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

/// `application/json`, `application/…+json`, or nothing said.
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

/// The body, and whether something in it is not known and was passed over.
fn parse<T: RequestBody>(bytes: &[u8], refuse_unknown: bool) -> Result<(T, bool), ApiError> {
    let refuse_unknown = refuse_unknown || T::STRICT;
    let bytes = without_bom(bytes);
    let known = fields_of::<T>();
    // A list would be read as the fields in their order, which nobody means.
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => {}
        None => {
            return Err(ApiError::bad_request(format!(
                "the body is empty: it takes a JSON object with {}",
                known.join(", ")
            )));
        }
        Some(_) => {
            return Err(ApiError::bad_request(format!(
                "the body is not a JSON object: it takes one with {}",
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
    // A field that is missing is most often there under a name that is not known: this one is told.
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
            "this server does not have it; leave it out",
        )),
        (unknown, None) => match exact::inexact(bytes) {
            Some((path, what)) => Err(ApiError::invalid(&path, what)),
            None => Ok((value, unknown.is_some())),
        },
    }
}

fn unknown_field<T: RequestBody>(path: &str) -> ApiError {
    // An optional object shows as a part of its own.
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
        Some((given, taken)) => format!("it takes {taken}, not {given}"),
        None => what.to_owned(),
    };
    match path {
        "." | "" => ApiError::bad_request(format!("the body does not fit: {what}")),
        path => ApiError::invalid(path, what),
    }
}

/// The fields of a struct, as serde knows them.
pub(crate) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    match T::deserialize(FieldNames) {
        Ok(_) => &[],
        Err(Names(names)) => names,
    }
}

/// A deserializer that only listens for the names that it is asked for.
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

/// A field that may be absent (leave it), null (remove it) or a value (take it).
pub(crate) fn absent_or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

/// A whole number, also where it is written as `5.0`; null as if it were absent.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(deserializer)?;
    let fitting = |number: serde_json::Number| {
        errand_core::config::whole_number(&serde_json::Value::Number(number.clone()))
            .and_then(|whole| u32::try_from(whole).ok())
            .ok_or_else(|| de::Error::custom(format!("it takes a whole number, not {number}")))
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
    fn a_field_that_is_not_known_is_named_with_the_nearest() {
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
    fn what_does_not_fit_is_named_with_what_it_takes() {
        assert!(
            refused(r#"{"agent_id": 5}"#).contains("agent_id: it takes a string, not integer `5`")
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
    fn what_would_be_lost_is_refused_also_where_unknown_fields_are_ignored() {
        let error = parse::<Outer>(br#"{"agent_id": "a", "x": 1, "pinned": true}"#, false);
        assert!(format!("{error:?}").contains("pinned: this server does not have it"));
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
    fn absent_and_null_are_told_apart() {
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
