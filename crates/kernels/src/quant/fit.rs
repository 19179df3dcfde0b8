//! Least-squares choice of scales and minimums, shared by the quantisers.
//!
//! A search tries a short list of inverse scales around the one that maps the largest value onto the last code, rounds
//! all values with it, and solves for the scale (and minimum) that fit those codes best in `Σ w (x − x̂)²`. The error of
//! a solved candidate follows from the same sums, so that a candidate costs one pass.
//!
//! Sums run in eight explicit lanes: the result does not depend on the vector width, and baseline SIMD applies.

use half::f16;

/// Adding and subtracting it rounds an f32 below 2²² in magnitude to the nearest integer.
const ROUND: f32 = 12_582_912.0;
/// Half the smallest f16 above zero: smaller values are nearest to zero in every block type.
pub(super) const NEGLIGIBLE: f32 = 1.0 / (1 << 25) as f32;
const LANES: usize = 8;

/// `x ≈ scale · code + min`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine {
    pub scale: f32,
    pub min: f32,
}

/// What [`symmetric`] tries: codes `−n..n`, with the largest magnitude at `2 · steps + 1` places within `n ± spread`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symmetric {
    pub n: u8,
    pub spread: f32,
    pub steps: u8,
}

/// What [`affine`] tries: codes `0..=max_code`, with the range of the values `max_code + from` to `max_code + to` codes
/// wide, in `steps` steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    pub max_code: u8,
    pub from: f32,
    pub to: f32,
    pub steps: u8,
    /// Whether the minimum must be at most zero.
    pub negative_min: bool,
}

/// The scale of `x ≈ scale · q`, `q` in `−n..n`: negative when the largest magnitude is positive, because `−n` reaches
/// further than `n − 1`.
pub(super) fn symmetric<const N: usize>(x: &[f32; N], w: &[f32; N], search: Symmetric) -> f32 {
    let Symmetric { spread, steps, .. } = search;
    let n = f32::from(search.n);
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        return 0.0;
    }
    let candidates = (0..=2 * steps).map(|i| n + spread * (f32::from(i) / f32::from(steps.max(1)) - 1.0));
    best_scale(-extreme / n, candidates.map(|reach| -reach / extreme), |inverse| {
        let q = map(x, |x| round(clamp(x * inverse, -n, n - 1.0)));
        let wq = product(w, &q);
        (dot(&wq, x), dot(&wq, &q))
    })
}

/// Of the inverse scales `candidates`, the solved scale with the least error; `fallback` when none is usable.
/// `sums` gives `Σ w x q` and `Σ w q²` for the codes of an inverse scale.
pub(super) fn best_scale(fallback: f32, candidates: impl Iterator<Item = f32>, sums: impl Fn(f32) -> (f32, f32)) -> f32 {
    let (mut best, mut best_gain) = (fallback, 0.0);
    for inverse in candidates {
        let (xq, qq) = sums(inverse);
        // The error is Σ w x² − gain. NaN from overflowing sums compares false and leaves the fallback.
        let gain = xq * (xq / qq);
        if gain > best_gain && gain.is_finite() {
            (best, best_gain) = (xq / qq, gain);
        }
    }
    best
}

/// The scale ≥ 0 and minimum of `x ≈ scale · q + min`, `q` in `0..=max_code`.
pub(super) fn affine<const N: usize>(x: &[f32; N], w: &[f32; N], search: Ranges) -> Affine {
    let Ranges { from, to, steps, negative_min, .. } = search;
    let max_code = f32::from(search.max_code);
    let (low, high) = range(x);
    let low = if negative_min { low.min(0.0) } else { low };
    let fallback = Affine { scale: (high - low) / max_code, min: low };
    if high <= low {
        return Affine { scale: 0.0, min: low };
    }
    let (sw, sx) = (dot(w, &[1.0; N]), dot(w, x));
    let (mut best, mut best_gain) = (fallback, f32::NEG_INFINITY);
    for step in 0..=steps {
        let width = max_code + from + (to - from) * f32::from(step) / f32::from(steps.max(1));
        let inverse = width / (high - low);
        let q = map(x, |x| round(clamp((x - low) * inverse, 0.0, max_code)));
        let wq = product(w, &q);
        let (q1, q2, xq) = (dot(&wq, &[1.0; N]), dot(&wq, &q), dot(&wq, x));
        let determinant = sw * q2 - q1 * q1;
        let mut fit = Affine { scale: (sw * xq - sx * q1) / determinant, min: (q2 * sx - q1 * xq) / determinant };
        if negative_min && fit.min > 0.0 {
            fit = Affine { scale: xq / q2, min: 0.0 };
        }
        // As in `best_scale`: the error is Σ w x² − gain, and NaN is never the best.
        let gain = fit.scale * xq + fit.min * sx;
        if determinant > 0.0 && fit.scale > 0.0 && gain > best_gain && gain.is_finite() {
            (best, best_gain) = (fit, gain);
        }
    }
    best
}

