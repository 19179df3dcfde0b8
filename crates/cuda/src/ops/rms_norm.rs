//! `rms_norm` and `add_rms_norm`: `kernels/rms_norm.cu`.

use ferrum_kernels::{
    Result, Tensor,
    ops::{AddRmsNorm, RmsNorm},
};

use crate::{
    context::{Context, by_float, same_float},
    driver::{DevicePtr, Grid},
    storage::{has_packs, ptr, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct RmsNormParams {
    x: DevicePtr,
    residual: DevicePtr,
    weight: DevicePtr,
    out: DevicePtr,
    x_stride: i64,
    x_head_stride: i64,
    residual_stride: i64,
    out_stride: i64,
    out_head_stride: i64,
    heads: i32,
    cols: i32,
    eps: f32,
    packs: i32,
}

pub(crate) fn rms_norm(cx: &Context, op: &RmsNorm) -> Result<()> {
    op.check()?;
    let dtype = same_float("rms_norm", [op.x.dtype(), op.out.dtype()])?;
    let heads = if op.x.shape().len() == 3 { op.x.shape()[1] } else { 1 };
    let head_stride = |t: &Tensor| if t.shape().len() == 3 { stride(t, 1) } else { 0 };
    let cols = op.weight.shape()[0];
    let params = RmsNormParams {
        x: ptr(op.x)?,
        residual: 0,
        weight: ptr(op.weight)?,
        out: ptr(op.out)?,
        x_stride: stride(op.x, 0),
        x_head_stride: head_stride(op.x),
        residual_stride: 0,
        out_stride: stride(op.out, 0),
        out_head_stride: head_stride(op.out),
        heads: heads as i32,
        cols: cols as i32,
        eps: op.eps,
        packs: has_packs(&[op.x, op.out, op.weight])?.into(),
    };
    let grid = grid(op.x.shape()[0] * heads, cols, dtype.block_bytes());
    // SAFETY: the contract holds, so x, weight and out have the sizes that the kernel documents.
    unsafe { cx.launch("rms_norm", by_float!(dtype, "rms_norm"), grid, &params) }
}

pub(crate) fn add_rms_norm(cx: &Context, op: &AddRmsNorm) -> Result<()> {
    op.check()?;
    let dtype = same_float("add_rms_norm", [op.x.dtype(), op.residual.dtype(), op.out.dtype()])?;
    let cols = op.weight.shape()[0];
    let params = RmsNormParams {
        x: ptr(op.x)?,
        residual: ptr(op.residual)?,
        weight: ptr(op.weight)?,
        out: ptr(op.out)?,
        x_stride: stride(op.x, 0),
        x_head_stride: 0,
        residual_stride: stride(op.residual, 0),
        out_stride: stride(op.out, 0),
        out_head_stride: 0,
        heads: 1,
        cols: cols as i32,
        eps: op.eps,
        packs: has_packs(&[op.x, op.residual, op.out, op.weight])?.into(),
    };
    // SAFETY: the contract holds, so all four have the sizes that the kernel documents.
    unsafe { cx.launch("rms_norm", by_float!(dtype, "add_rms_norm"), grid(op.x.shape()[0], cols, dtype.block_bytes()), &params) }
}

/// One block per row: as few threads as hold the row in one pack each, up to 1024.
fn grid(rows: usize, cols: usize, element_bytes: usize) -> Grid {
    let packs = (cols * element_bytes).div_ceil(16);
    Grid::new(rows, packs.next_multiple_of(32).clamp(32, 1024) as u32)
}
