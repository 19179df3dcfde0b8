//! `linear` for few tokens: dot products of panels of rows with 8-bit activations, straight from the packed form.
//!
//! `out[t][r] = Σ_b scale · d · (code · q) + min · (d · Σ q)` over the blocks `b` of 32 elements, one row per lane; each
//! unpacked vector of codes meets up to four tokens while it is in a register. Bound by reading the weights.
//!
//! Measured with `examples/linear_speed` on one thread of an Intel Xeon with AVX-512 VNNI, [2048, 4096], one token, AVX2 level,
//! GB/s of weights, other programs at work beside, 2026-11-25: Q4_0 14.9, Q4_1 15.7, Q5_0 13.6, Q8_0 16.0, Q4_K 13.0, Q6_K
//! 13.2, where BF16 reads 25.2. Lost: rows as the file holds them, with sums across lanes at the end of each: 10.0, 9.3, 10.0,
//! 14.5, 9.6, 10.9.

use std::{arch::x86_64::*, ops::Range};

use super::{
    super::{
        Job,
        activations::{ActivationRows, one_hot},
        panels::Panels,
    },
    formats::Format,
    lanes::Lanes,
    tile::{Place, TILE_BLOCKS, batch, begin, end, one_step},
};

/// How far ahead of its use a panel is fetched, into the second-level cache. Two threads of an Intel Xeon, one token, GB/s of
/// Q4_K, Q6_K, Q8_0 and Q5_0 from its L3 cache: 47, 44, 57, 50; lost: 1 KiB ahead into the first level 32, 31, 38, 31; 4 KiB
/// 44, 41, 52, 48. From memory (1 GiB of weights) all are at 23.
const AHEAD_BYTES: usize = 8192;

/// Computes `rows` of the part for all tokens; `rows` begins with a panel.
///
/// # Safety
/// The processor has AVX2, FMA, F16C and `L`; `panels` are the part's, of `F`'s dtype and `L::N` lanes; `rows` lie in it and
/// no other thread writes them to `job.out`; `acts` holds the tokens of `job.x`.
#[inline(always)]
pub(super) unsafe fn chunk<L: Lanes, F: Format>(job: &Job, panels: &Panels, acts: &ActivationRows, rows: Range<usize>) {
    let tokens = job.x.shape[0];
    for first in rows.clone().step_by(L::N) {
        let panel = panels.panel(first / L::N).cast_const();
        let at = Place { first, count: L::N.min(rows.end - first), block: 0, blocks: 0 };
        let mut token = 0;
        while token < tokens {
            token += match tokens - token {
                1 => some::<L, F, 1>(job, panel, acts, at, token),
                2 | 3 => some::<L, F, 2>(job, panel, acts, at, token),
                _ => some::<L, F, 4>(job, panel, acts, at, token),
            };
        }
    }
}

/// A panel and `T` tokens from `token`. Returns `T`.
#[inline(always)]
unsafe fn some<L: Lanes, F: Format, const T: usize>(job: &Job, panel: *const u8, acts: &ActivationRows, at: Place, token: usize) -> usize {
    // Loops and not closures: those would not be inlined and so miss the instruction set.
    let mut tokens = [*acts; T];
    for t in 0..T {
        tokens[t] = acts.from(token + t);
    }
    let mut sums = [L::zero_f(); T];
    for t in 0..T {
        sums[t] = begin::<L>(job, at, token + t, 0);
    }
    sums = dots::<L, F, T>(panel, tokens, sums);
    for t in 0..T {
        end::<L>(job, at, token + t, 0, sums[t]);
    }
    T
}