/// `round((x − base) / scale) + centre`, within `0..=max_code`; all `centre` when the scale is zero.
pub(super) fn codes<const N: usize>(x: &[f32; N], scale: f32, base: f32, centre: u8, max_code: u8) -> [u8; N] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (centre, max_code) = (f32::from(centre), f32::from(max_code));
    x.map(|x| low_byte(clamp((x - base) * inverse + centre, 0.0, max_code)))
}

/// The nearest f16, but never rounded towards zero where f16 is subnormal: there that could lose a third of a scale, or all of it.
pub(super) fn scale_to_f16(scale: f32) -> f16 {
    if scale == 0.0 {
        return f16::ZERO;
    }
    let nearest = f16::from_f32(scale);
    let too_small = nearest.to_f32().abs() < scale.abs() && scale.abs() < f16::MIN_POSITIVE.to_f32();
    // The next bit pattern is the next magnitude, whatever the sign.
    if too_small { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
}

/// `x²`: errors count most where the values are large.
pub(super) fn square_weights<const N: usize>(x: &[f32; N]) -> [f32; N] {
    map(x, |x| x * x)
}

/// Root mean square plus `|x|`: between equal weights and [`square_weights`].
pub(super) fn mixed_weights<const N: usize>(x: &[f32; N]) -> [f32; N] {
    let rms = (dot(x, x) / N as f32).sqrt();
    map(x, |x| rms + x.abs())
}

/// The value of largest magnitude, with its sign; the negative one of a tie.
pub(super) fn extreme<const N: usize>(x: &[f32; N]) -> f32 {
    let (low, high) = range(x);
    if -low >= high { low } else { high }
}

/// The smallest and largest value.
pub(super) fn range<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    let (mut low, mut high) = ([x[0]; LANES], [x[0]; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(x) {
            *low = if x < *low { x } else { *low };
            *high = if x > *high { x } else { *high };
        }
    }
    (low.into_iter().fold(x[0], f32::min), high.into_iter().fold(x[0], f32::max))
}

/// `f` of each element: a plain loop, which vectorises where `<[f32; N]>::map` does not.
pub(super) fn map<const N: usize>(x: &[f32; N], f: impl Fn(f32) -> f32) -> [f32; N] {
    let mut out = *x;
    for v in &mut out {
        *v = f(*v);
    }
    out
}

/// `Σ a · b`.
#[inline]
pub(super) fn dot<const N: usize>(a: &[f32; N], b: &[f32; N]) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    // A tree: eight additions in a row would take longer than all of the above.
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// `a · b`, element by element.
pub(super) fn product<const N: usize>(a: &[f32; N], b: &[f32; N]) -> [f32; N] {
    let mut product = *a;
    for (p, b) in product.iter_mut().zip(b) {
        *p *= b;
    }
    product
}

/// NaN becomes `low`. One instruction per bound, where `f32::clamp` has to keep NaN.
pub(super) fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// The nearest integer of `|v| < 2²²`, ties to even; vectorises on baseline x86-64, where `f32::round` is a call.
pub(super) fn round(v: f32) -> f32 {
    (v + ROUND) - ROUND
}

/// The nearest integer of `v` in −128..=255, as its low eight bits.
pub(super) fn low_byte(v: f32) -> u8 {
    (v + ROUND).to_bits() as u8
}
