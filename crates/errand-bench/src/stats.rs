//! Times, sorted, and what is said of them.

use crate::line::Curve;

/// The percentiles that a curve has.
const PERCENTILES: [f64; 13] = [
    1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 100.0,
];

/// Figures in rising order.
pub(crate) struct Sorted(Vec<f64>);

impl Sorted {
    pub(crate) fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        Self(figures)
    }

    /// The figure that `percent` of them do not exceed (nearest rank); 0 where there is none.
    pub(crate) fn at(&self, percent: f64) -> f64 {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil().max(1.0);
        self.0.get(rank as usize - 1).copied().unwrap_or(0.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Up to the percentile that so many figures can tell.
    pub(crate) fn curve(&self, name: &str) -> Curve {
        let told =
            |percent: f64| percent >= 100.0 || (100.0 - percent) * self.0.len() as f64 >= 100.0;
        Curve {
            name: name.to_owned(),
            points: PERCENTILES
                .iter()
                .filter(|percent| told(**percent))
                .map(|percent| (*percent, round(self.at(*percent))))
                .collect(),
        }
    }
}

/// To three digits after the point: more is noise.
pub(crate) fn round(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let sorted = Sorted::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(sorted.at(50.0), 100.0);
        assert_eq!(sorted.at(99.0), 198.0);
        assert_eq!(sorted.at(100.0), 200.0);
        assert_eq!(sorted.at(0.0), 1.0);
        assert_eq!(Sorted::of(Vec::new()).at(50.0), 0.0);
    }

    #[test]
    fn a_curve_tells_no_percentile_that_its_figures_cannot_tell() {
        let points = Sorted::of((1..=100).map(f64::from).collect())
            .curve("x")
            .points;
        assert_eq!(points.last(), Some(&(100.0, 100.0)));
        assert_eq!(points[points.len() - 2].0, 99.0);
    }
}
