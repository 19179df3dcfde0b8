//! What multiplies a block: the arithmetic that dot products of few tokens and tiles of many share.
//!
//! Both forms of a product round at the same places: sums of codes times 8-bit activations are integers and exact up to the end
//! of a block of 32 columns (`Wide` with halves: of 16), where they are converted and scaled, one block behind the other.

use super::{
    super::activations::{Columns, GROUP},
    formats::{Format, Packed},
    lanes::Lanes,
    tile::{ROWS, Tile},
};

/// Vectors of rows that meet a group of tokens at a time: with four tokens eight sums, which with codes and activations fill
/// the 16 registers of AVX2.
pub(super) const VECS: usize = 2;

/// One kind of arithmetic.
///
/// # Safety
/// Of every function: the processor has the level `L`; pointers are to whole blocks; `packed` has the group and a tile the block
/// and the vectors that are named.
pub(super) trait Product {
    type L: Lanes;
    /// Activations of dot products
    type One: Columns<1>;
    /// Activations of tiles
    type Group: Columns<GROUP>;
    /// Vectors of rows in a tile
    const TILE_VECS: usize = ROWS / Self::L::N;

    /// Adds the products of a group of columns of a panel and blocks of single tokens. `by` are [`Packed::factors`].
    unsafe fn dots<F: Format, const T: usize>(
        packed: &Packed<Self::L>,
        by: Factors<Self>,
        group: usize,
        x: [*const Self::One; T],
        sums: [Floats<Self>; T],
    ) -> [Floats<Self>; T];

    /// Adds the product of one column of the group and a number.
    unsafe fn one<F: Format>(
        packed: &Packed<Self::L>,
        by: Factors<Self>,
        group: usize,
        column: usize,
        x: Floats<Self>,
        sum: Floats<Self>,
    ) -> Floats<Self>;

    /// Spreads a group of columns of a panel out as block `block` of vector `vec` of a tile.
    unsafe fn spread<F: Format>(packed: &Packed<Self::L>, by: Factors<Self>, group: usize, tile: *mut Tile, block: usize, vec: usize);

    /// Adds the products of block `at.0` of a tile, of the [`VECS`] vectors from `at.1` on, and of a block of `T` tokens to
    /// `sums`, `[T, VECS, N]`.
    unsafe fn block<const T: usize>(tile: *mut Tile, at: (usize, usize), x: *const Self::Group, sums: *mut f32);

    /// [`Product::one`], of a tile.
    unsafe fn tile_one(tile: *mut Tile, block: usize, vec: usize, column: usize, x: Floats<Self>, sum: Floats<Self>) -> Floats<Self>;
}

pub(super) type Floats<P> = <<P as Product>::L as Lanes>::F;
/// What scales and minimums of sub-blocks are to be multiplied with
pub(super) type Factors<P> = (Floats<P>, Floats<P>);

/// A number of steps that the compiler does not know: it unrolls loops of known length and then moves loads and sums of many
/// steps together, beyond what the registers hold.
#[inline(always)]
pub(super) fn steps(count: usize) -> usize {
    std::hint::black_box(count)
}

/// `sum + dots · d · scale`
#[inline(always)]
pub(super) unsafe fn scaled<L: Lanes>(dots: L::I, d: L::F, scale: L::F, sum: L::F) -> L::F {
    L::fma(L::mul(L::to_f(dots), d), scale, sum)
}

/// Step `k` of the codes of `T` tokens side by side.
#[inline(always)]
pub(super) unsafe fn codes_of<const T: usize>(x: *const [[[i8; 4]; T]; 8], k: usize) -> *const i8 {
    x.cast::<i8>().add(4 * T * k)
}

/// The codes of a tile's step, of [`VECS`] vectors from `first` on.
#[inline(always)]
pub(super) unsafe fn codes<P: Product>(tile: *mut Tile, block: usize, step: usize, first: usize) -> [<P::L as Lanes>::I; VECS] {
    let mut codes = [P::L::zero(); VECS];
    for v in 0..VECS {
        codes[v] = P::L::load(Tile::codes::<P>(tile, block, step, first + v));
    }
    codes
}
