//! Builds that were read and parsed. They never change, so that they are kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::config::{BadConfig, BuildConfig};
use errand_core::id::BuildId;
use rusqlite::{Connection, params};
use serde_json::Value;

use crate::error::Result;
use crate::rows::{Blob, json};

/// Most builds that are kept. Beyond, all are forgotten: who is at work comes back at once.
const KEPT_MAX: usize = 256;

/// Parsed builds by id.
#[derive(Clone, Default)]
pub(crate) struct Builds {
    kept: Arc<Mutex<HashMap<BuildId, Arc<BuildConfig>>>>,
}

impl Builds {
    /// A build, parsed. The inner error: its config cannot be used.
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
        let build = match BuildConfig::parse(&config) {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, Arc<BuildConfig>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