/// Adds the products of a panel to `sums`, in the order of [`super::tile`]: per tile its blocks, then its outliers. One loop runs
/// up to the end of the next tile that has any: leaving a loop costs a wrong guess of the processor.
#[inline(always)]
unsafe fn dots<L: Lanes, F: Format, const T: usize>(panel: *const u8, acts: [ActivationRows; T], mut sums: [L::F; T]) -> [L::F; T] {
    let (mut first, blocks) = (0, acts[0].blocks);
    while first < blocks {
        let mut end = blocks;
        for t in 0..T {
            end = end.min((*acts[t].outliers).next_block(first) / TILE_BLOCKS * TILE_BLOCKS + TILE_BLOCKS);
        }
        for block in first / F::GROUPS..end / F::GROUPS {
            let packed = Packed::<L>::new::<F>(panel, block);
            let by = packed.factors::<F>();
            // Each group on its own, so that every shift has a constant count.
            sums = group::<L, F, T>(&packed, by, &acts, block, 0, sums);
            if F::GROUPS == 8 {
                sums = group::<L, F, T>(&packed, by, &acts, block, 1, sums);
                sums = group::<L, F, T>(&packed, by, &acts, block, 2, sums);
                sums = group::<L, F, T>(&packed, by, &acts, block, 3, sums);
                sums = group::<L, F, T>(&packed, by, &acts, block, 4, sums);
                sums = group::<L, F, T>(&packed, by, &acts, block, 5, sums);
                sums = group::<L, F, T>(&packed, by, &acts, block, 6, sums);
                sums = group::<L, F, T>(&packed, by, &acts, block, 7, sums);
            }
        }
        sums = outliers::<L, F, T>(panel, &acts, first..end, sums);
        first = end;
    }
    sums
}

/// One group of 32 columns of a block.
#[inline(always)]
unsafe fn group<L: Lanes, F: Format, const T: usize>(
    packed: &Packed<L>,
    factors: (L::F, L::F),
    acts: &[ActivationRows; T],
    block: usize,
    group: usize,
    mut sums: [L::F; T],
) -> [L::F; T] {
    packed.prefetch::<F>(group);
    let at = F::GROUPS * block + group;
    let halves = if F::HALVES { 2 } else { 1 };
    for h in 0..halves {
        let mut a = [std::ptr::null(); T];
        for t in 0..T {
            a[t] = acts[t].codes.add(32 * at).cast_const();
        }
        let dots = products::<L, F, T>(packed.words, group, 8 / halves * h, a);
        let (scale, min) = packed.scaled::<F>(factors, halves * group + h);
        for t in 0..T {
            let dot = L::mul(L::to_f(dots[t]), L::broadcast_f(acts[t].scales.add(at)));
            sums[t] = L::fma(dot, scale, sums[t]);
            if has_mins::<F, L>() {
                let sum = if F::HALVES { acts[t].half_sums.add(2 * at + h) } else { acts[t].sums.add(at) };
                sums[t] = L::fma(min, L::broadcast_f(sum), sums[t]);
            }
        }
    }
    sums
}

/// The integer dot products of a group, or of its half that begins with step `first`.
#[inline(always)]
unsafe fn products<L: Lanes, F: Format, const T: usize>(words: *const u8, group: usize, first: usize, a: [*const i8; T]) -> [L::I; T] {
    let mut dots = [L::zero(); T];
    let count = if F::HALVES { 4 } else { 8 };
    if L::WIDE || F::SIGNED {
        for step in first..first + count {
            let codes = unsigned::<L, F>(F::codes::<L>(words, group, step));
            for t in 0..T {
                let a = L::broadcast(a[t].add(4 * step));
                dots[t] = if L::WIDE {
                    L::dot(dots[t], codes, a)
                } else {
                    L::join(dots[t], L::pairs(L::magnitude(codes), L::with_sign(a, codes)))
                };
            }
        }
        return dots;
    }
    for from in (first..first + count).step_by(const { batch::<F>() }) {
        let mut pairs = [L::zero(); T];
        for step in from..from + const { batch::<F>() } {
            let codes = F::codes::<L>(words, group, step);
            for t in 0..T {
                pairs[t] = L::add_16(pairs[t], L::pairs(codes, L::broadcast(a[t].add(4 * step))));
            }
        }
        for t in 0..T {
            dots[t] = L::join(dots[t], pairs[t]);
        }
    }
    dots
}

