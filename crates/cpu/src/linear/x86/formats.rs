//! The packed block types in panels: where codes, scales and minimums of a row lie (`ferrum_kernels::quant` defines the
//! blocks, `../panels.rs` how they are rearranged).
//!
//! All come out as `x = scale · code + min` with `code` an unsigned byte, `scale` and `min` per 32 or 16 elements; a type
//! centred on `c` has `min = −c · scale`. Codes that are signed bytes in the file come out 128 higher.

use std::{arch::x86_64::__m256i, marker::PhantomData};

use ferrum_kernels::{DType, quant::IQ4_VALUES};

use super::{
    super::panels::Shape,
    bytes::Bytes,
    lanes::{Eight, Lanes, WideLanes},
    narrow::{Halves, Plain},
    product::Product,
    wide::Wide,
};

/// One block type. A block has `GROUPS` groups of 32 elements, a group eight steps of four.
///
/// # Safety
/// Of every function: the processor has the level `L`; the pointer is to the words or bytes of a whole block of `L::N`
/// rows; `group` is below `GROUPS`, `step` below 8, `sub` below the number of sub-blocks.
pub(super) trait Format {
    const SHAPE: Shape;
    /// How codes are multiplied with AVX2
    type Narrow: Product<L = Eight>;
    /// How codes are multiplied where products of any unsigned byte are possible
    type Wide<L: WideLanes>: Product<L = L>;
    /// 1 or 8
    const GROUPS: usize = 8;
    /// `c`, for types without minimums of their own
    const CENTRE: Option<f32> = None;
    /// Blocks have minimums
    const OWN_MINS: bool = Self::CENTRE.is_none();

    /// Bytes `4 · step..4 · step + 4` of the group's codes.
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I;

    /// Scale of a sub-block, to be multiplied with the first f16 number; only with 8 groups.
    #[inline(always)]
    unsafe fn scale<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_u8(bytes.add(sub * L::N))
    }

    /// [`Format::scale`] as 16-bit numbers, twice per row; only with [`Halves`].
    #[inline(always)]
    unsafe fn whole_scale(bytes: *const u8, sub: usize) -> __m256i {
        Eight::load_i8_twice(bytes.add(sub * Eight::N))
    }

    /// Minimum of a sub-block, to be multiplied with the second f16 number and subtracted; only with 8 groups.
    #[inline(always)]
    unsafe fn min<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_u8(bytes.add((8 + sub) * L::N))
    }
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;
pub(super) struct Iq4Nl;
pub(super) struct Iq4Xs;

impl Format for Q4_0 {
    type Narrow = Plain<8>;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::Q4_0);
    const GROUPS: usize = 1;
    const CENTRE: Option<f32> = Some(8.0);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, _: usize, step: usize) -> L::I {
        bits::<L>(word::<L>(words, step % 4), 4 * (step / 4), 15)
    }
}

impl Format for Q4_1 {
    type Narrow = Plain<8>;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::Q4_1);
    const GROUPS: usize = 1;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        Q4_0::codes::<L>(words, group, step)
    }
}

impl Format for Q5_0 {
    type Narrow = Plain<4>;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::Q5_0);
    const GROUPS: usize = 1;
    const CENTRE: Option<f32> = Some(16.0);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        let high = move_bits::<L>(word::<L>(words, 0), step, 4, 16);
        L::or(Q4_0::codes::<L>(words.add(4 * L::N), group, step), high)
    }
}

impl Format for Q5_1 {
    type Narrow = Plain<4>;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::Q5_1);
    const GROUPS: usize = 1;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        Q5_0::codes::<L>(words, group, step)
    }
}

impl Format for Q8_0 {
    type Narrow = Bytes;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::Q8_0);
    const GROUPS: usize = 1;
    const CENTRE: Option<f32> = Some(128.0);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, _: usize, step: usize) -> L::I {
        L::xor(word::<L>(words, step), L::splat(-128))
    }
}

/// [`IQ4_VALUES`], 128 higher
static IQ4_CODES: [i8; 16] = {
    let mut codes = IQ4_VALUES;
    let mut n = 0;
    while n < 16 {
        codes[n] ^= -128;
        n += 1;
    }
    codes
};

impl Format for Iq4Nl {
    type Narrow = Bytes;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::IQ4_NL);
    const GROUPS: usize = 1;
    const CENTRE: Option<f32> = Some(128.0);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        L::look_up(IQ4_CODES.as_ptr(), Q4_0::codes::<L>(words, group, step))
    }
}

