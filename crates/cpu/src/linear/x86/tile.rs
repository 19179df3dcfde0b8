//! `linear` for many tokens: tiles of rows are unpacked once and meet every token.
//!
//! A tile is two panels of `N` rows by up to [`TILE_BLOCKS`] blocks of 32 columns, its codes spread out to bytes: lane `r`
//! of the `k`-th vector holds codes `4k..4k + 4` of row `r`. It stays in the L1 cache while all tokens pass by, `T`
//! at a time with their sums in registers. Per block of 32: 8 dot-product steps in integers, then
//! `acc += sum · d · scale; acc += (d · Σ q) · min`, both exact enough in F32. Bound by the multipliers.
//!
//! Measured with `examples/linear_speed` on one thread of an Intel Xeon with AVX-512 VNNI, [2048, 4096] by 512 tokens, GOP/s,
//! other programs at work beside, 2026-11-25: AVX-512 level Q4_1 384, Q5_0 378, Q8_0 381, Q4_K 362, Q6_K 271; AVX2 level 163,
//! 160, 118, 157, 142. Lost: closures in the unpacking (`array::map`), which the compiler left as calls without the
//! instruction set: 5 times slower.

use std::ops::Range;

use super::{
    super::{
        Job,
        activations::{ActivationRows, one_hot},
        panels::Panels,
    },
    dot::{Packed, has_mins, unsigned},
    formats::Format,
    lanes::Lanes,
};

/// Blocks of 32 columns in a tile: 32 rows of them take 16 KiB.
pub(super) const TILE_BLOCKS: usize = 16;
/// Vectors of rows in a tile.
pub(super) const VECS: usize = 2;

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
    /// `[VECS, columns, N]`, of the F32 kernels
    floats: [f32; VECS * TILE_BLOCKS * 16 * 16],
}

impl Tile {
    pub const ZERO: Self = Self {
        codes: [0; VECS * TILE_BLOCKS * 32 * 16],
        scales: [0.0; VECS * TILE_BLOCKS * 2 * 16],
        mins: [0.0; VECS * TILE_BLOCKS * 2 * 16],
        floats: [0.0; VECS * TILE_BLOCKS * 16 * 16],
    };

    pub(super) fn floats(&mut self) -> *mut f32 {
        self.floats.as_mut_ptr()
    }

    pub(super) fn floats_ref(&self) -> *const f32 {
        self.floats.as_ptr()
    }
}

/// The two halves of the work on a tile, compiled for one level each.
#[derive(Clone, Copy)]
pub(super) struct TileKernels {
    /// Fills the tile from the panels at `Place`.
    pub unpack: unsafe fn(&Panels, Place, &mut Tile),
    /// Multiplies the tile with all tokens.
    pub tokens: unsafe fn(&Job, &ActivationRows, &Tile, Place),
    /// Rows of a tile
    pub rows: usize,
}

/// Computes the tiles `tiles` of the part for all tokens.
///
/// # Safety
/// The processor has the level of `kernels`, which are for the dtype of `panels`; `tiles` lie in the part and no other thread
/// writes their rows to `job.out`; `acts` holds the tokens of `job.x`.
pub(super) unsafe fn chunk(kernels: TileKernels, job: &Job, panels: &Panels, acts: &ActivationRows, tiles: Range<usize>, tile: &mut Tile) {
    for first in tiles.map(|t| t * kernels.rows) {
        let count = kernels.rows.min(job.part.rows - first);
        for block in (0..acts.blocks).step_by(TILE_BLOCKS) {
            let at = Place { first, count, block, blocks: TILE_BLOCKS.min(acts.blocks - block) };
            (kernels.unpack)(panels, at, tile);
            (kernels.tokens)(job, acts, tile, at);
        }
    }
}

