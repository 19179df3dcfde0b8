//! The kernel for what no faster one takes: `kernels/attention_naive.cu`.

use ferrum_kernels::{DType, Result, ops::Attention};

use crate::{
    context::{Context, by_float, same_float, unsupported},
    driver::{DevicePtr, Grid},
    storage::{ptr, ptr_or_null, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionNaiveParams {
    q: DevicePtr,
    k_cache: DevicePtr,
    v_cache: DevicePtr,
    block_tables: DevicePtr,
    cu_seqlens: DevicePtr,
    context_lens: DevicePtr,
    sinks: DevicePtr,
    out: DevicePtr,
    q_stride: i64,
    q_head_stride: i64,
    out_stride: i64,
    out_head_stride: i64,
    seqs: i32,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    block_tokens: i32,
    max_blocks: i32,
    window: i32,
    scale: f32,
    softcap: f32,
}

/// Elements of the head that one thread may hold: `MAX_PER_THREAD` of the kernel.
const PER_THREAD: usize = 8;

pub(super) fn run(cx: &Context, op: &Attention) -> Result<()> {
    let from = same_float("attention", [op.q.dtype(), op.out.dtype()])?;
    let cache = same_float("attention", [op.k_cache.dtype(), op.v_cache.dtype()])?;
    let kernel = match from {
        DType::F32 => by_float!(cache, "attention_naive_f32"),
        DType::F16 => by_float!(cache, "attention_naive_f16"),
        _ => by_float!(cache, "attention_naive_bf16"),
    };
    let [tokens, heads, head_dim] = [0, 1, 2].map(|axis| op.q.shape()[axis]);
    let threads = head_dim.next_multiple_of(32).min(256);
    if head_dim > threads * PER_THREAD {
        return Err(unsupported("attention", format!("heads of {head_dim} elements")));
    }
    let params = AttentionNaiveParams {
        q: ptr(op.q)?,
        k_cache: ptr(op.k_cache)?,
        v_cache: ptr(op.v_cache)?,
        block_tables: ptr(op.block_tables)?,
        cu_seqlens: ptr(op.cu_seqlens)?,
        context_lens: ptr(op.context_lens)?,
        sinks: ptr_or_null(op.sinks)?,
        out: ptr(op.out)?,
        q_stride: stride(op.q, 0),
        q_head_stride: stride(op.q, 1),
        out_stride: stride(op.out, 0),
        out_head_stride: stride(op.out, 1),
        seqs: op.context_lens.shape()[0] as i32,
        heads: heads as i32,
        kv_heads: op.k_cache.shape()[1] as i32,
        head_dim: head_dim as i32,
        block_tokens: op.k_cache.shape()[2] as i32,
        max_blocks: stride(op.block_tables, 0) as i32,
        window: op.window.map_or(0, |w| w.min(i32::MAX as usize) as i32),
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
    };
    let grid = Grid { blocks: [tokens as u32, heads as u32, 1], ..Grid::new(1, threads as u32) };
    // SAFETY: the contract holds, so every tensor has the size that the kernel documents; what the index tensors hold is
    // the runner's to get right.
    unsafe { cx.launch("attention_naive", kernel, grid, &params) }
}
