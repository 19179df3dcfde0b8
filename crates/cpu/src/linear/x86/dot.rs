//! `linear` for few tokens: dot products of panels of rows with 8-bit activations, straight from the packed form.
//!
//! `out[t][r] = Σ_b scale · d · (code · q) + min · (d · Σ q)` over the blocks `b` of 32 elements, one row per lane; each
//! unpacked vector of codes meets up to four tokens while it is in a register. Bound by reading the weights.
//!
//! Two panels, one of the first half of a worker's rows and one of the second, take turns block by block: the processor fetches
//! ahead within each of the two streams, and so keeps more lines under way than one stream does.
//!
//! Two threads of an Intel Xeon with AVX-512 VNNI, AVX2 level, one token, 2026-11-25, where loops that do nothing but read 1 GiB in
//! huge pages get 33 GB/s (four streams a thread) to 37 (one): the products of Qwen2.5-Coder-1.5B (Q4_K, Q6_K) 32 GB/s, and 24 with
//! one panel at a time, fetched 8 KiB ahead into the second level. The loop alone, over 1 GiB of Q4_K: 36. What lost there: one
//! panel at a time 30, without fetching ahead 29, 4 KiB ahead 24, 8 KiB ahead into the second level 24; two panels 4 KiB ahead 30,
//! 8 KiB 28, without 34; four panels 33; neighbouring panels 26 at 1,536 columns and 35 at 8,960; past all caches (`NTA`) 20 and
//! less; every other line 24. A fence at every step, so that no step's words are loaded before another's: Q6_K 4 % slower.
//! Rows as the file holds them, with sums across lanes at the end of each: three quarters of one panel at a time.

use std::{
    arch::x86_64::*,
    ops::Range,
    sync::atomic::{Ordering, compiler_fence},
};

use super::{
    super::{
        Job,
        activations::{ActivationRows, Outliers},
        panels::Panels,
    },
    formats::{Format, Packed},
    lanes::Lanes,
    product::{Factors, Floats, Product},
    tile::{Place, TILE_BLOCKS, Tile, begin, end},
};

/// How far ahead of its use a panel is fetched, into the first-level cache.
const AHEAD_BYTES: usize = 2048;

/// Computes `rows` of the part for all tokens; `rows` begins with a panel. Panels of the first half and of the second take turns.
///
/// # Safety
/// The processor has AVX2, FMA, F16C and `P`'s level; `panels` are the part's, of `F`'s dtype and `N` lanes; `rows` lie in it and
/// no other thread writes them to `job.out`; `acts` holds the tokens of `job.x`, each on its own; the tile is the caller's alone.
#[inline(always)]
pub(super) unsafe fn chunk<P: Product, F: Format>(job: &Job, panels: &Panels, acts: &ActivationRows, rows: Range<usize>, tile: *mut Tile) {
    let (first, end) = (rows.start / P::L::N, rows.end.div_ceil(P::L::N));
    let half = if end <= panels.arranged() { (end - first) / 2 } else { 0 };
    let source = |panel: usize| {
        let first = panel * P::L::N;
        let at = Place { first, count: P::L::N.min(rows.end - first), block: 0, blocks: 0, token: 0, tokens: job.x.shape[0] };
        Source { panels, panel, buffer: Tile::panel(tile), at }
    };
    for panel in first..first + half {
        all_tokens::<P, F, 2>(job, [source(panel), source(panel + half)], acts);
    }
    for panel in first + 2 * half..end {
        all_tokens::<P, F, 1>(job, [source(panel)], acts);
    }
}

/// A panel, in memory or to be filled in.
#[derive(Clone, Copy)]
struct Source<'a> {
    panels: &'a Panels,
    panel: usize,
    buffer: *mut u8,
    at: Place,
}

/// Tokens as the dot products of a panel see them.
struct Tokens<P: Product, const T: usize> {
    x: [*const P::One; T],
    outliers: [*const Outliers; T],
}

/// All tokens and `S` panels, which are in memory if they are two.
#[inline(always)]
unsafe fn all_tokens<P: Product, F: Format, const S: usize>(job: &Job, panels: [Source; S], acts: &ActivationRows) {
    let (mut token, tokens) = (0, job.x.shape[0]);
    while token < tokens {
        token += match tokens - token {
            1 => some::<P, F, S, 1>(job, &panels, acts, token),
            2 | 3 => some::<P, F, S, 2>(job, &panels, acts, token),
            _ => some::<P, F, S, 4>(job, &panels, acts, token),
        };
    }
}

