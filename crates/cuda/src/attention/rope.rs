//! `rope_attention` of sequences that are decoded: `RopeAttnParams` of `kernels/attn_decode.cuh`.

use ferrum_kernels::{DType, Result, Tensor, ops::RopeAttention};

use super::{
    tensor_core::{self, AttnParams},
    tiles::{DecodeTile, RawShape},
};
use crate::{
    context::Context,
    driver::Grid,
    ops::{HeadChange, in_packs},
    storage::has_packs,
};

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeAttnParams {
    attention: AttnParams,
    heads: HeadChange,
}

/// The instance that does all of `op`, whose contract holds; `q` is its queries. `None`: its parts are to be issued.
fn tile(cx: &Context, op: &RopeAttention, q: &Tensor) -> Result<Option<&'static DecodeTile>> {
    let [heads, head_dim] = [1, 2].map(|axis| q.shape()[axis]);
    let group = heads / op.heads.k_cache.shape()[1];
    let shape = RawShape { head_dim, group, seqs: op.context_lens.shape()[0], tokens: op.max_query_len };
    let takes = q.shape()[0] > 0
        && shape.seqs > 0
        && op.heads.qkv.strides()[1] == head_dim
        && in_packs(&op.heads)?
        && op.heads.qk_norm.map_or(Ok(true), |n| has_packs(&[n.q, n.k]))?
        && tensor_core::takes(cx, &op.attention(q))?;
    let shared_bytes = cx.device().attributes().block_shared_bytes;
    let beside = |threads, registers, bytes| cx.runs_beside_last(threads, registers, bytes);
    Ok(if takes { DecodeTile::of_raw(&shape, shared_bytes, beside) } else { None })
}

/// Queues `op` as one kernel, where there is one for it; else says so. The contract holds.
pub(crate) fn rope_attention(cx: &Context, op: &RopeAttention) -> Result<bool> {
    let [q, ..] = op.heads.split();
    let Some(tile) = tile(cx, op, &q)? else { return Ok(false) };
    let ctas = tile.ctas(cx.device().attributes().sms as usize);
    let attention = tensor_core::decode_params(cx, &op.attention(&q), tile.partial_bytes())?;
    let params = RopeAttnParams { attention, heads: HeadChange::of(&op.heads)? };
    let grid = Grid { shared_bytes: tile.shared_bytes() as u32, ..Grid::new(ctas, DecodeTile::THREADS) };
    // SAFETY: the contract and `tile` hold, so every tensor has the size and the layout that the kernel documents; what the
    // index tensors hold is the runner's to get right. The counters are zero, and the kernel sets them back.
    unsafe {
        match op.heads.k_cache.dtype() {
            DType::F16 => cx.launch("rope_attn_decode_f16", tile.f16, grid, &params)?,
            _ => cx.launch("rope_attn_decode_bf16", tile.bf16, grid, &params)?,
        }
    }
    Ok(true)
}
