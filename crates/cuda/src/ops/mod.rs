//! Launchers of the small operations: contract, tiles, parameters.

mod act_mul;
mod gather_rows;
mod kv_write;
mod logits_mask;
mod rms_norm;
mod rope;
mod rope_kv_write;
mod sample;
mod softcap;

pub(crate) use act_mul::act_mul;
pub(crate) use gather_rows::gather_rows;
pub(crate) use kv_write::kv_write;
pub(crate) use logits_mask::logits_mask;
pub(crate) use rms_norm::{add_rms_norm, rms_norm};
pub(crate) use rope::rope;
pub(crate) use rope_kv_write::{HeadChange, fuses_rope_kv_write, in_packs, rope_kv_write};
pub(crate) use sample::sample;
pub(crate) use softcap::softcap;

use crate::driver::Grid;

const THREADS: usize = 256;
/// The most blocks along y or z.
const MAX_GRID_YZ: usize = 65_535;

/// Blocks of up to 256 threads along x that cover `items` of each of `rows` rows along y.
fn rows_grid(items: usize, rows: usize) -> Grid {
    let threads = items.next_multiple_of(32).clamp(32, THREADS);
    debug_assert!(rows <= MAX_GRID_YZ);
    Grid { blocks: [items.div_ceil(threads) as u32, rows as u32, 1], ..Grid::new(1, threads as u32) }
}
