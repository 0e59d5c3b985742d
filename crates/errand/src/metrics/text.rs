//! Writes Prometheus' text format: `# HELP`, `# TYPE`, then one line per value.

use std::fmt::Write as _;

/// A text of metrics under construction.
#[derive(Default)]
pub(super) struct Text(String);

/// A metric whose values are being written.
pub(super) struct Figure<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl Text {
    /// A value that can rise and fall.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str) -> Figure<'_> {
        self.figure(name, "gauge", help)
    }

    /// A value that only rises until the next start.
    pub(super) fn counter(&mut self, name: &'static str, help: &str) -> Figure<'_> {
        self.figure(name, "counter", help)
    }

    fn figure(&mut self, name: &'static str, kind: &str, help: &str) -> Figure<'_> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a `String` cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Figure {
            text: &mut self.0,
            name,
        }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Figure<'_> {
    /// Writes a value without labels.
    pub(super) fn plain(self, value: u64) {
        let _ = writeln!(self.text, "{} {value}", self.name);
    }

    /// Writes the value for one label value.
    pub(super) fn labeled(self, label: &str, of: &str, value: u64) -> Self {
        let _ = writeln!(
            self.text,
            "{}{{{label}=\"{}\"}} {value}",
            self.name,
            escaped(of)
        );
        self
    }
}

/// Escapes a label value.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_escaped() {
        let mut text = Text::default();
        text.gauge("a_b", "Two\nlines, and \\ one.")
            .labeled("state", "odd \"quoted\" \\ \n", 1)
            .labeled("state", "plain", u64::MAX);
        text.counter("c_total", "Rises.").plain(0);
        assert_eq!(
            text.finish(),
            "# HELP a_b Two\\nlines, and \\\\ one.\n# TYPE a_b gauge\n\
             a_b{state=\"odd \\\"quoted\\\" \\\\ \\n\"} 1\na_b{state=\"plain\"} 18446744073709551615\n\
             # HELP c_total Rises.\n# TYPE c_total counter\nc_total 0\n"
        );
    }
}
