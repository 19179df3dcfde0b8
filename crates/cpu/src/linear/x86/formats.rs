//! The packed block types for AVX2: where codes, scales and minimums lie (`ferrum_kernels::quant` defines them).
//!
//! All come out as `x = scale · code + min` with `code` an unsigned byte, `scale` and `min` per 32 or 16 elements; a type
//! centred on `c` has `min = −c · scale`. Types whose codes use all eight bits come out as signed bytes without a minimum.

use std::arch::x86_64::*;

use ferrum_kernels::quant::IQ4_VALUES;

use super::isa::{Isa, f16};

/// One block type. A block has `GROUPS` groups of 32 elements.
///
/// # Safety
/// Of every function: the processor has AVX2, FMA, F16C and the level `I`; `block` points to a whole block; `group` is
/// below `GROUPS`.
pub(super) trait Format {
    /// Bytes of a block
    const BYTES: usize;
    /// 1 or 8
    const GROUPS: usize;
    /// Scales belong to 16 elements instead of 32; only with 8 groups
    const HALVES: bool = false;
    /// `codes` gives signed bytes, above −128
    const SIGNED: bool = false;
    /// `min = −scale << CENTRE`, and `head` leaves the minimums out. Not with `HALVES`
    const CENTRE: Option<i32> = None;
    /// The largest code; with `SIGNED`, the largest magnitude
    const MAX_CODE: i32;

    /// The 32 codes of a group in element order.
    unsafe fn codes<I: Isa>(block: *const u8, group: usize) -> __m256i;

    /// Scales and minimums.
    unsafe fn head(block: *const u8) -> Head;
}

/// Scales and minimums of a block: lane `j` of `[0]`, then of `[1]`, belongs to sub-block `j`. With one group, all lanes
/// are alike. What a type does not have is zero.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub scales: [__m256; 2],
    pub mins: [__m256; 2],
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;
pub(super) struct Iq4Nl;
pub(super) struct Iq4Xs;

impl Format for Q4_0 {
    const BYTES: usize = 18;
    const GROUPS: usize = 1;
    const CENTRE: Option<i32> = Some(3);
    const MAX_CODE: i32 = 15;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, _: usize) -> __m256i {
        nibbles(block.add(2))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        scale_only(block)
    }
}

impl Format for Q4_1 {
    const BYTES: usize = 20;
    const GROUPS: usize = 1;
    const MAX_CODE: i32 = 15;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, _: usize) -> __m256i {
        nibbles(block.add(4))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        scale_and_min(block)
    }
}

impl Format for Q5_0 {
    const BYTES: usize = 22;
    const GROUPS: usize = 1;
    const CENTRE: Option<i32> = Some(4);
    const MAX_CODE: i32 = 31;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, _: usize) -> __m256i {
        I::or_bits(nibbles(block.add(6)), block.add(2).cast::<u32>().read_unaligned(), 16)
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        scale_only(block)
    }
}

impl Format for Q5_1 {
    const BYTES: usize = 24;
    const GROUPS: usize = 1;
    const MAX_CODE: i32 = 31;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, _: usize) -> __m256i {
        I::or_bits(nibbles(block.add(8)), block.add(4).cast::<u32>().read_unaligned(), 16)
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        scale_and_min(block)
    }
}

impl Format for Q8_0 {
    const BYTES: usize = 34;
    const GROUPS: usize = 1;
    const SIGNED: bool = true;
    const MAX_CODE: i32 = 128;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, _: usize) -> __m256i {
        load(block.add(2))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        scale_only(block)
    }
}

impl Format for Iq4Nl {
    const BYTES: usize = 18;
    const GROUPS: usize = 1;
    const SIGNED: bool = true;
    const MAX_CODE: i32 = 127;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, _: usize) -> __m256i {
        iq4(nibbles(block.add(2)))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        scale_only(block)
    }
}

