//! The way to the store for commands on the server's own machine: the server's socket, or the directory itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use errand_engine::clock::Clock;
use errand_store::OpenError;

use super::socket::{self, SocketError};
use super::{Admin, AdminAnswer, AdminError, AdminRequest};
use crate::app::{StoreSetup, master_key_of};
use crate::config::Config;
use crate::secret_key::{NoRandomness, random_bytes};

/// How often a directory is tried that is in use though no server answers: one that starts has the lock before the
/// socket, and another command holds the lock for a moment.
const TRIES: u32 = 100;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a request could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The server answered so.
    #[error(transparent)]
    Socket(SocketError),
    /// No server runs, and the request was refused.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Somebody holds the directory's lock and does not answer.
    #[error("{} is in use, but nobody answers on its admin socket; look at the log of the server there", .0.display())]
    Held(PathBuf),
    /// The store does not open.
    #[error("the store does not open")]
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No secret could be drawn.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Carries a request out: by the server that works on the data directory, else on its store, which is made where there
/// is none.
///
/// # Errors
/// [`ReachError`].
pub async fn execute(config: &Config, request: AdminRequest) -> Result<AdminAnswer, ReachError> {
    let dir = &config.server.data_dir;
    for _ in 0..TRIES {
        match socket::call(dir, &request).await {
            Err(SocketError::NoServer) => {}
            answered => return answered.map_err(ReachError::Socket),
        }
        match open(config).await? {
            Some(admin) => return Ok(Box::pin(admin.execute(request)).await?),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
    Err(ReachError::Held(Path::new(dir).to_owned()))
}

/// None where somebody holds the directory's lock.
async fn open(config: &Config) -> Result<Option<Admin>, ReachError> {
    let clock = Clock::System;
    let seed = random_bytes()?;
    let url = config.server.base_url(config.server.listen);
    let setup = StoreSetup {
        dir: config.server.data_dir.clone(),
        url: url.clone(),
        readers: 1,
        cache_kib: config.store.cache_kib,
        key: master_key_of(config),
    };
    let boot = errand_core::id::IdGen::new(random_bytes()?).boot(clock.now());
    let opened =
        tokio::task::spawn_blocking(move || setup.open(boot, errand_store::Trial::default())).await;
    match opened {
        Ok(Ok(store)) => Ok(Some(Admin::new(store, seed, clock, url))),
        Ok(Err(error)) if matches!(error.downcast_ref(), Some(OpenError::InUse(_))) => Ok(None),
        Ok(Err(error)) => Err(ReachError::Open(error.into())),
        Err(error) => Err(ReachError::Open(error.into())),
    }
}
