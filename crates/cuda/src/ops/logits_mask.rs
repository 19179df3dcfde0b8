//! `logits_mask`: `kernels/logits_mask.cu`.

use ferrum_kernels::{Result, ops::LogitsMask};

use super::MAX_GRID_YZ;
use crate::{
    context::{Context, unsupported},
    driver::{DevicePtr, Grid},
    storage::{ptr, ptr_or_null, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct LogitsMaskParams {
    logits: DevicePtr,
    rows: DevicePtr,
    biases: DevicePtr,
    masks: DevicePtr,
    logits_stride: i64,
    masks_stride: i64,
    vocab: i32,
    masks_rows: i32,
    entries: u32,
    slice: i32,
}

/// `THREADS` of the kernel.
const THREADS: u32 = 256;
/// Logits of a block: 32 for each thread.
const SLICE: usize = 8192;

pub(crate) fn logits_mask(cx: &Context, op: &LogitsMask) -> Result<()> {
    op.check()?;
    let [seqs, vocab] = [op.logits.shape()[0], op.logits.shape()[1]];
    if seqs == 0 || vocab == 0 {
        return Ok(());
    }
    if seqs > MAX_GRID_YZ {
        return Err(unsupported("logits_mask", format!("{seqs} rows")));
    }
    let params = LogitsMaskParams {
        logits: ptr(op.logits)?,
        rows: ptr(op.rows)?,
        biases: ptr_or_null(op.biases)?,
        masks: ptr_or_null(op.masks)?,
        logits_stride: stride(op.logits, 0),
        masks_stride: op.masks.map_or(0, |m| stride(m, 0)),
        vocab: vocab as i32,
        masks_rows: op.masks.map_or(0, |m| m.shape()[0] as i32),
        entries: op.biases.map_or(0, |b| b.shape()[0] as u32),
        slice: SLICE as i32,
    };
    let grid = Grid { blocks: [vocab.div_ceil(SLICE) as u32, seqs as u32, 1], ..Grid::new(1, THREADS) };
    // SAFETY: the contract holds, so all four have the sizes that the kernel documents.
    unsafe { cx.launch("logits_mask", "logits_mask", grid, &params) }
}
