//! Integer kernels for x86-64: packed weights times 8-bit activations.
//!
//! # Safety
//! Every unsafe function in this folder is a piece of a kernel. It needs the instruction set of the kernel it is inlined
//! into, and pointers to whole blocks, vectors or rows as its documentation says; [`run`] establishes both. A block of its
//! own around every body would say no more than that. Loops run over axes of register arrays, by index.
#![allow(unsafe_op_in_unsafe_fn, clippy::needless_range_loop)]

mod bytes;
mod dot;
mod float;
mod float_tile;
mod formats;
mod lanes;
mod narrow;
mod product;
mod repack;
mod tile;
mod wide;

use std::ops::Range;

use ferrum_kernels::DType;

use self::{
    float::Floats,
    float_tile::{Packed, TILE_COLS},
    formats::{Format, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0},
    lanes::{Eight, EightVnni, Lanes, Sixteen},
    product::Product,
    tile::{Place, ROWS, TileKernels},
};
use super::{
    CpuWeight, Job, MAX_TOKENS, Part, Rows,
    activations::{ActivationRows, Columns, Rounding},
    panels::Panels,
};
use crate::{features::Simd, pool::Pool};

pub(super) use self::{
    float_tile::packed_floats,
    repack::{StoredRows, fill_panel},
    tile::Tile,
};

/// From this many tokens on, unpacking a tile costs less than unpacking rows for every four tokens.
pub(super) const TILED_TOKENS: usize = 5;

/// Rows of a panel, whose kernels this level has.
pub(super) fn lanes(simd: Simd) -> usize {
    if simd == Simd::Avx512 { Sixteen::N } else { Eight::N }
}

/// How activations are rounded that meet panels of this dtype.
pub(super) fn rounding(simd: Simd, dtype: DType) -> Rounding {
    Kernels::of(simd, dtype).rounding
}

/// All roundings of this level's kernels.
pub(super) fn roundings(simd: Simd) -> &'static [Rounding] {
    if simd == Simd::Avx2 { &[Rounding::Blocks, Rounding::Fours] } else { &[Rounding::Blocks] }
}

/// Computes all parts of a weight for all tokens. Panels are multiplied with `acts`, the quantised tokens, and are for this
/// level; `tiles` has one tile per worker, `packed` room for [`packed_floats`] where parts are as stored; `job` names the rest.
pub(super) fn run<'a>(
    simd: Simd,
    pool: &Pool,
    tiles: &mut [Tile],
    acts: &ActivationRows,
    packed: &mut [f32],
    weight: &'a CpuWeight,
    job: &(dyn Fn(&'a Part) -> Job<'a> + Sync),
) {
    let memory = Tiles(tiles.as_mut_ptr());
    let by_dots = |part: &Part| part.rows == 0 || part.dtype.is_float() || !part.is_as_stored();
    if weight.parts.iter().all(by_dots) && job(&weight.parts[0]).x.shape[0] < TILED_TOKENS {
        // One launch for all parts, in chunks small enough to share out evenly and large enough to stream.
        let lanes = lanes(simd);
        let bytes = weight.parts.iter().map(|p| p.row_bytes * lanes).max().unwrap_or(1).max(1);
        let units = weight.parts.iter().map(|p| p.rows.div_ceil(lanes)).sum::<usize>();
        let chunk = units.div_ceil(4 * pool.workers()).max(16 * 1024 / bytes);
        pool.chunks(units, chunk, &|worker, range| {
            let mut first = 0;
            for part in &weight.parts {
                let count = part.rows.div_ceil(lanes);
                let (start, end) = (range.start.max(first), range.end.min(first + count));
                if start < end {
                    let rows = (start - first) * lanes..((end - first) * lanes).min(part.rows);
                    // SAFETY: `CpuBackend::new` found this level on this processor, and all of them include AVX2, FMA and
                    // F16C; the kernel is for the part's dtype; chunks are disjoint ranges of rows; each worker has its own tile.
                    match &part.data {
                        Rows::Panels(panels) => unsafe {
                            (Kernels::of(simd, part.dtype).dot)(&job(part), panels, acts, rows, memory.of(worker));
                        },
                        Rows::AsStored(_) => unsafe { float_dots(part.dtype)(&job(part), rows) },
                    }
                }
                first += count;
            }
        });
        return;
    }
    for part in &weight.parts {
        if let Rows::Panels(panels) = &part.data {
            let (job, kernels) = (job(part), Kernels::of(simd, part.dtype).tile);
            // SAFETY: as above.
            pool.chunks(part.rows.div_ceil(ROWS), 1, &|worker, range| unsafe {
                tile::chunk(kernels, &job, panels, acts, range, memory.of(worker));
            });
        }
    }
    if weight.parts.iter().any(Part::is_as_stored) {
        float_tiles(simd, pool, &memory, packed, weight, job);
    }
}

