//! Order statistics of a handful of samples.

use std::time::Duration;

/// Samples in ascending order; never empty.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// `None` without samples, or with one that is not a number.
    pub(crate) fn new(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self(values))
    }

    pub(crate) fn of_durations_ms(durations: &[Duration]) -> Option<Self> {
        Self::new(durations.iter().copied().map(milliseconds).collect())
    }

    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Linear interpolation between the two nearest ranks; `q` from 0 to 1.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let rank = q.clamp(0.0, 1.0) * (self.0.len() - 1) as f64;
        let (below, above) = (self.0[rank.floor() as usize], self.0[rank.ceil() as usize]);
        below + (above - below) * rank.fract()
    }
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How many a second; 0 for an interval too short to have a rate.
pub(crate) fn rate(count: usize, elapsed: Duration) -> f64 {
    if elapsed.is_zero() {
        0.0
    } else {
        count as f64 / elapsed.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_statistics() {
        assert_eq!(Samples::new(Vec::new()), None);
        assert_eq!(Samples::new(vec![1.0, f64::NAN]), None);
    }

    #[test]
    fn one_sample_is_every_statistic() {
        let one = Samples::new(vec![7.0]).unwrap();
        assert_eq!(
            (one.min(), one.median(), one.quantile(0.99), one.max()),
            (7.0, 7.0, 7.0, 7.0)
        );
    }

    #[test]
    fn quantiles_interpolate_whatever_the_order_of_arrival() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(samples.median(), 2.5);
        assert_eq!(samples.quantile(0.0), 1.0);
        assert_eq!(samples.quantile(1.0), 4.0);
        assert!((samples.quantile(0.9) - 3.7).abs() < 1e-9);
        assert_eq!(samples.quantile(7.0), 4.0, "clamped");
        assert_eq!(Samples::new(vec![5.0, 9.0, 1.0]).unwrap().median(), 5.0);
    }

    #[test]
    fn durations_are_milliseconds() {
        let samples =
            Samples::of_durations_ms(&[Duration::from_micros(1500), Duration::from_secs(1)])
                .unwrap();
        assert_eq!((samples.min(), samples.max()), (1.5, 1000.0));
    }

    #[test]
    fn rates_of_nothing_are_nothing() {
        assert_eq!(rate(5, Duration::ZERO), 0.0);
        assert_eq!(rate(5, Duration::from_millis(500)), 10.0);
    }
}
