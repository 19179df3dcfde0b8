//! `linear` for many tokens: tiles of rows are unpacked once and meet every token.
//!
//! A tile is `2 · N` rows (`N` lanes of a vector) by up to [`TILE_BLOCKS`] blocks of 32 columns, unpacked so that lane
//! `r` of the `k`-th vector holds codes `4k..4k + 4` of row `r`; it stays in the L1 cache while all tokens pass by, `T`
//! at a time with their sums in registers. Per block of 32: 8 dot-product steps in integers, then
//! `acc += sum · d · scale; acc += (d · Σ q) · min`, both exact enough in F32. Bound by the multipliers.

use std::{arch::x86_64::*, ops::Range};

use super::{
    super::{Job, activations::ActivationRows},
    formats::Format,
    isa::Isa,
    lanes::Lanes,
};

/// Blocks of 32 columns in a tile: 32 rows of them take 16 KiB.
pub(super) const TILE_BLOCKS: usize = 16;
/// Vectors of rows in a tile.
const VECS: usize = 2;

/// Rows of a tile.
pub(super) const fn tile_rows<L: Lanes>() -> usize {
    VECS * L::N
}

/// Memory of one worker for a tile.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Tile {
    /// `[VECS, blocks, 8, N · 4]`
    codes: [u8; VECS * TILE_BLOCKS * 32 * 16],
    /// `[VECS, blocks, 1 or 2, N]`
    scales: [f32; VECS * TILE_BLOCKS * 2 * 16],
    /// as `scales`
    mins: [f32; VECS * TILE_BLOCKS * 2 * 16],
}

impl Tile {
    pub const ZERO: Self = Self {
        codes: [0; VECS * TILE_BLOCKS * 32 * 16],
        scales: [0.0; VECS * TILE_BLOCKS * 2 * 16],
        mins: [0.0; VECS * TILE_BLOCKS * 2 * 16],
    };
}

/// Computes the tiles `tiles` of the part for all tokens.
///
/// # Safety
/// The processor has AVX2, FMA, F16C, `I` and `L`; the part has `F`'s dtype; `tiles` lie in it and no other thread writes
/// their rows to `job.out`; `acts` holds the tokens of `job.x`.
#[inline(always)]
pub(super) unsafe fn chunk<I: Isa, L: Lanes, F: Format>(job: &Job, acts: &ActivationRows, tiles: Range<usize>, tile: &mut Tile) {
    let rows = tile_rows::<L>();
    for first in tiles.map(|t| t * rows) {
        let count = rows.min(job.part.rows - first);
        for block in (0..acts.blocks).step_by(TILE_BLOCKS) {
            let blocks = TILE_BLOCKS.min(acts.blocks - block);
            unpack::<I, L, F>(job, first, count, block / F::GROUPS, blocks / F::GROUPS, tile);
            let at = Place { first, count, block, blocks };
            if F::HALVES {
                // Codes of these types are at most 63: two products of a step, and of two steps, fit 16 bits.
                tokens::<L, 2, 2>(job, acts, tile, at);
            } else if L::WIDE || F::MAX_CODE <= 15 {
                tokens::<L, 1, 8>(job, acts, tile, at);
            } else if F::MAX_CODE <= 31 {
                tokens::<L, 1, 4>(job, acts, tile, at);
            } else {
                tokens::<L, 1, 0>(job, acts, tile, at);
            }
        }
    }
}

/// Where in the weight a tile lies.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    /// Rows that exist
    count: usize,
    /// Of 32 columns
    block: usize,
    blocks: usize,
}

