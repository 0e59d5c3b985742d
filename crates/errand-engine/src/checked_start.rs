//! Starts runs whose build was checked: the store starts a run only of the build that the caller names, and whether
//! the build's model can be used is known here.

use errand_store::idempotency::{Idempotent, Outcome};
use errand_store::model::{BuildToCheck, CheckedBuild, RunView, StartRun};
use errand_store::{ForkRun, Store, StoreError};

use crate::model::Models;
use crate::model::network::OwnProviders;

/// Maximum number of checks for one run. A second one is needed only if another build becomes live in between, which takes
/// a person or a deployment; a program that publishes builds without pause must not hold up a run for good.
pub(crate) const CHECKS_MAX: usize = 8;

/// Starts a run of an agent's live build. Ignores `expected_build`.
///
/// # Errors
/// As for [`Store::start_run`].
pub async fn start_run(
    store: &Store,
    models: &Models,
    mut start: StartRun,
    recorded: Idempotent<RunView>,
) -> Result<Outcome<RunView>, StoreError> {
    let own = OwnProviders::of(store, start.team).await?;
    let mut checks = 0;
    loop {
        let build = store.live_build(start.team, start.agent).await;
        start.expected_build = checked(build, models, &own)?;
        checks += 1;
        let started = store.start_run(start.clone(), recorded.clone()).await;
        if checks == CHECKS_MAX || !is_of_another_build(&started) {
            return started;
        }
    }
}

/// Starts a fork. Ignores `expected_build`.
///
/// # Errors
/// As for [`Store::fork`].
pub async fn fork_run(
    store: &Store,
    models: &Models,
    mut fork: ForkRun,
    recorded: Idempotent<RunView>,
) -> Result<Outcome<RunView>, StoreError> {
    let own = OwnProviders::of(store, fork.team).await?;
    let mut checks = 0;
    loop {
        let build = store.build_of_fork(fork.team, fork.run, fork.build).await;
        fork.expected_build = checked(build, models, &own)?;
        checks += 1;
        let forked = store.fork(fork.clone(), recorded.clone()).await;
        if checks == CHECKS_MAX || !is_of_another_build(&forked) {
            return forked;
        }
    }
}

/// Checks a build. If there is none, or it cannot be read, the operation itself says why.
pub(crate) fn checked(
    found: Result<BuildToCheck, StoreError>,
    models: &Models,
    own: &OwnProviders,
) -> Result<Option<CheckedBuild>, StoreError> {
    match found {
        Ok(build) => Ok(Some(CheckedBuild {
            id: build.id,
            problem: models.check(&build.config, own).err(),
        })),
        Err(error) if error.is_passing() => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_of_another_build<T>(done: &Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::BuildChanged { .. }))
}
