//! From 256 values to scales, minimums and codes, for both shapes of K-quant.

use half::f16;

use super::super::fit::{self, Affine, Ranges, Symmetric};

/// `x ≈ d · s · code − dmin · m`, with `(s, m)` for each of `J` sub-blocks.
pub(super) struct AffineBlock<const J: usize> {
    pub d: f16,
    pub dmin: f16,
    pub scale_mins: [(u8, u8); J],
    pub codes: [u8; 256],
}

/// `x ≈ d · s · (code − n)`, with a scale for each of 16 sub-blocks.
pub(super) struct CentredBlock {
    pub d: f16,
    pub scales: [i8; 16],
    pub codes: [u8; 256],
}

/// Encodes `J` sub-blocks of `S` elements, with integer scales and minimums in `0..=max_scale`.
pub(super) fn affine<const S: usize, const J: usize>(
    x: &[f32; 256],
    search: Ranges,
    max_scale: u8,
    weights: fn(&[f32; S]) -> [f32; S],
) -> AffineBlock<J> {
    const { assert!(S * J == 256) };
    let parts = x.as_chunks::<S>().0;
    let weights: [[f32; S]; J] = std::array::from_fn(|j| weights(&parts[j]));
    let fits: [Affine; J] = std::array::from_fn(|j| fit::affine(&parts[j], &weights[j], search));
    let steps = f32::from(max_scale);
    let d = fit::scale_to_f16(fits.iter().fold(0.0, |m: f32, f| m.max(f.scale)) / steps);
    let dmin = fit::scale_to_f16(fits.iter().fold(0.0, |m: f32, f| m.max(-f.min)) / steps);
    let scale_mins = fits.map(|f| (integer(f.scale, d, steps), integer(-f.min, dmin, steps)));

    let mut block = AffineBlock { d, dmin, scale_mins, codes: [0; 256] };
    block.encode::<S>(x, search.max_code);
    if block.refit::<S>(x, &weights) {
        block.encode::<S>(x, search.max_code);
    }
    block
}

impl<const J: usize> AffineBlock<J> {
    /// The nearest codes for the scales as they are stored.
    fn encode<const S: usize>(&mut self, x: &[f32; 256], max_code: u8) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, (part, codes)) in x.as_chunks::<S>().0.iter().zip(self.codes.as_chunks_mut::<S>().0).enumerate() {
            let (s, m) = self.scale_mins[j];
            *codes = fit::codes(part, d * f32::from(s), -dmin * f32::from(m), 0, max_code);
        }
    }

    /// Solves for `d` and `dmin` with codes and integer scales fixed; rounding those to integers moved the optimum.
    fn refit<const S: usize>(&mut self, x: &[f32; 256], weights: &[[f32; S]; J]) -> bool {
        let (mut aa, mut am, mut mm, mut xa, mut xm) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (j, (part, codes)) in x.as_chunks::<S>().0.iter().zip(self.codes.as_chunks::<S>().0).enumerate() {
            let (mut w1, mut q1, mut q2, mut x1, mut xq) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for ((&x, &q), &w) in part.iter().zip(codes).zip(&weights[j]) {
                let q = f32::from(q);
                w1 += w;
                q1 += w * q;
                q2 += w * q * q;
                x1 += w * x;
                xq += w * x * q;
            }
            let (s, m) = (f32::from(self.scale_mins[j].0), f32::from(self.scale_mins[j].1));
            aa += q2 * s * s;
            am += q1 * s * m;
            mm += w1 * m * m;
            xa += xq * s;
            xm += x1 * m;
        }
        let determinant = aa * mm - am * am;
        let (d, dmin) = if mm == 0.0 { (xa / aa, 0.0) } else { ((xa * mm - xm * am) / determinant, (xa * am - xm * aa) / determinant) };
        // Near-singular systems (constant rows) and f16 subnormals would only add rounding error.
        let usable = |new: f32, old: f16| {
            let old = old.to_f32();
            new == old || (old >= f16::MIN_POSITIVE.to_f32() && (new / old - 1.0).abs() < 0.1)
        };
        let change = usable(d, self.d) && usable(dmin, self.dmin);
        if change {
            (self.d, self.dmin) = (f16::from_f32(d), f16::from_f32(dmin));
        }
        change
    }
}

/// Encodes 16 sub-blocks, with codes `0..2n` that stand for `−n..n`, and integer scales in `−max_scale..max_scale`.
pub(super) fn centred(x: &[f32; 256], search: Symmetric, max_scale: u8) -> CentredBlock {
    let (n, max_scale) = (search.n, f32::from(max_scale));
    let parts = x.as_chunks::<16>().0;
    let scales: [f32; 16] = std::array::from_fn(|j| fit::symmetric(&parts[j], &fit::square_weights(&parts[j]), search));
    let d = fit::scale_to_f16(-fit::extreme(&scales) / max_scale);
    let scales = scales.map(|s| signed_integer(s, d, max_scale));
    let mut codes = [0; 256];
    for (j, (part, codes)) in parts.iter().zip(codes.as_chunks_mut::<16>().0).enumerate() {
        *codes = fit::codes(part, d.to_f32() * f32::from(scales[j]), 0.0, n, 2 * n - 1);
    }
    CentredBlock { d, scales, codes }
}

/// `value / unit` rounded, in `0..=max`.
fn integer(value: f32, unit: f16, max: f32) -> u8 {
    if unit.to_f32() == 0.0 { 0 } else { fit::low_byte(fit::clamp(value / unit.to_f32(), 0.0, max)) }
}

/// `value / unit` rounded, in `−max..max`.
pub(in super::super) fn signed_integer(value: f32, unit: f16, max: f32) -> i8 {
    if unit.to_f32() == 0.0 { 0 } else { fit::low_byte(fit::clamp(value / unit.to_f32(), -max, max - 1.0)) as i8 }
}
