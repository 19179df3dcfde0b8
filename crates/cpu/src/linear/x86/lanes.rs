//! Vectors with one weight row per 32-bit lane, as panels hold them.

use std::arch::x86_64::*;

/// One width and level. Functions here have no `#[target_feature]`: they are inlined into kernels that do, which is
/// what makes generic kernels possible.
///
/// # Safety
/// Of every function: the processor has the level; pointers are good for a whole vector, or for the one element that is
/// broadcast.
pub(super) trait Lanes {
    /// Floats
    type F: Copy;
    /// 32-bit integers, or four bytes each
    type I: Copy;
    /// Lanes of a vector
    const N: usize;

    unsafe fn zero() -> Self::I;
    unsafe fn load(at: *const u8) -> Self::I;
    unsafe fn store(at: *mut u8, v: Self::I);
    unsafe fn broadcast(at: *const i8) -> Self::I;
    unsafe fn to_f(v: Self::I) -> Self::F;
    /// Four copies of a byte in every lane
    unsafe fn splat(byte: i8) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    /// 32-bit lanes shifted right by `bits`, or left when it is negative
    unsafe fn shift(v: Self::I, bits: i32) -> Self::I;
    /// The byte of the table, 16 bytes, that each byte below 16 of `v` names
    unsafe fn look_up(table: *const i8, v: Self::I) -> Self::I;

    /// `N` numbers of 16 bits
    unsafe fn load_f16(at: *const u8) -> Self::F;
    /// `N` bytes
    unsafe fn load_u8(at: *const u8) -> Self::F;
    /// `N` signed bytes
    unsafe fn load_i8(at: *const u8) -> Self::F;
    /// The low halves of `N` bytes
    unsafe fn load_low_nibbles(at: *const u8) -> Self::F;
    /// The high halves of `N` bytes
    unsafe fn load_high_nibbles(at: *const u8) -> Self::F;
    unsafe fn zero_f() -> Self::F;
    unsafe fn load_f(at: *const f32) -> Self::F;
    unsafe fn store_f(at: *mut f32, v: Self::F);
    unsafe fn broadcast_f(at: *const f32) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
}

/// A level whose products of bytes add up in 32 bits.
///
/// # Safety
/// As [`Lanes`].
pub(super) trait WideLanes: Lanes {
    /// Per lane: `acc + Σ u · a` over four bytes
    unsafe fn dot(acc: Self::I, u: Self::I, a: Self::I) -> Self::I;
}

/// Eight rows, AVX2
pub(super) struct Eight;
/// Eight rows, AVX-VNNI
pub(super) struct EightVnni;
/// Sixteen rows, AVX-512 VNNI
pub(super) struct Sixteen;

macro_rules! eight {
    ($name:ty) => {
        impl Lanes for $name {
            type F = __m256;
            type I = __m256i;
            const N: usize = 8;

            #[inline(always)]
            unsafe fn zero() -> __m256i {
                _mm256_setzero_si256()
            }
            #[inline(always)]
            unsafe fn load(at: *const u8) -> __m256i {
                _mm256_loadu_si256(at.cast())
            }
            #[inline(always)]
            unsafe fn store(at: *mut u8, v: __m256i) {
                _mm256_storeu_si256(at.cast(), v)
            }
            #[inline(always)]
            unsafe fn broadcast(at: *const i8) -> __m256i {
                _mm256_set1_epi32(at.cast::<i32>().read_unaligned())
            }
            #[inline(always)]
            unsafe fn to_f(v: __m256i) -> __m256 {
                _mm256_cvtepi32_ps(v)
            }
            #[inline(always)]
            unsafe fn splat(byte: i8) -> __m256i {
                _mm256_set1_epi8(byte)
            }
            #[inline(always)]
            unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
                _mm256_and_si256(a, b)
            }
            #[inline(always)]
            unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
                _mm256_or_si256(a, b)
            }
            #[inline(always)]
            unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
                _mm256_xor_si256(a, b)
            }
            #[inline(always)]
            unsafe fn shift(v: __m256i, bits: i32) -> __m256i {
                if bits < 0 { _mm256_sll_epi32(v, _mm_cvtsi32_si128(-bits)) } else { _mm256_srl_epi32(v, _mm_cvtsi32_si128(bits)) }
            }
            #[inline(always)]
            unsafe fn look_up(table: *const i8, v: __m256i) -> __m256i {
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast())), v)
            }
            #[inline(always)]
            unsafe fn load_f16(at: *const u8) -> __m256 {
                _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))
            }
            #[inline(always)]
            unsafe fn load_u8(at: *const u8) -> __m256 {
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())))
            }
            #[inline(always)]
            unsafe fn load_i8(at: *const u8) -> __m256 {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
            }
            #[inline(always)]
            unsafe fn load_low_nibbles(at: *const u8) -> __m256 {
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(_mm_loadl_epi64(at.cast()), _mm_set1_epi8(15))))
            }
            #[inline(always)]
            unsafe fn load_high_nibbles(at: *const u8) -> __m256 {
                _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))))
            }
            #[inline(always)]
            unsafe fn zero_f() -> __m256 {
                _mm256_setzero_ps()
            }
            #[inline(always)]
            unsafe fn load_f(at: *const f32) -> __m256 {
                _mm256_loadu_ps(at)
            }
            #[inline(always)]
            unsafe fn store_f(at: *mut f32, v: __m256) {
                _mm256_storeu_ps(at, v)
            }
            #[inline(always)]
            unsafe fn broadcast_f(at: *const f32) -> __m256 {
                _mm256_set1_ps(*at)
            }
            #[inline(always)]
            unsafe fn add(a: __m256, b: __m256) -> __m256 {
                _mm256_add_ps(a, b)
            }
            #[inline(always)]
            unsafe fn mul(a: __m256, b: __m256) -> __m256 {
                _mm256_mul_ps(a, b)
            }
            #[inline(always)]
            unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
                _mm256_fmadd_ps(a, b, c)
            }
        }
    };
}

