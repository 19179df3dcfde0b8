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
    let (held, grid) = tiles(op.x.shape()[0] * heads, cols * dtype.block_bytes(), cx.device().attributes().sms as usize);
    let kernel = match held {
        1 => by_float!(dtype, "rms_norm_x1"),
        2 => by_float!(dtype, "rms_norm_x2"),
        _ => by_float!(dtype, "rms_norm_x4"),
    };
    // SAFETY: the contract holds, so x, weight and out have the sizes that the kernel documents.
    unsafe { cx.launch("rms_norm", kernel, grid, &params) }
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
    let (held, grid) = tiles(op.x.shape()[0], cols * dtype.block_bytes(), cx.device().attributes().sms as usize);
    let kernel = match held {
        1 => by_float!(dtype, "add_rms_norm_x1"),
        2 => by_float!(dtype, "add_rms_norm_x2"),
        _ => by_float!(dtype, "add_rms_norm_x4"),
    };
    // SAFETY: the contract holds, so all four have the sizes that the kernel documents.
    unsafe { cx.launch("rms_norm", kernel, grid, &params) }
}

/// The launch bound of the kernels.
const MAX_THREADS: usize = 512;

/// Packs of 16 bytes that a thread holds, and one block per row. Few rows get all the threads they can use.
fn tiles(rows: usize, row_bytes: usize, sms: usize) -> (usize, Grid) {
    let packs = row_bytes.div_ceil(16).max(1);
    let fits = |held: &usize| packs.div_ceil(*held) <= MAX_THREADS;
    let held = if rows > 2 * sms { 4 } else { [1, 2].into_iter().find(fits).unwrap_or(4) };
    (held, Grid::new(rows, packs.div_ceil(held).next_multiple_of(32).min(MAX_THREADS) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_get_many_threads_and_many_rows_few() {
        let threads = |rows: usize, cols: usize| {
            let (held, grid) = tiles(rows, 2 * cols, 132);
            (held, grid.threads)
        };
        assert_eq!(
            [1, 576, 4096, 8192, 16_384, 100_000].map(|cols| threads(1, cols)),
            [(1, 32), (1, 96), (1, 512), (2, 512), (4, 512), (4, 512)]
        );
        assert_eq!([128, 576, 4096, 16_384].map(|cols| threads(8192, cols)), [(4, 32), (4, 32), (4, 128), (4, 512)]);
    }
}
