//! Products of unsigned bytes and signed bytes that add up in 32 bits: AVX-VNNI and AVX-512 VNNI.

use std::marker::PhantomData;

use super::{
    super::activations::{Block, GROUP, one_hot},
    formats::{Format, Packed},
    lanes::WideLanes,
    product::{Factors, Product, VECS, codes, codes_of, scaled, steps},
    tile::Tile,
};

/// With `HALVES` scales per block.
pub(super) struct Wide<L, const HALVES: usize>(PhantomData<L>);

impl<L: WideLanes, const HALVES: usize> Product for Wide<L, HALVES> {
    type L = L;
    type One = Block<1>;
    type Group = Block<GROUP>;

    #[inline(always)]
    unsafe fn dots<F: Format, const T: usize>(
        packed: &Packed<L>,
        by: Factors<Self>,
        group: usize,
        x: [*const Block<1>; T],
        mut sums: [L::F; T],
    ) -> [L::F; T] {
        for h in 0..HALVES {
            let mut dots = [L::zero(); T];
            for k in 8 / HALVES * h..8 / HALVES * (h + 1) {
                let codes = F::codes::<L>(packed.words, group, k);
                for t in 0..T {
                    dots[t] = L::dot(dots[t], codes, L::broadcast(codes_of(&raw const (*x[t]).codes, k)));
                }
            }
            let (scale, min) = packed.scaled::<F>(by, HALVES * group + h);
            for t in 0..T {
                let q = if HALVES == 1 { &raw const (*x[t]).sums[0] } else { &raw const (*x[t]).half_sums[h][0] };
                let sum = scaled::<L>(dots[t], L::broadcast_f(&raw const (*x[t]).scales[0]), scale, sums[t]);
                sums[t] = L::fma(min, L::broadcast_f(q), sum);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn one<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, column: usize, x: L::F, sum: L::F) -> L::F {
        let codes = F::codes::<L>(packed.words, group, column / 4);
        let dot = L::dot(L::zero(), codes, L::broadcast(one_hot(column % 4)));
        let (scale, min) = packed.scaled::<F>(by, HALVES * group + column * HALVES / 32);
        L::fma(min, x, scaled::<L>(dot, x, scale, sum))
    }

    #[inline(always)]
    unsafe fn spread<F: Format>(packed: &Packed<L>, by: Factors<Self>, group: usize, tile: *mut Tile, block: usize, vec: usize) {
        for h in 0..HALVES {
            let (scale, min) = packed.scaled::<F>(by, HALVES * group + h);
            L::store_f(Tile::scales::<L>(tile, block, h, vec), scale);
            L::store_f(Tile::mins::<L>(tile, block, h, vec), min);
        }
        for k in 0..8 {
            L::store(Tile::codes::<Self>(tile, block, k, vec), F::codes::<L>(packed.words, group, k));
        }
    }

    #[inline(always)]
    unsafe fn block<const T: usize>(tile: *mut Tile, (block, first): (usize, usize), x: *const Block<GROUP>, sums: *mut f32) {
        for h in 0..HALVES {
            let mut dots = [[L::zero(); VECS]; T];
            // AVX-512 has registers for whatever the compiler gathers.
            let count = if L::N == 16 { 8 / HALVES } else { steps(8 / HALVES) };
            for k in 8 / HALVES * h..8 / HALVES * h + count {
                let u = codes::<Self>(tile, block, k, first);
                for t in 0..T {
                    let a = L::broadcast(codes_of(&raw const (*x).codes, k).add(4 * t));
                    for v in 0..VECS {
                        dots[t][v] = L::dot(dots[t][v], u[v], a);
                    }
                }
            }
            for t in 0..T {
                let d = L::broadcast_f(&raw const (*x).scales[t]);
                let q = L::broadcast_f(if HALVES == 1 { &raw const (*x).sums[t] } else { &raw const (*x).half_sums[h][t] });
                for v in 0..VECS {
                    let at = sums.add((t * VECS + v) * L::N);
                    let sum = scaled::<L>(dots[t][v], d, L::load_f(Tile::scales::<L>(tile, block, h, first + v)), L::load_f(at));
                    L::store_f(at, L::fma(L::load_f(Tile::mins::<L>(tile, block, h, first + v)), q, sum));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_one(tile: *mut Tile, block: usize, vec: usize, column: usize, x: L::F, sum: L::F) -> L::F {
        let h = column * HALVES / 32;
        let codes = L::load(Tile::codes::<Self>(tile, block, column / 4, vec));
        let dot = L::dot(L::zero(), codes, L::broadcast(one_hot(column % 4)));
        let sum = scaled::<L>(dot, x, L::load_f(Tile::scales::<L>(tile, block, h, vec)), sum);
        L::fma(L::load_f(Tile::mins::<L>(tile, block, h, vec)), x, sum)
    }
}