/// `S` panels and `T` tokens from `token`. Returns `T`.
#[inline(always)]
unsafe fn some<P: Product, F: Format, const S: usize, const T: usize>(
    job: &Job,
    panels: &[Source; S],
    acts: &ActivationRows,
    token: usize,
) -> usize {
    // Loops and not closures: those would not be inlined and so miss the instruction set.
    let mut tokens = Tokens::<P, T> { x: [std::ptr::null(); T], outliers: [std::ptr::null(); T] };
    let mut sums = [[P::L::zero_f(); T]; S];
    for t in 0..T {
        tokens.x[t] = acts.group::<P::One, 1>(token + t);
        tokens.outliers[t] = acts.outliers.add(token + t);
        for s in 0..S {
            sums[s][t] = begin::<P::L>(job, panels[s].at, token + t, 0);
        }
    }
    sums = dots::<P, F, S, T>(panels, tokens, acts.blocks, sums);
    for s in 0..S {
        for t in 0..T {
            end::<P::L>(job, panels[s].at, token + t, 0, sums[s][t]);
        }
    }
    T
}

/// Adds the products of panels to `sums`, in the order of [`super::tile`]: per tile its blocks, then its outliers. One loop runs
/// up to the end of the next tile that has any: leaving a loop costs a wrong guess of the processor. A panel that is not in memory
/// comes tile by tile.
#[inline(always)]
unsafe fn dots<P: Product, F: Format, const S: usize, const T: usize>(
    sources: &[Source; S],
    tokens: Tokens<P, T>,
    blocks: usize,
    mut sums: [[Floats<P>; T]; S],
) -> [[Floats<P>; T]; S] {
    let in_memory = S > 1 || sources[0].panel < sources[0].panels.arranged();
    let (mut first, mut done) = (0, [0; T]);
    while first < blocks {
        let mut end = if in_memory { blocks } else { blocks.min(first + TILE_BLOCKS) };
        for t in 0..T {
            if let Some((column, _)) = (*tokens.outliers[t]).get(done[t]) {
                end = end.min((column / (32 * TILE_BLOCKS) + 1) * TILE_BLOCKS);
            }
        }
        let mut panels = [std::ptr::null(); S];
        for s in 0..S {
            panels[s] = sources[s].panels.panel(sources[s].panel, first / F::GROUPS..end / F::GROUPS, sources[s].buffer);
        }
        for block in first / F::GROUPS..end / F::GROUPS {
            for s in 0..S {
                let packed = Packed::<P::L>::new::<F>(panels[s], block);
                let by = packed.factors::<F>();
                // Each group on its own, so that every shift has a constant count.
                sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 0, sums[s]);
                if F::GROUPS == 8 {
                    sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 1, sums[s]);
                    sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 2, sums[s]);
                    sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 3, sums[s]);
                    sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 4, sums[s]);
                    sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 5, sums[s]);
                    sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 6, sums[s]);
                    sums[s] = group::<P, F, T>(&packed, by, tokens.x, block, 7, sums[s]);
                }
            }
        }
        for t in 0..T {
            while let Some((column, x)) = (*tokens.outliers[t]).get(done[t])
                && column < 32 * end
            {
                let (block, x) = (column / 32, P::L::broadcast_f(&x));
                for s in 0..S {
                    let packed = Packed::<P::L>::new::<F>(panels[s], block / F::GROUPS);
                    sums[s][t] = P::one::<F>(&packed, packed.factors::<F>(), block % F::GROUPS, column % 32, x, sums[s][t]);
                }
                done[t] += 1;
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
    mut x: [*const P::One; T],
    block: usize,
    group: usize,
    sums: [Floats<P>; T],
) -> [Floats<P>; T] {
    // Without it the compiler loads what groups and panels share once, and more than fits into registers: 8 % of the time.
    compiler_fence(Ordering::SeqCst);
    // Fetches what the group takes in a block further on, each cache line once.
    let line = |group: usize| (F::SHAPE.block_bytes() * P::L::N * group / F::GROUPS).div_ceil(64);
    for n in line(group)..line(group + 1) {
        _mm_prefetch::<_MM_HINT_T0>(packed.start().wrapping_add(AHEAD_BYTES + 64 * n).cast());
    }
    for t in 0..T {
        x[t] = x[t].add(F::GROUPS * block + group);
    }
    P::dots::<F, T>(packed, by, group, x, sums)
}
