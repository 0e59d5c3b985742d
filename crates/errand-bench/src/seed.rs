//! Fills a store with many runs quickly, by copying the rows of a run that the real server has made.
//!
//! The server is stopped meanwhile. The copies contain what the server would have written, in all tables with rows of
//! a run, with their own ids and times; indexes and triggers stay in place. Tables and columns are read from the
//! schema, so that new columns are copied too.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use rusqlite::types::Value;
use rusqlite::{Connection, params, params_from_iter};

/// Copies per transaction.
const BATCH: u64 = 5_000;
/// Columns with times in the future. In copies they move further into the future; all other times move into the past.
const AHEAD: [&str; 2] = ["wake_at", "waiting_deadline"];
/// Columns with times that stay: expired rows would be removed.
const KEPT: [&str; 2] = ["expires_at", "deadline_at"];

/// Which run to copy, and how often.
pub(crate) struct Copies<'a> {
    pub(crate) run: &'a str,
    pub(crate) copies: u64,
    /// Distance between the times of two copies, in ms.
    pub(crate) apart_ms: i64,
}

/// Adds copies of runs to the database of a stopped server. On disk when it returns.
pub(crate) async fn multiply(data_dir: &Path, wanted: &[Copies<'_>]) -> Result<()> {
    let file = data_dir.join("errand.db");
    let conn = Connection::open(&file)?;
    // Being interrupted is harmless, because the directory is a temporary one.
    conn.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
         PRAGMA foreign_keys = OFF; PRAGMA cache_size = -262144; PRAGMA temp_store = MEMORY",
    )?;
    for (series, wanted) in wanted.iter().enumerate() {
        let template = Template::read(&conn, wanted.run, series as u64)?;
        let mut from = 0;
        while from < wanted.copies {
            let to = (from + BATCH).min(wanted.copies);
            conn.execute_batch("BEGIN")?;
            for table in &template.tables {
                let mut insert = conn.prepare_cached(&table.insert)?;
                for n in from..to {
                    let copy = template.copy(n, wanted);
                    for row in &table.rows {
                        insert.execute(params_from_iter(row.iter().map(|cell| copy.of(cell))))?;
                    }
                }
            }
            conn.execute_batch("COMMIT")?;
            from = to;
            // This takes minutes. Yielding lets a signal interrupt it.
            tokio::task::yield_now().await;
        }
    }
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_checkpoint(TRUNCATE)")?;
    conn.close().map_err(|(_, error)| error)?;
    // Otherwise, writing back the cache would disturb the next measure.
    Ok(File::open(file)?.sync_all()?)
}

/// All rows of a run.
struct Template {
    series: u64,
    created_at: i64,
    tables: Vec<Table>,
}

struct Table {
    insert: String,
    rows: Vec<Vec<Cell>>,
}

/// Value of one column in a copy.
enum Cell {
    Same(Value),
    /// The id with this index, in this form.
    Id(usize, Form),
    /// A text that contains ids.
    Text(Vec<Piece>),
    /// A time that moves into the past.
    Past(i64),
    /// A time that moves into the future.
    Ahead(i64),
}

enum Piece {
    Plain(String),
    Id(usize, Form),
}

#[derive(Clone, Copy)]
enum Form {
    Bytes,
    Hyphens,
    Sandbox,
}

/// An id of the run, as it appears in its rows.
struct KnownId {
    value: Value,
    text: String,
    form: Form,
}

