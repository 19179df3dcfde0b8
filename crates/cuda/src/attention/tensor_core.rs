//! The kernels on tensor cores that every architecture has: `kernels/attn_decode.cuh` and `kernels/attn_prefill.cuh`.

use ferrum_kernels::{DType, Result, ops::Attention};

use super::tiles::{DECODE_QUERY_ROWS, DecodeTile, MAX_CHUNKS, PrefillTile};
use crate::{
    context::Context,
    driver::{DevicePtr, Grid},
    storage::{has_packs, ptr, ptr_or_null, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AttnParams {
    q: DevicePtr,
    k_cache: DevicePtr,
    v_cache: DevicePtr,
    block_tables: DevicePtr,
    cu_seqlens: DevicePtr,
    context_lens: DevicePtr,
    sinks: DevicePtr,
    out: DevicePtr,
    partial_out: DevicePtr,
    partial_state: DevicePtr,
    tickets: DevicePtr,
    arrivals: DevicePtr,
    q_stride: i64,
    out_stride: i64,
    seqs: i32,
    kv_heads: i32,
    group: i32,
    head_dim: i32,
    max_blocks: i32,
    block_shift: i32,
    min_query_rows: i32,
    max_query_rows: i32,
    max_chunks: i32,
    window: i32,
    scale: f32,
    softcap: f32,
}

/// Whether these dtypes and this layout are the kernels'.
pub(super) fn takes(cx: &Context, op: &Attention) -> Result<bool> {
    let cache = op.k_cache.dtype();
    let [head_dim, block_tokens] = [op.q.shape()[2], op.k_cache.shape()[2]];
    let heads_follow = |t: &ferrum_kernels::Tensor| t.shape()[1] == 1 || t.strides()[1] == head_dim;
    Ok([op.q.dtype(), op.out.dtype()] == [DType::BF16; 2]
        && matches!(cache, DType::BF16 | DType::F16)
        && cache == op.v_cache.dtype()
        && block_tokens.is_power_of_two()
        && DecodeTile::of(head_dim, 1, cx.device().attributes().block_shared_bytes).is_some()
        && heads_follow(op.q)
        && heads_follow(op.out)
        && op.k_cache.is_contiguous()
        && op.v_cache.is_contiguous()
        && has_packs(&[op.q, op.out, op.k_cache, op.v_cache])?)
}

/// Attention of the sequences that have at most [`DECODE_QUERY_ROWS`] query rows; the rows of the others stay as they are.
/// [`takes`] holds.
pub(super) fn decode(cx: &Context, op: &Attention) -> Result<()> {
    let attributes = cx.device().attributes();
    let rows = op.q.shape()[1] / op.k_cache.shape()[1] * op.max_query_len.min(DECODE_QUERY_ROWS);
    let tile = DecodeTile::of(op.q.shape()[2], rows, attributes.block_shared_bytes).expect("`takes` holds");
    let params = decode_params(cx, op, tile.partial_bytes())?;
    let grid = Grid { shared_bytes: tile.shared_bytes() as u32, ..Grid::new(tile.ctas(attributes.sms as usize), DecodeTile::THREADS) };
    // SAFETY: the contract and `takes` hold, so every tensor has the size and the layout that the kernel documents; what
    // the index tensors hold is the runner's to get right. The counters are zero, and the kernel sets them back.
    unsafe {
        match op.k_cache.dtype() {
            DType::F16 => cx.launch("attn_decode_f16", tile.f16, grid, &params),
            _ => cx.launch("attn_decode_bf16", tile.bf16, grid, &params),
        }
    }
}

/// What `attn_decode.cuh` takes of an `op` that it [`takes`], with room for partial results.
pub(super) fn decode_params(cx: &Context, op: &Attention, [out_bytes, state_bytes]: [usize; 2]) -> Result<AttnParams> {
    let partial_out = cx.workspace(out_bytes + state_bytes)?;
    let tickets = cx.counters(2 + MAX_CHUNKS)?;
    let one_each = op.q.shape()[0] == op.context_lens.shape()[0] && op.max_query_len == 1;
    let params = params(op)?;
    Ok(AttnParams {
        cu_seqlens: if one_each { 0 } else { params.cu_seqlens },
        partial_out,
        partial_state: partial_out + out_bytes as DevicePtr,
        tickets,
        arrivals: tickets + 8,
        max_query_rows: DECODE_QUERY_ROWS as i32,
        ..params
    })
}

/// Attention of the sequences that have at least `min_query_rows` query rows; the rows of the others stay as they are.
/// [`takes`] holds.
pub(super) fn prefill(cx: &Context, op: &Attention, min_query_rows: usize) -> Result<()> {
    let params = AttnParams { min_query_rows: min_query_rows as i32, ..params(op)? };
    let tile = PrefillTile::of(op.q.shape()[2]).expect("`takes` holds, and every head that is decoded is prefilled");
    let blocks = tile.blocks(op.q.shape()[0], params.seqs as usize, params.group as usize);
    let grid = Grid {
        blocks: [params.kv_heads as u32, blocks as u32, 1],
        shared_bytes: tile.shared_bytes() as u32,
        ..Grid::new(1, tile.threads())
    };
    // SAFETY: the contract and `takes` hold, so every tensor has the size and the layout that the kernel documents; what
    // the index tensors hold is the runner's to get right.
    unsafe {
        match op.k_cache.dtype() {
            DType::F16 => cx.launch("attn_prefill_f16", tile.f16, grid, &params),
            _ => cx.launch("attn_prefill_bf16", tile.bf16, grid, &params),
        }
    }
}

fn params(op: &Attention) -> Result<AttnParams> {
    let [_, kv_heads, block_tokens, head_dim] = [0, 1, 2, 3].map(|axis| op.k_cache.shape()[axis]);
    Ok(AttnParams {
        q: ptr(op.q)?,
        k_cache: ptr(op.k_cache)?,
        v_cache: ptr(op.v_cache)?,
        block_tables: ptr(op.block_tables)?,
        cu_seqlens: ptr(op.cu_seqlens)?,
        context_lens: ptr(op.context_lens)?,
        sinks: ptr_or_null(op.sinks)?,
        out: ptr(op.out)?,
        partial_out: 0,
        partial_state: 0,
        tickets: 0,
        arrivals: 0,
        q_stride: stride(op.q, 0),
        out_stride: stride(op.out, 0),
        seqs: op.context_lens.shape()[0] as i32,
        kv_heads: kv_heads as i32,
        group: (op.q.shape()[1] / kv_heads) as i32,
        head_dim: head_dim as i32,
        max_blocks: stride(op.block_tables, 0) as i32,
        block_shift: block_tokens.ilog2() as i32,
        min_query_rows: 1,
        max_query_rows: i32::MAX,
        max_chunks: MAX_CHUNKS as i32,
        window: op.window.map_or(0, |w| w.min(i32::MAX as usize) as i32),
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
    })
}
