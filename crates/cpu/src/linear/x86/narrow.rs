//! Products of AVX2: unsigned bytes times signed bytes, two neighbours at a time into 16 bits, saturating.
//!
//! One product of 32 pairs and one addition are 256 multiplications in 15 operations, of 19 to 22 with scales, on three vector
//! ports of which products take two. What each kind does is what keeps the sums in 16 bits as long as they fit:
//!
//! - [`Plain`]: codes of at most five bits, whose sums over four or eight steps fit as they are.
//! - [`Halves`]: codes with a scale per 16 columns. Centred on zero, by an addition, six bits fit over four steps, and two or three
//!   over eight. Scales are whole numbers, so that widening the sums multiplies with them, and both halves add up before they are
//!   converted; in tiles they do so side by side, as a step has columns of both ([`Woven`]).
//!
//! Codes of eight bits meet other activations: [`super::bytes`].

use std::arch::x86_64::*;

use super::{
    super::{
        activations::{Block, one_hot},
        woven::{self, Woven},
    },
    formats::{Format, Packed},
    lanes::{Eight, Lanes},
    product::{Factors, Product, VECS, codes, codes_of, scaled, steps},
    tile::Tile,
};

type L = Eight;

/// Adds up `COUNT` steps from `from` on of a tile's block times `T` tokens in 16 bits.
#[inline(always)]
unsafe fn pairs<P: Product<L = L>, const COUNT: usize, const T: usize>(
    tile: *mut Tile,
    (block, first): (usize, usize),
    from: usize,
    x: *const Woven,
) -> [[__m256i; VECS]; T] {
    let mut pairs = [[L::zero(); VECS]; T];
    let u = codes::<P>(tile, block, from, first);
    for t in 0..T {
        let a = L::broadcast(codes_of(&raw const (*x).codes, from).add(4 * t));
        for v in 0..VECS {
            pairs[t][v] = _mm256_maddubs_epi16(u[v], a);
        }
    }
    for k in from + 1..from + steps(COUNT) {
        let u = codes::<P>(tile, block, k, first);
        for t in 0..T {
            let a = L::broadcast(codes_of(&raw const (*x).codes, k).add(4 * t));
            for v in 0..VECS {
                pairs[t][v] = _mm256_add_epi16(pairs[t][v], _mm256_maddubs_epi16(u[v], a));
            }
        }
    }
    pairs
}

/// Adds up `COUNT` steps from `from` on of a group of a panel times single tokens in 16 bits.
#[inline(always)]
unsafe fn panel_pairs<F: Format, const COUNT: usize, const T: usize>(
    packed: &Packed<L>,
    group: usize,
    from: usize,
    x: [*const Block<1>; T],
) -> [__m256i; T] {
    let mut pairs = [L::zero(); T];
    for k in from..from + COUNT {
        let codes = F::codes::<L>(packed.words, group, k);
        for t in 0..T {
            pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(codes, L::broadcast(codes_of(&raw const (*x[t]).codes, k))));
        }
    }
    pairs
}

/// Spreads the codes of a group, `raised` by a number, out as [`Woven`] has its columns.
#[inline(always)]
unsafe fn weave<P: Product<L = L>, F: Format>(packed: &Packed<L>, group: usize, tile: *mut Tile, (block, vec): (usize, usize), raised: i8) {
    for k in 0..4 {
        let a = _mm256_add_epi8(F::codes::<L>(packed.words, group, k), L::splat(raised));
        let b = _mm256_add_epi8(F::codes::<L>(packed.words, group, k + 4), L::splat(raised));
        let (first, last) = (_mm256_slli_epi32::<16>(b), _mm256_srli_epi32::<16>(a));
        L::store(Tile::codes::<P>(tile, block, 2 * k, vec), _mm256_blend_epi16::<0xAA>(a, first));
        L::store(Tile::codes::<P>(tile, block, 2 * k + 1, vec), _mm256_blend_epi16::<0xAA>(last, b));
    }
}

