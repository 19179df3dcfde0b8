//! `linear` in F32 on x86-64: F32, F16 and BF16 weights, and packed ones where activations must not be rounded.
//!
//! Few tokens: dot products of rows, converted eight elements at a time as they are read; bound by reading the weights.
//! Many tokens, and packed weights always: tiles of `2 · N` rows by [`TILE_COLS`] columns, unpacked so that vector `k`
//! holds column `k` of `N` rows, multiplied with up to six tokens at a time; bound by the multipliers.
//!
//! Measured with the packed dtypes of `dot.rs`, under the same conditions: BF16 25.2 GB/s at one token.

use std::{arch::x86_64::*, ops::Range};

use ferrum_kernels::{DType, quant};

use super::{
    super::{Job, MAX_TOKENS},
    lanes::Lanes,
    product::VECS,
    tile::{Place, TILE_BLOCKS, Tile, begin, end},
};

/// Columns of a tile: as many as the integer kernels have, so that both cut rows at the same places.
pub(super) const TILE_COLS: usize = 32 * TILE_BLOCKS / 2;

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
            _mm_storeu_ps(total, _mm_add_ps(_mm_loadu_ps(total), sums(acc[t])));
        }
    }
    for t in 0..T {
        for r in 0..4.min(end - first) {
            *job.out.at([token + t, job.part.first_row + first + r]) = totals[t][r];
        }
    }
    T
}

/// The sums of eight lanes each, as `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`.
#[inline(always)]
unsafe fn sums([a, b, c, d]: [__m256; 4]) -> __m128 {
    let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1))
}

/// The work on a float tile, compiled for one level each; as [`super::tile::TileKernels`].
#[derive(Clone, Copy)]
pub(super) struct FloatKernels {
    pub unpack: unsafe fn(&Job, Columns, *mut Tile),
    pub tokens: unsafe fn(&Job, Columns, *mut Tile),
    /// Rows of a tile
    pub rows: usize,
}

/// Rows and columns of a tile, and which tokens it meets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    place: Place,
    first: usize,
    count: usize,
}

/// Computes the tiles `tiles` of the part for all tokens.
///
/// # Safety
/// The processor has the level of `kernels`; `tiles` lie in the part and no other thread writes their rows to `job.out`.
pub(super) unsafe fn tiles(kernels: FloatKernels, job: &Job, tiles: Range<usize>, tile: *mut Tile) {
    let all = job.x.shape[0];
    for row in tiles.map(|t| t * kernels.rows) {
        for token in (0..all).step_by(MAX_TOKENS) {
            let (count, tokens) = (kernels.rows.min(job.part.rows - row), MAX_TOKENS.min(all - token));
            let place = Place { first: row, count, block: 0, blocks: 0, token, tokens };
            for first in (0..job.cols).step_by(TILE_COLS) {
                let at = Columns { place, first, count: TILE_COLS.min(job.cols - first) };
                (kernels.unpack)(job, at, tile);
                (kernels.tokens)(job, at, tile);
            }
        }
    }
}

/// Fills the tile. Rows that do not exist repeat the last.
///
/// # Safety
/// As [`tiles`], for AVX2, FMA, F16C and `L`.
#[inline(always)]
pub(super) unsafe fn unpack<L: Lanes>(job: &Job, at: Columns, tile: *mut Tile) {
    let dtype = job.part.dtype;
    // Whole blocks: both ends are multiples of the block length.
    let bytes = |cols: usize| cols / dtype.block_len() * dtype.block_bytes();
    let whole = at.count & !7;
    let mut buffer = [[0.0f32; TILE_COLS]; 8];
    for eight in (0..VECS * L::N).step_by(8) {
        let (vec, lane) = (eight / L::N, eight % L::N);
        for r in 0..8 {
            let row = at.place.first + (eight + r).min(at.place.count - 1);
            let packed = &job.part.stored()[row * job.part.row_bytes + bytes(at.first)..][..bytes(at.count)];
            let buffer = &mut buffer[r][..at.count];
            match dtype {
                DType::F32 => convert::<F32>(packed, buffer),
                DType::F16 => convert::<F16>(packed, buffer),
                DType::BF16 => convert::<Bf16>(packed, buffer),
                _ => quant::dequantize(dtype, packed, buffer).expect("prepare checked dtype and row length"),
            }
        }
        let to = |column: usize| Tile::float::<L>(tile, column, vec).add(lane);
        for k in (0..whole).step_by(8) {
            let mut v = [_mm256_setzero_si256(); 8];
            for r in 0..8 {
                v[r] = _mm256_loadu_si256(buffer[r].as_ptr().add(k).cast());
            }
            let v = transpose(v);
            for c in 0..8 {
                _mm256_storeu_si256(to(k + c).cast(), v[c]);
            }
        }
        for k in whole..at.count {
            for r in 0..8 {
                *to(k).add(r) = buffer[r][k];
            }
        }
    }
}

