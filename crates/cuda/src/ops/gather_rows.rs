//! `gather_rows`: `kernels/copy.cu`.

use ferrum_kernels::{Result, ops::GatherRows};

use super::rows_grid;
use crate::{
    context::{Context, by_float, same_float},
    driver::DevicePtr,
    storage::{has_packs, ptr, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct GatherRowsParams {
    x: DevicePtr,
    rows: DevicePtr,
    out: DevicePtr,
    x_stride: i64,
    out_stride: i64,
    tokens: i32,
    cols: i32,
    packs: i32,
}

pub(crate) fn gather_rows(cx: &Context, op: &GatherRows) -> Result<()> {
    op.check()?;
    let dtype = same_float("gather_rows", [op.x.dtype(), op.out.dtype()])?;
    let [picked, cols] = [op.out.shape()[0], op.out.shape()[1]];
    let packs = has_packs(&[op.x, op.out])?;
    let params = GatherRowsParams {
        x: ptr(op.x)?,
        rows: ptr(op.rows)?,
        out: ptr(op.out)?,
        x_stride: stride(op.x, 0),
        out_stride: stride(op.out, 0),
        tokens: op.x.shape()[0] as i32,
        cols: cols as i32,
        packs: packs.into(),
    };
    let items = if packs { cols * dtype.block_bytes() / 16 } else { cols };
    // SAFETY: the contract holds, so all three have the sizes that the kernel documents.
    unsafe { cx.launch("copy", by_float!(dtype, "gather_rows"), rows_grid(items, picked), &params) }
}
