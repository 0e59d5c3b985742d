//! Signs a connection in to its server with OAuth. An admin begins the sign-in; the callback in the browser finishes
//! it.

use errand_engine::EngineContext;
use errand_engine::connect::{BegunBy, SignIn};
use errand_store::{Connection, StoreError};

use super::UseCaseError;

/// The parameters of the callback.
pub(crate) struct Callback {
    pub(crate) code: String,
    pub(crate) state: String,
    pub(crate) issuer: Option<String>,
}

/// The text of the page on which a person confirms that they sign in another person's connection.
pub(crate) struct ConfirmSignIn<'a> {
    pub(crate) callback: &'a Callback,
    pub(crate) team: &'a str,
    /// Email address of the person who began the sign-in.
    pub(crate) begun_by: &'a str,
    pub(crate) connection: &'a str,
    /// The server's address, or the program's name.
    pub(crate) server: &'a str,
}

/// Begins a sign-in. `public_url`: this server's public address, for the callback.
///
/// # Errors
/// `Refused` with the reason if the sign-in cannot be started.
pub(crate) async fn begin(
    engine: &EngineContext,
    connection: &Connection,
    by: BegunBy,
    public_url: &str,
) -> Result<SignIn, UseCaseError> {
    let callback = format!("{public_url}/v1/sign-ins/callback");
    let begun = engine
        .connections
        .begin_sign_in(connection, by, &callback)
        .await;
    begun.map_err(|why| UseCaseError::Refused(format!("the sign-in cannot be started: {why}")))
}

/// Finishes a sign-in and stores its tokens.
///
/// # Errors
/// The store's `NotFound` if this sign-in is not in progress or the person who began it has left the team. `Refused` if
/// the server issues no tokens.
pub(crate) async fn finish(
    engine: &EngineContext,
    callback: &Callback,
) -> Result<(), UseCaseError> {
    let begun = engine.connections.sign_in_under_way(&callback.state);
    let begun = begun.ok_or(StoreError::NotFound)?;
    engine.store.member(begun.team, begun.by.user).await?;
    let ended = engine
        .connections
        .end_sign_in(&callback.state, &callback.code, callback.issuer.as_deref())
        .await
        .ok_or(StoreError::NotFound)?;
    ended
        .map(drop)
        .map_err(|why| UseCaseError::Refused(format!("the sign-in failed: {why}")))
}
