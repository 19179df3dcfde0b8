//! `linear` for few tokens: dot products of panels of rows with 8-bit activations, straight from the packed form.
//!
//! `out[t][r] = Σ_b scale · d · (code · q) + min · (d · Σ q)` over the blocks `b` of 32 elements, one row per lane; each
//! unpacked vector of codes meets up to four tokens while it is in a register. Bound by reading the weights.
//!
//! Measured with `examples/linear_speed` on one thread of an Intel Xeon with AVX-512 VNNI, [2048, 4096], one token, AVX2 level,
//! GB/s of weights, other programs at work beside, 2026-11-25: Q4_0 14.9, Q4_1 15.7, Q5_0 13.6, Q8_0 16.0, Q4_K 13.0, Q6_K
//! 13.2; `float.rs` has BF16. Lost: rows as the file holds them, with sums across lanes at the end of each: 10.0, 9.3, 10.0,
//! 14.5, 9.6, 10.9.

use std::{arch::x86_64::*, ops::Range};

use super::{
    super::{
        Job,
        activations::{ActivationRows, Block, Outliers},
        panels::Panels,
    },
    formats::{Format, Packed},
    lanes::Lanes,
    product::{Factors, Floats, Product},
    tile::{Place, TILE_BLOCKS, Tile, begin, end},
};

/// How far ahead of its use a panel is fetched, into the second-level cache. Two threads of an Intel Xeon, one token, GB/s of
/// Q4_K, Q6_K, Q8_0 and Q5_0 from its L3 cache: 47, 44, 57, 50; lost: 1 KiB ahead into the first level 32, 31, 38, 31; 4 KiB
/// 44, 41, 52, 48. From memory (1 GiB of weights) all are at 23.
const AHEAD_BYTES: usize = 8192;

/// Computes `rows` of the part for all tokens; `rows` begins with a panel.
///
/// # Safety
/// The processor has AVX2, FMA, F16C and `P`'s level; `panels` are the part's, of `F`'s dtype and `N` lanes; `rows` lie in it and
/// no other thread writes them to `job.out`; `acts` holds the tokens of `job.x`, each on its own; the tile is the caller's alone.
#[inline(always)]
pub(super) unsafe fn chunk<P: Product, F: Format>(job: &Job, panels: &Panels, acts: &ActivationRows, rows: Range<usize>, tile: *mut Tile) {
    let tokens = job.x.shape[0];
    for first in rows.clone().step_by(P::L::N) {
        let panel = Source { panels, panel: first / P::L::N, buffer: Tile::panel(tile) };
        let at = Place { first, count: P::L::N.min(rows.end - first), block: 0, blocks: 0, token: 0, tokens };
        let mut token = 0;
        while token < tokens {
            token += match tokens - token {
                1 => some::<P, F, 1>(job, panel, acts, at, token),
                2 | 3 => some::<P, F, 2>(job, panel, acts, at, token),
                _ => some::<P, F, 4>(job, panel, acts, at, token),
            };
        }
    }
}

/// A panel, in memory or to be filled in.
#[derive(Clone, Copy)]
struct Source<'a> {
    panels: &'a Panels,
    panel: usize,
    buffer: *mut u8,
}

/// Tokens as the dot products of a panel see them.
#[derive(Clone, Copy)]
struct Tokens<const T: usize> {
    x: [*const Block<1>; T],
    outliers: [*const Outliers; T],
}

/// A panel and `T` tokens from `token`. Returns `T`.
#[inline(always)]
unsafe fn some<P: Product, F: Format, const T: usize>(job: &Job, panel: Source, acts: &ActivationRows, at: Place, token: usize) -> usize {
    // Loops and not closures: those would not be inlined and so miss the instruction set.
    let mut tokens = Tokens { x: [std::ptr::null(); T], outliers: [std::ptr::null(); T] };
    let mut sums = [P::L::zero_f(); T];
    for t in 0..T {
        tokens.x[t] = acts.group::<1>(token + t);
        tokens.outliers[t] = acts.outliers.add(token + t);
        sums[t] = begin::<P::L>(job, at, token + t, 0);
    }
    sums = dots::<P, F, T>(panel, tokens, acts.blocks, sums);
    for t in 0..T {
        end::<P::L>(job, at, token + t, 0, sums[t]);
    }
    T
}

/// Adds the products of a panel to `sums`, in the order of [`super::tile`]: per tile its blocks, then its outliers. One loop runs
/// up to the end of the next tile that has any: leaving a loop costs a wrong guess of the processor. A panel that is not in memory
/// comes tile by tile.
#[inline(always)]
unsafe fn dots<P: Product, F: Format, const T: usize>(
    source: Source,
    tokens: Tokens<T>,
    blocks: usize,
    mut sums: [Floats<P>; T],
) -> [Floats<P>; T] {
    let in_memory = source.panel < source.panels.arranged();
    let mut first = 0;
    while first < blocks {
        let mut end = if in_memory { blocks } else { blocks.min(first + TILE_BLOCKS) };
        for t in 0..T {
            end = end.min((*tokens.outliers[t]).next_block(first) / TILE_BLOCKS * TILE_BLOCKS + TILE_BLOCKS);
        }
        let panel = source.panels.panel(source.panel, first / F::GROUPS..end / F::GROUPS, source.buffer);
        for block in first / F::GROUPS..end / F::GROUPS {
            let packed = Packed::<P::L>::new::<F>(panel, block);
            let by = packed.factors::<F>();
            // Each group on its own, so that every shift has a constant count.
            sums = group::<P, F, T>(&packed, by, tokens.x, block, 0, sums);
            if F::GROUPS == 8 {
                sums = group::<P, F, T>(&packed, by, tokens.x, block, 1, sums);
                sums = group::<P, F, T>(&packed, by, tokens.x, block, 2, sums);
                sums = group::<P, F, T>(&packed, by, tokens.x, block, 3, sums);
                sums = group::<P, F, T>(&packed, by, tokens.x, block, 4, sums);
                sums = group::<P, F, T>(&packed, by, tokens.x, block, 5, sums);
                sums = group::<P, F, T>(&packed, by, tokens.x, block, 6, sums);
                sums = group::<P, F, T>(&packed, by, tokens.x, block, 7, sums);
            }
        }
        for t in 0..T {
            for (column, x) in (*tokens.outliers[t]).iter() {
                let block = column / 32;
                if block >= first && block < end {
                    let packed = Packed::<P::L>::new::<F>(panel, block / F::GROUPS);
                    let x = P::L::broadcast_f(&x);
                    sums[t] = P::one::<F>(&packed, packed.factors::<F>(), block % F::GROUPS, column % 32, x, sums[t]);
                }
            }
        }
        first = end;
    }
    sums
}

/// One group of 32 columns of a block.
#[inline(always)]
unsafe fn group<P: Product, F: Format, const T: usize>(
    packed: &Packed<P::L>,
    by: Factors<P>,
    mut x: [*const Block<1>; T],
    block: usize,
    group: usize,
    sums: [Floats<P>; T],
) -> [Floats<P>; T] {
    // Fetches what the group takes in a block further on, each cache line once.
    let line = |group: usize| (F::SHAPE.block_bytes() * P::L::N * group / F::GROUPS).div_ceil(64);
    for n in line(group)..line(group + 1) {
        _mm_prefetch::<_MM_HINT_T1>(packed.start().wrapping_add(AHEAD_BYTES + 64 * n).cast());
    }
    for t in 0..T {
        x[t] = x[t].add(F::GROUPS * block + group);
    }
    P::dots::<F, T>(packed, by, group, x, sums)
}
