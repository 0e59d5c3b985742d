//! Work on files, on a thread that may block.

use tokio::task::JoinError;

/// Runs `act` on a thread for blocking work.
///
/// # Errors
/// The errors of `act`, or [`JoinError`] if the server stops or `act` panics.
pub(crate) async fn blocking<T, E>(
    act: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<JoinError> + Send + 'static,
{
    tokio::task::spawn_blocking(act).await?
}