/// Adds the elements of each token in the columns of `blocks` that its codes leave out.
#[inline(always)]
unsafe fn outliers<L: Lanes, F: Format, const T: usize>(
    panel: *const u8,
    acts: &[ActivationRows; T],
    blocks: Range<usize>,
    mut sums: [L::F; T],
) -> [L::F; T] {
    for t in 0..T {
        for (column, x) in (*acts[t].outliers).iter() {
            let block = column / 32;
            if block < blocks.start || block >= blocks.end {
                continue;
            }
            let (group, step) = (block % F::GROUPS, column % 32 / 4);
            let packed = Packed::<L>::new::<F>(panel, block / F::GROUPS);
            let codes = unsigned::<L, F>(F::codes::<L>(packed.words, group, step));
            let dot = if F::SIGNED && !L::WIDE {
                one_step::<L, 0>(codes, L::broadcast(one_hot(column % 4)))
            } else {
                one_step::<L, 1>(codes, L::broadcast(one_hot(column % 4)))
            };
            let sub = if F::HALVES { 2 * group + step / 4 } else { group };
            let (scale, min) = packed.scaled::<F>(packed.factors::<F>(), sub);
            let x = L::broadcast_f(&x);
            sums[t] = L::fma(L::mul(L::to_f(dot), x), scale, sums[t]);
            if has_mins::<F, L>() {
                sums[t] = L::fma(min, x, sums[t]);
            }
        }
    }
    sums
}

/// Signed codes 128 higher where products of any u8 are possible.
#[inline(always)]
pub(super) unsafe fn unsigned<L: Lanes, F: Format>(codes: L::I) -> L::I {
    if F::SIGNED && L::WIDE { L::xor(codes, L::splat(-128)) } else { codes }
}

/// Whether rows need more than the products of their codes.
pub(super) const fn has_mins<F: Format, L: Lanes>() -> bool {
    !F::SIGNED || L::WIDE
}

/// What the minimum of a block or sub-block is to be multiplied with, or, in types without one, its scale.
const fn min_factor<F: Format>() -> f32 {
    match F::CENTRE {
        Some(centre) => -centre,
        None if F::SIGNED => -128.0,
        None if F::GROUPS == 1 => 1.0,
        None => -1.0,
    }
}

/// One block of a panel.
pub(super) struct Packed<L> {
    start: *const u8,
    pub bytes: *const u8,
    pub words: *const u8,
    lanes: std::marker::PhantomData<L>,
}

impl<L: Lanes> Packed<L> {
    /// # Safety
    /// The panel has the block.
    #[inline(always)]
    pub unsafe fn new<F: Format>(panel: *const u8, block: usize) -> Self {
        let start = panel.add(block * F::SHAPE.block_bytes() * L::N);
        let (bytes, words) = F::SHAPE.offsets(L::N);
        Self { start, bytes: start.add(bytes), words: start.add(words), lanes: std::marker::PhantomData }
    }

    /// The `n`-th f16 number of each row.
    #[inline(always)]
    pub unsafe fn half(&self, n: usize) -> L::F {
        L::load_f16(self.start.add(2 * n * L::N))
    }

    /// What the scales and the minimums of sub-blocks are to be multiplied with.
    #[inline(always)]
    pub unsafe fn factors<F: Format>(&self) -> (L::F, L::F) {
        let (d, factor) = (self.half(0), L::broadcast_f(&min_factor::<F>()));
        (d, L::mul(if F::OWN_MINS { self.half(1) } else { d }, factor))
    }

    /// Scale and minimum of a sub-block: of a block, in types without sub-blocks.
    #[inline(always)]
    pub unsafe fn scaled<F: Format>(&self, (d, m): (L::F, L::F), sub: usize) -> (L::F, L::F) {
        if F::GROUPS == 1 {
            return (d, m);
        }
        let by = F::scale::<L>(self.bytes, sub);
        (L::mul(d, by), L::mul(m, if F::OWN_MINS { F::min::<L>(self.bytes, sub) } else { by }))
    }

    /// Fetches what `group` takes in a block further on, each cache line once.
    #[inline(always)]
    unsafe fn prefetch<F: Format>(&self, group: usize) {
        let line = |group: usize| (F::SHAPE.block_bytes() * L::N * group / F::GROUPS).div_ceil(64);
        for n in line(group)..line(group + 1) {
            _mm_prefetch(self.start.wrapping_add(AHEAD_BYTES + 64 * n).cast(), _MM_HINT_T1);
        }
    }
}
