//! Explains in errand's own words why a connection's server could not be reached or did not answer.
//!
//! # Guarantees
//!
//! An explanation contains no address, header or part of an answer's body. There are two exceptions: the `message` of a
//! JSON-RPC error, which is meant for people, as one line of at most `MESSAGE_CHARS_MAX` characters; and the standard
//! error codes of OAuth.
//!
//! # Non-goals
//!
//! Masking secrets. The caller does that.

use std::error::Error;

use errand_core::display;
use rmcp::service::{ClientInitializeError, ServiceError};
use rmcp::transport::DynamicTransportError;
use rmcp::transport::auth::AuthError;
use rmcp::transport::streamable_http_client::{
    AuthRequiredError, HttpStatusError, InsufficientScopeError, StreamableHttpError,
};

use crate::net::Blocked;

/// The message for a missing or expired sign-in.
pub(super) const SIGN_IN_AGAIN: &str = "the server requires a sign-in, and nothing was called: an admin must sign in again with POST /v1/connections/{connection_id}/authorize";
/// Maximum number of characters of a server's own error message.
const MESSAGE_CHARS_MAX: usize = 300;
/// Error codes of OAuth 2.1, its dynamic registration and bearer tokens. They are standard, so they reveal nothing.
const OAUTH_CODES: [&str; 16] = [
    "invalid_request",
    "invalid_client_metadata",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "unsupported_response_type",
    "invalid_scope",
    "invalid_redirect_uri",
    "invalid_software_statement",
    "invalid_target",
    "invalid_token",
    "insufficient_scope",
    "access_denied",
    "server_error",
    "temporarily_unavailable",
];

/// A transport error. The plain client and the signed-in client share this type.
type HttpError = StreamableHttpError<reqwest::Error>;

/// Whether a server refused a request because a sign-in is missing or expired.
pub(super) fn wants_sign_in(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|error| {
        let of_client = error.downcast_ref::<AuthError>();
        error.is::<AuthRequiredError>()
            || matches!(
                of_client,
                Some(AuthError::AuthorizationRequired | AuthError::TokenRefreshRejected(_))
            )
    })
}

/// An explanation for people and models, without a capital letter and a period.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    // Everything explained here failed before the call began, so the call can be repeated when resources are free.
    note_exhausted(error);
    if let Some(blocked) = causes(error).find_map(|error| error.downcast_ref::<Blocked>()) {
        return blocked.to_string();
    }
    if wants_sign_in(error) {
        return SIGN_IN_AGAIN.to_owned();
    }
    let causes: Vec<_> = causes(error).collect();
    // The innermost source with an explanation is closest to the actual problem.
    let said = causes.iter().rev().find_map(|error| said_by(*error));
    said.unwrap_or_else(|| "the connection to the server failed".to_owned())
}

/// Whether descriptors or memory ran out. If so, this is noted, and the call is repeated when they are free.
pub(super) fn note_exhausted(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(crate::exhausted::note)
}

/// The error and its sources, from the outside in.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

/// The source of an error. Two of the library's types do not implement `source()`.
fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    if let Some(wrapped) = error.downcast_ref::<DynamicTransportError>() {
        return Some(wrapped.error.as_ref());
    }
    match error.downcast_ref::<ClientInitializeError>() {
        Some(ClientInitializeError::TransportError { error, .. }) => Some(error.error.as_ref()),
        Some(ClientInitializeError::LegacyFallbackFailed { fallback, .. }) => Some(&**fallback),
        _ => error.source(),
    }
}

/// The explanation of one error in the chain. `None` if its source or its wrapper explains more.
fn said_by(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        return of_system(error);
    }
    if let Some(error) = error.downcast_ref::<HttpStatusError>() {
        return Some(answered_with(error.status));
    }
    if error.is::<InsufficientScopeError>() {
        return Some("the sign-in does not cover this call (insufficient_scope)".to_owned());
    }
    if let Some(error) = error.downcast_ref::<reqwest::Error>() {
        return of_request(error);
    }
    if let Some(error) = error.downcast_ref::<AuthError>() {
        return Some(of_sign_in(error));
    }
    if let Some(error) = error.downcast_ref::<HttpError>() {
        return of_transport(error);
    }
    if let Some(error) = error.downcast_ref::<ClientInitializeError>() {
        return of_beginning(error);
    }
    match error.downcast_ref::<ServiceError>()? {
        ServiceError::McpError(error) => Some(refused(error.code.0, &error.message)),
        ServiceError::TransportClosed => Some("the server closed the connection".to_owned()),
        ServiceError::UnexpectedResponse => {
            Some("the server answered with an unexpected kind of result".to_owned())
        }
        ServiceError::Timeout { timeout } => Some(format!(
            "the server did not answer within {} s",
            timeout.as_secs()
        )),
        _ => None,
    }
}

