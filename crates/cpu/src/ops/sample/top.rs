//! Top-k and top-p without sorting the vocabulary.

use std::f64::consts::{LN_2, LOG2_E};

use super::{CHUNK, Scratch, exact};
use crate::{
    Simd,
    ops::simd::{Vector, at_level},
};

/// The last token that is kept, in order of falling logit and rising token.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub logit: f64,
    pub token: u32,
}

impl Cut {
    #[inline]
    pub fn keeps(&self, logit: f64, token: u32) -> bool {
        self.logit.total_cmp(&logit).then(token.cmp(&self.token)).is_le()
    }
}

/// Leaves the `k` likeliest tokens in `s.order`, sorted; `k` is at least 1 and below the vocabulary.
pub(super) fn select(s: &mut Scratch, k: usize) {
    // The k-th largest of many maxima has k tokens at or above it, and rarely many more.
    let group = (s.scaled.len() / (4 * k)).clamp(1, CHUNK);
    s.selected.clear();
    if group == CHUNK {
        s.selected.extend_from_slice(&s.maxima);
    } else {
        s.selected.extend(s.scaled.chunks(group).map(|c| c.iter().copied().fold(f64::NEG_INFINITY, f64::max)));
    }
    let bound = *s.selected.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    s.order.clear();
    for (chunk, (scaled, &max)) in s.scaled.chunks(CHUNK).zip(&s.maxima).enumerate() {
        if max >= bound {
            let tokens = (chunk * CHUNK) as u32..;
            s.order.extend(tokens.zip(scaled).filter(|(_, v)| **v >= bound).map(|(token, _)| token));
        }
    }
    let scaled = &s.scaled;
    if s.order.len() > k {
        s.order.select_nth_unstable_by(k - 1, |&a, &b| scaled[b as usize].total_cmp(&scaled[a as usize]).then(a.cmp(&b)));
        s.order.truncate(k);
    }
    exact::sort(scaled, &mut s.order);
}

/// Bins per unit of logit.
const BINS_PER_UNIT: f64 = 64.0;
/// Logits this far below the largest have no probability that counts: 2¹⁸ of them are 1e-14 of the whole.
const DEPTH: f64 = 45.0;
/// Sums in another order differ by less than this part of the total.
const DOUBT: f64 = 1e-10;

/// The smallest set of likeliest tokens whose probability reaches `top_p` in (0, 1); `None` when rounding could decide.
///
/// # Safety
/// The processor has the level.
pub(super) unsafe fn nucleus(level: Simd, s: &mut Scratch, top_p: f64, max: f64) -> Option<Cut> {
    let bin = |logit: f64| ((max - logit) * BINS_PER_UNIT) as usize;
    s.mass.clear();
    s.mass.resize((DEPTH * BINS_PER_UNIT) as usize, 0.0);
    let mut exps = [0.0; CHUNK];
    for (scaled, _) in s.scaled.chunks(CHUNK).zip(&s.maxima).filter(|c| *c.1 > max - DEPTH) {
        let out = &mut exps;
        // SAFETY: promised by the caller.
        unsafe { at_level!(level, exps_below(scaled: &[f64], max: f64, out: &mut [f64; CHUNK])) };
        for (&logit, e) in scaled.iter().zip(exps) {
            if let Some(mass) = s.mass.get_mut(bin(logit)) {
                *mass += e;
            }
        }
    }
    let total: f64 = s.mass.iter().sum();
    let (target, doubt) = (top_p * total, DOUBT * total);
    let (mut reached, mut crossing) = (0.0, 0);
    while reached + s.mass.get(crossing)? < target {
        reached += s.mass[crossing];
        crossing += 1;
    }
    if crossing > 0 && (reached - target).abs() < doubt {
        return None;
    }
    s.order.clear();
    for (chunk, (scaled, &chunk_max)) in s.scaled.chunks(CHUNK).zip(&s.maxima).enumerate() {
        if chunk_max > max - DEPTH && bin(chunk_max) <= crossing {
            let tokens = (chunk * CHUNK) as u32..;
            s.order.extend(tokens.zip(scaled).filter(|(_, v)| bin(**v) == crossing).map(|(token, _)| token));
        }
    }
    exact::sort(&s.scaled, &mut s.order);
    let mut cut = None;
    for &token in &s.order {
        let logit = s.scaled[token as usize];
        // The first token of all is kept whatever the target.
        let first = crossing == 0 && cut.is_none();
        if !first && (reached - target).abs() < doubt {
            return None;
        }
        if !first && reached >= target {
            break;
        }
        reached += (logit - max).exp();
        cut = Some(Cut { logit, token });
    }
    // The set may end with the bin only if it surely reaches the target there.
    if reached < target + doubt { None } else { cut }
}

/// `e^(v − max)` to 1e-15, for −700 < v − max ≤ 0; garbage below.
#[inline(always)]
unsafe fn exps_below<V: Vector>(values: &[f64], max: f64, out: &mut [f64; CHUNK]) {
    for (o, &v) in out.iter_mut().zip(values) {
        *o = exp(v - max);
    }
}

#[inline(always)]
fn exp(x: f64) -> f64 {
    // Adding 1.5·2⁵² rounds to an integer and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = 355.0 / 512.0;
    const LN_2_LOW: f64 = LN_2 - LN_2_HIGH;
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    // The Taylor series to r¹³, by Horner's rule.
    let mut p = 1.0 / 6_227_020_800.0;
    let series = [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    for c in series {
        p = p * r + c;
    }
    p * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exponentials_are_close_enough_to_decide() {
        for i in 0..45_000 {
            let x = -f64::from(i) / 1000.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-14, "e^{x}");
        }
    }
}
