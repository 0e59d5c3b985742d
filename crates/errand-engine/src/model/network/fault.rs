//! Classifies failed calls: whether another attempt may succeed.
//!
//! # Guarantees
//!
//! - Retried as transport faults: failed connections, timeouts, streams that break off, malformed answers, and the
//!   statuses 408, 409, 425, 429 and 500 or above. A bad request or a bad key is not retried.
//! - The error that fails a run says what happened and what to do, and contains no key.

use errand_core::config::ModelName;
use errand_core::error_chain::{error_chain, is_exhausted};
use errand_core::time::Timestamp;
use genai::Error;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::super::ModelError;
use crate::net::Blocked;

/// Maximum number of characters of a provider's message that we repeat.
const MESSAGE_CHARS_MAX: usize = 300;

/// The reason why a call produced no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another attempt may succeed.
    Transport {
        what: String,
        /// The delay that the provider asked for.
        retry_after_ms: Option<u64>,
    },
    /// The answer announced a tool call but contained none. Another attempt may succeed, but each one costs money.
    LostCall,
    /// The requested summary is empty. Another attempt may succeed, but each one costs money.
    EmptySummary,
    /// The answer has more bytes than are read. Another attempt may succeed, but each one costs money.
    TooLarge,
    /// This server had no free file descriptor or memory. Retried without limit.
    Exhausted,
    /// Another attempt would fail too.
    Final(ModelError),
}

impl Fault {
    pub(super) fn transport(what: impl Into<String>) -> Self {
        Self::Transport {
            what: what.into(),
            retry_after_ms: None,
        }
    }
}

/// The first error of type `E` in an error's chain of sources.
fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    std::iter::successors(Some(error), |&e| e.source()).find_map(|e| e.downcast_ref())
}

pub(super) fn of_library(error: &Error, name: &ModelName, now: Timestamp) -> Fault {
    match error {
        Error::HttpError {
            status,
            body,
            headers,
            ..
        } => of_status(*status, body, headers, name, now),
        Error::WebStream { error, .. } => {
            if let Some(inner) = error.downcast_ref::<Error>() {
                return of_library(inner, name, now);
            }
            if let Some(blocked) = find::<Blocked>(error.as_ref()) {
                return Fault::Final(ModelError {
                    code: "model_unavailable",
                    message: format!("the address of the provider {}: {blocked}", name.provider),
                });
            }
            if is_exhausted(error.as_ref()) {
                return Fault::Exhausted;
            }
            let what = match error.downcast_ref::<reqwest::Error>() {
                Some(error) if error.is_connect() => "no connection to the provider".to_owned(),
                Some(_) => "the connection to the provider broke off".to_owned(),
                None => format!("the answer cannot be read ({})", short(&error.to_string())),
            };
            Fault::transport(what)
        }
        Error::ChatResponse { body, .. } => of_event(body, name),
        Error::StreamParse { serde_error, .. } => {
            Fault::transport(format!("the answer is not JSON ({serde_error})"))
        }
        Error::JsonValueExt(_) | Error::SerdeJson(_) | Error::InvalidJsonResponseElement { .. } => {
            Fault::transport("the answer does not have the provider's form")
        }
        other => Fault::Final(ModelError {
            code: "model_bad_request",
            message: format!(
                "the request to {name} cannot be built: {}",
                short(&error_chain(other))
            ),
        }),
    }
}

fn of_status(
    status: StatusCode,
    body: &str,
    headers: &HeaderMap,
    name: &ModelName,
    now: Timestamp,
) -> Fault {
    let parsed: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    let message = provider_message(&parsed);
    let said = message
        .as_deref()
        .map_or_else(String::new, |t| format!(": {t}"));
    let provider = &name.provider;
    let code = status.as_u16();
    let last = |code: &'static str, message: String| Fault::Final(ModelError { code, message });
    if code == 429 && is_out_of_money(&parsed) {
        return last(
            "model_out_of_credit",
            format!(
                "the provider {provider} refuses requests: the account has no credit left{said}. Add credit there, then retry the run"
            ),
        );
    }
    match code {
        408 | 409 | 425 | 429 | 500.. => Fault::Transport {
            what: format!("the provider answered {}{said}", status_words(status)),
            retry_after_ms: retry_after_ms(headers, now),
        },
        // The provider's message is left out: it may repeat a part of the key.
        401 | 403 => last(
            "model_unauthorized",
            format!(
                "the provider {provider} refused the key ({}): set a valid one, in the server's environment, in errand.toml or with PUT /v1/providers/{provider}, then retry the run",
                status_words(status)
            ),
        ),
        404 => last(
            "model_not_found",
            format!(
                "the provider {provider} does not have the model {:?}{said}. Name another in a new build, or correct the provider's address",
                name.name
            ),
        ),
        _ => last(
            "model_bad_request",
            format!(
                "the provider {provider} refused the request ({}){said}. If it is too long for the model, set models.windows; otherwise correct the build and start a new run",
                status_words(status)
            ),
        ),
    }
}

