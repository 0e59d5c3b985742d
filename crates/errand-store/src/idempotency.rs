//! Idempotency: an answer is recorded in the same transaction as its effect.
//!
//! The record is looked up and written inside the transaction, so it holds across a crash, and for two concurrent
//! requests (there is only one writer). The bytes of the answer are recorded.

use errand_core::id::ApiKeyId;
use errand_core::limits::IDEMPOTENCY_TTL_MS;
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::sqlite::Store;
use crate::db::types::Blob;
use crate::error::{Result, StoreError};

/// Identifies a request. Two requests with the same values are the same request.
#[derive(Clone, Debug)]
pub struct Idem {
    /// Scope of the key.
    pub api_key: ApiKeyId,
    pub method: &'static str,
    /// Without the query.
    pub path: String,
    /// Value of the `Idempotency-Key` header: 1 to 255 characters.
    pub key: String,
    /// SHA-256 of the body. For an upload: of the path and the file.
    pub body_sha256: [u8; 32],
}

/// A recorded answer. A repeated request gets it byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    /// A 2xx status code.
    pub status: u16,
    /// JSON; empty for status 204.
    pub body: Vec<u8>,
}

/// Turns a result into the answer to record.
pub type Render<T> = fn(&T) -> StoredAnswer;

/// Whether and how an operation is recorded.
#[derive(Clone)]
pub struct Idempotent<T> {
    /// `None`: the operation is not recorded.
    pub idem: Option<Idem>,
    /// Turns the result into the answer to record.
    pub render: Render<T>,
}

impl<T> Idempotent<T> {
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

/// The result of an operation, or the recorded answer of an earlier one.
#[derive(Clone, Debug)]
pub enum Outcome<T> {
    /// The operation was executed now.
    Executed(T),
    /// The operation was executed before; nothing was changed.
    Replayed(StoredAnswer),
}

impl<T> Outcome<T> {
    /// The result of an operation that was not recorded.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] if it was replayed after all, which cannot happen without a key.
    pub fn executed(self) -> Result<T> {
        match self {
            Self::Executed(value) => Ok(value),
            Self::Replayed(_) => Err(StoreError::KeyReused),
        }
    }
}

/// Executes `act` unless that was done before, and records its answer.
pub(crate) fn idempotent<T>(
    conn: &Connection,
    recorded: &Idempotent<T>,
    now: Timestamp,
    act: impl FnOnce() -> Result<T>,
) -> Result<Outcome<T>> {
    let Some(idem) = &recorded.idem else {
        return act().map(Outcome::Executed);
    };
    if let Some(answer) = look_up(conn, idem, now)? {
        return Ok(Outcome::Replayed(answer));
    }
    let value = act()?;
    let answer = (recorded.render)(&value);
    record(conn, idem, &answer, now)?;
    Ok(Outcome::Executed(value))
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
    // Records older than a day are ignored. Each new record deletes a few of them, which keeps the table bounded.
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
    /// Looks up the answer that was recorded for a request.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] if the key was used with another body.
    pub async fn lookup_idempotent(
        &self,
        idem: Idem,
        now: Timestamp,
    ) -> Result<Option<StoredAnswer>> {
        self.read(move |conn| look_up(conn, &idem, now)).await
    }

    /// Records the answer of an operation that happens outside the store and is harmless to repeat, such as an
    /// upload.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] if the key was used with another body in the meantime.
    pub async fn record_idempotent<T: Clone + Send + Sync + 'static>(
        &self,
        value: T,
        recorded: Idempotent<T>,
        now: Timestamp,
    ) -> Result<Outcome<T>> {
        if recorded.idem.is_none() {
            return Ok(Outcome::Executed(value));
        }
        self.write(move |conn| idempotent(conn, &recorded, now, || Ok(value.clone())))
            .await
    }
}
