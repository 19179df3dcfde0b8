//! Eight lanes in plain Rust, which the compiler vectorises for the target's baseline.

use half::{bf16, f16};

use super::{Eight, Vector};

/// `2^23 + 2^22`: adding it leaves no bits for a fraction.
const ROUND: f32 = 12_582_912.0;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn map(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Vector for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 2;
    const DOT_ROWS: usize = 1;
    type Eight = Self;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Self([v; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller gives 8 elements.
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller gives 8 elements.
        Self(unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(|v| f16::from_bits(v).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller gives 8 elements.
        Self(unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(|v| f32::from_bits(u32::from(v) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller gives 8 elements.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) };
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: the caller gives 8 elements.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(self.0.map(|v| f16::from_f32(v).to_bits())) };
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: the caller gives 8 elements.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(self.0.map(|v| bf16::from_f32(v).to_bits())) };
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.map(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.map(b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.map(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.map(b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.map(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        self.map(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(|v| v + ROUND - ROUND))
    }
    #[inline(always)]
    unsafe fn exp2_integer(self) -> Self {
        Self(self.0.map(|v| f32::from_bits((v + (ROUND + 127.0)).to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, limit: Self) -> Self {
        Self(std::array::from_fn(|i| if x.0[i] < limit.0[i] { 0.0 } else { self.0[i] }))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self; 4], out: *mut f32) {
        for (i, v) in v.into_iter().enumerate() {
            let [a, b, c, d, e, f, g, h] = v.0;
            // SAFETY: the caller gives 4 elements.
            unsafe { *out.add(i) = ((a + b) + (c + d)) + ((e + f) + (g + h)) };
        }
    }
}

impl Eight for Portable {
    #[inline(always)]
    unsafe fn transpose(rows: [Self; 8]) -> [Self; 8] {
        std::array::from_fn(|i| Self(std::array::from_fn(|j| rows[j].0[i])))
    }
}