/// How many steps of a level without wide products may be summed in 16 bits for codes up to `max_code`; 0 for signed.
pub(super) const fn batch<F: Format>() -> usize {
    match F::MAX_CODE {
        _ if F::SIGNED => 0,
        ..=15 if !F::HALVES => 8,
        ..=31 => 4,
        _ => 2,
    }
}

/// Where in the weight a tile lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub first: usize,
    /// Rows that exist
    pub count: usize,
    /// Of 32 columns
    pub block: usize,
    pub blocks: usize,
}

/// Fills `tile`. A second panel that does not exist repeats the first.
///
/// # Safety
/// As [`chunk`], for `L` and `F`.
#[inline(always)]
pub(super) unsafe fn unpack<L: Lanes, F: Format>(panels: &Panels, at: Place, tile: &mut Tile) {
    let halves = if F::HALVES { 2 } else { 1 };
    let (codes, scales, mins) = (tile.codes.as_mut_ptr(), tile.scales.as_mut_ptr(), tile.mins.as_mut_ptr());
    for vec in 0..VECS {
        let row = if vec * L::N < at.count { at.first + vec * L::N } else { at.first };
        for block in 0..at.blocks / F::GROUPS {
            let packed = Packed::<L>::new::<F>(panels.panel(row / L::N), at.block / F::GROUPS + block);
            let to = vec * TILE_BLOCKS + block * F::GROUPS;
            let factors = packed.factors::<F>();
            for sub in 0..F::GROUPS * halves {
                let (scale, min) = packed.scaled::<F>(factors, sub);
                L::store_f(scales.add((to * halves + sub) * L::N), scale);
                if has_mins::<F, L>() {
                    L::store_f(mins.add((to * halves + sub) * L::N), min);
                }
            }
            // Each group on its own, so that every shift has a constant count.
            let codes = codes.add(to * 32 * L::N);
            unpack_group::<L, F>(packed.words, 0, codes);
            if F::GROUPS == 8 {
                unpack_group::<L, F>(packed.words, 1, codes);
                unpack_group::<L, F>(packed.words, 2, codes);
                unpack_group::<L, F>(packed.words, 3, codes);
                unpack_group::<L, F>(packed.words, 4, codes);
                unpack_group::<L, F>(packed.words, 5, codes);
                unpack_group::<L, F>(packed.words, 6, codes);
                unpack_group::<L, F>(packed.words, 7, codes);
            }
        }
    }
}

/// Spreads the codes of one group of a block.
#[inline(always)]
unsafe fn unpack_group<L: Lanes, F: Format>(words: *const u8, group: usize, codes: *mut u8) {
    for step in 0..8 {
        L::store(codes.add((group * 8 + step) * L::N * 4), unsigned::<L, F>(F::codes::<L>(words, group, step)));
    }
}

