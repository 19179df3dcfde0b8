//! `act_mul`: `kernels/act_mul.cu`.

use ferrum_kernels::{
    Result,
    ops::{ActMul, Activation},
};

use super::rows_grid;
use crate::{
    context::{Context, by_float, same_float},
    driver::DevicePtr,
    storage::{has_packs, ptr, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct ActMulParams {
    gate_up: DevicePtr,
    out: DevicePtr,
    gate_up_stride: i64,
    out_stride: i64,
    inner: i32,
    gelu: i32,
    packs: i32,
}

pub(crate) fn act_mul(cx: &Context, op: &ActMul) -> Result<()> {
    op.check()?;
    let dtype = same_float("act_mul", [op.gate_up.dtype(), op.out.dtype()])?;
    let [tokens, inner] = [op.out.shape()[0], op.out.shape()[1]];
    // Rows of `out` are whole packs only if the halves of `gate_up` are.
    let packs = has_packs(&[op.gate_up, op.out])?;
    let params = ActMulParams {
        gate_up: ptr(op.gate_up)?,
        out: ptr(op.out)?,
        gate_up_stride: stride(op.gate_up, 0),
        out_stride: stride(op.out, 0),
        inner: inner as i32,
        gelu: (op.activation == Activation::GeluTanh).into(),
        packs: packs.into(),
    };
    let items = if packs { inner * dtype.block_bytes() / 16 } else { inner };
    // SAFETY: the contract holds, so both have the sizes that the kernel documents.
    unsafe { cx.launch("act_mul", by_float!(dtype, "act_mul"), rows_grid(items, tokens), &params) }
}
