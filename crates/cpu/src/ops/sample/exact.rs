//! The definition of sampling, with its sort: for few tokens, and for what the fast ways leave undecided.

use ferrum_kernels::ops::{SampleParams, token_noise};

use super::Scratch;

/// Draws from all of `s.scaled`.
pub(super) fn draw(s: &mut Scratch, p: &SampleParams) -> usize {
    s.order.clear();
    s.order.extend(0..s.scaled.len() as u32);
    sort(&s.scaled, &mut s.order);
    if p.top_k > 0 {
        s.order.truncate(p.top_k as usize);
    }
    draw_sorted(&s.scaled, &mut s.order, p)
}

/// The likeliest first; of equals, the lowest token.
pub(super) fn sort(scaled: &[f64], order: &mut [u32]) {
    order.sort_unstable_by(|&a, &b| scaled[b as usize].total_cmp(&scaled[a as usize]).then(a.cmp(&b)));
}

/// Draws from the tokens of `order`, sorted, by top-p and min-p.
pub(super) fn draw_sorted(scaled: &[f64], order: &mut Vec<u32>, p: &SampleParams) -> usize {
    let logit = |token: u32| scaled[token as usize];
    let max = logit(order[0]);
    let total: f64 = order.iter().map(|&t| (logit(t) - max).exp()).sum();
    let (mut reached, mut kept) = (0.0, 0);
    while kept < order.len() {
        let enough = reached >= f64::from(p.top_p) * total;
        if enough && kept > 0 {
            break;
        }
        reached += (logit(order[kept]) - max).exp();
        kept += 1;
    }
    order.truncate(kept);
    order.retain(|&t| (logit(t) - max).exp() >= f64::from(p.min_p));
    let (mut best, mut score) = (0, f64::NEG_INFINITY);
    for &token in &*order {
        let with_noise = logit(token) + f64::from(token_noise(p.seed, p.position, token));
        if with_noise > score || (with_noise == score && token < best && score > f64::NEG_INFINITY) {
            (best, score) = (token, with_noise);
        }
    }
    best as usize
}
