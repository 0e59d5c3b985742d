//! Idempotency: an answer that is recorded in the transaction that has the effect.
//!
//! The record is looked up inside the transaction and written with it, so that it holds across a crash and between two
//! requests at once (there is one writer). What is recorded are the bytes of the answer.

use errand_core::id::ApiKeyId;
use errand_core::limits::IDEMPOTENCY_TTL_MS;
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::sqlite::Store;
use crate::db::types::Blob;
use crate::error::{Result, StoreError};

/// What tells two requests apart, or makes them the same.
#[derive(Clone, Debug)]
pub struct Idem {
    /// The scope: one API key.
    pub api_key: ApiKeyId,
    /// The method.
    pub method: &'static str,
    /// The path, without the query.
    pub path: String,
    /// The `Idempotency-Key` header: 1–255 characters.
    pub key: String,
    /// SHA-256 of the body (for an upload: of path and file).
    pub body_sha256: [u8; 32],
}

/// The answer that a repeat gets again, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    /// A 2xx status.
    pub status: u16,
    /// JSON; empty for 204.
    pub body: Vec<u8>,
}

/// How a result becomes the recorded answer.
pub type Render<T> = fn(&T) -> StoredAnswer;

/// Whether, and how, an operation is recorded.
#[derive(Clone)]
pub struct Once<T> {
    /// None: it is not recorded.
    pub idem: Option<Idem>,
    /// The recorded form of its result.
    pub render: Render<T>,
}

impl<T> Once<T> {
    /// An operation that is not recorded.
    #[must_use]
    pub fn not_recorded() -> Self {
        Self {
            idem: None,
            render: |_| StoredAnswer {
                status: 200,
                body: Vec::new(),
            },
        }
    }
}

/// A result: of the operation, or of the same one before.
#[derive(Clone, Debug)]
pub enum Answer<T> {
    /// It was done now.
    Fresh(T),
    /// It was done before; nothing was changed.
    Replayed(StoredAnswer),
}

impl<T> Answer<T> {
    /// The result of an operation that was not recorded.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] where it was replayed after all, which a caller without a key never sees.
    pub fn fresh(self) -> Result<T> {
        match self {
            Self::Fresh(value) => Ok(value),
            Self::Replayed(_) => Err(StoreError::KeyReused),
        }
    }
}

/// Runs `act` unless it was done before, and records its answer.
pub(crate) fn once<T>(
    conn: &Connection,
    once: &Once<T>,
    now: Timestamp,
    act: impl FnOnce() -> Result<T>,
) -> Result<Answer<T>> {
    let Some(idem) = &once.idem else {
        return act().map(Answer::Fresh);
    };
    if let Some(answer) = look_up(conn, idem, now)? {
        return Ok(Answer::Replayed(answer));
    }
    let value = act()?;
    let answer = (once.render)(&value);
    record(conn, idem, &answer, now)?;
    Ok(Answer::Fresh(value))
}

fn look_up(conn: &Connection, idem: &Idem, now: Timestamp) -> Result<Option<StoredAnswer>> {
    let found = conn
        .prepare_cached(
            "SELECT body_sha256, status, answer FROM idempotency
             WHERE api_key_id = ?1 AND method = ?2 AND path = ?3 AND key = ?4 AND created_at > ?5",
        )?
        .query_row(
            params![
                Blob(idem.api_key.as_uuid()),
                idem.method,
                idem.path,
                idem.key,
                now.as_millis() - ttl_ms()
            ],
            |row| {
                Ok((
                    row.get::<_, Vec<u8>>(0)?,
                    row.get::<_, u16>(1)?,
                    row.get::<_, Vec<u8>>(2)?,
                ))
            },
        )
        .optional()?;
    match found {
        None => Ok(None),
        Some((hash, status, body)) if hash == idem.body_sha256 => {
            Ok(Some(StoredAnswer { status, body }))
        }
        Some(_) => Err(StoreError::KeyReused),
    }
}

fn record(conn: &Connection, idem: &Idem, answer: &StoredAnswer, now: Timestamp) -> Result<()> {
    // A record that is a day old is no longer looked at; a few go with each new one, so that the table stays bounded.
    conn.prepare_cached(
        "DELETE FROM idempotency WHERE (api_key_id, method, path, key) IN
             (SELECT api_key_id, method, path, key FROM idempotency WHERE created_at <= ?1 ORDER BY created_at LIMIT 4)",
    )?
    .execute(params![now.as_millis() - ttl_ms()])?;
    conn.prepare_cached(
        "INSERT OR REPLACE INTO idempotency (api_key_id, method, path, key, body_sha256, created_at, status, answer)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        Blob(idem.api_key.as_uuid()),
        idem.method,
        idem.path,
        idem.key,
        idem.body_sha256,
        now.as_millis(),
        answer.status,
        answer.body
    ])?;
    Ok(())
}

fn ttl_ms() -> i64 {
    i64::try_from(IDEMPOTENCY_TTL_MS).unwrap_or(i64::MAX)
}

impl Store {
    /// The answer that was recorded for a request, if it was made before.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] where the key was used with another body.
    pub async fn recall(&self, idem: Idem, now: Timestamp) -> Result<Option<StoredAnswer>> {
        self.read(move |conn| look_up(conn, &idem, now)).await
    }

    /// Records the answer of something that is done outside the store and harmless to do twice: an upload.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] where the key was used with another body meanwhile.
    pub async fn remember<T: Clone + Send + Sync + 'static>(
        &self,
        value: T,
        recorded: Once<T>,
        now: Timestamp,
    ) -> Result<Answer<T>> {
        if recorded.idem.is_none() {
            return Ok(Answer::Fresh(value));
        }
        self.write(move |conn| once(conn, &recorded, now, || Ok(value.clone())))
            .await
    }
}