/// All tokens against one tile: `HALVES` scales per block; `BATCH` steps whose 16-bit sums fit before they are widened,
/// 0 for signed codes.
///
/// # Safety
/// As [`chunk`], for `L`; `tile` holds `at`.
#[inline(always)]
pub(super) unsafe fn tokens<L: Lanes, const HALVES: usize, const BATCH: usize>(job: &Job, acts: &ActivationRows, tile: &Tile, at: Place) {
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
    let mut rows = [*acts; T];
    let mut acc = [[L::zero_f(); VECS]; T];
    for t in 0..T {
        rows[t] = acts.from(token + t);
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
            let mut a = [std::ptr::null(); T];
            for t in 0..T {
                a[t] = rows[t].codes.add((at.block + b) * 32 + h * 32 / HALVES).cast_const();
            }
            let sums = steps::<L, HALVES, BATCH, T>(codes, a);
            for t in 0..T {
                let d = L::broadcast_f(rows[t].scales.add(at.block + b));
                let m = if HALVES == 1 { rows[t].sums.add(at.block + b) } else { rows[t].half_sums.add(2 * (at.block + b) + h) };
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
        for (column, x) in (*rows[t].outliers).iter() {
            let b = (column / 32).wrapping_sub(at.block);
            if b < at.blocks {
                let (k, h) = (column % 32 / 4, column % 32 * HALVES / 32);
                let (a, x) = (L::broadcast(one_hot(column % 4)), L::broadcast_f(&x));
                for v in 0..VECS {
                    let codes = L::load(tile.codes.as_ptr().add(((v * TILE_BLOCKS + b) * 8 + k) * L::N * 4));
                    let to = ((v * TILE_BLOCKS + b) * HALVES + h) * L::N;
                    let scale = L::load_f(tile.scales.as_ptr().add(to));
                    acc[t][v] = L::fma(L::mul(L::to_f(one_step::<L, BATCH>(codes, a)), x), scale, acc[t][v]);
                    if BATCH > 0 {
                        acc[t][v] = L::fma(L::load_f(tile.mins.as_ptr().add(to)), x, acc[t][v]);
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

/// One of the [`steps`].
#[inline(always)]
pub(super) unsafe fn one_step<L: Lanes, const BATCH: usize>(codes: L::I, a: L::I) -> L::I {
    if L::WIDE {
        L::dot(L::zero(), codes, a)
    } else if BATCH == 0 {
        L::join(L::zero(), L::pairs(L::magnitude(codes), L::with_sign(a, codes)))
    } else {
        L::join(L::zero(), L::pairs(codes, a))
    }
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
            let mut u = [L::zero(); VECS];
            for v in 0..VECS {
                u[v] = L::load(codes[v].add(k * L::N * 4));
            }
            for t in 0..T {
                let a = L::broadcast(a[t].add(4 * k));
                for v in 0..VECS {
                    sums[t][v] = L::dot(sums[t][v], u[v], a);
                }
            }
        }
    } else if BATCH == 0 {
        for k in 0..8 / HALVES {
            let mut w = [L::zero(); VECS];
            for v in 0..VECS {
                w[v] = L::load(codes[v].add(k * L::N * 4));
            }
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
                let mut u = [L::zero(); VECS];
                for v in 0..VECS {
                    u[v] = L::load(codes[v].add(k * L::N * 4));
                }
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

/// What the sums of vector `v` start from: what the product is added to, or what the tile before has left.
#[inline(always)]
pub(super) unsafe fn begin<L: Lanes>(job: &Job, at: Place, token: usize, v: usize) -> L::F {
    if at.block == 0 && !job.add {
        return biases::<L>(job, at, v);
    }
    let row = v * L::N;
    let rows = at.count.saturating_sub(row).min(L::N);
    let column = job.part.first_row + at.first + row;
    let sums = if rows == L::N {
        L::load_f(job.out.at([token, column]))
    } else {
        let mut values = [0.0f32; 16];
        for (r, value) in values.iter_mut().enumerate().take(rows) {
            *value = *job.out.at([token, column + r]);
        }
        L::load_f(values.as_ptr())
    };
    if at.block == 0 { L::add(biases::<L>(job, at, v), sums) } else { sums }
}

/// The bias of the rows of vector `v`.
#[inline(always)]
unsafe fn biases<L: Lanes>(job: &Job, at: Place, v: usize) -> L::F {
    let Some(bias) = job.bias else { return L::zero_f() };
    let row = v * L::N;
    let rows = at.count.saturating_sub(row).min(L::N);
    // The bias is that of the whole weight, and the rows are some of its.
    let from = bias.as_ptr().wrapping_add(job.part.first_row + at.first + row);
    if rows == L::N {
        return L::load_f(from);
    }
    let mut values = [0.0f32; 16];
    for (r, value) in values.iter_mut().enumerate().take(rows) {
        *value = *from.add(r);
    }
    L::load_f(values.as_ptr())
}

#[inline(always)]
pub(super) unsafe fn end<L: Lanes>(job: &Job, at: Place, token: usize, v: usize, acc: L::F) {
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
