//! Random numbers for measurements: the same seed gives the same ones everywhere.

/// SplitMix64 (Steele, Lea, Flood 2014): any seed is good, and neighbouring seeds give unrelated numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for every list of numbers.
    pub fn of(path: &[u64]) -> Self {
        Self(path.iter().fold(0, |state, part| Self(state ^ part).next()))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        // The high half of the product: unbiased but for n / 2^64.
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// In [0, 1)
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The time between two events of a Poisson process: exponential, 1 / `rate` on average.
    pub fn gap(&mut self, rate: f64) -> f64 {
        -(1.0 - self.uniform()).ln() / rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        // The first outputs of the reference implementation for seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn uniform_numbers_fill_their_range_evenly() {
        let mut random = Random::new(1);
        let mut counts = [0; 7];
        (0..70_000).for_each(|_| counts[random.below(7)] += 1);
        assert!(counts.iter().all(|c| (9_600..10_400).contains(c)), "{counts:?}");
        let mean = (0..10_000).map(|_| random.uniform()).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_tail_of_an_exponential() {
        let mut random = Random::new(2);
        let gaps: Vec<f64> = (0..50_000).map(|_| random.gap(4.0)).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // Standard deviation and mean are equal, and 1/e of the gaps are longer than the mean.
        assert!((mean - 0.25).abs() < 0.005 && (deviation / mean - 1.0).abs() < 0.03, "{mean} {deviation}");
        let tail = gaps.iter().filter(|&&g| g > 0.25).count() as f64 / gaps.len() as f64;
        assert!((tail - (-1.0f64).exp()).abs() < 0.01, "{tail}");
        // Arrivals in a second: as many on average as their variance, which is what makes the process Poisson.
        let (mut at, mut per_second) = (0.0, vec![0.0; 10_000]);
        for gap in &gaps {
            at += gap;
            if let Some(count) = per_second.get_mut(at as usize) {
                *count += 1.0;
            }
        }
        let mean = per_second.iter().sum::<f64>() / 1e4;
        let variance = per_second.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 1e4;
        assert!((mean - 4.0).abs() < 0.1 && (variance / mean - 1.0).abs() < 0.08, "{mean} {variance}");
    }

    #[test]
    fn paths_give_streams_of_their_own() {
        let first = |path: &[u64]| Random::of(path).next();
        let all = [first(&[0, 0]), first(&[0, 1]), first(&[1, 0]), first(&[0]), first(&[0, 0, 0])];
        assert!((0..all.len()).all(|i| !all[..i].contains(&all[i])), "{all:?}");
        assert_eq!(first(&[7, 8]), first(&[7, 8]));
    }
}