/// Fills `tile` with `blocks` packed blocks from `block` on. Rows that do not exist repeat the last.
#[inline(always)]
unsafe fn unpack<I: Isa, L: Lanes, F: Format>(job: &Job, first: usize, count: usize, block: usize, blocks: usize, tile: &mut Tile) {
    let weights = job.part.data.as_slice().as_ptr();
    let halves = if F::HALVES { 2 } else { 1 };
    let (codes, scales, mins) = (tile.codes.as_mut_ptr(), tile.scales.as_mut_ptr(), tile.mins.as_mut_ptr());
    for eight in (0..VECS * L::N).step_by(8) {
        let (vec, lane) = (eight / L::N, eight % L::N);
        let rows: [*const u8; 8] = std::array::from_fn(|r| weights.add((first + eight + r).min(first + count - 1) * job.part.row_bytes));
        for b in 0..blocks {
            let packed = rows.map(|row| row.add((block + b) * F::BYTES));
            let at = vec * TILE_BLOCKS + b * F::GROUPS;
            for (r, &packed) in packed.iter().enumerate() {
                let head = F::head(packed);
                let s: [f32; 16] = std::mem::transmute(head.scales);
                let m: [f32; 16] = std::mem::transmute(head.mins);
                for j in 0..F::GROUPS * halves {
                    let to = (at * halves + j) * L::N + lane + r;
                    *scales.add(to) = s[j];
                    *mins.add(to) = match F::CENTRE {
                        Some(shift) => -s[j] * (1 << shift) as f32,
                        None if F::SIGNED => s[j] * -128.0,
                        None => m[j],
                    };
                }
            }
            for group in 0..F::GROUPS {
                let v = transpose(packed.map(|p| {
                    let c = F::codes::<I>(p, group);
                    if F::SIGNED && L::WIDE { _mm256_xor_si256(c, _mm256_set1_epi8(-128)) } else { c }
                }));
                for (k, v) in v.into_iter().enumerate() {
                    _mm256_storeu_si256(codes.add(((at + group) * 8 + k) * L::N * 4 + lane * 4).cast(), v);
                }
            }
        }
    }
}

/// Eight by eight 32-bit numbers.
#[inline(always)]
unsafe fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let pairs = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let ((a0, a1), (a2, a3)) = (pairs(r[0], r[1]), pairs(r[2], r[3]));
    let ((a4, a5), (a6, a7)) = (pairs(r[4], r[5]), pairs(r[6], r[7]));
    let fours = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let ((b0, b1), (b2, b3)) = (fours(a0, a2), fours(a1, a3));
    let ((b4, b5), (b6, b7)) = (fours(a4, a6), fours(a5, a7));
    let low = |a, b| _mm256_permute2x128_si256(a, b, 0x20);
    let high = |a, b| _mm256_permute2x128_si256(a, b, 0x31);
    [low(b0, b4), low(b1, b5), low(b2, b6), low(b3, b7), high(b0, b4), high(b1, b5), high(b2, b6), high(b3, b7)]
}

/// All tokens against one tile: `HALVES` scales per block; `BATCH` steps whose 16-bit sums fit before they are widened,
/// 0 for signed codes.
#[inline(always)]
unsafe fn tokens<L: Lanes, const HALVES: usize, const BATCH: usize>(job: &Job, acts: &ActivationRows, tile: &Tile, at: Place) {
    let tokens = job.x.shape[0];
    let mut token = 0;
    while token < tokens {
        let rest = tokens - token;
        token += if L::N == 16 {
            match rest {
                1 => some::<L, HALVES, BATCH, 1>(job, acts, tile, at, token),
                2 => some::<L, HALVES, BATCH, 2>(job, acts, tile, at, token),
                3 => some::<L, HALVES, BATCH, 3>(job, acts, tile, at, token),
                4 | 5 => some::<L, HALVES, BATCH, 4>(job, acts, tile, at, token),
                _ => some::<L, HALVES, BATCH, 6>(job, acts, tile, at, token),
            }
        } else {
            match rest {
                1 => some::<L, HALVES, BATCH, 1>(job, acts, tile, at, token),
                2 => some::<L, HALVES, BATCH, 2>(job, acts, tile, at, token),
                _ => some::<L, HALVES, BATCH, 3>(job, acts, tile, at, token),
            }
        };
    }
}

