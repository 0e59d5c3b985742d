//! CSV as RFC 4180 has it, for people's spreadsheets: lines end with CR and LF, texts are quoted where they must be, and
//! a text that a spreadsheet would take for a formula gets an apostrophe before it, since people give names to things.

use std::fmt::{Display, Write as _};

/// Lines under a head.
pub(super) struct Csv {
    text: String,
    begins_line: bool,
}

impl Csv {
    /// With the names of its columns.
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

    /// A number, an id, a date: never quoted.
    pub(super) fn value(&mut self, value: impl Display) {
        self.separate();
        // Writing to a string does not fail.
        let _ = write!(self.text, "{value}");
    }

    /// A text that somebody gave.
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

    /// The next value begins a line.
    pub(super) fn end_line(&mut self) {
        self.text.push_str("\r\n");
        self.begins_line = true;
    }

    /// The whole text.
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
    fn texts_are_quoted_and_no_formulas() {
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