/// Computes the parts that are as stored for all tokens, some columns at a time.
fn float_tiles<'a>(
    simd: Simd,
    pool: &Pool,
    memory: &Tiles,
    packed: &mut [f32],
    weight: &'a CpuWeight,
    job: &(dyn Fn(&'a Part) -> Job<'a> + Sync),
) {
    let kernel = if simd == Simd::Avx512 { float_tile_avx512 } else { float_tile_avx2 };
    let parts = || weight.parts.iter().filter(|part| part.is_as_stored());
    let tiles = parts().map(|part| part.rows.div_ceil(ROWS)).sum();
    let any = job(&weight.parts[0]);
    let all = any.x.shape[0];
    for token in (0..all).step_by(MAX_TOKENS) {
        for first in (0..any.cols).step_by(TILE_COLS) {
            let x = Packed::new(packed, token..all.min(token + MAX_TOKENS), first..any.cols.min(first + TILE_COLS));
            // SAFETY: as in `run`; each group belongs to one chunk.
            pool.chunks(x.groups(), x.groups().div_ceil(4 * pool.workers()), &|_, groups| unsafe { float_tile::pack(&any, &x, groups) });
            pool.chunks(tiles, 1, &|worker, range| {
                for mut tile in range {
                    for part in parts() {
                        let count = part.rows.div_ceil(ROWS);
                        if tile < count {
                            // SAFETY: as in `run`; each tile belongs to one chunk, and all of `x` is packed.
                            unsafe { kernel(&job(part), &x, tile * ROWS, memory.of(worker)) };
                            break;
                        }
                        tile -= count;
                    }
                }
            });
        }
    }
}

/// The dot products of a float dtype.
fn float_dots(dtype: DType) -> unsafe fn(&Job, Range<usize>) {
    match dtype {
        DType::F32 => float_dot::<float::F32>,
        DType::F16 => float_dot::<float::F16>,
        DType::BF16 => float_dot::<float::Bf16>,
        packed => unreachable!("{packed} is multiplied in integers or in tiles"),
    }
}

struct Tiles(*mut Tile);
// SAFETY: each worker uses only its own tile.
unsafe impl Sync for Tiles {}

impl Tiles {
    fn of(&self, worker: usize) -> *mut Tile {
        self.0.wrapping_add(worker)
    }
}

/// The kernels of one dtype and level.
struct Kernels {
    dot: Dot,
    tile: TileKernels,
    rounding: Rounding,
}

impl Kernels {
    fn of(simd: Simd, dtype: DType) -> Self {
        match dtype {
            DType::Q4_0 => Self::level::<Q4_0>(simd),
            DType::Q4_1 => Self::level::<Q4_1>(simd),
            DType::Q5_0 => Self::level::<Q5_0>(simd),
            DType::Q5_1 => Self::level::<Q5_1>(simd),
            DType::Q8_0 => Self::level::<Q8_0>(simd),
            DType::Q2_K => Self::level::<Q2K>(simd),
            DType::Q3_K => Self::level::<Q3K>(simd),
            DType::Q4_K => Self::level::<Q4K>(simd),
            DType::Q5_K => Self::level::<Q5K>(simd),
            DType::Q6_K => Self::level::<Q6K>(simd),
            DType::IQ4_NL => Self::level::<Iq4Nl>(simd),
            DType::IQ4_XS => Self::level::<Iq4Xs>(simd),
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::U8 => unreachable!("{dtype} has no blocks"),
        }
    }