/// `acc` plus the sums of two neighbouring 16-bit numbers
#[inline(always)]
unsafe fn join(acc: __m256i, pairs: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Of each row the code at one place of a step.
#[inline(always)]
pub(super) unsafe fn code_at(codes: __m256i, place: usize) -> __m256i {
    join(L::zero(), _mm256_maddubs_epi16(codes, L::broadcast(one_hot(place))))
}

/// Unsigned codes, `BATCH` steps of which fit 16 bits; a scale and a minimum per block.
pub(super) struct Plain<const BATCH: usize>;

impl<const BATCH: usize> Product for Plain<BATCH> {
    type L = L;
    type One = Block<1>;
    type Group = Woven;

    #[inline(always)]
    unsafe fn dots<F: Format, const T: usize>(
        packed: &Packed<L>,
        by: Factors<Self>,
        group: usize,
        x: [*const Block<1>; T],
        mut sums: [__m256; T],
    ) -> [__m256; T] {
        let mut dots = [L::zero(); T];
        for from in (0..8).step_by(BATCH) {
            let pairs = panel_pairs::<F, BATCH, T>(packed, group, from, x);
            for t in 0..T {
                dots[t] = join(dots[t], pairs[t]);
            }
        }
        let (scale, min) = packed.scaled::<F>(by, group);
        for t in 0..T {
            let sum = scaled::<L>(dots[t], L::broadcast_f(&raw const (*x[t]).scales[0]), scale, sums[t]);
            sums[t] = L::fma(min, L::broadcast_f(&raw const (*x[t]).sums[0]), sum);
        }
        sums
    }

    #[inline(always)]
    unsafe fn one<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, column: usize, x: __m256, sum: __m256) -> __m256 {
        let codes = F::codes::<L>(packed.words, group, column / 4);
        let dot = code_at(codes, column % 4);
        let (scale, min) = packed.scaled::<F>(by, group);
        L::fma(min, x, scaled::<L>(dot, x, scale, sum))
    }

    #[inline(always)]
    unsafe fn spread<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, tile: *mut Tile, block: usize, vec: usize) {
        let (scale, min) = packed.scaled::<F>(by, group);
        L::store_f(Tile::scales::<L>(tile, block, 0, vec), scale);
        L::store_f(Tile::mins::<L>(tile, block, 0, vec), min);
        weave::<Self, F>(packed, group, tile, (block, vec), 0);
    }

    #[inline(always)]
    unsafe fn block<const T: usize>(tile: *mut Tile, (block, first): (usize, usize), x: *const Woven, sums: *mut f32) {
        let mut dots = [[L::zero(); VECS]; T];
        for from in (0..8).step_by(BATCH) {
            let pairs = pairs::<Self, BATCH, T>(tile, (block, first), from, x);
            for t in 0..T {
                for v in 0..VECS {
                    dots[t][v] = join(dots[t][v], pairs[t][v]);
                }
            }
        }
        for t in 0..T {
            let d = L::broadcast_f(&raw const (*x).scales[t]);
            let q = L::broadcast_f(&raw const (*x).sums[t]);
            for v in 0..VECS {
                let at = sums.add((t * VECS + v) * L::N);
                let sum = scaled::<L>(dots[t][v], d, L::load_f(Tile::scales::<L>(tile, block, 0, first + v)), L::load_f(at));
                L::store_f(at, L::fma(L::load_f(Tile::mins::<L>(tile, block, 0, first + v)), q, sum));
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_one(tile: *mut Tile, block: usize, vec: usize, column: usize, x: __m256, sum: __m256) -> __m256 {
        let (step, place) = woven::place(column);
        let codes = L::load(Tile::codes::<Self>(tile, block, step, vec));
        let dot = code_at(codes, place);
        let sum = scaled::<L>(dot, x, L::load_f(Tile::scales::<L>(tile, block, 0, vec)), sum);
        L::fma(L::load_f(Tile::mins::<L>(tile, block, 0, vec)), x, sum)
    }
}

/// Unsigned codes with whole scales per half a block; `CENTRED` or with a minimum per half. `BATCH` steps of a tile fit 16 bits, in
/// which the centre is 32 always.
pub(super) struct Halves<const CENTRED: bool, const BATCH: usize>;

impl<const CENTRED: bool, const BATCH: usize> Halves<CENTRED, BATCH> {
    /// By how much the codes are higher in a tile.
    const fn raised<F: Format>() -> i8 {
        match F::CENTRE {
            Some(centre) => 32 - centre as i8,
            None => 0,
        }
    }

    /// [`Block::centres`] for codes centred on `F`'s centre.
    #[inline(always)]
    unsafe fn centre<F: Format>(x: *const Block<1>, half: usize) -> __m256i {
        let of_32 = L::broadcast((&raw const (*x).centres[half]).cast());
        if Self::raised::<F>() == 0 { of_32 } else { _mm256_srai_epi16::<3>(of_32) }
    }
}

impl<const CENTRED: bool, const BATCH: usize> Product for Halves<CENTRED, BATCH> {
    type L = L;
    type One = Block<1>;
    type Group = Woven;

    #[inline(always)]
    unsafe fn dots<F: Format, const T: usize>(
        packed: &Packed<L>,
        by: Factors<Self>,
        group: usize,
        x: [*const Block<1>; T],
        mut sums: [__m256; T],
    ) -> [__m256; T] {
        let mut dots = [L::zero(); T];
        for h in 0..2 {
            let mut pairs = panel_pairs::<F, 4, T>(packed, group, 4 * h, x);
            let scale = F::whole_scale(packed.bytes, 2 * group + h);
            for t in 0..T {
                if CENTRED {
                    pairs[t] = _mm256_sub_epi16(pairs[t], Self::centre::<F>(x[t], h));
                }
                dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(pairs[t], scale));
            }
        }
        for t in 0..T {
            sums[t] = scaled::<L>(dots[t], L::broadcast_f(&raw const (*x[t]).scales[0]), by.0, sums[t]);
        }
        if !CENTRED {
            for h in 0..2 {
                let (_, min) = packed.scaled::<F>(by, 2 * group + h);
                for t in 0..T {
                    sums[t] = L::fma(min, L::broadcast_f(&raw const (*x[t]).half_sums[h][0]), sums[t]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn one<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, column: usize, x: __m256, sum: __m256) -> __m256 {
        let (sub, a) = (2 * group + column / 16, L::broadcast(one_hot(column % 4)));
        let mut pairs = _mm256_maddubs_epi16(F::codes::<L>(packed.words, group, column / 4), a);
        if CENTRED {
            pairs = _mm256_sub_epi16(pairs, _mm256_maddubs_epi16(L::splat(32 - Self::raised::<F>()), a));
        }
        let sum = scaled::<L>(_mm256_madd_epi16(pairs, F::whole_scale(packed.bytes, sub)), x, by.0, sum);
        if CENTRED { sum } else { L::fma(packed.scaled::<F>(by, sub).1, x, sum) }
    }

    #[inline(always)]
    unsafe fn spread<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, tile: *mut Tile, block: usize, vec: usize) {
        L::store_f(Tile::units::<L>(tile, block, vec), by.0);
        let scales = [F::whole_scale(packed.bytes, 2 * group), F::whole_scale(packed.bytes, 2 * group + 1)];
        L::store(Tile::scales::<L>(tile, block, 0, vec).cast(), _mm256_blend_epi16::<0xAA>(scales[0], scales[1]));
        if !CENTRED {
            for h in 0..2 {
                L::store_f(Tile::mins::<L>(tile, block, h, vec), packed.scaled::<F>(by, 2 * group + h).1);
            }
        }
        weave::<Self, F>(packed, group, tile, (block, vec), Self::raised::<F>());
    }

    #[inline(always)]
    unsafe fn block<const T: usize>(tile: *mut Tile, (block, first): (usize, usize), x: *const Woven, sums: *mut f32) {
        let mut dots = [[L::zero(); VECS]; T];
        for from in (0..8).step_by(BATCH) {
            let pairs = pairs::<Self, BATCH, T>(tile, (block, first), from, x);
            for t in 0..T {
                let centre = L::broadcast((&raw const (*x).centres[if BATCH == 8 { 2 } else { from / 4 }][t]).cast());
                for v in 0..VECS {
                    let pairs = if CENTRED { _mm256_sub_epi16(pairs[t][v], centre) } else { pairs[t][v] };
                    let scale = L::load(Tile::scales::<L>(tile, block, 0, first + v).cast());
                    dots[t][v] = _mm256_add_epi32(dots[t][v], _mm256_madd_epi16(pairs, scale));
                }
            }
        }
        for t in 0..T {
            let d = L::broadcast_f(&raw const (*x).scales[t]);
            for v in 0..VECS {
                let at = sums.add((t * VECS + v) * L::N);
                let mut sum = scaled::<L>(dots[t][v], d, L::load_f(Tile::units::<L>(tile, block, first + v)), L::load_f(at));
                if !CENTRED {
                    for h in 0..2 {
                        let q = L::broadcast_f(&raw const (*x).half_sums[h][t]);
                        sum = L::fma(L::load_f(Tile::mins::<L>(tile, block, h, first + v)), q, sum);
                    }
                }
                L::store_f(at, sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_one(tile: *mut Tile, block: usize, vec: usize, column: usize, x: __m256, sum: __m256) -> __m256 {
        let (step, place) = woven::place(column);
        let a = L::broadcast(one_hot(place));
        let mut pairs = _mm256_maddubs_epi16(L::load(Tile::codes::<Self>(tile, block, step, vec)), a);
        if CENTRED {
            pairs = _mm256_sub_epi16(pairs, _mm256_maddubs_epi16(L::splat(32), a));
        }
        let scale = L::load(Tile::scales::<L>(tile, block, 0, vec).cast());
        let sum = scaled::<L>(_mm256_madd_epi16(pairs, scale), x, L::load_f(Tile::units::<L>(tile, block, vec)), sum);
        if CENTRED { sum } else { L::fma(L::load_f(Tile::mins::<L>(tile, block, column / 16, vec)), x, sum) }
    }
}
