//! The directories of sandboxes.

use errand_core::id::{SandboxId, TeamId};
use errand_engine::EngineContext;
use errand_sandbox::{Charged, Root};
use errand_store::model::Sandbox;

use super::UseCaseError;
use super::blocking::blocking;

/// The directory of a sandbox of the team.
///
/// # Errors
/// The store's `NotFound` if the sandbox does not exist, has expired or belongs to another team.
pub(crate) async fn root_of(
    engine: &EngineContext,
    team: TeamId,
    sandbox: &SandboxId,
) -> Result<Root, UseCaseError> {
    let row = engine
        .store
        .sandbox(team, sandbox, engine.clock.now())
        .await?;
    open_root(engine, row).await
}

/// The directory of a sandbox, which is created if the sandbox has no files yet.
pub(crate) async fn open_root(engine: &EngineContext, row: Sandbox) -> Result<Root, UseCaseError> {
    let sandboxes = engine.sandboxes.clone();
    blocking(move || Ok(sandboxes.root(&row.id, charged(&row))?)).await
}

/// The team to whose quota a sandbox counts.
pub(crate) fn charged(row: &Sandbox) -> Charged {
    Charged {
        team: row.team,
        bytes: row.bytes,
    }
}
