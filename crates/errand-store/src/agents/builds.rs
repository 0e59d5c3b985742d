//! Caches parsed builds. Builds never change, so entries never become stale.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use errand_core::config::{BadConfig, BuildConfig, ModelAliases};
use errand_core::id::BuildId;
use rusqlite::{Connection, params};
use serde_json::Value;

use crate::db::sqlite::Store;
use crate::db::types::{Blob, json};
use crate::error::Result;

/// Maximum number of cached builds. When it is reached, the cache is cleared; builds in use are soon cached again.
const KEPT_MAX: usize = 256;

impl Store {
    /// Sets the aliases for model names in builds. Call this once, before any build is read.
    pub fn set_model_aliases(&self, aliases: ModelAliases) {
        self.builds().set_aliases(aliases);
    }

    /// Parses a build's config with the model aliases of this server.
    ///
    /// # Errors
    /// [`BadConfig`] with the first problem.
    pub fn parse_config(&self, config: &Value) -> std::result::Result<BuildConfig, BadConfig> {
        self.builds().parse(config)
    }
}

/// Parsed builds by id.
#[derive(Clone, Default)]
pub(crate) struct Builds {
    kept: Arc<Mutex<HashMap<BuildId, Arc<BuildConfig>>>>,
    aliases: Arc<OnceLock<ModelAliases>>,
}

impl Builds {
    /// Returns a parsed build. The inner error means that its config cannot be used.
    pub(crate) fn get(
        &self,
        conn: &Connection,
        id: BuildId,
    ) -> Result<std::result::Result<Arc<BuildConfig>, BadConfig>> {
        if let Some(build) = self.lock().get(&id) {
            return Ok(Ok(Arc::clone(build)));
        }
        let config: String = conn
            .prepare_cached("SELECT config FROM builds WHERE id = ?1")?
            .query_row(params![Blob(id.as_uuid())], |row| row.get(0))?;
        let config: Value = json("builds", "config", &config)?;
        let build = match self.parse(&config) {
            Ok(build) => Arc::new(build),
            Err(bad) => return Ok(Err(bad)),
        };
        let mut kept = self.lock();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(id, Arc::clone(&build));
        Ok(Ok(build))
    }

    /// Parses a config with the model aliases of this server.
    pub(crate) fn parse(&self, config: &Value) -> std::result::Result<BuildConfig, BadConfig> {
        match self.aliases.get() {
            Some(aliases) => BuildConfig::parse_with(config, aliases),
            None => BuildConfig::parse(config),
        }
    }

    /// Sets the model aliases. Call this once, before any build is read.
    pub(crate) fn set_aliases(&self, aliases: ModelAliases) {
        let is_set = self.aliases.set(aliases);
        debug_assert!(is_set.is_ok(), "model aliases may be set only once");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, Arc<BuildConfig>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
