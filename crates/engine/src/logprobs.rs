//! Log-probabilities on the host, in f64.

/// The log-probability of a token under the model's own distribution: before penalties, temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub logprob: f32,
    /// The likeliest tokens with their log-probabilities, descending; lower ids first where they are equal
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    pub(crate) fn new(logits: &[f32], token: u32, count: usize) -> Self {
        let total = log_sum_exp(logits);
        let logprob = |token: u32| (f64::from(logits.get(token as usize).copied().unwrap_or(f32::NAN)) - total) as f32;
        Self { logprob: logprob(token), top: likeliest(logits, count).into_iter().map(|id| (id, logprob(id))).collect() }
    }
}

/// The `count` greatest logits, descending; lower ids first where they are equal. One pass: few tokens get past the last of them.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::with_capacity(count + 1);
    for (id, logit) in (0u32..).zip(logits) {
        let worse = |&other: &u32| logits[other as usize].total_cmp(logit).is_ge();
        if ids.len() == count && ids.last().is_none_or(worse) {
            continue;
        }
        ids.insert(ids.partition_point(worse), id);
        ids.truncate(count);
    }
    ids
}

/// `ln Σ exp(logit)`.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if !max.is_finite() {
        return max;
    }
    max + logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up() {
        let logits = [0.5, 2.0, -1.0, 2.0, 700.0, 699.0];
        let all = TokenLogprobs::new(&logits, 5, 6);
        let sum: f64 = all.top.iter().map(|(_, l)| f64::from(*l).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(all.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [4, 5, 1, 3, 0, 2]);
        assert_eq!(all.logprob, all.top[1].1);
        assert_eq!(TokenLogprobs::new(&logits, 5, 2).top, all.top[..2]);
        assert!(TokenLogprobs::new(&logits, 0, 0).top.is_empty());
    }
}
