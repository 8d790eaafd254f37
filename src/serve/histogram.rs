// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A histogram of durations, by powers of two of microseconds.
//!
//! Counting is a shift and an addition. A percentile is printed as the power of two above it, so never too
//! low. Above the last power, the longest duration is printed.

use std::time::Duration;

/// The last of them has all that took four seconds or longer.
const BUCKETS: usize = 24;
const LAST: usize = BUCKETS - 1;

/// Durations, counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Histogram {
    /// The n-th has what took less than 2^n microseconds, and not less than half of that.
    counts: [u64; BUCKETS],
    /// The longest.
    pub longest_us: u64,
}

impl Histogram {
    /// Counts `took`.
    pub fn count(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.longest_us = self.longest_us.max(micros);
        let bits = u64::BITS.saturating_sub(micros.leading_zeros());
        let index = usize::try_from(bits).map_or(LAST, |bits| bits.min(LAST));
        if let Some(count) = self.counts.get_mut(index) {
            *count = count.wrapping_add(1);
        }
    }

    /// Microseconds that `share` of a thousand took at most.
    fn percentile_us(&self, share: u64) -> u64 {
        let all = self.counts.iter().fold(0u64, |sum, n| sum.wrapping_add(*n));
        let wanted = all.saturating_mul(share).div_ceil(1000);
        let mut sum = 0u64;
        // The last of them has no bound.
        let bounded = self.counts.iter().take(LAST);
        for (bound, count) in (0..).map(|n| 1u64 << n).zip(bounded) {
            sum = sum.wrapping_add(*count);
            if sum >= wanted {
                return bound.min(self.longest_us);
            }
        }
        self.longest_us
    }

    /// p50, p99 and p99.9, in microseconds.
    pub fn percentiles_us(&self) -> [u64; 3] {
        [500, 990, 999].map(|share| self.percentile_us(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(took: &[(u64, u32)]) -> String {
        let mut histogram = Histogram::default();
        for (us, times) in took {
            (0..*times).for_each(|_| histogram.count(Duration::from_micros(*us)));
        }
        let longest = histogram.longest_us;
        let [p50, p99, p999] = histogram.percentiles_us();
        format!("x_p50_us={p50} x_p99_us={p99} x_p999_us={p999} {longest}")
    }

    #[test]
    fn histogram_of_nothing_is_zeros() {
        assert_eq!(text(&[]), "x_p50_us=0 x_p99_us=0 x_p999_us=0 0");
    }

    #[test]
    fn histogram_percentiles_are_the_next_power_of_two_and_at_most_the_longest() {
        let line = |p50, p99, p999, longest| {
            format!("x_p50_us={p50} x_p99_us={p99} x_p999_us={p999} {longest}")
        };
        assert_eq!(text(&[(0, 1000)]), line(0, 0, 0, 0));
        assert_eq!(text(&[(3, 500), (100, 500)]), line(4, 100, 100, 100));
        assert_eq!(
            text(&[(3, 989), (100, 10), (5000, 1)]),
            line(4, 128, 128, 5000)
        );
        assert_eq!(
            text(&[(3, 989), (100, 9), (5000, 2)]),
            line(4, 128, 5000, 5000)
        );
        // At the edges of a bucket.
        assert_eq!(text(&[(7, 999), (4000, 1)]), line(8, 8, 8, 4000));
        assert_eq!(text(&[(8, 999), (4000, 1)]), line(16, 16, 16, 4000));
    }

    #[test]
    fn histogram_percentiles_of_what_takes_longer_than_all_bounds_are_the_longest() {
        // The last power of two is 2^22: transfers may take a day.
        let day = 86_400_000_000;
        assert_eq!(
            text(&[(3, 989), (4_194_303, 2), (day, 9)]),
            format!("x_p50_us=4 x_p99_us=4194304 x_p999_us={day} {day}")
        );
        assert_eq!(
            text(&[(10_000_000, 1000)]),
            "x_p50_us=10000000 x_p99_us=10000000 x_p999_us=10000000 10000000"
        );
    }

    #[test]
    fn histogram_of_any_duration_counts_it() {
        let mut histogram = Histogram::default();
        for took in [Duration::ZERO, Duration::from_secs(5), Duration::MAX] {
            histogram.count(took);
        }
        let counts = histogram.counts;
        assert_eq!((counts[0], counts[BUCKETS - 1]), (1, 2));
    }
}
