//! Integer kernels for x86-64: packed weights times 8-bit activations.
//!
//! # Safety
//! Every unsafe function in this folder is a piece of a kernel. It needs the instruction set of the kernel it is inlined
//! into, and pointers to whole blocks, vectors or rows as its documentation says; [`run`] establishes both. A block of its
//! own around every body would say no more than that. Loops run over axes of register arrays, by index.
#![allow(unsafe_op_in_unsafe_fn, clippy::needless_range_loop)]

mod dot;
mod formats;
mod isa;
mod lanes;
mod tile;

use std::ops::Range;

use ferrum_kernels::DType;

use self::{
    formats::{Format, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0},
    isa::{Avx2, Avx512, AvxVnni},
    lanes::{Eight, EightVnni, Sixteen},
    tile::tile_rows,
};
use super::{Job, activations::ActivationRows};
use crate::{features::Simd, pool::Pool};

pub(super) use self::tile::Tile;

/// From this many tokens on, unpacking a tile costs less than unpacking rows for every four tokens.
const TILED_TOKENS: usize = 9;

/// Computes one packed part for all tokens. `acts` holds the quantised `job.x`; `tiles` has one tile per worker.
pub(super) fn run(simd: Simd, pool: &Pool, tiles: &mut [Tile], acts: &ActivationRows, job: &Job) {
    let kernels = Kernels::of(simd, job.part.dtype);
    let rows = job.part.rows;
    if job.x.shape[0] < TILED_TOKENS {
        // Small enough to share out evenly, large enough to stream.
        let chunk = rows.div_ceil(8 * pool.workers()).max(16 * 1024 / job.part.row_bytes.max(1)).next_multiple_of(4);
        // SAFETY: `Kernels::of` took kernels of this dtype and of a level that `CpuBackend::new` found on this processor;
        // chunks are disjoint ranges of the rows of the part.
        pool.chunks(rows, chunk, &|_, rows| unsafe { (kernels.dot)(job, acts, rows) });
    } else {
        let tiles = Tiles(tiles.as_mut_ptr());
        // SAFETY: as above; each worker has its own tile.
        pool.chunks(rows.div_ceil(kernels.tile_rows), 1, &|worker, range| unsafe {
            (kernels.tile)(job, acts, range, &mut *tiles.of(worker));
        });
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
    dot: unsafe fn(&Job, &ActivationRows, Range<usize>),
    tile: unsafe fn(&Job, &ActivationRows, Range<usize>, &mut Tile),
    tile_rows: usize,
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
            Simd::Avx2 => Self { dot: dot_avx2::<F>, tile: tile_avx2::<F>, tile_rows: tile_rows::<Eight>() },
            Simd::AvxVnni => Self { dot: dot_avxvnni::<F>, tile: tile_avxvnni::<F>, tile_rows: tile_rows::<EightVnni>() },
            Simd::Avx512 => Self { dot: dot_avx512::<F>, tile: tile_avx512::<F>, tile_rows: tile_rows::<Sixteen>() },
            Simd::Portable => unreachable!("`has_int8` keeps this level in F32"),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_avx2<F: Format>(job: &Job, acts: &ActivationRows, rows: Range<usize>) {
    dot::chunk::<Avx2, F>(job, acts, rows)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn dot_avxvnni<F: Format>(job: &Job, acts: &ActivationRows, rows: Range<usize>) {
    dot::chunk::<AvxVnni, F>(job, acts, rows)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dot_avx512<F: Format>(job: &Job, acts: &ActivationRows, rows: Range<usize>) {
    dot::chunk::<Avx512, F>(job, acts, rows)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_avx2<F: Format>(job: &Job, acts: &ActivationRows, tiles: Range<usize>, tile: &mut Tile) {
    tile::chunk::<Avx2, Eight, F>(job, acts, tiles, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn tile_avxvnni<F: Format>(job: &Job, acts: &ActivationRows, tiles: Range<usize>, tile: &mut Tile) {
    tile::chunk::<AvxVnni, EightVnni, F>(job, acts, tiles, tile)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile_avx512<F: Format>(job: &Job, acts: &ActivationRows, tiles: Range<usize>, tile: &mut Tile) {
    tile::chunk::<Avx512, Sixteen, F>(job, acts, tiles, tile)
}
