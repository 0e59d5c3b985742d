//! Signs a connection in to its server with OAuth: begun by an admin, finished by the browser that comes back.

use errand_engine::EngineContext;
use errand_engine::connect::{BegunBy, SignIn};
use errand_store::{Connection, StoreError};

use super::UseCaseError;

/// The parameters that the browser brings back from the server.
pub(crate) struct Brought {
    pub(crate) code: String,
    pub(crate) state: String,
    pub(crate) issuer: Option<String>,
}

/// The text of the page on which a person confirms that they sign in another person's connection.
pub(crate) struct ConfirmSignIn<'a> {
    pub(crate) brought: &'a Brought,
    pub(crate) team: &'a str,
    /// The e-mail address of the person who began the sign-in.
    pub(crate) who: &'a str,
    pub(crate) connection: &'a str,
    /// The server's address, or the program's name.
    pub(crate) place: &'a str,
}

/// Begins a sign-in. `public_url`: the address at which the browser that comes back reaches this server.
///
/// # Errors
/// `Refused` if the server cannot be signed in to, with the reason.
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

/// Finishes a sign-in.
///
/// # Errors
/// The store's `NotFound` if no such sign-in is in progress, or whoever began it has left the team; `Refused` if the server
/// gives no tokens.
pub(crate) async fn finish(engine: &EngineContext, brought: &Brought) -> Result<(), UseCaseError> {
    let begun = engine.connections.sign_in_under_way(&brought.state);
    let begun = begun.ok_or(StoreError::NotFound)?;
    engine.store.member(begun.team, begun.by.user).await?;
    let ended = engine
        .connections
        .end_sign_in(&brought.state, &brought.code, brought.issuer.as_deref())
        .await
        .ok_or(StoreError::NotFound)?;
    ended
        .map(drop)
        .map_err(|why| UseCaseError::Refused(format!("the sign-in failed: {why}")))
}
