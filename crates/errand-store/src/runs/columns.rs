//! How the fields of a run's row are stored: the types that a column, or a few adjacent ones, can hold.

use errand_core::id::{
    AgentId, ApiKeyId, BootId, BuildId, ClaimToken, HumanRequestId, RunId, SandboxId, TeamId,
    UserId,
};
use errand_core::run::{RunError, RunSource, Status, WaitReason};
use errand_core::time::Timestamp;
use rusqlite::Row;
use rusqlite::types::{Value as SqlValue, ValueRef};

use crate::db::types::{Blob, Ms, int, word};
use crate::error::{Result, StoreError};
use crate::runs::principal::Principal;

/// A value that is stored in [`Stored::COUNT`] adjacent columns.
pub(crate) trait Stored: Sized {
    const COUNT: usize = 1;

    /// Reads the value from the columns that begin at index `at`. `column` names the first of them in an error.
    fn read(row: &Row<'_>, at: usize, column: &'static str) -> Result<Self>;

    fn write(&self, values: &mut Vec<SqlValue>);
}

/// Reads adjacent columns in order.
pub(crate) struct Columns<'r> {
    row: &'r Row<'r>,
    next: usize,
}

impl<'r> Columns<'r> {
    pub(crate) fn of(row: &'r Row<'r>) -> Self {
        Self { row, next: 0 }
    }

    pub(crate) fn read<T: Stored>(&mut self, column: &'static str) -> Result<T> {
        let at = self.next;
        self.next += T::COUNT;
        T::read(self.row, at, column).map_err(|error| damaged(error, column))
    }
}

/// A value of a type or size that the column never holds means that the row is damaged, not that the statement failed.
fn damaged(error: StoreError, column: &'static str) -> StoreError {
    use rusqlite::Error as E;
    match error {
        StoreError::Sql(
            E::FromSqlConversionFailure(..)
            | E::InvalidColumnType(..)
            | E::IntegralValueOutOfRange(..),
        ) => corrupt(column, "its value has the wrong type or size"),
        error => error,
    }
}

fn corrupt(column: &'static str, message: &str) -> StoreError {
    StoreError::Corrupt {
        table: "runs",
        column,
        message: message.to_owned(),
    }
}

/// NULL in the first column means `None`.
impl<T: Stored> Stored for Option<T> {
    const COUNT: usize = T::COUNT;

    fn read(row: &Row<'_>, at: usize, column: &'static str) -> Result<Self> {
        match row.get_ref(at)? {
            ValueRef::Null => Ok(None),
            _ => T::read(row, at, column).map(Some),
        }
    }

    fn write(&self, values: &mut Vec<SqlValue>) {
        match self {
            Some(value) => value.write(values),
            None => values.extend((0..T::COUNT).map(|_| SqlValue::Null)),
        }
    }
}

macro_rules! stored_as_uuid {
    ($($name:ident),+) => { $(
        impl Stored for $name {
            fn read(row: &Row<'_>, at: usize, _: &'static str) -> Result<Self> {
                Ok(Self::from_stored(row.get::<_, Blob>(at)?.0))
            }

            fn write(&self, values: &mut Vec<SqlValue>) {
                values.push(SqlValue::Blob(self.as_uuid().as_bytes().to_vec()));
            }
        }
    )+ };
}
stored_as_uuid!(
    RunId,
    TeamId,
    AgentId,
    BuildId,
    ClaimToken,
    BootId,
    HumanRequestId,
    ApiKeyId,
    UserId,
    Principal
);

macro_rules! stored_as_word {
    ($($name:ident),+) => { $(
        impl Stored for $name {
            fn read(row: &Row<'_>, at: usize, column: &'static str) -> Result<Self> {
                word("runs", column, &row.get::<_, String>(at)?, Self::parse)
            }

            fn write(&self, values: &mut Vec<SqlValue>) {
                values.push(SqlValue::Text(self.as_str().to_owned()));
            }
        }
    )+ };
}
stored_as_word!(Status, RunSource, WaitReason, SandboxId);

/// The code and the message.
impl Stored for RunError {
    const COUNT: usize = 2;

    fn read(row: &Row<'_>, at: usize, _: &'static str) -> Result<Self> {
        Ok(Self {
            code: row.get(at)?,
            message: row.get::<_, Option<String>>(at + 1)?.unwrap_or_default(),
        })
    }

    fn write(&self, values: &mut Vec<SqlValue>) {
        values.push(SqlValue::Text(self.code.clone()));
        values.push(SqlValue::Text(self.message.clone()));
    }
}

impl Stored for String {
    fn read(row: &Row<'_>, at: usize, _: &'static str) -> Result<Self> {
        Ok(row.get(at)?)
    }

    fn write(&self, values: &mut Vec<SqlValue>) {
        values.push(SqlValue::Text(self.clone()));
    }
}

impl Stored for u64 {
    fn read(row: &Row<'_>, at: usize, column: &'static str) -> Result<Self> {
        // A default would not be what the guard of an UPDATE finds, which would then change nothing, each time anew.
        u64::try_from(row.get::<_, i64>(at)?).map_err(|_| corrupt(column, "it is negative"))
    }

    fn write(&self, values: &mut Vec<SqlValue>) {
        values.push(SqlValue::Integer(int(*self)));
    }
}

impl Stored for bool {
    fn read(row: &Row<'_>, at: usize, _: &'static str) -> Result<Self> {
        Ok(row.get(at)?)
    }

    fn write(&self, values: &mut Vec<SqlValue>) {
        values.push(SqlValue::Integer(i64::from(*self)));
    }
}

impl Stored for f64 {
    fn read(row: &Row<'_>, at: usize, _: &'static str) -> Result<Self> {
        Ok(row.get(at)?)
    }

    fn write(&self, values: &mut Vec<SqlValue>) {
        values.push(SqlValue::Real(*self));
    }
}

impl Stored for Timestamp {
    fn read(row: &Row<'_>, at: usize, _: &'static str) -> Result<Self> {
        Ok(row.get::<_, Ms>(at)?.0)
    }

    fn write(&self, values: &mut Vec<SqlValue>) {
        values.push(SqlValue::Integer(self.as_millis()));
    }
}