    fn level<F: Format>(simd: Simd) -> Self {
        match simd {
            Simd::Avx2 => Self::avx2::<F::Narrow, F>(),
            Simd::AvxVnni => Self::avxvnni::<F::Wide<EightVnni>, F>(),
            Simd::Avx512 => Self::avx512::<F::Wide<Sixteen>, F>(),
            Simd::Portable => unreachable!("`has_int8` keeps this level in F32"),
        }
    }

    fn avx2<P: Product, F: Format>() -> Self {
        let tile = TileKernels { unpack: unpack_avx2::<P, F>, tokens: tokens_avx2::<P> };
        Self { dot: dot_avx2::<P, F>, tile, rounding: P::One::ROUNDING }
    }

    fn avxvnni<P: Product, F: Format>() -> Self {
        let tile = TileKernels { unpack: unpack_avxvnni::<P, F>, tokens: tokens_avxvnni::<P> };
        Self { dot: dot_avxvnni::<P, F>, tile, rounding: P::One::ROUNDING }
    }

    fn avx512<P: Product, F: Format>() -> Self {
        let tile = TileKernels { unpack: unpack_avx512::<P, F>, tokens: tokens_avx512::<P> };
        Self { dot: dot_avx512::<P, F>, tile, rounding: P::One::ROUNDING }
    }
}

type Dot = unsafe fn(&Job, &Panels, &ActivationRows, Range<usize>, *mut Tile);

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_avx2<P: Product, F: Format>(job: &Job, panels: &Panels, acts: &ActivationRows, rows: Range<usize>, tile: *mut Tile) {
    dot::chunk::<P, F>(job, panels, acts, rows, tile)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_avx2<P: Product, F: Format>(panels: &Panels, at: Place, tile: *mut Tile) {
    tile::unpack::<P, F>(panels, at, tile)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tokens_avx2<P: Product>(job: &Job, acts: &ActivationRows, at: Place, tile: *mut Tile) {
    tile::tokens::<P>(job, acts, at, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn dot_avxvnni<P: Product, F: Format>(job: &Job, panels: &Panels, acts: &ActivationRows, rows: Range<usize>, tile: *mut Tile) {
    dot::chunk::<P, F>(job, panels, acts, rows, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn unpack_avxvnni<P: Product, F: Format>(panels: &Panels, at: Place, tile: *mut Tile) {
    tile::unpack::<P, F>(panels, at, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn tokens_avxvnni<P: Product>(job: &Job, acts: &ActivationRows, at: Place, tile: *mut Tile) {
    tile::tokens::<P>(job, acts, at, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dot_avx512<P: Product, F: Format>(job: &Job, panels: &Panels, acts: &ActivationRows, rows: Range<usize>, tile: *mut Tile) {
    dot::chunk::<P, F>(job, panels, acts, rows, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn unpack_avx512<P: Product, F: Format>(panels: &Panels, at: Place, tile: *mut Tile) {
    tile::unpack::<P, F>(panels, at, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tokens_avx512<P: Product>(job: &Job, acts: &ActivationRows, at: Place, tile: *mut Tile) {
    tile::tokens::<P>(job, acts, at, tile)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_dot<W: Floats>(job: &Job, rows: Range<usize>) {
    float::chunk::<W>(job, rows)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_tile_avx2(job: &Job, x: &Packed, first: usize, tile: *mut Tile) {
    float_tile::tile::<Eight>(job, x, first, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn float_tile_avx512(job: &Job, x: &Packed, first: usize, tile: *mut Tile) {
    float_tile::tile::<Sixteen>(job, x, first, tile)
}