impl Format for Iq4Xs {
    const BYTES: usize = 136;
    const GROUPS: usize = 8;
    const SIGNED: bool = true;
    const MAX_CODE: i32 = 127;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, group: usize) -> __m256i {
        iq4(nibbles(block.add(8 + 16 * group)))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        let low = block.add(4).cast::<u32>().read_unaligned();
        let even = _mm_cvtsi32_si128((low & NIBBLES) as i32);
        let odd = _mm_cvtsi32_si128((low >> 4 & NIBBLES) as i32);
        let low = _mm256_cvtepu8_epi32(_mm_unpacklo_epi8(even, odd));
        let high = _mm256_set1_epi32(i32::from(block.add(2).cast::<u16>().read_unaligned()));
        let high = _mm256_and_si256(_mm256_srlv_epi32(high, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)), _mm256_set1_epi32(3));
        let codes = _mm256_sub_epi32(_mm256_or_si256(low, _mm256_slli_epi32(high, 4)), _mm256_set1_epi32(32));
        Head { scales: [_mm256_mul_ps(_mm256_set1_ps(f16(block)), _mm256_cvtepi32_ps(codes)), zero()], mins: [zero(); 2] }
    }
}

impl Format for Q4K {
    const BYTES: usize = 144;
    const GROUPS: usize = 8;
    const MAX_CODE: i32 = 15;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, group: usize) -> __m256i {
        k_nibbles(block.add(16 + 32 * (group / 2)), group % 2)
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        k_scales_and_mins(block)
    }
}

impl Format for Q5K {
    const BYTES: usize = 176;
    const GROUPS: usize = 8;
    const MAX_CODE: i32 = 31;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, group: usize) -> __m256i {
        let low = k_nibbles(block.add(48 + 32 * (group / 2)), group % 2);
        _mm256_or_si256(low, move_bits(load(block.add(16)), group, 4, 16))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        k_scales_and_mins(block)
    }
}

impl Format for Q6K {
    const BYTES: usize = 210;
    const GROUPS: usize = 8;
    const HALVES: bool = true;
    const MAX_CODE: i32 = 63;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, group: usize) -> __m256i {
        let (h, s) = (group / 4, group % 4);
        let low = k_nibbles(block.add(64 * h + 32 * (s % 2)), s / 2);
        _mm256_or_si256(low, move_bits(load(block.add(128 + 32 * h)), 2 * s, 4, 0x30))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        let scales = _mm_loadu_si128(block.add(192).cast());
        centred(f16(block.add(208)), [_mm256_cvtepi8_epi32(scales), _mm256_cvtepi8_epi32(_mm_srli_si128(scales, 8))], 32.0)
    }
}

impl Format for Q3K {
    const BYTES: usize = 110;
    const GROUPS: usize = 8;
    const HALVES: bool = true;
    const MAX_CODE: i32 = 7;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, group: usize) -> __m256i {
        let low = move_bits(load(block.add(32 + 32 * (group / 4))), 2 * (group % 4), 0, 3);
        _mm256_or_si256(low, move_bits(load(block), group, 2, 4))
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        let word = |n: usize| u64::from(block.add(96).cast::<u32>().add(n).read_unaligned());
        let (low, high) = (word(0) | word(1) << 32, word(2));
        let bits = |shift: u32| ((high >> shift & TWO_BITS) | (high >> (shift + 2) & TWO_BITS) << 32) << 4;
        let first = (low & NIBBLES_64) | bits(0);
        let second = (low >> 4 & NIBBLES_64) | bits(4);
        let signed = |codes: u64| _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes as i64)), _mm256_set1_epi32(32));
        centred(f16(block.add(108)), [signed(first), signed(second)], 4.0)
    }
}

impl Format for Q2K {
    const BYTES: usize = 84;
    const GROUPS: usize = 8;
    const HALVES: bool = true;
    const MAX_CODE: i32 = 3;

    #[inline(always)]
    unsafe fn codes<I: Isa>(block: *const u8, group: usize) -> __m256i {
        move_bits(load(block.add(16 + 32 * (group / 4))), 2 * (group % 4), 0, 3)
    }

