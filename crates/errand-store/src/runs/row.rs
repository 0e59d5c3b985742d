//! The row of a run, declared once: the struct, the columns, INSERT, UPDATE and reading all come from it.
//!
//! # Guarantees
//!
//! An UPDATE changes the row only if its step, its event sequence and its claim are still those that were read.

use std::sync::LazyLock;

use errand_core::id::{
    AgentId, ApiKeyId, BootId, BuildId, ClaimToken, HumanRequestId, RunId, SandboxId, TeamId,
    UserId,
};
use errand_core::run::{RunError, RunSource, Status, WaitReason};
use errand_core::time::Timestamp;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use crate::db::types::Blob;
use crate::error::{Result, StoreError};
use crate::runs::columns::{Columns, Stored as _};
use crate::runs::principal::Principal;

/// Declares the row: for each field its type and its columns.
///
/// `fixed` columns are written by the INSERT only. `progress` columns are written by each UPDATE. `indexed` columns are
/// written by an UPDATE only if one of them has changed, because leaving the indexes alone avoids most of what a step
/// would write.
macro_rules! run_row {
    (
        fixed { $($(#[$f_doc:meta])* $f:ident: $f_type:ty = $f_column:literal,)+ }
        indexed { $($(#[$i_doc:meta])* $i:ident: $i_type:ty = $i_column:literal,)+ }
        progress { $($(#[$p_doc:meta])* $p:ident: $p_type:ty = $p_column:literal $($p_more:literal)*,)+ }
    ) => {
        /// All columns of a run.
        #[derive(Clone, Debug)]
        pub(crate) struct RunRow {
            $($(#[$f_doc])* pub(crate) $f: $f_type,)+
            $($(#[$i_doc])* pub(crate) $i: $i_type,)+
            $($(#[$p_doc])* pub(crate) $p: $p_type,)+
        }

        /// The indexed columns.
        #[derive(Clone, Debug, PartialEq, Eq)]
        struct IndexedColumns {
            $($i: $i_type,)+
        }

        const FIXED: &[&str] = &[$($f_column,)+];
        const INDEXED: &[&str] = &[$($i_column,)+];
        const PROGRESS: &[&str] = &[$($p_column, $($p_more,)*)+];

        /// The columns in the order of [`RunRow::read`], each after a comma.
        const LISTED: &str = concat!(
            $(", ", $f_column,)+ $(", ", $i_column,)+ $(", ", $p_column, $(", ", $p_more,)*)+
        );

        impl RunRow {
            fn read(mut columns: Columns<'_>) -> Result<Self> {
                Ok(Self {
                    $($f: columns.read($f_column)?,)+
                    $($i: columns.read($i_column)?,)+
                    $($p: columns.read($p_column)?,)+
                })
            }

            fn indexed(&self) -> IndexedColumns {
                IndexedColumns { $($i: self.$i.clone(),)+ }
            }

            fn indexed_changed(&self, stored: &IndexedColumns) -> bool {
                $(self.$i != stored.$i)||+
            }

            fn write_fixed(&self, values: &mut Vec<SqlValue>) {
                $(self.$f.write(values);)+
            }

            fn write_indexed(&self, values: &mut Vec<SqlValue>) {
                $(self.$i.write(values);)+
            }

            fn write_progress(&self, values: &mut Vec<SqlValue>) {
                $(self.$p.write(values);)+
            }
        }
    };
}

run_row! {
    fixed {
        id: RunId = "id",
        team: TeamId = "team_id",
        agent: AgentId = "agent_id",
        build: BuildId = "build_id",
        /// `None`: another run started it.
        source: Option<RunSource> = "source",
        title: Option<String> = "title",
        sandbox_ttl_ms: u64 = "sandbox_ttl_ms",
        webhook_url: Option<String> = "webhook_url",
        human_webhook_url: Option<String> = "human_webhook_url",
        /// Whether people may be asked.
        human_in_the_loop: bool = "people",
        created_at: Timestamp = "created_at",
        /// Maximum active time.
        limit_ms: u64 = "seconds_limit_ms",
        api_key: Option<ApiKeyId> = "api_key_id",
        /// The person who started it, directly or with an API key. `None` if another run did, or if the run is older
        /// than this column.
        started_by: Option<UserId> = "started_by",
        principal: Principal = "principal",
    }
    indexed {
        status: Status = "status",
        sandbox: Option<SandboxId> = "sandbox_id",
        /// The driver's claim.
        claim: Option<ClaimToken> = "claim_token",
        claim_boot: Option<BootId> = "claim_boot",
        claimed_at: Option<Timestamp> = "claimed_at",
        /// When it wants a driver.
        wake_at: Option<Timestamp> = "wake_at",
    }
    progress {
        error: Option<RunError> = "error_code" "error_message",
        updated_at: Timestamp = "updated_at",
        started_at: Option<Timestamp> = "started_at",
        completed_at: Option<Timestamp> = "completed_at",
        /// Position of the last entry of the transcript.
        position: u64 = "position",
        /// Number of messages.
        shown: u64 = "shown",
        /// Sequence number of the last event.
        sequence: u64 = "sequence",
        /// Position of the last message of a user.
        newest_user: u64 = "newest_user",
        /// Position at which the search for open calls begins.
        turn: u64 = "turn",
        /// Number of the last committed step.
        step: u64 = "step",
        /// When it is taken from its driver.
        deadline: Option<Timestamp> = "deadline_at",
        /// Active time before the current claim, since the start or the last answer that granted more time.
        active_ms: u64 = "worked_ms",
        waiting_kind: Option<WaitReason> = "waiting_kind",
        waiting_who: Option<String> = "waiting_who",
        waiting_since: Option<Timestamp> = "waiting_since",
        waiting_deadline: Option<Timestamp> = "waiting_deadline",
        /// The pending human request.
        request: Option<HumanRequestId> = "request_id",
        steps: u64 = "steps",
        model_calls: u64 = "model_calls",
        tool_calls: u64 = "tool_calls",
        input_tokens: u64 = "input_tokens",
        cached_tokens: u64 = "cached_tokens",
        output_tokens: u64 = "output_tokens",
        cost_usd: f64 = "cost_usd",
        model_ms: u64 = "model_ms",
        unpriced_tokens: u64 = "unpriced_tokens",
        estimated_tokens: u64 = "estimated_tokens",
    }
}

/// The columns that [`read_row`] reads, in this order.
pub(crate) const COLUMNS: &str = LISTED.split_at(2).1;

static INSERT: LazyLock<String> = LazyLock::new(|| {
    let holes: Vec<String> = (1..=COLUMNS.split(", ").count())
        .map(|n| format!("?{n}"))
        .collect();
    format!("INSERT INTO runs ({COLUMNS}) VALUES ({})", holes.join(", "))
});

static UPDATE: LazyLock<String> = LazyLock::new(|| update(&[INDEXED, PROGRESS].concat()));

static UPDATE_PROGRESS: LazyLock<String> = LazyLock::new(|| update(PROGRESS));

/// Number of parameters of the key and the guard.
const GUARD_LEN: usize = 5;

/// An UPDATE of these columns. The key and the guard are the last parameters.
fn update(columns: &[&str]) -> String {
    let mut holes = (1..).map(|n| format!("?{n}"));
    let mut equal = |column: &&str, operator: &str| {
        let hole = holes.next().unwrap_or_default();
        format!("{column} {operator} {hole}")
    };
    let set: Vec<String> = columns.iter().map(|column| equal(column, "=")).collect();
    let key = ["id", "team_id", "step", "sequence"];
    let mut guard: Vec<String> = key.iter().map(|column| equal(column, "=")).collect();
    guard.push(equal(&"claim_token", "IS NOT DISTINCT FROM"));
    format!(
        "UPDATE runs SET {} WHERE {}",
        set.join(", "),
        guard.join(" AND ")
    )
}

/// The part of the stored row that an UPDATE depends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AsStored {
    indexed: IndexedColumns,
    step: u64,
    sequence: u64,
}

/// Reads a row of [`COLUMNS`]. The outer error is SQLite's, the inner one means that the row cannot be parsed.
pub(crate) fn read_row(row: &Row<'_>) -> rusqlite::Result<Result<RunRow>> {
    Ok(RunRow::read(Columns::of(row)))
}

impl RunRow {
    /// When the active time ends if the driver keeps working. `None` if no driver has the run.
    pub(crate) fn active_time_ends(&self) -> Option<Timestamp> {
        let left_ms = self.limit_ms.saturating_sub(self.active_ms);
        self.claimed_at.map(|at| at.plus_ms(left_ms))
    }

    /// Sets the deadline at which the run is taken from its driver: the step's deadline or the end of the active
    /// time, whichever comes first.
    pub(crate) fn step_ends_by(&mut self, step_deadline: Timestamp) {
        self.deadline = self
            .active_time_ends()
            .map(|active| active.min(step_deadline));
    }

    pub(crate) fn insert(&self, conn: &Connection) -> Result<()> {
        let mut values = Vec::with_capacity(FIXED.len() + INDEXED.len() + PROGRESS.len());
        self.write_fixed(&mut values);
        self.write_indexed(&mut values);
        self.write_progress(&mut values);
        conn.prepare_cached(&INSERT)?
            .execute(params_from_iter(values))?;
        Ok(())
    }

    /// The row as it is now, for [`RunRow::update`].
    pub(crate) fn as_stored(&self) -> AsStored {
        AsStored {
            indexed: self.indexed(),
            step: self.step,
            sequence: self.sequence,
        }
    }

    /// Writes the columns that can change. `stored` is the row as it was read or last written.
    ///
    /// # Errors
    /// [`StoreError::Raced`] if the stored row is another one.
    pub(crate) fn update(&self, conn: &Connection, stored: &AsStored) -> Result<()> {
        let mut values = Vec::with_capacity(INDEXED.len() + PROGRESS.len() + GUARD_LEN);
        let indexed_changed = self.indexed_changed(&stored.indexed);
        if indexed_changed {
            self.write_indexed(&mut values);
        }
        self.write_progress(&mut values);
        self.id.write(&mut values);
        self.team.write(&mut values);
        stored.step.write(&mut values);
        stored.sequence.write(&mut values);
        stored.indexed.claim.write(&mut values);
        let sql = if indexed_changed {
            &UPDATE
        } else {
            &UPDATE_PROGRESS
        };
        let updated = conn
            .prepare_cached(sql)?
            .execute(params_from_iter(values))?;
        if updated == 1 {
            Ok(())
        } else {
            Err(StoreError::Raced { run: self.id })
        }
    }
}

/// A run of a team.
pub(crate) fn row_of(conn: &Connection, team: TeamId, run: RunId) -> Result<RunRow> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM runs WHERE id = ?1 AND team_id = ?2"
    ))?
    .query_row(params![Blob(run.as_uuid()), Blob(team.as_uuid())], read_row)
    .optional()?
    .ok_or(StoreError::NotFound)?
}

#[cfg(test)]
mod tests;