/// `T` tokens from `token` against one tile. Returns `T`.
#[inline(always)]
unsafe fn some<L: Lanes, const HALVES: usize, const BATCH: usize, const T: usize>(
    job: &Job,
    acts: &ActivationRows,
    tile: &Tile,
    at: Place,
    token: usize,
) -> usize {
    let acts: [ActivationRows; T] = std::array::from_fn(|t| acts.from(token + t));
    let mut acc = [[L::zero_f(); VECS]; T];
    for t in 0..T {
        for v in 0..VECS {
            acc[t][v] = begin::<L>(job, at, token + t, v);
        }
    }
    for b in 0..at.blocks {
        for h in 0..HALVES {
            let mut codes = [std::ptr::null(); VECS];
            for v in 0..VECS {
                codes[v] = tile.codes.as_ptr().add(((v * TILE_BLOCKS + b) * 8 + h * 8 / HALVES) * L::N * 4);
            }
            let a: [*const i8; T] = std::array::from_fn(|t| acts[t].codes.add((at.block + b) * 32 + h * 32 / HALVES).cast_const());
            let sums = steps::<L, HALVES, BATCH, T>(codes, a);
            for t in 0..T {
                let d = L::broadcast_f(acts[t].scales.add(at.block + b));
                let m = if HALVES == 1 { acts[t].sums.add(at.block + b) } else { acts[t].half_sums.add(2 * (at.block + b) + h) };
                let m = L::broadcast_f(m);
                for v in 0..VECS {
                    let to = ((v * TILE_BLOCKS + b) * HALVES + h) * L::N;
                    let scale = L::load_f(tile.scales.as_ptr().add(to));
                    acc[t][v] = L::fma(L::mul(L::to_f(sums[t][v]), d), scale, acc[t][v]);
                    if BATCH > 0 {
                        acc[t][v] = L::fma(L::load_f(tile.mins.as_ptr().add(to)), m, acc[t][v]);
                    }
                }
            }
        }
    }
    for t in 0..T {
        for v in 0..VECS {
            end::<L>(job, at, token + t, v, acc[t][v]);
        }
    }
    T
}

/// The integer dot products of a block or half a block.
#[inline(always)]
unsafe fn steps<L: Lanes, const HALVES: usize, const BATCH: usize, const T: usize>(
    codes: [*const u8; VECS],
    a: [*const i8; T],
) -> [[L::I; VECS]; T] {
    let mut sums = [[L::zero(); VECS]; T];
    if L::WIDE {
        for k in 0..8 / HALVES {
            let u: [L::I; VECS] = std::array::from_fn(|v| L::load(codes[v].add(k * L::N * 4)));
            for t in 0..T {
                let a = L::broadcast(a[t].add(4 * k));
                for v in 0..VECS {
                    sums[t][v] = L::dot(sums[t][v], u[v], a);
                }
            }
        }
    } else if BATCH == 0 {
        for k in 0..8 / HALVES {
            let w: [L::I; VECS] = std::array::from_fn(|v| L::load(codes[v].add(k * L::N * 4)));
            for t in 0..T {
                let a = L::broadcast(a[t].add(4 * k));
                for v in 0..VECS {
                    sums[t][v] = L::join(sums[t][v], L::pairs(L::magnitude(w[v]), L::with_sign(a, w[v])));
                }
            }
        }
    } else {
        for first in (0..8 / HALVES).step_by(BATCH) {
            let mut pairs = [[L::zero(); VECS]; T];
            for k in first..first + BATCH {
                let u: [L::I; VECS] = std::array::from_fn(|v| L::load(codes[v].add(k * L::N * 4)));
                for t in 0..T {
                    let a = L::broadcast(a[t].add(4 * k));
                    for v in 0..VECS {
                        pairs[t][v] = L::add_16(pairs[t][v], L::pairs(u[v], a));
                    }
                }
            }
            for t in 0..T {
                for v in 0..VECS {
                    sums[t][v] = L::join(sums[t][v], pairs[t][v]);
                }
            }
        }
    }
    sums
}

/// What the sums of vector `v` start from: the bias, or what the tile before has left.
#[inline(always)]
unsafe fn begin<L: Lanes>(job: &Job, at: Place, token: usize, v: usize) -> L::F {
    let row = v * L::N;
    let rows = at.count.saturating_sub(row).min(L::N);
    let column = job.part.first_row + at.first + row;
    let mut values = [0.0f32; 16];
    if at.block > 0 && rows == L::N {
        return L::load_f(job.out.at([token, column]));
    }
    for (r, value) in values.iter_mut().enumerate().take(rows) {
        *value = if at.block > 0 { *job.out.at([token, column + r]) } else { job.bias(at.first + row + r) };
    }
    L::load_f(values.as_ptr())
}

#[inline(always)]
unsafe fn end<L: Lanes>(job: &Job, at: Place, token: usize, v: usize, acc: L::F) {
    let row = v * L::N;
    let rows = at.count.saturating_sub(row).min(L::N);
    let column = job.part.first_row + at.first + row;
    if rows == L::N {
        return L::store_f(job.out.at([token, column]), acc);
    }
    let mut values = [0.0f32; 16];
    L::store_f(values.as_mut_ptr(), acc);
    for (r, value) in values.into_iter().enumerate().take(rows) {
        *job.out.at([token, column + r]) = value;
    }
}
