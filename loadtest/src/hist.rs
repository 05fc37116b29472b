//! Latency histograms that travel between processes and merge without loss.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Significant digits: a value is known to one in a thousand.
const DIGITS: u8 = 3;
/// Longest latency told apart: an hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// A histogram as (value, count) pairs in ascending order of value.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Recorded(Vec<(u64, u64)>);

/// An empty histogram of microseconds.
pub(crate) fn new() -> Histogram<u64> {
    // Not one that resizes itself: `saturating_record` would clip in it.
    match Histogram::new_with_bounds(1, LONGEST, DIGITS) {
        Ok(histogram) => histogram,
        // The causes are bounds and digit counts other than these.
        Err(error) => unreachable!("{error}"),
    }
}

impl Recorded {
    /// Of a histogram made by [`new`].
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        Self(
            histogram
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
        )
    }

    /// As a histogram again.
    pub(crate) fn histogram(&self) -> Histogram<u64> {
        let mut histogram = new();
        for &(value, count) in &self.0 {
            histogram.saturating_record_n(value, count);
        }
        histogram
    }

    /// Adds another one.
    pub(crate) fn absorb(&mut self, other: &Recorded) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
        } else if !other.0.is_empty() {
            let mut sum = self.histogram();
            // Same bounds: cannot fail.
            let _ = sum.add(other.histogram());
            *self = Self::of(&sum);
        }
    }

    /// The usual percentiles, in milliseconds.
    pub(crate) fn summary(&self) -> Summary {
        let histogram = self.histogram();
        let at = |quantile: f64| ms(histogram.value_at_quantile(quantile));
        Summary {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1_000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(histogram.max()),
        }
    }

    /// Points (quantile, milliseconds) of the percentile curve, denser towards 1.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let histogram = self.histogram();
        let mut points = Vec::new();
        let mut rest = 1.0_f64;
        while rest > 5e-7 && !histogram.is_empty() {
            for step in 0..5 {
                let quantile = 1.0 - rest * (1.0 - f64::from(step) / 10.0);
                points.push((quantile, ms(histogram.value_at_quantile(quantile))));
            }
            rest /= 2.0;
            if rest * (histogram.len() as f64) < 1.0 {
                break;
            }
        }
        points
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Values.
    pub(crate) count: u64,
    /// Mean.
    pub(crate) mean_ms: f64,
    /// Median.
    pub(crate) p50_ms: f64,
    /// 90th percentile.
    pub(crate) p90_ms: f64,
    /// 99th percentile.
    pub(crate) p99_ms: f64,
    /// 99.9th percentile.
    pub(crate) p999_ms: f64,
    /// Largest.
    pub(crate) max_ms: f64,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1} ms",
            self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms
        )
    }
}

/// The middle of some figures.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = figures.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_parts_have_the_percentiles_of_the_whole() {
        let (mut whole, mut odd, mut even) = (new(), new(), new());
        for value in 0..100_000_u64 {
            let us = value * value % 977_777;
            whole.saturating_record(us);
            if value % 2 == 1 { &mut odd } else { &mut even }.saturating_record(us);
        }
        let mut merged = Recorded::of(&odd);
        merged.absorb(&Recorded::of(&even));
        let (merged, whole) = (merged.summary(), Recorded::of(&whole).summary());
        assert_eq!(merged.count, whole.count);
        assert!(merged.max_ms > 970.0, "{merged}");
        for (one, other) in [
            (merged.p50_ms, whole.p50_ms),
            (merged.p99_ms, whole.p99_ms),
            (merged.p999_ms, whole.p999_ms),
            (merged.max_ms, whole.max_ms),
        ] {
            assert!((one - other).abs() <= other * 0.002, "{one} is not {other}");
        }
    }

    #[test]
    fn an_empty_part_changes_nothing() {
        let mut histogram = new();
        histogram.record(7).unwrap();
        let mut recorded = Recorded::of(&histogram);
        recorded.absorb(&Recorded::default());
        assert_eq!(recorded.summary().count, 1);
        let mut empty = Recorded::default();
        empty.absorb(&recorded);
        assert_eq!(empty.summary(), recorded.summary());
        assert_eq!(Recorded::default().summary().count, 0);
        assert!(Recorded::default().curve().is_empty());
    }

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
