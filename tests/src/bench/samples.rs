//! Measured values by figure and variant, and what stands for many of them.

use std::collections::BTreeMap;

use super::{figure::Figure, stage::Variant};

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<(Figure, Variant), Vec<f64>>);

/// What one run of a load found.
#[derive(Debug, Default)]
pub struct Part(Vec<(Figure, f64)>);

impl Part {
    pub fn with(mut self, figure: Figure, value: f64) -> Self {
        self.0.push((figure, value));
        self
    }

    pub fn add_to(self, samples: &mut Samples, variant: Variant) {
        for (figure, value) in self.0 {
            samples.0.entry((figure, variant)).or_default().push(value);
        }
    }
}

impl Samples {
    pub fn median(&self, figure: Figure, variant: Variant) -> Option<f64> {
        self.values(figure, variant).and_then(median)
    }

    /// Half of the distance between the least and the greatest value, as a share of the median.
    pub fn spread(&self, figure: Figure, variant: Variant) -> Option<f64> {
        spread(self.values(figure, variant)?)
    }

    pub fn values(&self, figure: Figure, variant: Variant) -> Option<&[f64]> {
        self.0.get(&(figure, variant)).map(Vec::as_slice)
    }

    /// The figures that have a value for any variant, in the order of the table.
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures: Vec<Figure> = self.0.keys().map(|(figure, _)| *figure).collect();
        figures.dedup();
        figures
    }
}

/// Half of the distance between the least and the greatest value, as a share of the median; `None` if that is nothing.
pub fn spread(values: &[f64]) -> Option<f64> {
    let (least, greatest) = values.iter().fold((f64::MAX, f64::MIN), |(l, g), value| {
        (l.min(*value), g.max(*value))
    });
    let median = median(values).filter(|median| *median != 0.0)?;
    Some((greatest - least) / 2.0 / median)
}

/// The middle value, or the mean of the two in the middle; `None` if there is none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        for (values, want) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[9.0, 1.0, 2.0], Some(2.0)),
            (&[4.0, 1.0], Some(2.5)),
        ] {
            assert_eq!(median(values), want, "{values:?}");
        }
    }

    #[test]
    fn the_spread_is_relative_to_the_median() {
        let mut samples = Samples::default();
        for value in [90.0, 100.0, 130.0] {
            Part::default()
                .with(Figure::Rps1, value)
                .add_to(&mut samples, Variant::Direct);
        }
        assert_eq!(samples.spread(Figure::Rps1, Variant::Direct), Some(0.2));
        assert_eq!(samples.spread(Figure::Rps1, Variant::Tls), None);
        assert_eq!(samples.figures(), [Figure::Rps1]);
    }
}