/// The text of an [`std::io::ErrorKind`] without a stable name.
const UNCATEGORIZED: &str = "uncategorized error";

/// An error of the operating system. Its text contains no file name or address.
fn of_system(error: &std::io::Error) -> Option<String> {
    if error.raw_os_error().is_some() {
        return Some(error.to_string());
    }
    match error.kind() {
        std::io::ErrorKind::Other => None,
        std::io::ErrorKind::InvalidData => {
            Some("the server sent invalid data (a TLS or protocol error)".to_owned())
        }
        // A failed name lookup has an unnamed kind and a useless text. The request error around it says that the lookup
        // failed.
        kind if kind.to_string() == UNCATEGORIZED => None,
        kind => Some(kind.to_string()),
    }
}

fn of_request(error: &reqwest::Error) -> Option<String> {
    let said = if error.is_timeout() {
        "the server did not answer in time"
    } else if error.is_dns() {
        "the host name could not be resolved"
    } else if error.is_connect() {
        "the connection to the server failed"
    } else if error.is_redirect() {
        "the server redirects, and redirects are not followed; set the address to which it redirects"
    } else if let Some(status) = error.status() {
        return Some(answered_with(status.as_u16()));
    } else if error.is_body() || error.is_decode() {
        "the answer broke off or could not be read"
    } else {
        return None;
    };
    Some(said.to_owned())
}

fn answered_with(status: u16) -> String {
    format!("the server answered with HTTP status {status}")
}

/// An error that the server itself returned.
fn refused(code: i32, message: &str) -> String {
    let line = display::one_line(message);
    let cut: String = line.chars().take(MESSAGE_CHARS_MAX).collect();
    format!("the server refused (JSON-RPC error {code}): {cut}")
}

fn of_transport(error: &HttpError) -> Option<String> {
    Some(match error {
        StreamableHttpError::UnexpectedServerResponse(text) => {
            // The text is `HTTP 403 Forbidden: …`. Everything after the status is the server's.
            let status = text.strip_prefix("HTTP ").and_then(|rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            });
            status.map_or_else(
                || "the server's answer is not JSON-RPC, which MCP requires; is this the address of an MCP server?".to_owned(),
                answered_with,
            )
        }
        StreamableHttpError::UnexpectedContentType(_) | StreamableHttpError::Deserialize(_) => {
            "the server's answer is neither JSON nor an event stream, which MCP requires; is this the address of an MCP server?".to_owned()
        }
        StreamableHttpError::ResponseBodyTooLarge { max_size } => {
            format!("the server's answer has more than {max_size} bytes")
        }
        StreamableHttpError::SessionExpired => "the server has ended the session".to_owned(),
        StreamableHttpError::ServerDoesNotSupportSse => {
            "the server does not offer an event stream, which it needs for its answer".to_owned()
        }
        StreamableHttpError::UnexpectedEndOfStream | StreamableHttpError::TransportChannelClosed => {
            "the server closed the connection".to_owned()
        }
        StreamableHttpError::Sse(_) => "the server's event stream could not be read".to_owned(),
        StreamableHttpError::ReinitializationFailed(error) => refused(error.code.0, &error.message),
        StreamableHttpError::ReservedHeaderConflict(name) => format!(
            "the header {} is set by the protocol and cannot be given",
            display::one_line(name)
        ),
        StreamableHttpError::MissingSessionIdInResponse => {
            "the server's answer contains no session id".to_owned()
        }
        StreamableHttpError::SessionRecoveryTimeout | StreamableHttpError::ControlRequestTimeout => {
            "the server did not answer in time".to_owned()
        }
        _ => return None,
    })
}

