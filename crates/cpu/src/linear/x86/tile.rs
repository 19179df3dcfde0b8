//! `linear` for many tokens: tiles of rows are unpacked once and meet every token.
//!
//! A tile is 32 rows by up to [`TILE_BLOCKS`] blocks of 32 columns, its codes spread out to bytes: lane `r` of a vector holds
//! the codes of four columns of row `r`. It stays in the L1 cache while all tokens pass by, [`GROUP`] at a time; two vectors
//! of rows meet a group with their integer sums in registers, block by block, and `sum += dots · d · scale + (d · Σ q) · min`
//! in memory, which stays in the cache as well. The activations of the next group are fetched meanwhile, as those of all
//! tokens are more than the L2 cache holds. Bound by the multipliers, and by their power.
//!
//! Measured with `examples/linear_speed` on one thread of an Intel Xeon with AVX-512 VNNI, [2048, 4096] by 512 tokens, GOP/s,
//! other programs at work beside, 2026-11-25: AVX2 level Q4_1 204, Q5_0 180, Q4_K 209, Q5_K 186, Q6_K 183, Q3_K 211, Q2_K 186,
//! Q8_0 and IQ4_XS 189 (before halves of a block were woven: Q6_K 171, Q3_K 184, Q2_K 176); AVX-512 level Q4_K 339, Q8_0 370,
//! Q6_K 266.
//! Lost: closures in the unpacking (`array::map`), which the compiler left as calls without the instruction set, 5 times slower;
//! three tokens at a time with all sums in registers, which the compiler spilled, AVX2 Q4_K 150, Q6_K 125, Q8_0 118;
//! two tokens by two vectors, or four by one, 10 % slower; steps that finish the block before in passing, 3 % faster in one kernel
//! and slower in others; steps all unrolled, 0 to 2 %; K types whose 256 columns add up in integers, with activations' scales that
//! are small multiples of one number, 18 operations for 256 in place of 20: 3 % for Q4_K, none for Q5_K, 1 % of a model's prompt;
//! without fetching ahead, 5 % at 4,096 columns, two thirds at 16,384. The loop runs 30 % faster on zeros than on random numbers:
//! what bounds it is the power that the core may draw.

use std::{arch::x86_64::*, ops::Range};

use ferrum_kernels::DType;

use super::{
    super::{
        Job, MAX_TOKENS,
        activations::{ActivationRows, GROUP},
        panels::{Panels, Shape},
    },
    float_tile::TILE_COLS,
    formats::{Format, Packed},
    lanes::Lanes,
    product::{Product, VECS},
};

/// Blocks of 32 columns in a tile: 32 rows of them take 16 KiB.
pub(super) const TILE_BLOCKS: usize = 16;
/// Rows of a tile.
pub(super) const ROWS: usize = 32;

/// Memory of one worker for a tile. Functions that give pointers to one vector take the block, the step or half, and the vector.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Tile {
    /// `[blocks, steps, vectors, N · 4]`
    codes: [u8; TILE_BLOCKS * 32 * ROWS],
    /// `[blocks, 2, vectors, N]`, F32 or pairs of I16
    scales: [f32; TILE_BLOCKS * 2 * ROWS],
    /// as `scales`
    mins: [f32; TILE_BLOCKS * 2 * ROWS],
    /// `[blocks, vectors, N]`: what whole scales are to be multiplied with
    units: [f32; TILE_BLOCKS * ROWS],
    /// `[groups, vectors / VECS, tokens of the group, VECS, N]`
    sums: [f32; MAX_TOKENS * ROWS],
    /// `[vectors / VECS, 8, columns / 8, VECS, N]`, of the F32 kernels
    floats: [f32; VECS * TILE_COLS * 16],
    /// Of the tile's columns, of one panel that is not in memory
    panel: [u8; PANEL_BYTES],
}

/// Q8_0 takes most, and AVX-512 has 16 rows.
const PANEL_BYTES: usize = Shape::of(DType::Q8_0).block_bytes() * 16 * TILE_BLOCKS;

impl Tile {
    pub const ZERO: Self = Self {
        codes: [0; TILE_BLOCKS * 32 * ROWS],
        scales: [0.0; TILE_BLOCKS * 2 * ROWS],
        mins: [0.0; TILE_BLOCKS * 2 * ROWS],
        units: [0.0; TILE_BLOCKS * ROWS],
        sums: [0.0; MAX_TOKENS * ROWS],
        floats: [0.0; VECS * TILE_COLS * 16],
        panel: [0; PANEL_BYTES],
    };

