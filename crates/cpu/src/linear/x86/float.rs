//! `linear` of few tokens with F32, F16 and BF16 weights on x86-64: dot products of rows, converted eight elements at a time
//! as they are read; bound by reading the weights. `float_tile.rs` has those of many tokens and says how sums are formed.
//!
//! Measured with the packed dtypes of `dot.rs`, under the same conditions: BF16 25.2 GB/s at one token.

use std::{arch::x86_64::*, ops::Range};

use super::{super::Job, float_tile::TILE_COLS};

/// Weights whose elements are converted one by one.
///
/// # Safety
/// Of every function: the processor has AVX2 and F16C, and as many elements are readable.
pub(super) trait Floats {
    const BYTES: usize;
    unsafe fn eight(at: *const u8) -> __m256;
    unsafe fn one(at: *const u8) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Floats for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn eight(at: *const u8) -> __m256 {
        _mm256_loadu_ps(at.cast())
    }
    #[inline(always)]
    unsafe fn one(at: *const u8) -> f32 {
        at.cast::<f32>().read_unaligned()
    }
}

impl Floats for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn eight(at: *const u8) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))
    }
    #[inline(always)]
    unsafe fn one(at: *const u8) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned()))))
    }
}

impl Floats for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn eight(at: *const u8) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())), 16))
    }
    #[inline(always)]
    unsafe fn one(at: *const u8) -> f32 {
        f32::from_bits(u32::from(at.cast::<u16>().read_unaligned()) << 16)
    }
}

/// Computes `rows` of the part for all tokens by dot products.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the part has `W`'s dtype; `rows` lie in it and no other thread writes them to
/// `job.out`.
#[inline(always)]
pub(super) unsafe fn chunk<W: Floats>(job: &Job, rows: Range<usize>) {
    let tokens = job.x.shape[0];
    for first in rows.clone().step_by(4) {
        let mut token = 0;
        while token < tokens {
            token +=
                if tokens - token == 1 { some::<W, 1>(job, token, first, rows.end) } else { some::<W, 2>(job, token, first, rows.end) };
        }
    }
}

/// Four rows from `first` (those from `end` on are left out), `T` tokens from `token`. Returns `T`.
#[inline(always)]
unsafe fn some<W: Floats, const T: usize>(job: &Job, token: usize, first: usize, end: usize) -> usize {
    let weights = job.part.stored().as_ptr();
    let mut rows = [weights; 4];
    for r in 0..4 {
        rows[r] = weights.add((first + r).min(end - 1) * job.part.row_bytes);
    }
    let mut x = [std::ptr::null::<f32>(); T];
    for t in 0..T {
        x[t] = job.x.at([token + t, 0]);
    }
    let mut totals = [[0.0f32; 4]; T];
    for t in 0..T {
        for r in 0..4.min(end - first) {
            totals[t][r] = job.addend(token + t, first + r);
        }
    }
    for from in (0..job.cols).step_by(TILE_COLS) {
        let to = (from + TILE_COLS).min(job.cols);
        let whole = from + (to - from) / 8 * 8;
        let mut acc = [[_mm256_setzero_ps(); 4]; T];
        for k in (from..whole).step_by(8) {
            for r in 0..4 {
                let at = rows[r].add(k * W::BYTES);
                // The same place of the row that this lane takes next.
                _mm_prefetch(at.wrapping_add(4 * job.part.row_bytes).cast(), _MM_HINT_T0);
                let w = W::eight(at);
                for t in 0..T {
                    acc[t][r] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x[t].add(k)), acc[t][r]);
                }
            }
        }
        if whole < to {
            for t in 0..T {
                for r in 0..4 {
                    let (mut w, mut v) = ([0.0f32; 8], [0.0f32; 8]);
                    for k in whole..to {
                        (w[k - whole], v[k - whole]) = (W::one(rows[r].add(k * W::BYTES)), *x[t].add(k));
                    }
                    acc[t][r] = _mm256_fmadd_ps(_mm256_loadu_ps(w.as_ptr()), _mm256_loadu_ps(v.as_ptr()), acc[t][r]);
                }
            }
        }
        for t in 0..T {
            let total = totals[t].as_mut_ptr();
            _mm_storeu_ps(total, add_lanes(_mm_loadu_ps(total), acc[t]));
        }
    }
    for t in 0..T {
        for r in 0..4.min(end - first) {
            *job.out.at([token + t, job.part.first_row + first + r]) = totals[t][r];
        }
    }
    T
}

/// Adds the eight lanes of each vector to its total, one behind the other.
#[inline(always)]
unsafe fn add_lanes(mut totals: __m128, [a, b, c, d]: [__m256; 4]) -> __m128 {
    let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    // Lanes `n` and `n + 4` in the halves of a vector.
    let lanes = [
        _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
        _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
        _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
        _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
    ];
    for lane in lanes {
        totals = _mm_add_ps(totals, _mm256_castps256_ps128(lane));
    }
    for lane in lanes {
        totals = _mm_add_ps(totals, _mm256_extractf128_ps::<1>(lane));
    }
    totals
}