/// Classifies an error event within a stream.
fn of_event(body: &Value, name: &ModelName) -> Fault {
    let error = body.get("error").unwrap_or(body);
    let word = ["type", "status", "code"]
        .iter()
        .find_map(|key| error.get(*key).and_then(Value::as_str))
        .unwrap_or("an error");
    let said = provider_message(body).map_or_else(String::new, |t| format!(": {t}"));
    let is_final = matches!(
        word,
        "invalid_request_error" | "INVALID_ARGUMENT" | "not_found_error" | "NOT_FOUND"
    );
    let is_key = matches!(
        word,
        "authentication_error" | "permission_error" | "PERMISSION_DENIED" | "UNAUTHENTICATED"
    );
    if is_key {
        return of_status(
            StatusCode::UNAUTHORIZED,
            "",
            &HeaderMap::new(),
            name,
            Timestamp::from_millis(0),
        );
    }
    if is_final {
        return Fault::Final(ModelError {
            code: "model_bad_request",
            message: format!(
                "the provider {} refused the request ({word}){said}. Correct the build and start a new run",
                name.provider
            ),
        });
    }
    Fault::transport(format!(
        "the provider aborted its answer with {}{said}",
        short(word)
    ))
}

fn status_words(status: StatusCode) -> String {
    match (status.as_u16(), status.canonical_reason()) {
        (529, _) => "529 Overloaded".to_owned(),
        (code, Some(reason)) => format!("{code} {reason}"),
        (code, None) => code.to_string(),
    }
}

fn is_out_of_money(body: &Value) -> bool {
    ["/error/code", "/error/type"]
        .iter()
        .any(|place| body.pointer(place).and_then(Value::as_str) == Some("insufficient_quota"))
}

/// The provider's own error message.
fn provider_message(body: &Value) -> Option<String> {
    let mut places = ["/error/message", "/message", "/error"].into_iter();
    let text = places.find_map(|place| body.pointer(place)?.as_str())?;
    Some(short(text))
}

pub(super) fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= MESSAGE_CHARS_MAX {
        return line;
    }
    let cut: String = line.chars().take(MESSAGE_CHARS_MAX).collect();
    format!("{cut} …")
}

/// The delay in milliseconds from `retry-after-ms`, or from `retry-after` in seconds or as a date.
fn retry_after_ms(headers: &HeaderMap, now: Timestamp) -> Option<u64> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let ms_of = |number: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be finite and not negative; a cast saturates"
        )]
        (number.is_finite() && number >= 0.0).then_some(number as u64)
    };
    if let Some(ms) = text("retry-after-ms").and_then(|t| t.parse::<f64>().ok()) {
        return ms_of(ms);
    }
    let after = text("retry-after")?;
    if let Ok(seconds) = after.parse::<f64>() {
        return ms_of(seconds * 1000.0);
    }
    let at = jiff::fmt::rfc2822::parse(after).ok()?.timestamp();
    Some(Timestamp::from_millis(at.as_millisecond()).ms_since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ModelName {
        ModelName {
            provider: "anthropic".to_owned(),
            name: "claude-x".to_owned(),
        }
    }

    fn after(text: &str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", text.parse().unwrap());
        retry_after_ms(&headers, Timestamp::from_millis(1_445_412_470_000))
    }

    #[test]
    fn retry_after_is_read_in_each_form() {
        assert_eq!(after("7"), Some(7000));
        assert_eq!(after("0.5"), Some(500));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(10_000));
        for bad in ["soon", "-3", "NaN", "inf"] {
            assert_eq!(after(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_transient_statuses_are_retried() {
        let fault = |status: u16| {
            of_status(
                StatusCode::from_u16(status).unwrap(),
                r#"{"error": {"message": "Incorrect key sk-secret"}}"#,
                &HeaderMap::new(),
                &name(),
                Timestamp::from_millis(0),
            )
        };
        for status in [408, 425, 429, 500, 502, 503, 504, 529] {
            assert!(matches!(fault(status), Fault::Transport { .. }), "{status}");
        }
        for (status, code) in [
            (400, "model_bad_request"),
            (401, "model_unauthorized"),
            (403, "model_unauthorized"),
            (404, "model_not_found"),
            (413, "model_bad_request"),
            (422, "model_bad_request"),
            (302, "model_bad_request"),
        ] {
            let Fault::Final(error) = fault(status) else {
                panic!("{status}")
            };
            assert_eq!(error.code, code, "{status}");
            if matches!(status, 401 | 403) {
                assert!(!error.message.contains("secret"), "{}", error.message);
            }
        }
    }

    #[test]
    fn an_account_without_credit_is_not_retried() {
        let body = r#"{"error": {"code": "insufficient_quota", "message": "no credit"}}"#;
        let fault = of_status(
            StatusCode::TOO_MANY_REQUESTS,
            body,
            &HeaderMap::new(),
            &name(),
            Timestamp::from_millis(0),
        );
        assert!(matches!(fault, Fault::Final(e) if e.code == "model_out_of_credit"));
    }

    #[test]
    fn an_error_event_is_classified_by_its_type() {
        let event = |word: &str| {
            of_event(
                &serde_json::json!({"type": "error", "error": {"type": word, "message": "m"}}),
                &name(),
            )
        };
        assert!(matches!(event("overloaded_error"), Fault::Transport { .. }));
        assert!(matches!(event("api_error"), Fault::Transport { .. }));
        assert!(matches!(event("invalid_request_error"), Fault::Final(_)));
        assert!(
            matches!(event("authentication_error"), Fault::Final(e) if e.code == "model_unauthorized")
        );
    }
}