    #[inline(always)]
    pub(super) unsafe fn panel(tile: *mut Self) -> *mut u8 {
        (&raw mut (*tile).panel).cast()
    }

    #[inline(always)]
    pub(super) unsafe fn codes<P: Product>(tile: *mut Self, block: usize, step: usize, vec: usize) -> *mut u8 {
        (&raw mut (*tile).codes).cast::<u8>().add(block * 32 * ROWS + (step * P::TILE_VECS + vec) * P::L::N * 4)
    }

    #[inline(always)]
    pub(super) unsafe fn scales<L: Lanes>(tile: *mut Self, block: usize, half: usize, vec: usize) -> *mut f32 {
        (&raw mut (*tile).scales).cast::<f32>().add((block * 2 + half) * ROWS + vec * L::N)
    }

    #[inline(always)]
    pub(super) unsafe fn mins<L: Lanes>(tile: *mut Self, block: usize, half: usize, vec: usize) -> *mut f32 {
        (&raw mut (*tile).mins).cast::<f32>().add((block * 2 + half) * ROWS + vec * L::N)
    }

    #[inline(always)]
    pub(super) unsafe fn units<L: Lanes>(tile: *mut Self, block: usize, vec: usize) -> *mut f32 {
        (&raw mut (*tile).units).cast::<f32>().add(block * ROWS + vec * L::N)
    }

    /// Of the F32 kernels, of one column: each eighth column lies behind the other.
    #[inline(always)]
    pub(super) unsafe fn float<L: Lanes>(tile: *mut Self, column: usize, vec: usize) -> *mut f32 {
        (&raw mut (*tile).floats).cast::<f32>().add(((column % 8 * (TILE_COLS / 8) + column / 8) * VECS + vec) * L::N)
    }

    /// Of the F32 kernels, of one token.
    #[inline(always)]
    pub(super) unsafe fn float_sum<L: Lanes>(tile: *mut Self, token: usize, vec: usize) -> *mut f32 {
        (&raw mut (*tile).sums).cast::<f32>().add(token * ROWS + vec * L::N)
    }

    /// Of a group and the vectors from `vec` on.
    #[inline(always)]
    unsafe fn sums<L: Lanes>(tile: *mut Self, group: usize, vec: usize) -> *mut f32 {
        (&raw mut (*tile).sums).cast::<f32>().add(group * GROUP * ROWS + vec * GROUP * L::N)
    }
}

/// The two halves of the work on a tile, compiled for one level each.
#[derive(Clone, Copy)]
pub(super) struct TileKernels {
    /// Fills the tile from the panels at `Place`.
    pub unpack: unsafe fn(&Panels, Place, *mut Tile),
    /// Multiplies the tile with all tokens.
    pub tokens: unsafe fn(&Job, &ActivationRows, Place, *mut Tile),
}

/// Computes the tiles `tiles` of the part for all tokens.
///
/// # Safety
/// The processor has the level of `kernels`, which are for the dtype of `panels`; `tiles` lie in the part and no other thread
/// writes their rows to `job.out`; `acts` holds the tokens of `job.x` in groups.
pub(super) unsafe fn chunk(kernels: TileKernels, job: &Job, panels: &Panels, acts: &ActivationRows, tiles: Range<usize>, tile: *mut Tile) {
    let tokens = job.x.shape[0];
    for first in tiles.map(|t| t * ROWS) {
        let count = ROWS.min(job.part.rows - first);
        for token in (0..tokens).step_by(MAX_TOKENS) {
            let tokens = MAX_TOKENS.min(tokens - token);
            for block in (0..acts.blocks).step_by(TILE_BLOCKS) {
                let at = Place { first, count, block, blocks: TILE_BLOCKS.min(acts.blocks - block), token, tokens };
                (kernels.unpack)(panels, at, tile);
                (kernels.tokens)(job, acts, at, tile);
            }
        }
    }
}

/// Where in the weight a tile lies, and which tokens it meets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub first: usize,
    /// Rows that exist
    pub count: usize,
    /// Of 32 columns
    pub block: usize,
    pub blocks: usize,
    pub token: usize,
    pub tokens: usize,
}

