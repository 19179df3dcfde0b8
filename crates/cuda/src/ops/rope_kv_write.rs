//! `rope_kv_write`: `kernels/rope_kv_write.cu`.

use ferrum_kernels::{
    DType, Result,
    ops::{RopeKvWrite, RopeLayout, Rotation},
};

use crate::{
    context::Context,
    driver::{DevicePtr, Grid},
    storage::{has_packs, ptr, ptr_or_null, stride},
};

/// Of `kernels/rotary.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HeadChange {
    q_weight: DevicePtr,
    k_weight: DevicePtr,
    inv_freq: DevicePtr,
    positions: DevicePtr,
    head_dim: i32,
    pairs: i32,
    interleaved: i32,
    eps: f32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeKvWriteParams {
    qkv: DevicePtr,
    change: HeadChange,
    slots: DevicePtr,
    k_cache: DevicePtr,
    v_cache: DevicePtr,
    token_stride: i64,
    head_stride: i64,
    heads: i32,
    kv_heads: i32,
    blocks: i32,
    block_shift: i32,
}

const THREADS: usize = 128;
/// Elements of a head that one thread owns.
const PACK: usize = 8;
/// The longest head: `ANY_HEAD_DIM` of the kernel.
const MAX_HEAD_DIM: usize = 512;
/// Blocks enough to fill a device; with more, it is better that each walks more heads.
const ENOUGH_BLOCKS: usize = 768;

/// Blocks that share the heads of one token, of which `most` have work.
fn blocks_per_token(tokens: usize, most: usize) -> usize {
    (ENOUGH_BLOCKS / tokens.max(1)).clamp(1, most)
}

/// `rope_kv_write_f32_xN`, `…_f16_xN` or `…_bf16_xN`.
macro_rules! by_lanes {
    ($dtype:expr, $lanes:literal) => {
        match $dtype {
            DType::F32 => concat!("rope_kv_write_f32", $lanes),
            DType::F16 => concat!("rope_kv_write_f16", $lanes),
            _ => concat!("rope_kv_write_bf16", $lanes),
        }
    };
}

/// Whether the fused kernels take this; the parts take everything.
pub(crate) fn fuses_rope_kv_write(op: &RopeKvWrite) -> bool {
    let [block_tokens, head_dim] = [2, 3].map(|axis| op.k_cache.shape()[axis]);
    op.qkv.dtype() == DType::BF16
        && op.k_cache.dtype() == op.v_cache.dtype()
        && head_dim <= MAX_HEAD_DIM
        && block_tokens.is_power_of_two()
        && op.k_cache.is_contiguous()
        && op.v_cache.is_contiguous()
}

impl HeadChange {
    pub fn of(op: &RopeKvWrite) -> Result<Self> {
        Ok(Self {
            q_weight: ptr_or_null(op.qk_norm.map(|n| n.q))?,
            k_weight: ptr_or_null(op.qk_norm.map(|n| n.k))?,
            inv_freq: ptr_or_null(op.rotation.map(|r| r.inv_freq))?,
            positions: ptr(op.positions)?,
            head_dim: op.qkv.shape()[2] as i32,
            pairs: op.rotation.map_or(0, |r| r.inv_freq.shape()[0]) as i32,
            interleaved: op.rotation.is_some_and(|r| r.layout == RopeLayout::Pairs).into(),
            eps: op.qk_norm.map_or(0.0, |n| n.eps),
            scale: op.rotation.map_or(1.0, |r| r.scale),
        })
    }
}

/// Whether threads can own 16 bytes of a head each, and of its rotated half: `HeadPart` of the kernel.
pub(crate) fn in_packs(op: &RopeKvWrite) -> Result<bool> {
    let whole = |r: Rotation| r.layout == RopeLayout::Pairs || r.inv_freq.shape()[0].is_multiple_of(PACK);
    Ok(op.qkv.shape()[2] <= 32 * PACK && op.rotation.is_none_or(whole) && has_packs(&[op.qkv, op.k_cache, op.v_cache])?)
}

/// [`fuses_rope_kv_write`] and the contract hold.
pub(crate) fn rope_kv_write(cx: &Context, op: &RopeKvWrite) -> Result<()> {
    let [tokens, all_heads, head_dim] = [0, 1, 2].map(|axis| op.qkv.shape()[axis]);
    let [cache_blocks, kv_heads, block_tokens] = [0, 1, 2].map(|axis| op.k_cache.shape()[axis]);
    let params = RopeKvWriteParams {
        qkv: ptr(op.qkv)?,
        change: HeadChange::of(op)?,
        slots: ptr(op.slots)?,
        k_cache: ptr(op.k_cache)?,
        v_cache: ptr(op.v_cache)?,
        token_stride: stride(op.qkv, 0),
        head_stride: stride(op.qkv, 1),
        heads: op.heads as i32,
        kv_heads: kv_heads as i32,
        blocks: cache_blocks as i32,
        block_shift: block_tokens.ilog2() as i32,
    };
    let (cache, packs) = (op.k_cache.dtype(), in_packs(op)?);
    let (lanes, kernel) = match head_dim {
        _ if !packs => (32, by_lanes!(cache, "_any")),
        0..=64 => (8, by_lanes!(cache, "_x8")),
        65..=128 => (16, by_lanes!(cache, "_x16")),
        _ => (32, by_lanes!(cache, "_x32")),
    };
    let whole_token = all_heads.div_ceil(THREADS / lanes);
    let blocks = if packs { blocks_per_token(tokens, whole_token) } else { whole_token };
    let grid = Grid { blocks: [tokens as u32, blocks as u32, 1], ..Grid::new(1, THREADS as u32) };
    // SAFETY: the contract and `fuses_rope_kv_write` hold, so every tensor has the size and the layout that the kernel
    // documents; slots outside of the cache are skipped.
    unsafe { cx.launch("rope_kv_write", kernel, grid, &params) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tokens_spread_their_heads_over_blocks() {
        assert_eq!([1, 16, 256, 2048].map(|tokens| blocks_per_token(tokens, 6)), [6, 6, 3, 1]);
        assert_eq!(blocks_per_token(0, 1), 1);
    }
}
