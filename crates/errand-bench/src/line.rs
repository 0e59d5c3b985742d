//! The result of a measure: one line of JSON, from which the report is built.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk::Disk;
use crate::report::machine::Machine;
use crate::stats::round;

/// One line of the output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    /// The first line: the machine on which it was measured.
    Machine { machine: Machine },
    /// One line per measure.
    Measured(Box<Measured>),
}

impl Line {
    /// Rounds all figures to three decimal places. More is noise, and rounded figures survive being read back
    /// unchanged.
    pub(crate) fn rounded(&self) -> serde_json::Result<Self> {
        let mut value = serde_json::to_value(self)?;
        round_all(&mut value);
        serde_json::from_value(value)
    }
}

fn round_all(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(figure) = number.as_f64() {
                *value = round(figure).into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(round_all),
        Value::Object(fields) => fields.values_mut().for_each(round_all),
        _ => {}
    }
}

/// A measure and its result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Its name, as in `--only`.
    pub(crate) measure: String,
    /// Whether it was a small measure, whose figures are meaningless.
    pub(crate) quick: bool,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// The result of a measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Figures, with or without a goal.
    pub(crate) figures: Vec<Figure>,
    /// Speed of the disk in the same minute.
    pub(crate) disk: Disk,
    /// Distributions of times, in ms.
    #[serde(default)]
    pub(crate) curves: Vec<Curve>,
    /// Additional values.
    pub(crate) details: Value,
    /// Sentences for the report about deviations from the described method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) measured: f64,
    /// `None` if there is no goal for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) goal: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<Share>,
}

/// The goal for a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// How close a figure is to what the machine can deliver.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    /// The whole, in words.
    pub(crate) of: String,
    /// 1 is all of it.
    pub(crate) share: f64,
}

/// Percentiles and their values in ms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A figure before it is measured, so that the goals of a measure are constants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    name: &'static str,
    unit: &'static str,
    bound: Option<Bound>,
}

impl Goal {
    pub(crate) const fn at_least(name: &'static str, unit: &'static str, least: f64) -> Self {
        Self {
            name,
            unit,
            bound: Some(Bound::AtLeast(least)),
        }
    }

    pub(crate) const fn at_most(name: &'static str, unit: &'static str, most: f64) -> Self {
        Self {
            name,
            unit,
            bound: Some(Bound::AtMost(most)),
        }
    }

    /// A figure without a goal.
    pub(crate) const fn informational(name: &'static str, unit: &'static str) -> Self {
        Self {
            name,
            unit,
            bound: None,
        }
    }

    /// Adds the measured value.
    pub(crate) fn with_value(self, measured: f64) -> Figure {
        Figure {
            name: self.name.to_owned(),
            unit: self.unit.to_owned(),
            measured: round(measured),
            goal: self.bound,
            limit: None,
        }
    }
}

impl Figure {
    /// Adds the share of what the machine can deliver.
    pub(crate) fn of_limit(mut self, of: &str, share: f64) -> Self {
        self.limit = Some(Share {
            of: of.to_owned(),
            share: round(share),
        });
        self
    }

    /// How the figure compares with its goal: 1 or more means reached, 2 is twice as good. `None` without a goal.
    pub(crate) fn reached(&self) -> Option<f64> {
        match self.goal? {
            Bound::AtLeast(least) => Some(self.measured / least),
            // Caps the result: a figure far below its limit needs no exact ratio, and 0 must not divide by zero.
            Bound::AtMost(most) => Some(most / self.measured.max(most / 1000.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_being_read_back() {
        let line = serde_json::json!({"measure": "x", "quick": true, "figures": [], "details": {"a": [99.999_999_99, {"b": 0.123_456_789}]},
            "disk": {"fdatasync_per_s": 948.276_147_757_516_4, "fdatasync_ms_p50": 0.269_12, "write_mb_per_s": 1.0}});
        let line = serde_json::from_value::<Line>(line)
            .unwrap()
            .rounded()
            .unwrap();
        let text = serde_json::to_string(&line).unwrap();
        assert!(
            text.contains("948.276,") && text.contains(r#"[100.0,{"b":0.123}]"#),
            "{text}"
        );
        let again: Line = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }

    #[test]
    fn a_figure_is_compared_with_its_goal() {
        let rate = Goal::at_least("rate", "/s", 100.0).with_value(150.0);
        assert_eq!(rate.reached(), Some(1.5));
        let time = Goal::at_most("time", "ms", 10.0);
        assert_eq!(time.with_value(20.0).reached(), Some(0.5));
        assert_eq!(time.with_value(-3.0).reached(), Some(1000.0));
        assert_eq!(
            Goal::informational("other", "ms").with_value(1.0).reached(),
            None
        );
    }
}
