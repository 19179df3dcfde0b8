//! Rotary position embedding, in place, a few tokens per chunk.
//!
//! Sines and cosines are computed once per token, 64 pairs at a time: the angle in f64 and reduced to |r| ≤ π/4 there,
//! the series in f32. Then all heads of the token are rotated. Plain loops, which the compiler vectorises at each level.

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

use ferrum_kernels::{
    Result,
    ops::{Rope, RopeLayout},
};

use super::{
    rows_per_chunk,
    simd::{Vector, at_level},
};
use crate::{
    Simd,
    pool::Pool,
    storage::{Heads, View},
};

/// Pairs whose sines and cosines are held at a time.
const PAIRS: usize = 64;

pub(crate) fn run(pool: &Pool, level: Simd, op: &Rope) -> Result<()> {
    op.check()?;
    let x = Heads::<f32>::of("rope", "x", op.x)?;
    let (positions, freq) = (View::<i32, 1>::of("rope", "positions", op.positions)?, View::<f32, 1>::of("rope", "inv_freq", op.inv_freq)?);
    if op.x.elements() == 0 || freq.shape[0] == 0 {
        return Ok(());
    }
    // SAFETY: index 0 exists; nobody writes the frequencies during this operation.
    let freq = unsafe { freq.row([0]) };
    let [tokens, heads, head_dim] = x.shape;
    pool.chunks(tokens, rows_per_chunk(heads * head_dim), &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract; each token belongs to one chunk. The level is the backend's.
            unsafe {
                let token = Token {
                    x: x.at([token, 0, 0]),
                    heads,
                    stride: x.stride(1),
                    position: *positions.at([token]),
                    freq,
                    layout: op.layout,
                    scale: op.scale,
                };
                at_level!(level, rotate(token: Token<'_>));
            }
        }
    });
    Ok(())
}

#[derive(Clone, Copy)]
struct Token<'a> {
    /// `heads` rows, `stride` elements apart
    x: *mut f32,
    heads: usize,
    stride: usize,
    position: i32,
    /// `[pairs]`
    freq: &'a [f32],
    layout: RopeLayout,
    scale: f32,
}

/// # Safety
/// The heads of the token are in bounds and nobody else's.
#[inline(always)]
unsafe fn rotate<V: Vector>(t: Token) {
    let pairs = t.freq.len();
    let (mut sin, mut cos) = ([0.0; PAIRS], [0.0; PAIRS]);
    for start in (0..pairs).step_by(PAIRS) {
        let freq = &t.freq[start..(start + PAIRS).min(pairs)];
        let n = freq.len();
        for ((&f, s), c) in freq.iter().zip(&mut sin).zip(&mut cos) {
            let (s1, c1) = sin_cos(f64::from(t.position) * f64::from(f));
            (*s, *c) = (s1 * t.scale, c1 * t.scale);
        }
        for head in 0..t.heads {
            // SAFETY: `start + n ≤ pairs` and `2·pairs ≤ head_dim` by the contract.
            unsafe {
                let x = t.x.add(head * t.stride);
                match t.layout {
                    RopeLayout::Halves => halves::<V>(x.add(start), x.add(start + pairs), &sin[..n], &cos[..n]),
                    RopeLayout::Pairs => pairs_in_place(std::slice::from_raw_parts_mut(x.add(2 * start), 2 * n), &sin[..n], &cos[..n]),
                }
            }
        }
    }
}

/// # Safety
/// `a` and `b` point to `sin.len()` elements each.
#[inline(always)]
unsafe fn halves<V: Vector>(a: *mut f32, b: *mut f32, sin: &[f32], cos: &[f32]) {
    // SAFETY: promised by the caller; vectors end at or before the length.
    unsafe {
        let mut i = 0;
        while i + V::LANES <= sin.len() {
            let (x, y) = (V::load(a.add(i)), V::load(b.add(i)));
            let (s, c) = (V::load(sin.as_ptr().add(i)), V::load(cos.as_ptr().add(i)));
            x.mul(c).sub(y.mul(s)).store(a.add(i));
            x.mul(s).add(y.mul(c)).store(b.add(i));
            i += V::LANES;
        }
        while i < sin.len() {
            let (x, y) = (*a.add(i), *b.add(i));
            (*a.add(i), *b.add(i)) = (x * cos[i] - y * sin[i], x * sin[i] + y * cos[i]);
            i += 1;
        }
    }
}

#[inline(always)]
fn pairs_in_place(x: &mut [f32], sin: &[f32], cos: &[f32]) {
    for ((pair, &s), &c) in x.chunks_exact_mut(2).zip(sin).zip(cos) {
        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
    }
}

/// Sine and cosine to about one unit in the last place of f32, for |angle| below 2³¹.
#[inline(always)]
fn sin_cos(angle: f64) -> (f32, f32) {
    // Adding 1.5·2⁵² rounds to an integer and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let shifted = angle * FRAC_2_PI + ROUND;
    let quadrant = shifted.to_bits() as u32;
    let r = (angle - (shifted - ROUND) * FRAC_PI_2) as f32;
    let z = r * r;
    // Taylor series: at |r| ≤ π/4 the terms left out are below 2⁻²⁷.
    let sin = r + r * z * (-1.0 / 6.0 + z * (1.0 / 120.0 + z * (-1.0 / 5040.0 + z * (1.0 / 362_880.0))));
    let cos = 1.0 - 0.5 * z + z * z * (1.0 / 24.0 + z * (-1.0 / 720.0 + z * (1.0 / 40_320.0 - z * (1.0 / 3_628_800.0))));
    let (s, c) = if quadrant & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let sign = |v: f32, bit: u32| f32::from_bits(v.to_bits() ^ (bit & 2) << 30);
    (sign(s, quadrant), sign(c, quadrant.wrapping_add(1)))
}

#[cfg(test)]
mod tests {
    use super::sin_cos;

    #[test]
    fn sine_and_cosine_of_any_position() {
        for i in 0..200_000 {
            let angle = f64::from(i - 100_000) * if i % 2 == 0 { 0.01 } else { 10.37 };
            let (sin, cos) = sin_cos(angle);
            assert!((f64::from(sin) - angle.sin()).abs() < 1.2e-7, "sin {angle} is {sin}");
            assert!((f64::from(cos) - angle.cos()).abs() < 1.2e-7, "cos {angle} is {cos}");
        }
    }
}
