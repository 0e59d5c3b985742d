//! The engine's connections, from the settings.

use std::sync::Arc;

use errand_engine::clock::Clock;
use errand_engine::connect::{Connections, ConnectionsSetup, Isolation};
use errand_engine::net::Guard;
use errand_engine::progress::Progress;
use errand_sandbox::exec::{Bubblewrap, ExecSettings, Limits, SandboxExec, Uids};
use errand_store::Store;

use crate::config::Config;

/// Puts them together.
pub(crate) async fn of(
    config: &Config,
    store: &Store,
    clock: &Clock,
    progress: &Progress,
) -> Connections {
    let settings = &config.connections;
    let isolates = settings
        .stdio
        .values()
        .any(|server| server.isolation == Isolation::Sandbox);
    let exec = if isolates {
        exec().await
    } else {
        Err("no program of the settings is to be isolated".to_owned())
    };
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

async fn exec() -> Result<Arc<dyn SandboxExec>, String> {
    let helper =
        std::env::current_exe().map_err(|error| format!("this program has no path: {error}"))?;
    let found = Bubblewrap::find(ExecSettings {
        helper,
        search_path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        instance: "connections".to_owned(),
        root: None,
        uids: Arc::new(Uids::new(700_000, 1_000)),
        limits: Limits::default(),
    })
    .await;
    match found {
        Ok(exec) => Ok(Arc::new(exec)),
        Err(unavailable) => Err(format!("{}; {}", unavailable.reason, unavailable.remedy)),
    }
}
