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

/// The launch bound of the kernels.
const MAX_THREADS: usize = 512;

/// One block per row, with as many threads as share its packs evenly.
fn grid(rows: usize, cols: usize, element_bytes: usize) -> Grid {
    let packs = (cols * element_bytes).div_ceil(16);
    let per_thread = packs.div_ceil(MAX_THREADS).max(1);
    Grid::new(rows, packs.div_ceil(per_thread).next_multiple_of(32).max(32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_a_row_evenly() {
        assert_eq!([1, 576, 4096, 5120, 8192, 16_384].map(|cols| grid(3, cols, 2).threads), [32, 96, 512, 320, 512, 512]);
        assert_eq!(grid(3, 1 << 20, 4).threads, 512);
    }
}
