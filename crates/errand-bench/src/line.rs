//! What a measure gives: one line of JSON, from which the report is made.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk::Disk;
use crate::report::machine::Machine;
use crate::stats::round;

/// One line of the output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    /// The first.
    Machine {
        /// Where it was measured.
        machine: Machine,
    },
    /// One for each measure.
    Measured(Box<Measured>),
}

impl Line {
    /// All its figures with three digits after the point: more is noise, and what is read back from the text is the same.
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

/// A measure and what it gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Its name, as `--only` takes it.
    pub(crate) measure: String,
    /// Whether it was small: then its figures only show that it works.
    pub(crate) quick: bool,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// What a measure gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// What is held against a goal, and what is told beside it.
    pub(crate) figures: Vec<Figure>,
    /// The disk in the same minute.
    pub(crate) disk: Disk,
    /// How times are distributed. Unit: ms.
    #[serde(default)]
    pub(crate) curves: Vec<Curve>,
    /// What else is good to know.
    pub(crate) details: Value,
    /// Sentences for the report: what was otherwise than the method says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) measured: f64,
    /// None: it is told, and nothing was promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) goal: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<Share>,
}

/// What was promised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// How near a figure is to what the machine can give.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    /// Of what.
    pub(crate) of: String,
    /// 1: all of it.
    pub(crate) share: f64,
}

/// Percentiles and their figures. Unit: ms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A figure before it is measured: the goals of a measure are data.
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

    /// Told, without a promise.
    pub(crate) const fn told(name: &'static str, unit: &'static str) -> Self {
        Self {
            name,
            unit,
            bound: None,
        }
    }

    /// With what was measured.
    pub(crate) fn gave(self, measured: f64) -> Figure {
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
    /// With its share of what the machine can give.
    pub(crate) fn of_limit(mut self, of: &str, share: f64) -> Self {
        self.limit = Some(Share {
            of: of.to_owned(),
            share: round(share),
        });
        self
    }

    /// How the figure stands to its goal: 1 and more is reached, 2 is twice as good. None: nothing was promised.
    pub(crate) fn reached(&self) -> Option<f64> {
        match self.goal? {
            Bound::AtLeast(least) => Some(self.measured / least),
            // What is far below its bound needs no exact figure.
            Bound::AtMost(most) => Some(most / self.measured.max(most / 1000.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_same_when_it_is_read_back() {
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
    fn a_figure_knows_how_it_stands_to_its_goal() {
        let rate = Goal::at_least("rate", "/s", 100.0).gave(150.0);
        assert_eq!(rate.reached(), Some(1.5));
        let time = Goal::at_most("time", "ms", 10.0);
        assert_eq!(time.gave(20.0).reached(), Some(0.5));
        assert_eq!(time.gave(-3.0).reached(), Some(1000.0));
        assert_eq!(Goal::told("other", "ms").gave(1.0).reached(), None);
    }
}