/// Eight by eight 32-bit numbers.
#[inline(always)]
unsafe fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let (a0, a1) = (_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[0], r[1]));
    let (a2, a3) = (_mm256_unpacklo_epi32(r[2], r[3]), _mm256_unpackhi_epi32(r[2], r[3]));
    let (a4, a5) = (_mm256_unpacklo_epi32(r[4], r[5]), _mm256_unpackhi_epi32(r[4], r[5]));
    let (a6, a7) = (_mm256_unpacklo_epi32(r[6], r[7]), _mm256_unpackhi_epi32(r[6], r[7]));
    let (b0, b1) = (_mm256_unpacklo_epi64(a0, a2), _mm256_unpackhi_epi64(a0, a2));
    let (b2, b3) = (_mm256_unpacklo_epi64(a1, a3), _mm256_unpackhi_epi64(a1, a3));
    let (b4, b5) = (_mm256_unpacklo_epi64(a4, a6), _mm256_unpackhi_epi64(a4, a6));
    let (b6, b7) = (_mm256_unpacklo_epi64(a5, a7), _mm256_unpackhi_epi64(a5, a7));
    [
        _mm256_permute2x128_si256(b0, b4, 0x20),
        _mm256_permute2x128_si256(b1, b5, 0x20),
        _mm256_permute2x128_si256(b2, b6, 0x20),
        _mm256_permute2x128_si256(b3, b7, 0x20),
        _mm256_permute2x128_si256(b0, b4, 0x31),
        _mm256_permute2x128_si256(b1, b5, 0x31),
        _mm256_permute2x128_si256(b2, b6, 0x31),
        _mm256_permute2x128_si256(b3, b7, 0x31),
    ]
}

#[inline(always)]
unsafe fn convert<W: Floats>(packed: &[u8], out: &mut [f32]) {
    let whole = out.len() & !7;
    for k in (0..whole).step_by(8) {
        _mm256_storeu_ps(out.as_mut_ptr().add(k), W::eight(packed.as_ptr().add(k * W::BYTES)));
    }
    for k in whole..out.len() {
        out[k] = W::one(packed.as_ptr().add(k * W::BYTES));
    }
}

/// Multiplies the tile with all tokens.
///
/// # Safety
/// As [`tiles`], for `L`; `tile` holds `at`.
#[inline(always)]
pub(super) unsafe fn tokens<L: Lanes>(job: &Job, at: Columns, tile: *mut Tile) {
    let mut token = 0;
    while token < at.place.tokens {
        token += match at.place.tokens - token {
            1 => some_of_tile::<L, 1>(job, at, tile, token),
            2..=5 => some_of_tile::<L, 2>(job, at, tile, token),
            _ => some_of_tile::<L, 6>(job, at, tile, token),
        };
    }
}

/// `T` tokens from the `token`-th of the tile on. Returns `T`.
#[inline(always)]
unsafe fn some_of_tile<L: Lanes, const T: usize>(job: &Job, at: Columns, tile: *mut Tile, token: usize) -> usize {
    let mut x = [std::ptr::null::<f32>(); T];
    for t in 0..T {
        x[t] = job.x.at([at.place.token + token + t, at.first]);
    }
    // Sums as the dot products of few tokens form them: each eighth column in a lane, then the lanes pairwise. A sum is added
    // to its neighbour as soon as both are complete, so that one of each size is waiting at most.
    let mut waiting = [[[L::zero_f(); VECS]; T]; 4];
    for lane in 0..8 {
        for t in 0..T {
            // The same columns of the next tokens.
            let next = x[t].wrapping_add(T * job.x.stride(0) + TILE_COLS / 8 * lane).cast::<i8>();
            for line in 0..TILE_COLS / 8 * 4 / 64 {
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(64 * line));
            }
        }
        let mut acc = eighth::<L, T>(at.count, tile, x, lane);
        let mut size = 0;
        while lane >> size & 1 == 1 {
            for t in 0..T {
                for v in 0..VECS {
                    acc[t][v] = L::add(waiting[size][t][v], acc[t][v]);
                }
            }
            size += 1;
        }
        waiting[size] = acc;
    }
    for t in 0..T {
        for v in 0..VECS {
            let sum = Tile::float_sum::<L>(tile, token + t, v);
            let before = if at.first == 0 { begin::<L>(job, at.place, at.place.token + token + t, v) } else { L::load_f(sum) };
            let total = L::add(before, waiting[3][t][v]);
            if at.first + at.count == job.cols {
                end::<L>(job, at.place, at.place.token + token + t, v, total);
            } else {
                L::store_f(sum, total);
            }
        }
    }
    T
}

/// The sums over columns `lane`, `lane + 8` and so on of a tile.
#[inline(always)]
unsafe fn eighth<L: Lanes, const T: usize>(cols: usize, tile: *mut Tile, x: [*const f32; T], lane: usize) -> [[L::F; VECS]; T] {
    let mut acc = [[L::zero_f(); VECS]; T];
    let mut column = lane;
    // Four at a time: the end of a short loop is guessed right, that of a long one is not.
    while column + 24 < cols {
        for _ in 0..4 {
            acc = column_of::<L, T>(tile, x, column, acc);
            column += 8;
        }
    }
    while column < cols {
        acc = column_of::<L, T>(tile, x, column, acc);
        column += 8;
    }
    acc
}

#[inline(always)]
unsafe fn column_of<L: Lanes, const T: usize>(
    tile: *mut Tile,
    x: [*const f32; T],
    column: usize,
    mut acc: [[L::F; VECS]; T],
) -> [[L::F; VECS]; T] {
    let mut w = [L::zero_f(); VECS];
    for v in 0..VECS {
        w[v] = L::load_f(Tile::float::<L>(tile, column, v));
    }
    for t in 0..T {
        let x = L::broadcast_f(x[t].add(column));
        for v in 0..VECS {
            acc[t][v] = L::fma(w[v], x, acc[t][v]);
        }
    }
    acc
}
