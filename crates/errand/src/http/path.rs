//! Ids in paths.
//!
//! A malformed id gets 400. The ids of sandboxes and the names of providers and secrets are opaque: a malformed one
//! cannot exist and gets 404, like one that does not exist.

use axum::extract::{FromRequestParts, RawPathParams};
use errand_core::id::{
    AgentId, ApiKeyId, BuildId, ConnectionId, DeliveryId, HumanRequestId, InvitationId, RunId,
    SandboxId, UserId, WebhookId,
};
use http::request::Parts;

use super::error::ApiError;

/// Extractor for the ids of a path.
pub(crate) struct Path<T>(pub(crate) T);

/// An id, or several, that can be parsed from a path.
pub(crate) trait PathIds: Sized {
    /// Parses the ids. `part` returns a part of the path by its name in the table of routes.
    ///
    /// # Errors
    /// 400 for a malformed id, 404 for an opaque name that cannot exist.
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError>;
}

impl<T: PathIds, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::not_found())?;
        let part = |name: &str| {
            params
                .iter()
                .find(|(given, _)| *given == name)
                .map(|(_, value)| value.to_owned())
        };
        T::read(&part).map(Path)
    }
}

macro_rules! path_ids { ($($id:ident $name:literal),* $(,)?) => { $(
    impl PathIds for $id {
        fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
            let text = part($name).ok_or_else(ApiError::not_found)?;
            text.parse().map_err(|error| ApiError::invalid($name, error))
        }
    }
)* } }

path_ids! {
    RunId "run_id",
    HumanRequestId "request_id",
    AgentId "agent_id",
    BuildId "build_id",
    ApiKeyId "key_id",
    ConnectionId "connection_id",
    WebhookId "webhook_id",
    DeliveryId "delivery_id",
    UserId "user_id",
    InvitationId "invitation_id",
}

impl PathIds for SandboxId {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        part("sandbox_id")
            .and_then(|text| Self::parse(&text))
            .ok_or_else(ApiError::not_found)
    }
}

/// The name of a model provider: 1 to 40 lower-case letters, digits, `_` and `-`, and not `builtin`.
pub(crate) struct ProviderName(pub(crate) String);

impl PathIds for ProviderName {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        let name = part("provider").ok_or_else(ApiError::not_found)?;
        let is_name =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        let fits = (1..=40).contains(&name.len()) && name.chars().all(is_name) && name != "builtin";
        fits.then_some(Self(name)).ok_or_else(ApiError::not_found)
    }
}

/// The name of a secret. It is not validated, because a malformed name simply does not exist.
pub(crate) struct SecretName(pub(crate) String);

impl PathIds for SecretName {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        part("secret_name")
            .map(Self)
            .ok_or_else(ApiError::not_found)
    }
}

impl<A: PathIds, B: PathIds> PathIds for (A, B) {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        Ok((A::read(part)?, B::read(part)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_ids_are_refused_and_opaque_names_not_found() {
        let id = "0198f2a4-7c1e-7000-8000-000000000001";
        let of = |text: &'static str| move |name: &str| (name == "run_id").then(|| text.to_owned());
        assert!(RunId::read(&of(id)).is_ok());
        let refused = RunId::read(&of("1")).unwrap_err();
        assert_eq!(refused.status(), http::StatusCode::BAD_REQUEST);
        assert!(refused.message().starts_with("run_id: "), "{refused:?}");
        let opaque = SandboxId::read(&|_: &str| Some("../..".to_owned())).unwrap_err();
        assert_eq!(opaque.status(), http::StatusCode::NOT_FOUND);
    }
}
