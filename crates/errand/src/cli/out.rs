//! All output goes through this module.
//!
//! Guarantees: results go to standard output, everything else to standard error. Colors appear only on a terminal, and
//! only if `NO_COLOR` is not set. Foreign text can neither control the terminal nor look different from what it is
//! ([`display`]). With `--json`, standard output contains nothing but JSON.

pub use errand_core::display::display;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

/// Minimum width of a terminal, in columns, to which tables are fitted.
const NARROWEST: u16 = 40;

fn is_id(cell: &str) -> bool {
    cell.parse::<uuid::Uuid>().is_ok()
}

/// Style of a text on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Bold,
    /// Less important text.
    Dim,
    /// Success.
    Green,
    /// A person is needed.
    Yellow,
    /// Failure.
    Red,
    /// A tool call.
    Cyan,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Cyan => "36",
        }
    }
}

/// Standard output and standard error, or their replacements in tests.
pub struct Out {
    json: bool,
    stdout: Sink,
    stderr: Sink,
}

struct Sink {
    to: Mutex<Box<dyn Write + Send>>,
    colors: bool,
    terminal: bool,
}

impl Sink {
    fn write(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.write_all(bytes.as_ref())?;
        to.flush()
    }
}

impl Out {
    /// Output of the process. `json`: whether results are printed as JSON.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let sink = |to: Box<dyn Write + Send>, terminal: bool| Sink {
            to: Mutex::new(to),
            colors: terminal && !dumb && !set("NO_COLOR"),
            terminal,
        };
        Self {
            json,
            stdout: sink(Box::new(io::stdout()), io::stdout().is_terminal()),
            stderr: sink(Box::new(io::stderr()), io::stderr().is_terminal()),
        }
    }

    /// Output to two writers that are not terminals.
    #[must_use]
    pub fn into_writers(
        json: bool,
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
    ) -> Self {
        let sink = |to: Box<dyn Write + Send>| Sink {
            to: Mutex::new(to),
            colors: false,
            terminal: false,
        };
        Self {
            json,
            stdout: sink(Box::new(stdout)),
            stderr: sink(Box::new(stderr)),
        }
    }

    /// Whether results are printed as JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether standard error is a terminal.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.stderr.terminal
    }

    /// Whether log lines on standard error can have colors.
    #[must_use]
    pub fn log_colors(&self) -> bool {
        self.stderr.colors
    }

    /// Prints a line of the result.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn line(&self, text: &str) -> io::Result<()> {
        self.stdout.write(format!("{text}\n"))
    }

    /// Prints text of the result unchanged, without a line end.
    ///
    /// # Errors
    /// Like [`Out::line`].
    pub fn raw(&self, text: &str) -> io::Result<()> {
        self.stdout.write(text)
    }

    /// Prints bytes of the result unchanged.
    ///
    /// # Errors
    /// Like [`Out::line`].
    pub fn raw_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.stdout.write(bytes)
    }

    /// Prints a JSON text unchanged.
    ///
    /// # Errors
    /// Like [`Out::line`].
    pub fn json_text(&self, text: &str) -> io::Result<()> {
        self.line(text.trim_end())
    }

    /// Prints a value as indented JSON.
    ///
    /// # Errors
    /// Like [`Out::line`].
    pub fn json_value(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(&serde_json::to_string_pretty(value)?)
    }

    /// Prints a note for people on standard error: progress, or what to do next.
    ///
    /// # Errors
    /// Standard error is closed or full.
    pub fn note(&self, text: &str) -> io::Result<()> {
        self.stderr.write(format!("{text}\n"))
    }

    /// Prints a question to the person at the terminal, without a line end.
    ///
    /// # Errors
    /// Like [`Out::note`].
    pub fn prompt(&self, text: &str) -> io::Result<()> {
        self.stderr.write(text)
    }

    /// Prints a table. Columns are as wide as their content, and wrap if the terminal is narrower.
    ///
    /// # Errors
    /// Like [`Out::line`].
    pub fn table<R: IntoIterator<Item = String>>(
        &self,
        header: &[&str],
        rows: impl IntoIterator<Item = R>,
    ) -> io::Result<()> {
        self.table_of_width(Table::new().width(), header, rows)
    }

    fn table_of_width<R: IntoIterator<Item = String>>(
        &self,
        width: Option<u16>,
        header: &[&str],
        rows: impl IntoIterator<Item = R>,
    ) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // If a terminal does not report its width, as in some services, lines are not wrapped.
        if self.stdout.terminal
            && let Some(width) = width.filter(|width| *width >= NARROWEST)
        {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(width);
        }
        table.set_header(header.iter().map(|name| name.to_uppercase()));
        let mut holds_ids = vec![false; header.len()];
        for row in rows {
            let cells: Vec<String> = row
                .into_iter()
                .map(|cell| display(&cell).replace('\n', " "))
                .collect();
            for (holds, cell) in holds_ids.iter_mut().zip(&cells) {
                *holds |= is_id(cell);
            }
            table.add_row(cells);
        }
        // The first column starts at the beginning of the line, and the last one has no padding.
        for (column, holds_ids) in table.column_iter_mut().zip(holds_ids) {
            column.set_padding((0, 2));
            // A wrapped ID could not be copied.
            if holds_ids {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        self.line(&table.trim_fmt())
    }

    /// Text with a style, if standard output shows styles.
    #[must_use]
    pub fn paint(&self, style: Style, text: &str) -> String {
        paint(self.stdout.colors, style, text)
    }

    /// Text with a style, if standard error shows styles.
    #[must_use]
    pub fn paint_note(&self, style: Style, text: &str) -> String {
        paint(self.stderr.colors, style, text)
    }

    /// Prints an error, and ignores that this fails.
    pub fn error(&self, text: &str) {
        let label = self.paint_note(Style::Red, "error:");
        let text = format!("{label} {}", display(text));
        // There is nowhere left to report it.
        drop(self.note(&text));
    }
}

