//! `Idempotency-Key`: parses the header, and converts the store's outcome to a response.
//!
//! The first response and its replays are identical bytes, because the same function renders both from the result.

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use errand_core::limits::IDEMPOTENCY_KEY_CHARS_MAX;
use errand_store::{Idem, Idempotent, Outcome, Render, StoredAnswer};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Serialize;

use super::auth::Caller;
use crate::http::error::ApiError;
use crate::state::AppState;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Extractor for the idempotency key of a request, if there is one.
pub(crate) struct IdempotencyKey {
    key: Option<String>,
    method: &'static str,
    path: String,
}

impl FromRequestParts<AppState> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &AppState) -> Result<Self, ApiError> {
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let key = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(checked(value).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "Idempotency-Key: must have 1 to {IDEMPOTENCY_KEY_CHARS_MAX} characters"
                ))
            })?),
            (Some(_), Some(_)) => {
                return Err(ApiError::bad_request(
                    "Idempotency-Key: it is given twice; send it once",
                ));
            }
        };
        let method = match parts.method {
            Method::POST => "POST",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => {
                return Err(ApiError::internal(
                    "a handler extracts an Idempotency-Key for a method without one",
                ));
            }
        };
        Ok(Self {
            key,
            method,
            path: parts.uri.path().to_owned(),
        })
    }
}

fn checked(value: &HeaderValue) -> Option<String> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    (1..=IDEMPOTENCY_KEY_CHARS_MAX)
        .contains(&text.chars().count())
        .then(|| text.to_owned())
}

impl IdempotencyKey {
    /// The identity of this request for the store. `None` without a key.
    pub(crate) fn idem(&self, caller: &Caller, body_sha256: [u8; 32]) -> Option<Idem> {
        let key = self.key.clone()?;
        Some(Idem {
            api_key: caller.api_key(),
            method: self.method,
            path: self.path.clone(),
            key,
            body_sha256,
        })
    }

    /// The identity, with the function that renders the stored response.
    pub(crate) fn once<T>(
        &self,
        caller: &Caller,
        body_sha256: [u8; 32],
        render: Render<T>,
    ) -> Idempotent<T> {
        Idempotent {
            idem: self.idem(caller, body_sha256),
            render,
        }
    }
}

/// A response with this JSON body, in the form in which it is stored.
pub(crate) fn rendered(status: StatusCode, body: &impl Serialize) -> StoredAnswer {
    // The wire structs contain only structs and maps with string keys, so they always serialize.
    StoredAnswer {
        status: status.as_u16(),
        body: serde_json::to_vec(body).unwrap_or_default(),
    }
}

/// A stored 204 response.
pub(crate) fn no_content<T>(_: &T) -> StoredAnswer {
    StoredAnswer {
        status: StatusCode::NO_CONTENT.as_u16(),
        body: Vec::new(),
    }
}

/// The response of an operation that was executed now or earlier.
pub(crate) fn response<T>(answer: Outcome<T>, render: Render<T>) -> Response {
    match answer {
        Outcome::Executed(value) => of_stored(render(&value)),
        Outcome::Replayed(stored) => replayed(stored),
    }
}

/// The response of an operation that was executed earlier.
pub(crate) fn replayed(stored: StoredAnswer) -> Response {
    let mut response = of_stored(stored);
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

fn of_stored(answer: StoredAnswer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    if status == StatusCode::NO_CONTENT {
        return status.into_response();
    }
    (
        status,
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        answer.body,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_255_characters() {
        let fits =
            |text: &str| checked(&HeaderValue::from_bytes(text.as_bytes()).unwrap()).is_some();
        assert!(fits("a"));
        assert!(fits(&"a".repeat(255)));
        assert!(fits(&"é".repeat(255)));
        assert!(!fits(""));
        assert!(!fits(&"a".repeat(256)));
        assert!(checked(&HeaderValue::from_bytes(&[0xff]).unwrap()).is_none());
    }
}
