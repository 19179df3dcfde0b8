//! `kv_write`: `kernels/copy.cu`.

use ferrum_kernels::{DType, Result, ops::KvWrite};

use super::rows_grid;
use crate::{
    context::{Context, by_float, same_float},
    driver::DevicePtr,
    storage::{ptr, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct KvWriteParams {
    k: DevicePtr,
    v: DevicePtr,
    slots: DevicePtr,
    k_cache: DevicePtr,
    v_cache: DevicePtr,
    k_stride: i64,
    k_head_stride: i64,
    v_stride: i64,
    v_head_stride: i64,
    kv_heads: i32,
    head_dim: i32,
    blocks: i32,
    block_tokens: i32,
}

pub(crate) fn kv_write(cx: &Context, op: &KvWrite) -> Result<()> {
    op.check()?;
    let from = same_float("kv_write", [op.k.dtype(), op.v.dtype()])?;
    let to = same_float("kv_write", [op.k_cache.dtype(), op.v_cache.dtype()])?;
    let kernel = match from {
        DType::F32 => by_float!(to, "kv_write_f32"),
        DType::F16 => by_float!(to, "kv_write_f16"),
        _ => by_float!(to, "kv_write_bf16"),
    };
    let [blocks, kv_heads, block_tokens, head_dim] = [0, 1, 2, 3].map(|axis| op.k_cache.shape()[axis]);
    let params = KvWriteParams {
        k: ptr(op.k)?,
        v: ptr(op.v)?,
        slots: ptr(op.slots)?,
        k_cache: ptr(op.k_cache)?,
        v_cache: ptr(op.v_cache)?,
        k_stride: stride(op.k, 0),
        k_head_stride: stride(op.k, 1),
        v_stride: stride(op.v, 0),
        v_head_stride: stride(op.v, 1),
        kv_heads: kv_heads as i32,
        head_dim: head_dim as i32,
        blocks: blocks as i32,
        block_tokens: block_tokens as i32,
    };
    // SAFETY: the contract holds, so all five have the sizes that the kernel documents.
    unsafe { cx.launch("copy", kernel, rows_grid(kv_heads * head_dim, op.slots.shape()[0]), &params) }
}