/// Fills `tile`. Panels that do not exist repeat the first.
///
/// # Safety
/// As [`chunk`], for `P` and `F`.
#[inline(always)]
pub(super) unsafe fn unpack<P: Product, F: Format>(panels: &Panels, at: Place, tile: *mut Tile) {
    for vec in 0..P::TILE_VECS {
        let row = if vec * P::L::N < at.count { at.first + vec * P::L::N } else { at.first };
        let panel = panels.panel(row / P::L::N, at.block / F::GROUPS..(at.block + at.blocks) / F::GROUPS, Tile::panel(tile));
        for block in 0..at.blocks / F::GROUPS {
            let packed = Packed::<P::L>::new::<F>(panel, at.block / F::GROUPS + block);
            let by = packed.factors::<F>();
            // Each group on its own, so that every shift has a constant count.
            P::spread::<F>(&packed, by, 0, tile, block * F::GROUPS, vec);
            if F::GROUPS == 8 {
                P::spread::<F>(&packed, by, 1, tile, block * 8 + 1, vec);
                P::spread::<F>(&packed, by, 2, tile, block * 8 + 2, vec);
                P::spread::<F>(&packed, by, 3, tile, block * 8 + 3, vec);
                P::spread::<F>(&packed, by, 4, tile, block * 8 + 4, vec);
                P::spread::<F>(&packed, by, 5, tile, block * 8 + 5, vec);
                P::spread::<F>(&packed, by, 6, tile, block * 8 + 6, vec);
                P::spread::<F>(&packed, by, 7, tile, block * 8 + 7, vec);
            }
        }
    }
}

/// All tokens against one tile.
///
/// # Safety
/// As [`chunk`], for `P`; `tile` holds `at`.
#[inline(always)]
pub(super) unsafe fn tokens<P: Product>(job: &Job, acts: &ActivationRows, at: Place, tile: *mut Tile) {
    for group in 0..at.tokens.div_ceil(GROUP) {
        let token = at.token + group * GROUP;
        let x = acts.group::<P::Group, GROUP>(token).cast_const().add(at.block);
        match at.tokens - group * GROUP {
            1 => some::<P, 1>(job, acts, at, tile, (group, token, x)),
            2 => some::<P, 2>(job, acts, at, tile, (group, token, x)),
            3 => some::<P, 3>(job, acts, at, tile, (group, token, x)),
            _ => some::<P, 4>(job, acts, at, tile, (group, token, x)),
        }
    }
}

/// The first `T` tokens of a group, that begins with `token`, against one tile.
#[inline(always)]
unsafe fn some<P: Product, const T: usize>(
    job: &Job,
    acts: &ActivationRows,
    at: Place,
    tile: *mut Tile,
    (group, token, x): (usize, usize, *const P::Group),
) {
    for first in (0..P::TILE_VECS).step_by(VECS) {
        let sums = Tile::sums::<P::L>(tile, group, first);
        if at.block == 0 {
            for t in 0..T {
                for v in 0..VECS {
                    P::L::store_f(sums.add((t * VECS + v) * P::L::N), begin::<P::L>(job, at, token + t, first + v));
                }
            }
        }
        for block in 0..at.blocks {
            if first == 0 {
                // The same block of the next group.
                let next = x.wrapping_add(acts.blocks + block).cast::<i8>();
                for line in 0..size_of::<P::Group>().div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(64 * line));
                }
            }
            P::block::<T>(tile, (block, first), x.add(block), sums);
        }
        for t in 0..T {
            for (column, value) in (*acts.outliers.add(token + t)).iter() {
                let block = (column / 32).wrapping_sub(at.block);
                if block < at.blocks {
                    let value = P::L::broadcast_f(&value);
                    for v in 0..VECS {
                        let sum = sums.add((t * VECS + v) * P::L::N);
                        P::L::store_f(sum, P::tile_one(tile, block, first + v, column % 32, value, P::L::load_f(sum)));
                    }
                }
            }
        }
        if at.block + at.blocks == acts.blocks {
            for t in 0..T {
                for v in 0..VECS {
                    end::<P::L>(job, at, token + t, first + v, P::L::load_f(sums.add((t * VECS + v) * P::L::N)));
                }
            }
        }
    }
}

/// What the sums of vector `v` start from: bias, and what the product is added to.
#[inline(always)]
pub(super) unsafe fn begin<L: Lanes>(job: &Job, at: Place, token: usize, v: usize) -> L::F {
    let biases = biases::<L>(job, at, v);
    if !job.add {
        return biases;
    }
    let row = v * L::N;
    let rows = at.count.saturating_sub(row).min(L::N);
    let column = job.part.first_row + at.first + row;
    if rows == L::N {
        return L::add(biases, L::load_f(job.out.at([token, column])));
    }
    let mut values = [0.0f32; 16];
    for (r, value) in values.iter_mut().enumerate().take(rows) {
        *value = *job.out.at([token, column + r]);
    }
    L::add(biases, L::load_f(values.as_ptr()))
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
