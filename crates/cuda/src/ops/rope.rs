//! `rope`: `kernels/rope.cu`.

use ferrum_kernels::{
    Result,
    ops::{Rope, RopeLayout},
};

use super::rows_grid;
use crate::{
    context::{Context, by_float},
    driver::DevicePtr,
    storage::{ptr, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeParams {
    x: DevicePtr,
    positions: DevicePtr,
    inv_freq: DevicePtr,
    token_stride: i64,
    head_stride: i64,
    heads: i32,
    pairs: i32,
    interleaved: i32,
    scale: f32,
}

pub(crate) fn rope(cx: &Context, op: &Rope) -> Result<()> {
    op.check()?;
    let [tokens, heads, pairs] = [op.x.shape()[0], op.x.shape()[1], op.inv_freq.shape()[0]];
    if pairs == 0 {
        return Ok(());
    }
    let params = RopeParams {
        x: ptr(op.x)?,
        positions: ptr(op.positions)?,
        inv_freq: ptr(op.inv_freq)?,
        token_stride: stride(op.x, 0),
        head_stride: stride(op.x, 1),
        heads: heads as i32,
        pairs: pairs as i32,
        interleaved: (op.layout == RopeLayout::Pairs).into(),
        scale: op.scale,
    };
    // SAFETY: the contract holds, so all three have the sizes that the kernel documents.
    unsafe { cx.launch("rope", by_float!(op.x.dtype(), "rope"), rows_grid(heads * pairs, tokens), &params) }
}
