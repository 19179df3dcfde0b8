//! Vectors of f32 behind one trait, so that a kernel is written once and compiled for every level.
//!
//! A kernel is an `#[inline(always)]` function generic over [`Vector`]; [`at_level!`] makes one copy of it per level inside
//! a function that has the level's target features, so everything it inlines uses them. Closures would not inherit the
//! features before inlining, so kernels use none.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// `LANES` numbers in one register.
///
/// # Safety
/// Every method needs the instruction set of its type; pointers are to `LANES` elements, of any alignment.
pub(crate) trait Vector: Copy {
    const LANES: usize;
    /// Rows of a register tile of two vectors, so that accumulators and operands fit the register file.
    const TILE_ROWS: usize;
    /// Query rows of which a dot product with four keys fits the register file.
    const DOT_ROWS: usize;
    /// The vector of eight lanes on this machine.
    type Eight: Eight;

    unsafe fn splat(v: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Rounds to nearest, ties to even.
    unsafe fn store_f16(self, p: *mut u16);
    /// Rounds to nearest, ties to even; NaN stays NaN.
    unsafe fn store_bf16(self, p: *mut u16);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `self · b + c`
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; `b` when one is NaN.
    unsafe fn max(self, b: Self) -> Self;
    /// The smaller; `b` when one is NaN.
    unsafe fn min(self, b: Self) -> Self;
    /// To the nearest integer.
    unsafe fn round(self) -> Self;
    /// `2^self` for integers in −126..=127.
    unsafe fn exp2_integer(self) -> Self;
    /// Lanes of `self` where `x < limit` is false, 0 elsewhere.
    unsafe fn zero_where_less(self, x: Self, limit: Self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn max_lane(self) -> f32;
    /// Writes the sums of four vectors to `out[..4]`, each added up pairwise over the lanes `lane(0)`, `lane(1)` and so on:
    /// `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`.
    unsafe fn sum4(v: [Self; 4], out: *mut f32);

    /// The lane that comes as the `n`-th in [`Vector::sum4`].
    #[inline(always)]
    fn lane(n: usize) -> usize {
        n
    }
}

/// A [`Vector`] of eight lanes.
pub(crate) trait Eight: Vector {
    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    ///
    /// # Safety
    /// As the methods of [`Vector`].
    unsafe fn transpose(rows: [Self; 8]) -> [Self; 8];
}

/// Calls the generic kernel `name::<V, …>(args)` compiled for a [`crate::Simd`] level. The arguments are variables with
/// their types.
macro_rules! at_level {
    ($level:expr, $kernel:ident $(<$t:ty>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the features are enabled here; the rest is promised by the caller.
            unsafe { $kernel::<$crate::ops::simd::Avx2 $(, $t)?>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $kernel::<$crate::ops::simd::Avx512 $(, $t)?>($($arg),*) }
        }
        match $level {
            #[cfg(target_arch = "x86_64")]
            $crate::Simd::Avx512 => avx512($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Simd::AvxVnni | $crate::Simd::Avx2 => avx2($($arg),*),
            _ => $kernel::<$crate::ops::simd::Portable $(, $t)?>($($arg),*),
        }
    }};
}
pub(crate) use at_level;
