//! A histogram of latencies with bounded relative error: 64 linear buckets per power of two (below 1.6 % error), after the
//! layout of HdrHistogram.

/// Buckets per power of two.
const LINEAR: u64 = 64;
/// log2 of [`LINEAR`].
const LINEAR_BITS: u32 = 6;
/// Enough for every `u64`.
const BUCKETS: usize = ((64 - LINEAR_BITS as usize) + 1) * LINEAR as usize;

/// Counts of values.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    pub(super) fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    pub(super) fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Returns the value that this share (0 to 1) of all values does not exceed; 0 when there are no values.
    pub(super) fn quantile(&self, share: f64) -> u64 {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_bound(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(LINEAR_BITS + 1);
    let base = if shift == 0 { 0 } else { u64::from(shift) * LINEAR };
    (base + (value >> shift)) as usize
}

/// Largest value of a bucket (inclusive).
fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / LINEAR).saturating_sub(1);
    let low = (index - shift * LINEAR) << shift;
    low + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_of_a_uniform_row_are_close() {
        let mut histogram = Histogram::new();
        (1..=10_000).for_each(|value| histogram.record(value));
        for (share, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.999, 9_990.0)] {
            let found = histogram.quantile(share) as f64;
            assert!((found - exact).abs() / exact < 0.016, "{share}: {found}");
        }
        assert_eq!((histogram.quantile(1.0), histogram.max()), (10_000, 10_000));
        assert_eq!(Histogram::new().quantile(0.5), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_value_lies_in_its_bucket_within_the_error(value: u64) {
            let index = bucket(value);
            prop_assert!(index < BUCKETS);
            let upper = upper_bound(index);
            prop_assert!(upper >= value && (upper - value) as f64 <= value as f64 / 64.0);
        }
    }
}
