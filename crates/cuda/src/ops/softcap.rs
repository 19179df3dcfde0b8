//! `softcap`: `kernels/act_mul.cu`.

use ferrum_kernels::{Result, ops::Softcap};

use super::rows_grid;
use crate::{
    context::{Context, by_float},
    driver::DevicePtr,
    storage::{ptr, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct SoftcapParams {
    x: DevicePtr,
    stride: i64,
    width: i32,
    cap: f32,
}

pub(crate) fn softcap(cx: &Context, op: &Softcap) -> Result<()> {
    op.check()?;
    let [tokens, width] = [op.x.shape()[0], op.x.shape()[1]];
    let params = SoftcapParams { x: ptr(op.x)?, stride: stride(op.x, 0), width: width as i32, cap: op.cap };
    // SAFETY: the contract holds, so x has the size that the kernel documents.
    unsafe { cx.launch("act_mul", by_float!(op.x.dtype(), "softcap"), rows_grid(width, tokens), &params) }
}
