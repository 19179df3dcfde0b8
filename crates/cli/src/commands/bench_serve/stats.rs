//! Means, percentiles and rates, each with the interval that holds 95 % of its bootstrap (Efron 1979).
//!
//! What is drawn again is the request, with all that belongs to it: the times between the tokens of one answer resemble each
//! other, and drawing them one by one would make the intervals too narrow. Rates are drawn from slices of the measured time.

use serde::Serialize;

use crate::random::Random;

/// Resamples of a bootstrap, while they are affordable
const RESAMPLES: usize = 1000;
const LEAST_RESAMPLES: usize = 100;
/// Values that a bootstrap may look at
const BUDGET: usize = 200_000_000;
/// Slices of the measured time
const SLICES: usize = 20;

/// A statistic and its 95 % confidence interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// How values are distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub count: usize,
    pub mean: Estimate,
    pub median: Estimate,
    pub p90: Estimate,
    pub p95: Estimate,
    pub p99: Estimate,
}

const LEVELS: [f64; 4] = [0.5, 0.9, 0.95, 0.99];

/// The value below which a fraction `level` of the sorted values lies, interpolated between the nearest two (method 7 of Hyndman
/// and Fan 1996, as NumPy has it).
pub fn percentile(sorted: &[f64], level: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let rank = level * last as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    below + (above - below) * rank.fract()
}

/// What `groups` (requests) say together; `None` without a value.
pub fn summarize(groups: &[Vec<f64>], mut random: Random) -> Option<Summary> {
    let mut sorted: Vec<(f64, usize)> = groups.iter().enumerate().flat_map(|(i, group)| group.iter().map(move |&v| (v, i))).collect();
    if sorted.is_empty() {
        return None;
    }
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let values: Vec<f64> = sorted.iter().map(|&(v, _)| v).collect();
    let sums: Vec<f64> = groups.iter().map(|group| group.iter().sum()).collect();
    // Only groups with values are drawn: the others are no part of this statistic.
    let drawn: Vec<usize> = (0..groups.len()).filter(|&i| !groups[i].is_empty()).collect();
    let resamples = (BUDGET / sorted.len()).clamp(LEAST_RESAMPLES, RESAMPLES);
    let mut found: [Vec<f64>; 5] = Default::default();
    let mut times = vec![0usize; groups.len()];
    for _ in 0..resamples {
        times.fill(0);
        (0..drawn.len()).for_each(|_| times[drawn[random.below(drawn.len())]] += 1);
        let count: usize = drawn.iter().map(|&i| times[i] * groups[i].len()).sum();
        let sum: f64 = drawn.iter().map(|&i| times[i] as f64 * sums[i]).sum();
        found[0].push(sum / count as f64);
        for (found, value) in found[1..].iter_mut().zip(weighted_percentiles(&sorted, &times, count)) {
            found.push(value);
        }
    }
    let exact = [sums.iter().sum::<f64>() / values.len() as f64].into_iter().chain(LEVELS.map(|level| percentile(&values, level)));
    let mut estimates = exact.zip(&mut found).map(|(value, found)| interval(value, found));
    let mut next = || estimates.next().unwrap_or_default();
    Some(Summary { count: values.len(), mean: next(), median: next(), p90: next(), p95: next(), p99: next() })
}

/// The percentiles of `count` values: each of `sorted` as often as its group was drawn.
fn weighted_percentiles(sorted: &[(f64, usize)], times: &[usize], count: usize) -> [f64; LEVELS.len()] {
    let ranks = LEVELS.map(|level| level * (count - 1) as f64);
    let mut wanted: [(usize, usize); 2 * LEVELS.len()] =
        std::array::from_fn(|i| (if i % 2 == 0 { ranks[i / 2].floor() } else { ranks[i / 2].ceil() } as usize, i));
    // The upper neighbour of one level may lie behind the lower one of the next.
    wanted.sort_unstable();
    let mut wanted = wanted.into_iter().peekable();
    let mut at = [0.0; 2 * LEVELS.len()];
    let mut seen = 0;
    for &(value, group) in sorted {
        seen += times[group];
        while let Some((_, i)) = wanted.next_if(|&(rank, _)| rank < seen) {
            at[i] = value;
        }
        if wanted.peek().is_none() {
            break;
        }
    }
    std::array::from_fn(|i| at[2 * i] + (at[2 * i + 1] - at[2 * i]) * ranks[i].fract())
}

/// Per second over `span_s`: the sum of the weights of `events`, which happened at these seconds, and how that varied over time.
pub fn rate(events: &[(f64, f64)], span_s: f64, mut random: Random) -> Estimate {
    // The sum of nothing is -0, which no report shall show.
    let total = events.iter().fold(0.0, |sum, (_, weight)| sum + weight);
    if span_s <= 0.0 {
        return Estimate::default();
    }
    let mut slices = [0.0; SLICES];
    for (at, weight) in events {
        slices[((at / span_s * SLICES as f64) as usize).min(SLICES - 1)] += weight;
    }
    let resample = |_| (0..SLICES).map(|_| slices[random.below(SLICES)]).sum::<f64>() / span_s;
    interval(total / span_s, &mut (0..RESAMPLES).map(resample).collect::<Vec<_>>())
}

