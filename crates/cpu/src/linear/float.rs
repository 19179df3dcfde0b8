//! `linear` in F32: a few rows are dequantised at a time and multiplied with every token.
//!
//! A chunk of rows belongs to one worker; it dequantises [`ROWS`] rows into memory that stays in its L1 or L2 and
//! forms `ROWS × 2` dot products at once from them, each summed in eight lanes.

use std::ops::Range;

use ferrum_kernels::quant;

use super::Job;
use crate::{features::Simd, pool::Pool};

/// Rows dequantised together.
pub(super) const ROWS: usize = 4;

/// `tiles`: per worker, memory for `ROWS` rows of F32.
pub(super) fn run(simd: Simd, pool: &Pool, tiles: &mut [Vec<f32>], job: &Job) {
    let tiles: Vec<Tile> = tiles.iter_mut().map(|t| Tile(t.as_mut_ptr())).collect();
    let rows_per_chunk = job.part.rows.div_ceil(8 * pool.workers()).next_multiple_of(ROWS);
    pool.chunks(job.part.rows, rows_per_chunk, &|worker, rows| {
        // SAFETY: `Scratch::reserve` made every tile this long, and only this worker uses its own.
        let tile = unsafe { std::slice::from_raw_parts_mut(tiles[worker].0, ROWS * job.cols) };
        match simd {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `CpuBackend::new` checked that the processor has the level, which includes AVX2 and FMA.
            Simd::Avx2 | Simd::AvxVnni | Simd::Avx512 => unsafe { chunk_avx2(job, rows, tile) },
            _ => chunk::<false>(job, rows, tile),
        }
    });
}

struct Tile(*mut f32);
// SAFETY: each worker turns only its own tile into a slice.
unsafe impl Sync for Tile {}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn chunk_avx2(job: &Job, rows: Range<usize>, tile: &mut [f32]) {
    chunk::<true>(job, rows, tile);
}

#[inline(always)]
fn chunk<const FMA: bool>(job: &Job, rows: Range<usize>, tile: &mut [f32]) {
    let (cols, part) = (job.cols, job.part);
    for first in rows.clone().step_by(ROWS) {
        let count = ROWS.min(rows.end - first);
        let packed = &part.data.as_slice()[first * part.row_bytes..][..count * part.row_bytes];
        quant::dequantize(part.dtype, packed, &mut tile[..count * cols]).expect("prepare checked dtype and row length");
        // Rows past the end repeat the last one, and their results are dropped.
        let weights: [&[f32]; ROWS] = std::array::from_fn(|r| &tile[r.min(count - 1) * cols..][..cols]);
        let tokens = job.x.shape[0];
        for token in (0..tokens).step_by(2) {
            let pair = [token, (token + 1).min(tokens - 1)];
            // SAFETY: both are below the token count; inputs are not written during this operation.
            let sums = dots::<FMA>(weights, pair.map(|t| unsafe { job.x.row([t, 0]) }));
            for (t, sums) in pair.into_iter().zip(sums) {
                for (r, sum) in sums.into_iter().enumerate().take(count) {
                    // SAFETY: in bounds by the contract; rows are disjoint between chunks.
                    unsafe { *job.out.at([t, part.first_row + first + r]) = sum + job.bias(first + r) };
                }
            }
        }
    }
}

/// The dot products of two vectors with `ROWS` rows, all of one length.
#[inline(always)]
fn dots<const FMA: bool>(w: [&[f32]; ROWS], x: [&[f32]; 2]) -> [[f32; ROWS]; 2] {
    const LANES: usize = 8;
    let len = x[0].len();
    let whole = len - len % LANES;
    let mut acc = [[[0f32; LANES]; ROWS]; 2];
    for k in (0..whole).step_by(LANES) {
        for t in 0..2 {
            let xs: &[f32; LANES] = x[t][k..k + LANES].try_into().expect("LANES long");
            for r in 0..ROWS {
                let ws: &[f32; LANES] = w[r][k..k + LANES].try_into().expect("LANES long");
                for l in 0..LANES {
                    acc[t][r][l] = if FMA { ws[l].mul_add(xs[l], acc[t][r][l]) } else { acc[t][r][l] + ws[l] * xs[l] };
                }
            }
        }
    }
    let mut sums = [[0.0; ROWS]; 2];
    for t in 0..2 {
        for r in 0..ROWS {
            let a = acc[t][r];
            let body = ((a[0] + a[4]) + (a[1] + a[5])) + ((a[2] + a[6]) + (a[3] + a[7]));
            sums[t][r] = (whole..len).fold(body, |sum, k| sum + w[r][k] * x[t][k]);
        }
    }
    sums
}