impl Template {
    fn read(conn: &Connection, run: &str, series: u64) -> Result<Self> {
        let id = id_bytes(run).with_context(|| format!("{run} is no id"))?;
        let (created_at, sandbox): (i64, Option<String>) = conn.query_row(
            "SELECT created_at, sandbox_id FROM runs WHERE id = ?1",
            params![id],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let mut raw = Vec::new();
        if let Some(sandbox) = &sandbox {
            raw.push(RawTable::read(
                conn,
                "sandboxes",
                "id",
                sandbox.clone().into(),
            )?);
        }
        raw.push(RawTable::read(conn, "runs", "id", id.clone().into())?);
        for name in tables_of_runs(conn)? {
            raw.push(RawTable::read(conn, &name, "run_id", id.clone().into())?);
        }
        let mut known = vec![KnownId::of_bytes(id)];
        known.extend(sandbox.map(|id| KnownId {
            value: id.clone().into(),
            text: id,
            form: Form::Sandbox,
        }));
        for table in &raw {
            known.extend(table.own_ids());
        }
        Ok(Self {
            series,
            created_at,
            tables: raw
                .into_iter()
                .map(|table| table.prepared(&known))
                .collect(),
        })
    }

    fn copy(&self, n: u64, wanted: &Copies<'_>) -> Copy {
        let apart = wanted.apart_ms * i64::try_from(wanted.copies - n).unwrap_or(0);
        Copy {
            n: (self.series << 32) | n,
            apart,
            created_at: self.created_at - apart,
        }
    }
}

/// Tables with rows that belong to a run, except the table of runs.
fn tables_of_runs(conn: &Connection) -> Result<Vec<String>> {
    let names = conn
        .prepare(
            "SELECT t.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c
             WHERE t.type = 'table' AND c.name = 'run_id' ORDER BY t.rowid",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(names)
}

struct RawTable {
    name: String,
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

impl RawTable {
    fn read(conn: &Connection, name: &str, key: &str, id: Value) -> Result<Self> {
        // SQLite assigns a new number to a copied row, so that primary key is left out.
        let columns: Vec<String> = conn
            .prepare("SELECT name FROM pragma_table_info(?1) WHERE NOT (pk > 0 AND type = 'INTEGER' AND name = 'number')")?
            .query_map([name], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let rows = conn
            .prepare(&format!(
                "SELECT {} FROM {name} WHERE {key} = ?1",
                columns.join(", ")
            ))?
            .query_map([id], |row| {
                (0..columns.len()).map(|index| row.get(index)).collect()
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self {
            name: name.to_owned(),
            columns,
            rows,
        })
    }

    /// The ids of its rows.
    fn own_ids(&self) -> Vec<KnownId> {
        let Some(index) = self.columns.iter().position(|column| column == "id") else {
            return Vec::new();
        };
        let ids = self.rows.iter().filter_map(|row| match row.get(index) {
            Some(Value::Blob(bytes)) if self.name != "runs" => {
                Some(KnownId::of_bytes(bytes.clone()))
            }
            _ => None,
        });
        ids.collect()
    }

    fn prepared(self, known: &[KnownId]) -> Table {
        let holes: Vec<String> = (1..=self.columns.len()).map(|n| format!("?{n}")).collect();
        let insert = format!(
            "INSERT INTO {} ({}) VALUES ({})",
            self.name,
            self.columns.join(", "),
            holes.join(", ")
        );
        let cells = |row: Vec<Value>| {
            let named = row.into_iter().zip(&self.columns);
            named
                .map(|(value, column)| cell(value, column, known))
                .collect()
        };
        Table {
            insert,
            rows: self.rows.into_iter().map(cells).collect(),
        }
    }
}

fn cell(value: Value, column: &str, known: &[KnownId]) -> Cell {
    if let Some(n) = known.iter().position(|known| known.value == value) {
        let form = known.get(n).map_or(Form::Bytes, |known| known.form);
        return Cell::Id(n, form);
    }
    let moment = column.ends_with("_at") || column == "waiting_since" || AHEAD.contains(&column);
    match value {
        Value::Integer(at) if AHEAD.contains(&column) => Cell::Ahead(at),
        Value::Integer(at) if moment && !KEPT.contains(&column) => Cell::Past(at),
        Value::Text(text) => match pieces(&text, known) {
            pieces if pieces.len() > 1 => Cell::Text(pieces),
            _ => Cell::Same(Value::Text(text)),
        },
        value => Cell::Same(value),
    }
}

/// Splits a text at the ids in it.
fn pieces(text: &str, known: &[KnownId]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    loop {
        let first = known
            .iter()
            .enumerate()
            .filter_map(|(n, known)| Some((rest.find(&known.text)?, n, known)))
            .min_by_key(|(at, _, _)| *at);
        let Some((before, n, known)) = first else {
            pieces.push(Piece::Plain(rest.to_owned()));
            return pieces;
        };
        let (plain, from) = rest.split_at(before);
        pieces.push(Piece::Plain(plain.to_owned()));
        let form = match known.form {
            Form::Sandbox => Form::Sandbox,
            Form::Bytes | Form::Hyphens => Form::Hyphens,
        };
        pieces.push(Piece::Id(n, form));
        rest = from.strip_prefix(known.text.as_str()).unwrap_or_default();
    }
}

impl KnownId {
    fn of_bytes(bytes: Vec<u8>) -> Self {
        Self {
            text: hyphens(&bytes),
            value: Value::Blob(bytes),
            form: Form::Bytes,
        }
    }
}

/// One copy of a template.
struct Copy {
    /// Unique among all copies.
    n: u64,
    apart: i64,
    created_at: i64,
}

impl Copy {
    fn of(&self, cell: &Cell) -> Value {
        match cell {
            Cell::Same(value) => value.clone(),
            Cell::Id(n, form) => match form {
                Form::Bytes => Value::Blob(self.id(*n).to_vec()),
                Form::Hyphens | Form::Sandbox => Value::Text(self.id_text(*n, *form)),
            },
            Cell::Text(pieces) => {
                let texts = pieces.iter().map(|piece| match piece {
                    Piece::Plain(text) => text.clone(),
                    Piece::Id(n, form) => self.id_text(*n, *form),
                });
                Value::Text(texts.collect())
            }
            Cell::Past(at) => Value::Integer(at - self.apart),
            Cell::Ahead(at) => Value::Integer(at + self.apart),
        }
    }

    /// A version 7 UUID, composed of the time, the index of the id within the run, and the number of the copy.
    fn id(&self, number: usize) -> [u8; 16] {
        let moment = u128::from(self.created_at.unsigned_abs() & 0xffff_ffff_ffff) << 80;
        let number = (number as u128 & 0xfff) << 64;
        let copy = u128::from(self.n & 0x3fff_ffff_ffff_ffff);
        (moment | (0x7 << 76) | number | (0b10 << 62) | copy).to_be_bytes()
    }

    fn id_text(&self, number: usize, form: Form) -> String {
        let hyphens = hyphens(&self.id(number));
        match form {
            Form::Sandbox => format!("sb_{}", hyphens.replace('-', "")),
            Form::Bytes | Form::Hyphens => hyphens,
        }
    }
}

/// Formats a UUID with hyphens.
fn hyphens(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .enumerate()
        .fold(String::with_capacity(36), |mut text, (n, byte)| {
            let hyphen = if matches!(n, 4 | 6 | 8 | 10) { "-" } else { "" };
            let _ = write!(text, "{hyphen}{byte:02x}");
            text
        })
}

fn id_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.replace('-', "");
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (digits.len() == 32).then(|| (0..32).step_by(2).map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "018f0000-0000-7000-8000-000000000001";
    const SANDBOX: &str = "sb_018f0000000070008000000000000009";

    fn store(dir: &Path) -> Connection {
        let conn = Connection::open(dir.join("errand.db")).unwrap();
        conn.execute_batch(&format!(
            "CREATE TABLE sandboxes (id TEXT PRIMARY KEY, created_at INTEGER, expires_at INTEGER) STRICT;
             CREATE TABLE runs (id BLOB PRIMARY KEY, status TEXT, sandbox_id TEXT, created_at INTEGER, wake_at INTEGER) STRICT, WITHOUT ROWID;
             CREATE TABLE events (number INTEGER PRIMARY KEY, run_id BLOB, sequence INTEGER, data TEXT, UNIQUE (run_id, sequence)) STRICT;
             CREATE TABLE messages (run_id BLOB, position INTEGER, id BLOB, body TEXT, PRIMARY KEY (run_id, position)) STRICT, WITHOUT ROWID;
             INSERT INTO sandboxes VALUES ('{SANDBOX}', 1000, 5000);
             INSERT INTO runs VALUES (unhex('018f0000000070008000000000000001'), 'completed', '{SANDBOX}', 2000, 9000);
             INSERT INTO events VALUES (4, unhex('018f0000000070008000000000000001'), 1, '{{\"run\":\"{RUN}\",\"in\":\"{SANDBOX}\"}}');
             INSERT INTO messages VALUES (unhex('018f0000000070008000000000000001'), 1, unhex('018f0000000070008000000000000002'), 'hello');",
        )).unwrap();
        conn
    }

    #[tokio::test]
    async fn copies_have_all_rows_with_ids_and_times_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        drop(store(dir.path()));
        let wanted = Copies {
            run: RUN,
            copies: 3,
            apart_ms: 10,
        };
        multiply(dir.path(), &[wanted]).await.unwrap();
        let conn = Connection::open(dir.path().join("errand.db")).unwrap();
        let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        for table in ["sandboxes", "runs", "events", "messages"] {
            assert_eq!(
                count(&format!("SELECT count(*) FROM {table}")),
                4,
                "{table}"
            );
        }
        let joined = "SELECT count(*) FROM runs r JOIN sandboxes s ON s.id = r.sandbox_id JOIN events e ON e.run_id = r.id JOIN messages m ON m.run_id = r.id";
        assert_eq!(count(joined), 4);
        assert_eq!(count("SELECT count(DISTINCT id) FROM messages"), 4);
        assert_eq!(count("SELECT min(created_at) FROM runs"), 1970);
        assert_eq!(count("SELECT max(wake_at) FROM runs"), 9030);
        assert_eq!(
            count("SELECT count(*) FROM sandboxes WHERE expires_at = 5000"),
            4
        );
        // Texts contain the copy's ids, not those of the original.
        assert_eq!(
            count(&format!(
                "SELECT count(*) FROM events WHERE data LIKE '%{RUN}%'"
            )),
            1
        );
        let named = "SELECT count(*) FROM events e JOIN runs r ON r.id = e.run_id WHERE instr(replace(e.data, '-', ''), lower(hex(r.id))) > 0 AND instr(e.data, r.sandbox_id) > 0";
        assert_eq!(count(named), 4);
    }
}
