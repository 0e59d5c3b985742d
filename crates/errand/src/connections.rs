//! Creates the engine's connections from the settings.

use std::sync::Arc;

use errand_engine::clock::Clock;
use errand_engine::connect::{Connections, ConnectionsSetup};
use errand_engine::net::Guard;
use errand_engine::progress::Progress;
use errand_sandbox::exec::SandboxExec;
use errand_store::Store;

use crate::config::Config;

/// `exec`: isolates local programs, or the reason why they cannot be isolated.
pub(crate) fn of(
    config: &Config,
    store: &Store,
    clock: &Clock,
    progress: &Progress,
    exec: Result<Arc<dyn SandboxExec>, String>,
) -> Connections {
    let settings = &config.connections;
    Connections::new(ConnectionsSetup {
        store: store.clone(),
        clock: clock.clone(),
        guard: Guard::new(
            settings.allow_private_networks,
            "connections.allow_private_networks",
        ),
        declared: settings.stdio.clone(),
        exec,
        call_time: settings.call_timeout,
        idle: settings.idle_close,
        progress: progress.clone(),
    })
}
