//! Exponential, hyperbolic tangent and the gated non-linearities on vectors, to about two units in the last place.

use std::f32::consts::{FRAC_2_SQRT_PI, LOG2_E, SQRT_2};

use super::simd::Vector;

/// Ln 2 in two parts; the first has so few bits that its product with an exponent is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = (std::f64::consts::LN_2 - LN_2_HIGH as f64) as f32;
/// Below this, `e^x` is less than the smallest normal number and taken as 0.
const EXP_MIN: f32 = -87.3;
/// Above this, `e^x` stays as large as here (1.65e38).
const EXP_MAX: f32 = 88.0;

/// `(2^n, e^r − 1)` with `x = n·ln 2 + r`: what all functions here are made of.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn split_exp<V: Vector>(x: V) -> (V, V) {
    // SAFETY: promised by the caller.
    unsafe {
        // In this order, because the bounds return their second operand when one is NaN.
        let x = V::splat(EXP_MAX).min(V::splat(EXP_MIN).max(x));
        let n = x.mul(V::splat(LOG2_E)).round();
        let r = n.mul_add(V::splat(-LN_2_LOW), n.mul_add(V::splat(-LN_2_HIGH), x));
        // The Taylor series to r⁷: at |r| ≤ ln 2 / 2 the next term is below 2⁻²⁷.
        let p = V::splat(1.0 / 5040.0).mul_add(r, V::splat(1.0 / 720.0));
        let p = p.mul_add(r, V::splat(1.0 / 120.0));
        let p = p.mul_add(r, V::splat(1.0 / 24.0));
        let p = p.mul_add(r, V::splat(1.0 / 6.0));
        let p = p.mul_add(r, V::splat(0.5));
        (n.exp2_integer(), p.mul_add(r.mul(r), r))
    }
}

/// `e^x`; 0 below −87.3, 1.65e38 above 88, NaN for NaN.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: promised by the caller.
    unsafe {
        let (scale, e) = split_exp(x);
        scale.mul_add(e, scale).zero_where_less(x, V::splat(EXP_MIN))
    }
}

/// `tanh x`, without cancellation at small `x`: `(e^2x − 1) / (e^2x + 1)` from `e^2x − 1`.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: promised by the caller.
    unsafe {
        let x = V::splat(20.0).min(V::splat(-20.0).max(x));
        let (scale, e) = split_exp(x.add(x));
        let minus_one = scale.mul_add(e, scale.sub(V::splat(1.0)));
        minus_one.div(minus_one.add(V::splat(2.0)))
    }
}

/// `x / (1 + e^−x)`
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn silu<V: Vector>(x: V) -> V {
    // SAFETY: promised by the caller.
    unsafe { x.div(exp(x.mul(V::splat(-1.0))).add(V::splat(1.0))) }
}

/// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`, which is `x / (1 + e^−2u)` with `u` the argument of the tangent.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<V: Vector>(x: V) -> V {
    const SLOPE: f32 = -(FRAC_2_SQRT_PI * SQRT_2); // −2·√(2/π)
    // SAFETY: promised by the caller.
    unsafe {
        let cubic = x.mul(x).mul_add(V::splat(SLOPE * 0.044_715), V::splat(SLOPE));
        x.div(exp(x.mul(cubic)).add(V::splat(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Simd, ops::simd::at_level};

    #[inline(always)]
    unsafe fn both<V: Vector>(x: &mut [f32; 16], out: &mut [f32; 16]) {
        for i in (0..16).step_by(V::LANES) {
            // SAFETY: 16 is a multiple of LANES.
            unsafe {
                let v = V::load(x.as_ptr().add(i));
                exp(v).store(out.as_mut_ptr().add(i));
                tanh(v).store(x.as_mut_ptr().add(i));
            }
        }
    }

    #[test]
    fn two_ulp_on_the_whole_range() {
        for level in Simd::ALL.into_iter().filter(|l| l.is_available()) {
            for start in -8900..8900 {
                let input: [f32; 16] = std::array::from_fn(|i| (start as f32 + i as f32 / 16.0) / 100.0);
                let (mut x, mut e) = (input, [0.0; 16]);
                let (xs, es) = (&mut x, &mut e);
                // SAFETY: the level is available.
                unsafe { at_level!(level, both(xs: &mut [f32; 16], es: &mut [f32; 16])) };
                for i in 0..16 {
                    let v = f64::from(input[i]);
                    let want = if input[i] < EXP_MIN { 0.0 } else { v.min(EXP_MAX.into()).exp() };
                    assert!((f64::from(e[i]) - want).abs() <= want * 2.4e-7, "{level}: exp {v} is {}", e[i]);
                    assert!((f64::from(x[i]) - v.tanh()).abs() <= v.tanh().abs() * 3.6e-7, "{level}: tanh {v} is {}", x[i]);
                }
            }
        }
    }

    #[test]
    fn the_ends() {
        for level in Simd::ALL.into_iter().filter(|l| l.is_available()) {
            let mut x = [0.0; 16];
            x[..4].copy_from_slice(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -1e30]);
            let mut e = [1.0; 16];
            let (xs, es) = (&mut x, &mut e);
            // SAFETY: the level is available.
            unsafe { at_level!(level, both(xs: &mut [f32; 16], es: &mut [f32; 16])) };
            assert!(e[0].is_nan() && x[0].is_nan(), "{level}");
            assert_eq!((e[1], e[3], e[4], x[1], x[2], x[4]), (0.0, 0.0, 1.0, -1.0, 1.0, 0.0), "{level}");
        }
    }
}