impl Format for Iq4Xs {
    type Narrow = Bytes;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::IQ4_XS);
    const CENTRE: Option<f32> = Some(128.0);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        Iq4Nl::codes::<L>(words.add(16 * group * L::N), group, step)
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_i8(bytes.add(sub * L::N))
    }
}

impl Format for Q4K {
    type Narrow = Plain<8>;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::Q4_K);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        bits::<L>(word::<L>(words, 8 * (group / 2) + step), 4 * (group % 2), 15)
    }
}

impl Format for Q5K {
    type Narrow = Plain<4>;
    type Wide<L: WideLanes> = Wide<L, 1>;
    const SHAPE: Shape = Shape::of(DType::Q5_K);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        let high = move_bits::<L>(word::<L>(words, step), group, 4, 16);
        L::or(Q4K::codes::<L>(words.add(32 * L::N), group, step), high)
    }
}

impl Format for Q6K {
    type Narrow = Halves<true, 4>;
    type Wide<L: WideLanes> = Wide<L, 2>;
    const SHAPE: Shape = Shape::of(DType::Q6_K);
    const CENTRE: Option<f32> = Some(32.0);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        let (h, s) = (group / 4, group % 4);
        let low = bits::<L>(word::<L>(words, 16 * h + 8 * (s % 2) + step), 4 * (s / 2), 15);
        L::or(low, move_bits::<L>(word::<L>(words, 32 + 8 * h + step), 2 * s, 4, 0x30))
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_i8(bytes.add(sub * L::N))
    }
}

impl Format for Q3K {
    type Narrow = Halves<true, 8>;
    type Wide<L: WideLanes> = Wide<L, 2>;
    const SHAPE: Shape = Shape::of(DType::Q3_K);
    const CENTRE: Option<f32> = Some(4.0);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        let high = move_bits::<L>(word::<L>(words, step), group, 2, 4);
        L::or(Q2K::codes::<L>(words.add(32 * L::N), group, step), high)
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_i8(bytes.add(sub * L::N))
    }
}

impl Format for Q2K {
    type Narrow = Halves<false, 8>;
    type Wide<L: WideLanes> = Wide<L, 2>;
    const SHAPE: Shape = Shape::of(DType::Q2_K);

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        bits::<L>(word::<L>(words, 8 * (group / 4) + step), 2 * (group % 4), 3)
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_low_nibbles(bytes.add(sub * L::N))
    }

    #[inline(always)]
    unsafe fn whole_scale(bytes: *const u8, sub: usize) -> __m256i {
        Eight::load_low_nibbles_twice(bytes.add(sub * Eight::N))
    }

    #[inline(always)]
    unsafe fn min<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_high_nibbles(bytes.add(sub * L::N))
    }
}

/// What the minimum of a block or sub-block is to be multiplied with, or, in types without one, its scale.
const fn min_factor<F: Format>() -> f32 {
    match F::CENTRE {
        Some(centre) => -centre,
        None if F::GROUPS == 1 => 1.0,
        None => -1.0,
    }
}

/// One block of a panel.
pub(super) struct Packed<L> {
    start: *const u8,
    pub bytes: *const u8,
    pub words: *const u8,
    lanes: PhantomData<L>,
}

impl<L: Lanes> Packed<L> {
    /// # Safety
    /// The panel has the block.
    #[inline(always)]
    pub unsafe fn new<F: Format>(panel: *const u8, block: usize) -> Self {
        let start = panel.add(block * F::SHAPE.block_bytes() * L::N);
        let (bytes, words) = F::SHAPE.offsets(L::N);
        Self { start, bytes: start.add(bytes), words: start.add(words), lanes: PhantomData }
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

    /// The block's first byte
    pub fn start(&self) -> *const u8 {
        self.start
    }
}

#[inline(always)]
unsafe fn word<L: Lanes>(words: *const u8, n: usize) -> L::I {
    L::load(words.add(4 * n * L::N))
}

/// The bits of each byte from position `from` on, as far as `mask` keeps them.
#[inline(always)]
unsafe fn bits<L: Lanes>(v: L::I, from: usize, mask: i8) -> L::I {
    move_bits::<L>(v, from, 0, mask)
}

/// Moves the bits of each byte from position `from` to position `to` and keeps those in `mask`: bits that cross into the
/// neighbouring byte fall outside it.
#[inline(always)]
unsafe fn move_bits<L: Lanes>(v: L::I, from: usize, to: usize, mask: i8) -> L::I {
    let by = from as i32 - to as i32;
    L::and(if by == 0 { v } else { L::shift(v, by) }, L::splat(mask))
}
