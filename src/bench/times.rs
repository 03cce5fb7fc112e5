//! Median and spread of repeated measurements.

use serde::{Deserialize, Serialize};

/// Repeated measurements of one duration, in microseconds: the median and the range that four fifths of them lie in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The middle one.
    pub median_us: f64,
    /// A tenth of them are shorter.
    pub low_us: f64,
    /// A tenth of them are longer.
    pub high_us: f64,
    /// How many there are.
    pub samples: u32,
}

impl Times {
    /// Of samples in microseconds, in any order; none where there are no samples, or one that is no number.
    pub fn of(mut samples: Vec<f64>) -> Option<Times> {
        if samples.is_empty() || samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| {
            // Between the two nearest, as NumPy's `quantile` does it by default.
            let place = share * (samples.len() - 1) as f64;
            let (below, above) = (samples[place.floor() as usize], samples[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Times { median_us: at(0.5), low_us: at(0.1), high_us: at(0.9), samples: samples.len() as u32 })
    }

    /// The median, in seconds.
    pub fn seconds(&self) -> f64 {
        self.median_us * 1e-6
    }

    /// How far the outer fifths lie from the median, as a share of it: half the range of the middle four fifths.
    pub fn spread(&self) -> f64 {
        if self.median_us > 0.0 { (self.high_us - self.low_us) / 2.0 / self.median_us } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_outer_tenths() {
        let times = Times::of((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((times.median_us, times.low_us, times.high_us, times.samples), (50.0, 10.0, 90.0, 101));
        assert_eq!(times.spread(), 0.8);
        assert_eq!(Times::of(vec![1.0, 2.0]).unwrap().median_us, 1.5);
        assert_eq!(Times::of(vec![]), None);
        assert_eq!(Times::of(vec![1.0, f64::NAN]), None);
    }
}
