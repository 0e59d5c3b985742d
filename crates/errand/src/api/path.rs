//! Ids in paths.
//!
//! What is not an id of the right form names nothing: it is 404, as an id that nothing has.

use axum::extract::{FromRequestParts, RawPathParams};
use errand_core::id::{
    AgentId, ApiKeyId, BuildId, ConnectionId, DeliveryId, HumanRequestId, InvitationId, RunId,
    SandboxId, UserId, WebhookId,
};
use http::request::Parts;

use super::AppState;
use super::error::ApiError;

/// The ids of a path.
pub(crate) struct Path<T>(pub(crate) T);

/// An id, or several, by the names of the table of routes.
pub(crate) trait PathIds: Sized {
    /// Reads it from the part of the path called `name(…)`.
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Option<Self>;
}

impl<T: PathIds> FromRequestParts<AppState> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|_| ApiError::not_found())?;
        let part = |name: &str| {
            params
                .iter()
                .find(|(given, _)| *given == name)
                .map(|(_, value)| value.to_owned())
        };
        T::read(&part).map(Path).ok_or_else(ApiError::not_found)
    }
}

macro_rules! path_ids { ($($id:ident $name:literal),* $(,)?) => { $(
    impl PathIds for $id {
        fn read(part: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
            part($name)?.parse().ok()
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
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        Self::parse(&part("sandbox_id")?)
    }
}

/// A secret's name. Whatever it is: a text that can be no name is that of no secret.
pub(crate) struct SecretName(pub(crate) String);

impl PathIds for SecretName {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        part("secret_name").map(Self)
    }
}

impl<A: PathIds, B: PathIds> PathIds for (A, B) {
    fn read(part: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        Some((A::read(part)?, B::read(part)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_id_names_nothing() {
        let id = "0198f2a4-7c1e-7000-8000-000000000001";
        let of = |text: &'static str| move |name: &str| (name == "run_id").then(|| text.to_owned());
        assert!(RunId::read(&of(id)).is_some());
        assert!(RunId::read(&of("1")).is_none());
        assert!(AgentId::read(&of(id)).is_none());
        assert!(SandboxId::read(&|_: &str| Some("../..".to_owned())).is_none());
    }
}