    #[inline(always)]
    unsafe fn head(block: *const u8) -> Head {
        let (d, min) = (_mm256_set1_ps(f16(block.add(80))), _mm256_set1_ps(-f16(block.add(82))));
        let both = _mm_loadu_si128(block.cast());
        let mask = _mm_set1_epi8(15);
        let (scales, mins) = (_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
        let times = |codes: __m128i, by: __m256| {
            let wide = |c| _mm256_mul_ps(by, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(c)));
            [wide(codes), wide(_mm_srli_si128(codes, 8))]
        };
        Head { scales: times(scales, d), mins: times(mins, min) }
    }
}

const NIBBLES: u32 = 0x0f0f_0f0f;
const NIBBLES_64: u64 = 0x0f0f_0f0f_0f0f_0f0f;
const TWO_BITS: u64 = 0x0303_0303;

#[inline(always)]
unsafe fn zero() -> __m256 {
    _mm256_setzero_ps()
}

#[inline(always)]
unsafe fn load(at: *const u8) -> __m256i {
    _mm256_loadu_si256(at.cast())
}

/// 16 bytes as 32 nibbles: all low halves, then all high halves.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    let low = _mm_loadu_si128(at.cast());
    let both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_srli_epi16(low, 4), 1);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// The low (0) or high (1) halves of 32 bytes.
#[inline(always)]
unsafe fn k_nibbles(at: *const u8, half: usize) -> __m256i {
    move_bits(load(at), 4 * half, 0, 15)
}

/// Moves the bits of each byte from position `from` to position `to` and keeps those in `mask`.
#[inline(always)]
unsafe fn move_bits(v: __m256i, from: usize, to: usize, mask: i8) -> __m256i {
    // Bits that cross into the neighbouring byte of a 16-bit lane fall outside the mask.
    let moved = if from >= to {
        _mm256_srl_epi16(v, _mm_cvtsi32_si128((from - to) as i32))
    } else {
        _mm256_sll_epi16(v, _mm_cvtsi32_si128((to - from) as i32))
    };
    _mm256_and_si256(moved, _mm256_set1_epi8(mask))
}

#[inline(always)]
unsafe fn iq4(codes: __m256i) -> __m256i {
    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_VALUES.as_ptr().cast()));
    _mm256_shuffle_epi8(table, codes)
}

#[inline(always)]
unsafe fn scale_only(block: *const u8) -> Head {
    Head { scales: [_mm256_set1_ps(f16(block)), zero()], mins: [zero(); 2] }
}

#[inline(always)]
unsafe fn scale_and_min(block: *const u8) -> Head {
    let both = _mm_cvtph_ps(_mm_cvtsi32_si128(block.cast::<i32>().read_unaligned()));
    let (scale, min) = (_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both)));
    Head { scales: [scale, zero()], mins: [min, zero()] }
}

#[inline(always)]
unsafe fn centred(d: f32, codes: [__m256i; 2], centre: f32) -> Head {
    let (d, to_min) = (_mm256_set1_ps(d), _mm256_set1_ps(-centre));
    let scales = [_mm256_mul_ps(d, _mm256_cvtepi32_ps(codes[0])), _mm256_mul_ps(d, _mm256_cvtepi32_ps(codes[1]))];
    Head { scales, mins: [_mm256_mul_ps(scales[0], to_min), _mm256_mul_ps(scales[1], to_min)] }
}

/// Eight scales and eight minimums of six bits in twelve bytes, after `d` and `dmin`.
#[inline(always)]
unsafe fn k_scales_and_mins(block: *const u8) -> Head {
    let word = |n: usize| u64::from(block.add(4).cast::<u32>().add(n).read_unaligned());
    let (a, b, c) = (word(0), word(1), word(2));
    let six = 0x3f3f_3f3f;
    let scales = (a & six) | ((c & u64::from(NIBBLES)) | (a >> 6 & TWO_BITS) << 4) << 32;
    let mins = (b & six) | ((c >> 4 & u64::from(NIBBLES)) | (b >> 6 & TWO_BITS) << 4) << 32;
    let times =
        |codes: u64, by: f32| _mm256_mul_ps(_mm256_set1_ps(by), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes as i64))));
    Head { scales: [times(scales, f16(block)), zero()], mins: [times(mins, -f16(block.add(2))), zero()] }
}
