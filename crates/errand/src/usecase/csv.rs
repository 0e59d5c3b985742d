//! Writes CSV according to RFC 4180, for spreadsheets: lines end with CR LF, and texts are quoted if necessary. A text
//! that a spreadsheet would interpret as a formula gets a leading apostrophe, because users choose names.

use std::fmt::{Display, Write as _};

/// A CSV file under construction.
pub(super) struct Csv {
    text: String,
    begins_line: bool,
}

impl Csv {
    /// Starts a file with a header line.
    pub(super) fn new(head: &[&str]) -> Self {
        let mut csv = Self {
            text: String::new(),
            begins_line: true,
        };
        for name in head {
            csv.value(name);
        }
        csv.end_line();
        csv
    }

    /// Appends a number, an id or a date, without quoting.
    pub(super) fn value(&mut self, value: impl Display) {
        self.separate();
        // Writing to a string does not fail.
        let _ = write!(self.text, "{value}");
    }

    /// Appends a text that a user has chosen.
    pub(super) fn text(&mut self, text: &str) {
        self.separate();
        let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
            "'"
        } else {
            ""
        };
        if text.contains([',', '"', '\r', '\n']) {
            let quoted = text.replace('"', "\"\"");
            let _ = write!(self.text, "\"{guard}{quoted}\"");
        } else {
            let _ = write!(self.text, "{guard}{text}");
        }
    }

    pub(super) fn end_line(&mut self) {
        self.text.push_str("\r\n");
        self.begins_line = true;
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn separate(&mut self) {
        if !self.begins_line {
            self.text.push(',');
        }
        self.begins_line = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_and_never_formulas() {
        let mut csv = Csv::new(&["id", "name"]);
        for (id, name) in [
            (1, "plain"),
            (2, "a, \"b\"\nc"),
            (3, "=HYPERLINK(\"x\")"),
            (4, "-1+1"),
            (5, ""),
        ] {
            csv.value(id);
            csv.text(name);
            csv.end_line();
        }
        let expected = "id,name\r\n1,plain\r\n2,\"a, \"\"b\"\"\nc\"\r\n3,\"'=HYPERLINK(\"\"x\"\")\"\r\n4,'-1+1\r\n5,\r\n";
        assert_eq!(csv.finish(), expected);
    }
}