fn of_beginning(error: &ClientInitializeError) -> Option<String> {
    Some(match error {
        ClientInitializeError::JsonRpcError(error) => refused(error.code.0, &error.message),
        ClientInitializeError::ConnectionClosed(_) => {
            "the server closed the connection before it was ready".to_owned()
        }
        ClientInitializeError::ExpectedInitResponse(_)
        | ClientInitializeError::ExpectedInitResult(_)
        | ClientInitializeError::ConflictInitResponseId(..)
        | ClientInitializeError::UncorrelatedErrorResponse { .. } => {
            "the server did not start the session as MCP requires".to_owned()
        }
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => {
            "the server supports no MCP version that errand supports".to_owned()
        }
        _ => return None,
    })
}

/// The texts of these errors contain answers and addresses, so only a standard code is repeated.
fn of_sign_in(error: &AuthError) -> String {
    let said = match error {
        AuthError::AuthorizationRequired => return SIGN_IN_AGAIN.to_owned(),
        AuthError::PkceUnsupported => {
            "the authorization server does not support PKCE with S256, which is required"
        }
        AuthError::NoAuthorizationSupport => "the server offers no sign-in",
        AuthError::TokenExpired => "the token has expired",
        AuthError::DiscoveryRequestFailed { .. } | AuthError::MetadataError(_) => {
            "the server's sign-in metadata could not be read"
        }
        AuthError::ProtectedResourceMetadataInvalid { .. } => {
            "the server's sign-in metadata does not match its address"
        }
        AuthError::AuthorizationServersUnavailable { .. } => {
            "none of the authorization servers that the server names could be reached"
        }
        other => {
            let text = other.to_string();
            let code = OAUTH_CODES.into_iter().find(|code| text.contains(code));
            return code.map_or_else(
                || "the sign-in failed".to_owned(),
                |code| format!("the sign-in was refused ({code})"),
            );
        }
    };
    said.to_owned()
}

#[cfg(test)]
mod tests {
    use rmcp::model::{ErrorCode, ErrorData};

    use super::*;

    const SECRET: &str = "http://h.test/mcp?api_key=TOPSECRET Bearer TOPSECRET\n2026 ERROR forged";

    #[test]
    fn explanations_leak_no_answer_and_no_address() {
        let http: Vec<HttpError> = vec![
            StreamableHttpError::UnexpectedServerResponse(SECRET.into()),
            StreamableHttpError::UnexpectedServerResponse(
                format!("HTTP 403 Forbidden: {SECRET}").into(),
            ),
            StreamableHttpError::UnexpectedContentType(Some(SECRET.to_owned())),
            StreamableHttpError::Io(std::io::Error::other(SECRET)),
            StreamableHttpError::Auth(AuthError::OAuthError(format!("invalid_grant: {SECRET}"))),
            StreamableHttpError::Auth(AuthError::InternalError(SECRET.to_owned())),
            StreamableHttpError::SessionExpired,
        ];
        for error in http {
            let said = explain(&error);
            assert!(
                !said.contains("TOPSECRET") && !said.contains("h.test"),
                "{said}"
            );
            assert!(!said.contains('\n') && !said.is_empty(), "{said}");
        }
        let closed = ClientInitializeError::ConnectionClosed(SECRET.to_owned());
        assert!(!explain(&closed).contains("TOPSECRET"));
        let status = HttpError::UnexpectedServerResponse("HTTP 429 Too Many: x".into());
        assert_eq!(explain(&status), "the server answered with HTTP status 429");
    }

    #[test]
    fn an_unnamed_error_is_explained_by_its_request() {
        let unnamed = std::io::Error::from_raw_os_error(i32::MAX).kind();
        let error = std::io::Error::new(unnamed, "failed to lookup address information");
        assert_eq!(of_system(&error), None);
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(of_system(&error).as_deref(), Some("connection reset"));
    }

    #[test]
    fn a_servers_message_is_one_bounded_line() {
        let message = format!("no\u{1b}[31m\n{}", "x".repeat(10_000));
        let error = ServiceError::McpError(ErrorData::new(ErrorCode(-32602), message, None));
        let said = explain(&error);
        assert!(
            said.starts_with("the server refused (JSON-RPC error -32602): no\\u{1b}"),
            "{said}"
        );
        assert!(said.chars().count() < 400 && !said.contains('\n'));
    }
}
