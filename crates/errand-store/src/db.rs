//! The database: connections, the writer, migrations and the types of columns.

pub mod data_dir;
pub(crate) mod paging;
pub(crate) mod sqlite;
pub(crate) mod types;