fn paint(colors: bool, style: Style, text: &str) -> String {
    if colors {
        format!("\x1b[{}m{text}\x1b[0m", style.code())
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// The text printed so far.
    #[derive(Clone, Default)]
    pub(crate) struct Printed(Arc<Mutex<Vec<u8>>>);

    impl Printed {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Printed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An output in memory, and what it printed to standard output and standard error.
    pub(crate) fn memory(json: bool) -> (Out, Printed, Printed) {
        let (stdout, stderr) = (Printed::default(), Printed::default());
        (
            Out::into_writers(json, stdout.clone(), stderr.clone()),
            stdout,
            stderr,
        )
    }

    #[test]
    fn an_error_is_printed_to_standard_error() {
        let (out, stdout, stderr) = memory(false);
        out.error("the disk is \x1b[2J on fire");
        assert_eq!(stdout.text(), "");
        assert_eq!(stderr.text(), "error: the disk is \\u{1b}[2J on fire\n");
    }

    #[test]
    fn there_are_no_colors_where_there_is_no_terminal() {
        let (out, ..) = memory(false);
        assert_eq!(out.paint(Style::Red, "no"), "no");
        assert_eq!(out.paint_note(Style::Red, "no"), "no");
        assert_eq!(paint(true, Style::Red, "no"), "\x1b[31mno\x1b[0m");
    }

    #[test]
    fn an_id_is_never_wrapped_however_narrow_the_terminal_is() {
        let id = "01a22b0f-7336-749e-8aa3-1c8a15fb2bae";
        let mut out = memory(false).0;
        let stdout = Printed::default();
        out.stdout = Sink {
            to: Mutex::new(Box::new(stdout.clone())),
            colors: false,
            terminal: true,
        };
        let title = "a long title ".repeat(20);
        let print = |width| {
            out.table_of_width(
                Some(width),
                &["id", "title"],
                [[id.to_owned(), title.clone()]],
            )
            .unwrap();
        };
        print(60);
        assert!(stdout.text().contains(id), "{}", stdout.text());
        assert!(stdout.text().lines().count() > 3, "titles are wrapped");
        let before = stdout.text().len();
        print(1);
        assert_eq!(stdout.text()[before..].lines().count(), 2, "whole lines");
    }

    #[test]
    fn a_table_has_plain_columns() {
        let (out, stdout, _) = memory(false);
        let rows = [["a", "first\nsecond"], ["longer", "\x1b[2Jthird"]];
        out.table(&["id", "text"], rows.map(|row| row.map(str::to_owned)))
            .unwrap();
        assert_eq!(
            stdout.text(),
            "ID      TEXT\na       first second\nlonger  \\u{1b}[2Jthird\n"
        );
    }
}
