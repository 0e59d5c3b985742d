//! Why a connection's server could not be reached or did not answer, in errand's own words.
//!
//! Guarantees: no address, no header and no byte of an answer's body is in these words. The exceptions are the `message` of
//! a JSON-RPC error, which is what the protocol has for people, as one line of at most [`MESSAGE_CHARS_MAX`] characters, and
//! the standard error codes of OAuth.
//!
//! Non-goals: secrets. Who passes the words on masks them.

use std::error::Error;

use errand_core::shown;
use rmcp::service::{ClientInitializeError, ServiceError};
use rmcp::transport::DynamicTransportError;
use rmcp::transport::auth::AuthError;
use rmcp::transport::streamable_http_client::{
    AuthRequiredError, HttpStatusError, InsufficientScopeError, StreamableHttpError,
};

use crate::net::Blocked;

/// What is to be done where a sign-in is wanting, or does not hold any more.
pub(super) const SIGN_IN_AGAIN: &str = "the server wants to be signed in to, and nothing was called: an admin signs in again with POST /v1/connections/{connection_id}/authorize";
/// Most characters of a server's own error message.
const MESSAGE_CHARS_MAX: usize = 300;
/// Error codes of OAuth 2.1, of its dynamic registration and of bearer tokens: words that every implementation uses.
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

/// A transport's error, as the library has it with the plain client and with the one that signs in.
type HttpError = StreamableHttpError<reqwest::Error>;

/// Whether a server refused a request for want of a sign-in that holds.
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

/// What happened, as half a sentence for people and models.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    // What is explained has not begun a call.
    note_exhausted(error);
    if let Some(blocked) = causes(error).find_map(|error| error.downcast_ref::<Blocked>()) {
        return blocked.to_string();
    }
    if wants_sign_in(error) {
        return SIGN_IN_AGAIN.to_owned();
    }
    let causes: Vec<_> = causes(error).collect();
    // The innermost cause that says something is what happened.
    let said = causes.iter().rev().find_map(|error| said_by(*error));
    said.unwrap_or_else(|| "the connection to the server failed".to_owned())
}

/// Notes where descriptors or memory have run out: the call is made again once there are some.
pub(super) fn note_exhausted(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(crate::exhausted::note)
}

/// The error and its causes, from the outside in.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

/// What is behind an error. Two of the library's types do not name it themselves.
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

/// What one error says by itself. None: nothing that its cause or its wrapper does not say better.
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
            Some("the server answered with another kind of result than was asked for".to_owned())
        }
        ServiceError::Timeout { timeout } => Some(format!(
            "the server did not answer within {} s",
            timeout.as_secs()
        )),
        _ => None,
    }
}

/// How the standard library shows a kind of error that it does not name.
const UNCATEGORIZED: &str = "uncategorized error";

/// An error of the operating system, in its words, which name no file and no address.
fn of_system(error: &std::io::Error) -> Option<String> {
    if error.raw_os_error().is_some() {
        return Some(error.to_string());
    }
    match error.kind() {
        std::io::ErrorKind::Other => None,
        std::io::ErrorKind::InvalidData => {
            Some("the server sent what cannot be read (a TLS or protocol error)".to_owned())
        }
        // The kind of a failed name lookup has no stable name and a text that says nothing. The request that it ended is
        // known to be one of names, and says so.
        kind if kind.to_string() == UNCATEGORIZED => None,
        kind => Some(kind.to_string()),
    }
}

fn of_request(error: &reqwest::Error) -> Option<String> {
    let said = if error.is_timeout() {
        "the server did not answer in time"
    } else if error.is_dns() {
        "the host's name could not be resolved"
    } else if error.is_connect() {
        "no connection to the server could be made"
    } else if error.is_redirect() {
        "the server redirects, and no redirect is followed; set the address that it leads to"
    } else if let Some(status) = error.status() {
        return Some(answered_with(status.as_u16()));
    } else if error.is_body() || error.is_decode() {
        "the answer broke off, or could not be read"
    } else {
        return None;
    };
    Some(said.to_owned())
}

fn answered_with(status: u16) -> String {
    format!("the server answered with HTTP status {status}")
}

/// The server's own refusal.
fn refused(code: i32, message: &str) -> String {
    let line = shown::one_line(message);
    let cut: String = line.chars().take(MESSAGE_CHARS_MAX).collect();
    format!("the server refused (JSON-RPC error {code}): {cut}")
}

fn of_transport(error: &HttpError) -> Option<String> {
    Some(match error {
        StreamableHttpError::UnexpectedServerResponse(text) => {
            // `HTTP 403 Forbidden: …`: of that, the status alone is not the server's text.
            let status = text.strip_prefix("HTTP ").and_then(|rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            });
            status.map_or_else(
                || "the server's answer is not JSON-RPC, as MCP has it; is this the address of an MCP server?".to_owned(),
                answered_with,
            )
        }
        StreamableHttpError::UnexpectedContentType(_) | StreamableHttpError::Deserialize(_) => {
            "the server's answer is neither JSON nor an event stream, as MCP has them; is this the address of an MCP server?".to_owned()
        }
        StreamableHttpError::ResponseBodyTooLarge { max_size } => {
            format!("the server's answer has more than {max_size} bytes")
        }
        StreamableHttpError::SessionExpired => "the server has ended the session".to_owned(),
        StreamableHttpError::ServerDoesNotSupportSse => {
            "the server does not offer an event stream, which its answer needs".to_owned()
        }
        StreamableHttpError::UnexpectedEndOfStream | StreamableHttpError::TransportChannelClosed => {
            "the server closed the connection".to_owned()
        }
        StreamableHttpError::Sse(_) => "the server's event stream could not be read".to_owned(),
        StreamableHttpError::ReinitializationFailed(error) => refused(error.code.0, &error.message),
        StreamableHttpError::ReservedHeaderConflict(name) => format!(
            "the header {} is set by the protocol and cannot be given",
            shown::one_line(name)
        ),
        StreamableHttpError::MissingSessionIdInResponse => {
            "the server's answer names no session".to_owned()
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
            "the server did not begin as MCP has it".to_owned()
        }
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => {
            "the server speaks no version of MCP that errand speaks".to_owned()
        }
        _ => return None,
    })
}

/// Of the texts of these errors, which hold answers and addresses, only a standard code is said.
fn of_sign_in(error: &AuthError) -> String {
    let said = match error {
        AuthError::AuthorizationRequired => return SIGN_IN_AGAIN.to_owned(),
        AuthError::PkceUnsupported => {
            "the authorization server does not support PKCE with S256, which is required"
        }
        AuthError::NoAuthorizationSupport => "the server offers no sign-in",
        AuthError::TokenExpired => "the token has expired",
        AuthError::DiscoveryRequestFailed { .. } | AuthError::MetadataError(_) => {
            "the description of the server's sign-in could not be read"
        }
        AuthError::ProtectedResourceMetadataInvalid { .. } => {
            "the server's description of its sign-in does not fit its address"
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
    fn no_word_of_an_answer_and_no_address_is_said() {
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
    fn an_error_without_a_name_is_explained_by_its_request() {
        let unnamed = std::io::Error::from_raw_os_error(i32::MAX).kind();
        let error = std::io::Error::new(unnamed, "failed to lookup address information");
        assert_eq!(of_system(&error), None);
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(of_system(&error).as_deref(), Some("connection reset"));
    }

    #[test]
    fn a_servers_own_message_is_one_bounded_line() {
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
