//! Reaches the store for commands on the server's own machine: through the server's socket, or directly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use errand_engine::clock::Clock;
use errand_sandbox::Changes;
use errand_store::data_dir::{DataDirError, Making, is_being_made};
use errand_store::{DATABASE_FILE, DirLock, OpenError, Store};

use super::socket::{self, SocketError};
use super::{Admin, AdminAnswer, AdminError, AdminRequest};
use crate::app::{Opening, StoreSetup, master_key_of};
use crate::backup::{Progress, ProgressLine, Source, make};
use crate::config::Config;
use crate::secret_key::{NoRandomness, random_bytes};

/// Maximum number of attempts if a directory is locked but no server answers: a starting server takes the lock before
/// it creates the socket, and another command holds the lock only briefly.
const TRIES: u32 = 100;
/// Delay between attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Interval between progress reports of a backup.
const TOLD_EVERY: Duration = Duration::from_millis(250);

/// The reason why a request could not be executed.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The server answered with an error.
    #[error(transparent)]
    Socket(SocketError),
    /// No server runs, and the request failed on the store.
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("there is no store in {}: is --data-dir right?", .0.display())]
    NoStore(PathBuf),
    /// The directory is locked, but nothing answers on the socket.
    #[error("{} is in use, but nothing answers on its admin socket; see the log of the server there", .0.display())]
    Held(PathBuf),
    /// There is no store, or its master key is unavailable.
    #[error(transparent)]
    DataDir(DataDirError),
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system's random source failed.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Executes a request: with the server that runs on the data directory, otherwise on its store. It never creates a
/// store.
///
/// # Errors
/// [`ReachError`] if neither way succeeded.
pub async fn execute(config: &Config, request: AdminRequest) -> Result<AdminAnswer, ReachError> {
    let dir = &config.server.data_dir;
    for _ in 0..TRIES {
        match socket::call(dir, &request).await {
            Err(SocketError::NoServer) => {}
            answered => return answered.map_err(ReachError::Socket),
        }
        match open(config, Opening::default()).await {
            Ok(Some(admin)) => {
                let done = Box::pin(admin.execute(request)).await;
                admin.close().await;
                return Ok(done?);
            }
            Ok(None) => {}
            // A server is creating the store right now.
            Err(ReachError::DataDir(DataDirError::NoStore(_))) if is_being_made(dir) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(ReachError::Held(Path::new(dir).to_owned()))
}

/// Makes a backup: through the server if one is running on the data directory, otherwise directly from the directory. A
/// direct backup does not open the store, so nothing is created, migrated or changed. `tell` receives the progress.
///
/// # Errors
/// [`ReachError`] if neither way succeeded.
pub async fn back_up(
    config: &Config,
    target: &Path,
    tell: &(dyn Fn(&ProgressLine) + Sync),
) -> Result<AdminAnswer, ReachError> {
    let dir = &config.server.data_dir;
    let request = AdminRequest::Backup {
        dir: target.to_owned(),
    };
    for _ in 0..TRIES {
        let asked = async {
            let made = socket::call(dir, &request);
            tokio::pin!(made);
            loop {
                tokio::select! {
                    made = &mut made => return made,
                    () = tokio::time::sleep(TOLD_EVERY) => {}
                }
                if let Ok(AdminAnswer::BackupProgress {
                    progress: Some(line),
                }) = socket::call(dir, &AdminRequest::BackupProgress).await
                {
                    tell(&line);
                }
            }
        };
        match asked.await {
            Err(SocketError::NoServer) => {}
            answered => return answered.map_err(ReachError::Socket),
        }
        if !dir.join(DATABASE_FILE).exists() {
            return Err(ReachError::NoStore(dir.clone()));
        }
        match Store::lock(dir) {
            Ok(lock) => return back_up_stopped(dir, target, tell, lock).await,
            Err(OpenError::InUse(_)) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(ReachError::Open(error.into())),
        }
    }
    Err(ReachError::Held(Path::new(dir).to_owned()))
}

async fn back_up_stopped(
    dir: &Path,
    target: &Path,
    tell: &(dyn Fn(&ProgressLine) + Sync),
    lock: DirLock,
) -> Result<AdminAnswer, ReachError> {
    let progress = Arc::new(Progress::default());
    let source = Source {
        data_dir: dir.to_owned(),
        changes: Changes::default(),
        clock: Clock::System,
    };
    let work = {
        let (progress, target) = (Arc::clone(&progress), target.to_owned());
        tokio::task::spawn_blocking(move || {
            let made = make(&source, &target, &progress);
            drop(lock);
            made
        })
    };
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                let made = done
                    .map_err(|error| AdminError::Bad(error.to_string()))?
                    .map_err(|error| AdminError::Bad(format!("{error:#}")))?;
                return Ok(AdminAnswer::BackedUp { backup: made.into() });
            }
            () = tokio::time::sleep(TOLD_EVERY) => tell(&progress.line()),
        }
    }
}

/// Creates a store in an empty directory, as a server does at its first start. Used by `errand selftest`.
///
/// # Errors
/// [`ReachError`] if the store cannot be created.
pub async fn make_store(config: &Config) -> Result<(), ReachError> {
    let opening = Opening {
        making: Making::BY_ITSELF,
        discards_secrets: false,
    };
    match open(config, opening).await? {
        Some(admin) => {
            admin.close().await;
            Ok(())
        }
        None => Err(ReachError::Held(config.server.data_dir.clone())),
    }
}

/// Opens the store. `None` if the directory is locked.
async fn open(config: &Config, opening: Opening) -> Result<Option<Admin>, ReachError> {
    let clock = Clock::System;
    let seed = random_bytes()?;
    let url = config.server.base_url(config.server.listen);
    let setup = StoreSetup {
        dir: config.server.data_dir.clone(),
        url: url.clone(),
        readers: 1,
        key: master_key_of(config),
        opening,
    };
    let boot = errand_core::id::IdGen::new(random_bytes()?).boot(clock.now());
    let opened =
        tokio::task::spawn_blocking(move || setup.open(boot, errand_store::Trial::default())).await;
    match opened {
        Ok(Ok(store)) => Ok(Some(Admin::new(store, seed, clock, url))),
        Ok(Err(error)) if matches!(error.downcast_ref(), Some(OpenError::InUse(_))) => Ok(None),
        Ok(Err(error)) => match error.downcast::<DataDirError>() {
            Ok(error) => Err(ReachError::DataDir(error)),
            Err(error) => Err(ReachError::Open(error.into())),
        },
        Err(error) => Err(ReachError::Open(error.into())),
    }
}
