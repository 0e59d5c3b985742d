//! Sorted times, and their percentiles.

use crate::line::Curve;

/// Percentiles of a curve.
const PERCENTILES: [f64; 13] = [
    1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 100.0,
];

/// Figures in ascending order.
pub(crate) struct Sorted(Vec<f64>);

impl Sorted {
    pub(crate) fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        Self(figures)
    }

    /// The value that `percent` of the figures do not exceed (nearest rank); 0 if there are none.
    pub(crate) fn at(&self, percent: f64) -> f64 {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil().max(1.0);
        self.0.get(rank as usize - 1).copied().unwrap_or(0.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The percentiles that are meaningful with this number of figures: at least one figure must lie above each.
    pub(crate) fn curve(&self, name: &str) -> Curve {
        let is_meaningful =
            |percent: f64| percent >= 100.0 || (100.0 - percent) * self.0.len() as f64 >= 100.0;
        Curve {
            name: name.to_owned(),
            points: PERCENTILES
                .iter()
                .filter(|percent| is_meaningful(**percent))
                .map(|percent| (*percent, round(self.at(*percent))))
                .collect(),
        }
    }
}

/// Rounds to three decimal places; more is noise.
pub(crate) fn round(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_use_the_nearest_rank() {
        let sorted = Sorted::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(sorted.at(50.0), 100.0);
        assert_eq!(sorted.at(99.0), 198.0);
        assert_eq!(sorted.at(100.0), 200.0);
        assert_eq!(sorted.at(0.0), 1.0);
        assert_eq!(Sorted::of(Vec::new()).at(50.0), 0.0);
    }

    #[test]
    fn a_curve_omits_percentiles_without_enough_figures() {
        let points = Sorted::of((1..=100).map(f64::from).collect())
            .curve("x")
            .points;
        assert_eq!(points.last(), Some(&(100.0, 100.0)));
        assert_eq!(points[points.len() - 2].0, 99.0);
    }
}