eight!(Eight);
eight!(EightVnni);

impl Eight {
    /// Eight signed bytes as 16-bit numbers, each twice: both halves of a row's lane.
    #[inline(always)]
    pub unsafe fn load_i8_twice(at: *const u8) -> __m256i {
        Self::high_bytes(_mm_loadl_epi64(at.cast()))
    }

    /// The low halves of eight bytes as 16-bit numbers, each twice.
    #[inline(always)]
    pub unsafe fn load_low_nibbles_twice(at: *const u8) -> __m256i {
        Self::high_bytes(_mm_and_si128(_mm_loadl_epi64(at.cast()), _mm_set1_epi8(15)))
    }

    /// Each byte becomes the high one of two numbers of 16 bits, which are then shifted down.
    #[inline(always)]
    unsafe fn high_bytes(bytes: __m128i) -> __m256i {
        let to = _mm256_setr_epi8(
            -1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7,
        );
        _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), to))
    }
}

impl WideLanes for EightVnni {
    #[inline(always)]
    unsafe fn dot(acc: __m256i, u: __m256i, a: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(acc, u, a)
    }
}

impl WideLanes for Sixteen {
    #[inline(always)]
    unsafe fn dot(acc: __m512i, u: __m512i, a: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(acc, u, a)
    }
}

impl Lanes for Sixteen {
    type F = __m512;
    type I = __m512i;
    const N: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512i {
        _mm512_loadu_si512(at.cast())
    }
    #[inline(always)]
    unsafe fn store(at: *mut u8, v: __m512i) {
        _mm512_storeu_si512(at.cast(), v)
    }
    #[inline(always)]
    unsafe fn broadcast(at: *const i8) -> __m512i {
        _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn to_f(v: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(v)
    }
    #[inline(always)]
    unsafe fn splat(byte: i8) -> __m512i {
        _mm512_set1_epi8(byte)
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        _mm512_and_si512(a, b)
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        _mm512_or_si512(a, b)
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        _mm512_xor_si512(a, b)
    }
    #[inline(always)]
    unsafe fn shift(v: __m512i, bits: i32) -> __m512i {
        if bits < 0 { _mm512_sll_epi32(v, _mm_cvtsi32_si128(-bits)) } else { _mm512_srl_epi32(v, _mm_cvtsi32_si128(bits)) }
    }
    #[inline(always)]
    unsafe fn look_up(table: *const i8, v: __m512i) -> __m512i {
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.cast())), v)
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u8) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))
    }
    #[inline(always)]
    unsafe fn load_u8(at: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(at: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(at: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(_mm_loadu_si128(at.cast()), _mm_set1_epi8(15))))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(at: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))))
    }
    #[inline(always)]
    unsafe fn zero_f() -> __m512 {
        _mm512_setzero_ps()
    }
    #[inline(always)]
    unsafe fn load_f(at: *const f32) -> __m512 {
        _mm512_loadu_ps(at)
    }
    #[inline(always)]
    unsafe fn store_f(at: *mut f32, v: __m512) {
        _mm512_storeu_ps(at, v)
    }
    #[inline(always)]
    unsafe fn broadcast_f(at: *const f32) -> __m512 {
        _mm512_set1_ps(*at)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
}
