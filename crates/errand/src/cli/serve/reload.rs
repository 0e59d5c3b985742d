//! SIGHUP: reads the settings again, and applies those that can change while the server runs.
//!
//! Guarantees: invalid settings and unusable certificates change nothing. The log says what was applied, and which
//! changed settings require a restart.

use errand_core::error_chain::error_chain;

use super::super::CommandContext;
use super::super::logging::Log;
use crate::app::App;
use crate::config::{Config, Flags, table};

/// Settings that are applied. Certificate files are read again even if their paths are unchanged.
const TAKEN_OVER: [&str; 3] = ["log.level", "server.tls.cert", "server.tls.key"];

/// The settings a server was started with, and those applied since.
pub(super) struct Reload<'w> {
    flags: Flags,
    with: &'w CommandContext,
    log: Log,
    settings: Config,
}

impl<'w> Reload<'w> {
    pub(super) fn new(flags: &Flags, with: &'w CommandContext, log: Log, settings: Config) -> Self {
        Self {
            flags: flags.clone(),
            with,
            log,
            settings,
        }
    }

    /// Applies the settings that can change.
    pub(super) async fn reload(&mut self, app: &App) {
        let next = match self.with.settings(&self.flags) {
            Ok(next) => next,
            Err(error) => {
                let error = error_chain(error.as_ref());
                tracing::error!(
                    error,
                    "SIGHUP: the settings are invalid; nothing was changed"
                );
                return;
            }
        };
        // An error in the certificates does not keep the other settings from being applied.
        let has_tls = match app.reload_tls(next.server.tls.as_ref()).await {
            Ok(has_tls) => has_tls,
            Err(error) => {
                let error = error_chain(error.as_ref());
                tracing::error!(
                    error,
                    "SIGHUP: the certificates could not be loaded; the previous ones stay in use"
                );
                false
            }
        };
        let changed = changes(&self.settings, &next);
        let level = next.log.level.as_str();
        if let Err(error) = self.log.set_level(&next.log) {
            tracing::error!(%error, "SIGHUP: the log level could not be changed");
        }
        let restart: Vec<&str> = changed
            .into_iter()
            .filter(|name| !TAKEN_OVER.contains(name))
            .collect();
        tracing::info!(
            settings.log.level = level,
            certificates = if has_tls { "reloaded" } else { "not reloaded" },
            "SIGHUP: settings reloaded"
        );
        if !restart.is_empty() {
            tracing::warn!(
                settings = restart.join(", "),
                "SIGHUP: changes to these settings require a restart"
            );
        }
        self.settings = next;
    }
}

/// Names of the settings whose values differ, without secrets, whose values are not displayed.
fn changes(before: &Config, next: &Config) -> Vec<&'static str> {
    let (before, next) = (table(before), table(next));
    let differs = |line: &&crate::config::SettingLine| {
        let old = before.iter().find(|old| old.name == line.name);
        old.is_none_or(|old| old.value != line.value)
    };
    next.iter().filter(differs).map(|line| line.name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn changed_settings_are_found_by_name() {
        let load = |level: &str, runs: &str| {
            let env: BTreeMap<String, String> = [
                ("ERRAND_LOG__LEVEL".to_owned(), level.to_owned()),
                (
                    "ERRAND_ENGINE__MAX_CONCURRENT_RUNS".to_owned(),
                    runs.to_owned(),
                ),
            ]
            .into();
            crate::config::load(&Flags::default(), &env, None).unwrap()
        };
        let before = load("info", "20");
        assert!(changes(&before, &load("info", "20")).is_empty());
        assert_eq!(
            changes(&before, &load("debug", "40")),
            ["log.level", "engine.max_concurrent_runs"]
        );
    }
}
