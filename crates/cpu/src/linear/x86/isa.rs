//! The 256-bit instruction sets, as far as the kernels tell them apart.
//!
//! Functions here have no `#[target_feature]`: they are inlined into kernels that do, which is what makes generic kernels
//! possible. Calling one from anywhere else would be slow and, on an older processor, an illegal instruction.

use std::arch::x86_64::*;

/// 8-bit dot products of one level. `u`: 32 × u8, `a`: 32 × i8, never −128; the result has 8 × i32, lane `l` the sum of
/// elements `4l..4l + 4`.
pub(super) trait Isa {
    /// Whether any u8 may be multiplied, not only those that keep pairs of products in 16 bits (`u` < 128).
    const WIDE: bool;

    /// `acc + u · a`.
    ///
    /// # Safety
    /// The processor has this level.
    unsafe fn dot(acc: __m256i, u: __m256i, a: __m256i) -> __m256i;

    /// `codes` with `bit` set in byte `i` where bit `i` of `mask` is set.
    ///
    /// # Safety
    /// The processor has this level.
    unsafe fn or_bits(codes: __m256i, mask: u32, bit: i8) -> __m256i;
}

pub(super) struct Avx2;
pub(super) struct AvxVnni;
pub(super) struct Avx512;

impl Isa for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn dot(acc: __m256i, u: __m256i, a: __m256i) -> __m256i {
        _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, a), _mm256_set1_epi16(1)))
    }

    #[inline(always)]
    unsafe fn or_bits(codes: __m256i, mask: u32, bit: i8) -> __m256i {
        or_bits_by_shuffle(codes, mask, bit)
    }
}

impl Isa for AvxVnni {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn dot(acc: __m256i, u: __m256i, a: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(acc, u, a)
    }

    #[inline(always)]
    unsafe fn or_bits(codes: __m256i, mask: u32, bit: i8) -> __m256i {
        or_bits_by_shuffle(codes, mask, bit)
    }
}

impl Isa for Avx512 {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn dot(acc: __m256i, u: __m256i, a: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(acc, u, a)
    }

    #[inline(always)]
    unsafe fn or_bits(codes: __m256i, mask: u32, bit: i8) -> __m256i {
        _mm256_mask_add_epi8(codes, mask, codes, _mm256_set1_epi8(bit))
    }
}

/// Copies each byte of `mask` to the eight lanes that want one of its bits, and keeps that bit.
#[inline(always)]
unsafe fn or_bits_by_shuffle(codes: __m256i, mask: u32, bit: i8) -> __m256i {
    const LANES: [u8; 32] = {
        let mut lanes = [0; 32];
        let mut i = 0;
        while i < 32 {
            lanes[i] = (i / 8) as u8;
            i += 1;
        }
        lanes
    };
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(mask as i32), _mm256_loadu_si256(LANES.as_ptr().cast()));
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own), own);
    _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(bit)))
}

/// The sum of eight lanes.
///
/// # Safety
/// The processor has AVX.
#[inline(always)]
pub(super) unsafe fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// A little-endian f16 in memory as f32.
///
/// # Safety
/// The processor has F16C; two bytes are readable.
#[inline(always)]
pub(super) unsafe fn f16(at: *const u8) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned()))))
}
