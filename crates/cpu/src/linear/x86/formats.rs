//! The packed block types in panels: where codes, scales and minimums of a row lie (`ferrum_kernels::quant` defines the
//! blocks, `../panels.rs` how they are rearranged).
//!
//! All come out as `x = scale · code + min` with `code` an unsigned byte, `scale` and `min` per 32 or 16 elements; a type
//! centred on `c` has `min = −c · scale`. Types whose codes use all eight bits come out as signed bytes without a minimum.

use ferrum_kernels::{DType, quant::IQ4_VALUES};

use super::{super::panels::Shape, lanes::Lanes};

/// One block type. A block has `GROUPS` groups of 32 elements, a group eight steps of four.
///
/// # Safety
/// Of every function: the processor has the level `L`; the pointer is to the words or bytes of a whole block of `L::N`
/// rows; `group` is below `GROUPS`, `step` below 8, `sub` below the number of sub-blocks.
pub(super) trait Format {
    const SHAPE: Shape;
    /// 1 or 8
    const GROUPS: usize = 8;
    /// Scales belong to 16 elements instead of 32; only with 8 groups
    const HALVES: bool = false;
    /// `codes` gives signed bytes
    const SIGNED: bool = false;
    /// `c`, for types without minimums of their own
    const CENTRE: Option<f32> = None;
    /// Blocks have minimums
    const OWN_MINS: bool = Self::CENTRE.is_none() && !Self::SIGNED;
    /// The largest code; with `SIGNED`, the largest magnitude
    const MAX_CODE: i32;

    /// Bytes `4 · step..4 · step + 4` of the group's codes.
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I;

    /// Scale of a sub-block, to be multiplied with the first f16 number; only with 8 groups.
    #[inline(always)]
    unsafe fn scale<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_u8(bytes.add(sub * L::N))
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
    const SHAPE: Shape = Shape::of(DType::Q4_0);
    const GROUPS: usize = 1;
    const CENTRE: Option<f32> = Some(8.0);
    const MAX_CODE: i32 = 15;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, _: usize, step: usize) -> L::I {
        bits::<L>(word::<L>(words, step % 4), 4 * (step / 4), 15)
    }
}

impl Format for Q4_1 {
    const SHAPE: Shape = Shape::of(DType::Q4_1);
    const GROUPS: usize = 1;
    const MAX_CODE: i32 = 15;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        Q4_0::codes::<L>(words, group, step)
    }
}

impl Format for Q5_0 {
    const SHAPE: Shape = Shape::of(DType::Q5_0);
    const GROUPS: usize = 1;
    const CENTRE: Option<f32> = Some(16.0);
    const MAX_CODE: i32 = 31;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        let high = move_bits::<L>(word::<L>(words, 0), step, 4, 16);
        L::or(Q4_0::codes::<L>(words.add(4 * L::N), group, step), high)
    }
}

impl Format for Q5_1 {
    const SHAPE: Shape = Shape::of(DType::Q5_1);
    const GROUPS: usize = 1;
    const MAX_CODE: i32 = 31;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        Q5_0::codes::<L>(words, group, step)
    }
}

impl Format for Q8_0 {
    const SHAPE: Shape = Shape::of(DType::Q8_0);
    const GROUPS: usize = 1;
    const SIGNED: bool = true;
    const MAX_CODE: i32 = 128;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, _: usize, step: usize) -> L::I {
        word::<L>(words, step)
    }
}

impl Format for Iq4Nl {
    const SHAPE: Shape = Shape::of(DType::IQ4_NL);
    const GROUPS: usize = 1;
    const SIGNED: bool = true;
    const MAX_CODE: i32 = 127;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        L::look_up(IQ4_VALUES.as_ptr(), Q4_0::codes::<L>(words, group, step))
    }
}

impl Format for Iq4Xs {
    const SHAPE: Shape = Shape::of(DType::IQ4_XS);
    const SIGNED: bool = true;
    const MAX_CODE: i32 = 127;

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
    const SHAPE: Shape = Shape::of(DType::Q4_K);
    const MAX_CODE: i32 = 15;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        bits::<L>(word::<L>(words, 8 * (group / 2) + step), 4 * (group % 2), 15)
    }
}

impl Format for Q5K {
    const SHAPE: Shape = Shape::of(DType::Q5_K);
    const MAX_CODE: i32 = 31;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        let high = move_bits::<L>(word::<L>(words, step), group, 4, 16);
        L::or(Q4K::codes::<L>(words.add(32 * L::N), group, step), high)
    }
}

impl Format for Q6K {
    const SHAPE: Shape = Shape::of(DType::Q6_K);
    const HALVES: bool = true;
    const CENTRE: Option<f32> = Some(32.0);
    const MAX_CODE: i32 = 63;

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
    const SHAPE: Shape = Shape::of(DType::Q3_K);
    const HALVES: bool = true;
    const CENTRE: Option<f32> = Some(4.0);
    const MAX_CODE: i32 = 7;

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
    const SHAPE: Shape = Shape::of(DType::Q2_K);
    const HALVES: bool = true;
    const MAX_CODE: i32 = 3;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(words: *const u8, group: usize, step: usize) -> L::I {
        bits::<L>(word::<L>(words, 8 * (group / 4) + step), 2 * (group % 4), 3)
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_low_nibbles(bytes.add(sub * L::N))
    }

    #[inline(always)]
    unsafe fn min<L: Lanes>(bytes: *const u8, sub: usize) -> L::F {
        L::load_high_nibbles(bytes.add(sub * L::N))
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
