//! Products of AVX2 with codes that take all eight bits, and activations whose sums over fours are bounded ([`super::super::fours`]).
//!
//! Eight signed bits twice do not fit the 16 of `vpmaddubsw`, so it is the activations that give way: two products add up before
//! they are widened, and the factors of fours are what widening multiplies with. 23 operations per 256 multiplications. Lost: the
//! sign of the code moved to the activation and every product widened, 35 operations, of which tiles of IQ4_XS had 147 GOP/s
//! where these have 190 (one thread of an Intel Xeon, [2048, 4096] by 512 tokens, 2026-11-25).

use std::arch::x86_64::*;

use super::{
    super::{activations::GROUP, fours::Fours},
    formats::{Format, Packed},
    lanes::{Eight, Lanes},
    narrow::code_at,
    product::{Factors, Product, VECS, codes, codes_of, scaled, steps},
    tile::Tile,
};

type L = Eight;

/// Codes 128 too high with a scale per block.
pub(super) struct Bytes;

impl Product for Bytes {
    type L = L;
    type One = Fours<1>;
    type Group = Fours<GROUP>;

    #[inline(always)]
    unsafe fn dots<F: Format, const T: usize>(
        packed: &Packed<L>,
        by: Factors<Self>,
        group: usize,
        x: [*const Fours<1>; T],
        mut sums: [__m256; T],
    ) -> [__m256; T] {
        let mut dots = [L::zero(); T];
        for t in 0..T {
            dots[t] = L::broadcast((&raw const (*x[t]).centres).cast());
        }
        for k in 0..4 {
            let (even, odd) = (F::codes::<L>(packed.words, group, 2 * k), F::codes::<L>(packed.words, group, 2 * k + 1));
            for t in 0..T {
                dots[t] = batch(dots[t], [even, odd], [step(x[t], 2 * k, 0), step(x[t], 2 * k + 1, 0)], factor(x[t], k, 0));
            }
        }
        let (scale, _) = packed.scaled::<F>(by, group);
        for t in 0..T {
            sums[t] = scaled::<L>(dots[t], L::broadcast_f(&raw const (*x[t]).scales[0]), scale, sums[t]);
        }
        sums
    }

    #[inline(always)]
    unsafe fn one<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, column: usize, x: __m256, sum: __m256) -> __m256 {
        let codes = F::codes::<L>(packed.words, group, column / 4);
        scaled::<L>(one_code(codes, column), x, packed.scaled::<F>(by, group).0, sum)
    }

    #[inline(always)]
    unsafe fn spread<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, tile: *mut Tile, block: usize, vec: usize) {
        L::store_f(Tile::scales::<L>(tile, block, 0, vec), packed.scaled::<F>(by, group).0);
        for k in 0..8 {
            L::store(Tile::codes::<Self>(tile, block, k, vec), F::codes::<L>(packed.words, group, k));
        }
    }

    #[inline(always)]
    unsafe fn block<const T: usize>(tile: *mut Tile, (block, first): (usize, usize), x: *const Fours<GROUP>, sums: *mut f32) {
        let mut dots = [[L::zero(); VECS]; T];
        for t in 0..T {
            dots[t] = [L::broadcast((&raw const (*x).centres[t]).cast()); VECS];
        }
        for k in 0..steps(4) {
            let (even, odd) = (codes::<Self>(tile, block, 2 * k, first), codes::<Self>(tile, block, 2 * k + 1, first));
            for t in 0..T {
                let (a, b, factor) = (step(x, 2 * k, t), step(x, 2 * k + 1, t), factor(x, k, t));
                for v in 0..VECS {
                    dots[t][v] = batch(dots[t][v], [even[v], odd[v]], [a, b], factor);
                }
            }
        }
        for t in 0..T {
            let d = L::broadcast_f(&raw const (*x).scales[t]);
            for v in 0..VECS {
                let at = sums.add((t * VECS + v) * L::N);
                L::store_f(at, scaled::<L>(dots[t][v], d, L::load_f(Tile::scales::<L>(tile, block, 0, first + v)), L::load_f(at)));
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_one(tile: *mut Tile, block: usize, vec: usize, column: usize, x: __m256, sum: __m256) -> __m256 {
        let codes = L::load(Tile::codes::<Self>(tile, block, column / 4, vec));
        scaled::<L>(one_code(codes, column), x, L::load_f(Tile::scales::<L>(tile, block, 0, vec)), sum)
    }
}

/// `acc` plus the products of two steps, whose sums fit 16 bits, times the factors of the fours.
#[inline(always)]
unsafe fn batch(acc: __m256i, codes: [__m256i; 2], x: [__m256i; 2], factors: __m256i) -> __m256i {
    let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(codes[0], x[0]), _mm256_maddubs_epi16(codes[1], x[1]));
    _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, factors))
}

/// The codes of a token in step `k`.
#[inline(always)]
unsafe fn step<const T: usize>(x: *const Fours<T>, k: usize, token: usize) -> __m256i {
    L::broadcast(codes_of(&raw const (*x).codes, k).add(4 * token))
}

/// The factors of a token in batch `k`.
#[inline(always)]
unsafe fn factor<const T: usize>(x: *const Fours<T>, k: usize, token: usize) -> __m256i {
    L::broadcast((&raw const (*x).factors).cast::<i8>().add(4 * (T * k + token)))
}

/// The code of one column, as it is in the file.
#[inline(always)]
unsafe fn one_code(codes: __m256i, column: usize) -> __m256i {
    _mm256_sub_epi32(code_at(codes, column % 4), _mm256_set1_epi32(128))
}