fn interval(value: f64, resampled: &mut [f64]) -> Estimate {
    resampled.sort_unstable_by(f64::total_cmp);
    Estimate { value, low: percentile(resampled, 0.025), high: percentile(resampled, 0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        // numpy.percentile([1, 2, 4, 8, 16], [0, 25, 50, 90, 99, 100])
        let expected = [(0.0, 1.0), (0.25, 2.0), (0.5, 4.0), (0.9, 12.8), (0.99, 15.68), (1.0, 16.0)];
        expected.iter().for_each(|&(level, value)| assert!((percentile(&values, level) - value).abs() < 1e-12, "{level}"));
        assert_eq!(percentile(&[3.0], 0.99), 3.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn weighted_percentiles_are_those_of_the_values_written_out() {
        let mut random = Random::new(3);
        for _ in 0..50 {
            let groups = 1 + random.below(6);
            let times: Vec<usize> = (0..groups).map(|_| random.below(4)).collect();
            let mut sorted: Vec<(f64, usize)> = (0..40).map(|_| (random.uniform(), random.below(groups))).collect();
            sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let written: Vec<f64> = sorted.iter().flat_map(|&(v, group)| std::iter::repeat_n(v, times[group])).collect();
            if written.is_empty() {
                continue;
            }
            let found = weighted_percentiles(&sorted, &times, written.len());
            for (found, level) in found.iter().zip(LEVELS) {
                assert!((found - percentile(&written, level)).abs() < 1e-12, "{level} of {written:?}");
            }
        }
    }

    #[test]
    fn a_summary_has_the_exact_values_and_is_the_same_for_the_same_seed() {
        let groups: Vec<Vec<f64>> = (1..=101).map(|i| vec![f64::from(i)]).collect();
        let found = summarize(&groups, Random::new(1)).unwrap();
        assert_eq!(
            (found.count, found.mean.value, found.median.value, found.p90.value, found.p95.value, found.p99.value),
            (101, 51.0, 51.0, 91.0, 96.0, 100.0)
        );
        assert_eq!(Some(found), summarize(&groups, Random::new(1)));
        assert_ne!(Some(found), summarize(&groups, Random::new(2)));
        assert_eq!(summarize(&[vec![], vec![]], Random::new(1)), None);
        // A group without a value changes nothing.
        assert_eq!(summarize(&[vec![], vec![2.0]], Random::new(1)).unwrap().mean, Estimate { value: 2.0, low: 2.0, high: 2.0 });
    }

    /// Of 300 samples of 60 uniform numbers, the part whose interval holds the true mean and median.
    #[test]
    fn ninety_five_of_a_hundred_intervals_hold_the_truth() {
        let mut random = Random::new(4);
        let (mut mean, mut median) = (0, 0);
        for i in 0..300 {
            let groups: Vec<Vec<f64>> = (0..60).map(|_| vec![random.uniform()]).collect();
            let found = summarize(&groups, Random::of(&[5, i])).unwrap();
            let holds = |e: Estimate| usize::from(e.low <= 0.5 && 0.5 <= e.high);
            mean += holds(found.mean);
            median += holds(found.median);
        }
        assert!((273..=297).contains(&mean) && (270..=298).contains(&median), "{mean} {median} of 300");
    }

    #[test]
    fn values_of_one_request_do_not_pass_for_independent_ones() {
        // 20 requests; the 50 values of each are equal.
        let mut random = Random::new(6);
        let requests: Vec<f64> = (0..20).map(|_| random.uniform()).collect();
        let groups: Vec<Vec<f64>> = requests.iter().map(|&v| vec![v; 50]).collect();
        let single: Vec<Vec<f64>> = groups.iter().flatten().map(|&v| vec![v]).collect();
        let width = |groups: &[Vec<f64>]| summarize(groups, Random::new(7)).map(|s| s.mean.high - s.mean.low).unwrap();
        let ratio = width(&groups) / width(&single);
        assert!((ratio / 50f64.sqrt() - 1.0).abs() < 0.2, "{ratio}");
    }

    #[test]
    fn a_steady_rate_has_a_narrow_interval_and_a_bursty_one_a_wide_one() {
        let steady: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i) / 100.0, 2.0)).collect();
        let found = rate(&steady, 10.0, Random::new(1));
        assert_eq!(found, Estimate { value: 200.0, low: 200.0, high: 200.0 });
        let burst: Vec<(f64, f64)> = (0..1000).map(|_| (0.1, 2.0)).collect();
        let found = rate(&burst, 10.0, Random::new(1));
        assert!(found.value == 200.0 && found.low < 50.0 && found.high > 300.0, "{found:?}");
        // The last event is at the end of the time.
        assert_eq!(rate(&[(10.0, 5.0)], 10.0, Random::new(1)).value, 0.5);
        assert_eq!(rate(&[], 0.0, Random::new(1)).value, 0.0);
        assert!(rate(&[], 1.0, Random::new(1)).value.is_sign_positive());
    }
}
