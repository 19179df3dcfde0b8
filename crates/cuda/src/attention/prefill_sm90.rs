//! Prefill on Hopper: `kernels/sm90_attn_prefill.cu`.

use ferrum_kernels::{DType, Result, ops::Attention};

use crate::{
    context::Context,
    driver::{DevicePtr, Grid, Swizzle, TensorMap, TensorMapDType, TensorMapSpec},
    storage::{ptr, ptr_or_null, stride},
};

const STEM: &str = "sm90_attn_prefill";
/// Columns of a box: 128 bytes, the widest swizzle.
const BOX_COLUMNS: usize = 64;
/// Bytes of a tile's row of [`BOX_COLUMNS`] elements.
const ROW_BYTES: usize = 128;
/// The most query heads that share a query tile.
const MAX_PACK: usize = 16;
/// The most parts that the keys of a query tile are divided into, and the memory that their outputs may take.
const MAX_SPLITS: usize = 16;
const MAX_PARTIAL_BYTES: usize = 64 << 20;
/// Heads, of one token, of a block of the kernel that adds parts up: a warp each.
const COMBINE_HEADS: usize = 8;

/// An instance of the kernel. Must equal the list at the end of the kernel's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    head_dim: usize,
    /// Warpgroups that multiply, 64 query rows each
    groups: usize,
    keys: usize,
    /// K tiles, and V tiles, in flight
    stages: usize,
    /// Query tiles in flight
    q_stages: usize,
    bf16: &'static str,
    f16: &'static str,
    combine: &'static str,
}

macro_rules! tile {
    ($head_dim:literal, groups $groups:literal, keys $keys:literal, stages $stages:literal, q_stages $q_stages:literal) => {
        Tile {
            head_dim: $head_dim,
            groups: $groups,
            keys: $keys,
            stages: $stages,
            q_stages: $q_stages,
            bf16: concat!("sm90_attn_prefill_bf16_hd", $head_dim),
            f16: concat!("sm90_attn_prefill_f16_hd", $head_dim),
            combine: concat!("sm90_attn_prefill_combine_hd", $head_dim),
        }
    };
}

const TILES: [Tile; 5] = [
    tile!(64, groups 3, keys 128, stages 2, q_stages 2),
    tile!(80, groups 2, keys 128, stages 2, q_stages 2),
    tile!(96, groups 2, keys 128, stages 2, q_stages 2),
    tile!(128, groups 2, keys 128, stages 2, q_stages 2),
    tile!(256, groups 2, keys 64, stages 2, q_stages 1),
];

impl Tile {
    fn of(head_dim: usize) -> Option<&'static Self> {
        TILES.iter().find(|t| t.head_dim == head_dim)
    }

    fn rows(&self) -> usize {
        64 * self.groups
    }

    fn threads(&self) -> u32 {
        128 * (self.groups as u32 + 1)
    }

    /// `sizeof(Shared)` of the kernel: the tiles, then barriers and work items, which round up to the alignment of a tile.
    fn shared_bytes(&self) -> u32 {
        let columns = self.head_dim.div_ceil(BOX_COLUMNS);
        let rows = self.q_stages * self.rows() + 2 * self.stages * self.keys;
        (columns * rows * ROW_BYTES + 1024) as u32
    }

    /// Rows of one copy of keys or values, none of which crosses a block; `block_tokens` is a power of two.
    fn box_rows(&self, block_tokens: usize) -> usize {
        block_tokens.min(1 << self.keys.trailing_zeros())
    }

    /// How many query heads of a KV head, of `group` heads, share a query tile. Where sequences are shorter than a tile, the
    /// heads fill it; where tiles of queries and of keys do not match, few tokens of many heads reach into fewer key tiles.
    fn pack(&self, group: usize, max_query_len: usize) -> usize {
        let most = (1 << group.trailing_zeros()).min(MAX_PACK);
        let wanted = (self.rows() / max_query_len.max(1)).max(1);
        if self.rows().is_multiple_of(self.keys) { (1 << wanted.ilog2()).min(most) } else { most }
    }

    /// Into how many parts contexts may be divided, so that the query tiles of one long sequence still fill `sms`
    /// multiprocessors. The kernel, which knows all lengths, may divide less.
    fn max_splits(&self, shape: &Shape, pack: usize, sms: usize) -> usize {
        let items = (shape.max_query_len * pack).div_ceil(self.rows()) * (shape.heads / pack);
        let most = MAX_PARTIAL_BYTES / Self::partial_bytes(self.head_dim, shape).max(1);
        (sms / items.max(1)).min(most).clamp(1, MAX_SPLITS)
    }

    /// Bytes of one part's outputs, and of its maxima and sums.
    fn partial_bytes(head_dim: usize, shape: &Shape) -> usize {
        shape.tokens * shape.heads * 4 * (head_dim + 2)
    }

    /// Work items at most, when the host knows no more of the sequences than their number and their sum.
    fn items(&self, shape: &Shape, pack: usize) -> usize {
        ((shape.tokens * pack).div_ceil(self.rows()) + shape.seqs) * (shape.heads / pack)
    }
}

/// What the host knows of a step.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: usize,
    seqs: usize,
    heads: usize,
    max_query_len: usize,
}

#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct AttnPrefillParams {
    q: TensorMap,
    k: TensorMap,
    v: TensorMap,
    out: DevicePtr,
    block_tables: DevicePtr,
    cu_seqlens: DevicePtr,
    context_lens: DevicePtr,
    sinks: DevicePtr,
    ticket: DevicePtr,
    seqs: i32,
    heads: i32,
    kv_heads: i32,
    max_blocks: i32,
    log2_block_tokens: i32,
    box_rows: i32,
    log2_pack: i32,
    min_query_len: i32,
    window: i32,
    scale_log2: f32,
    softcap: f32,
    softcap_log2: f32,
    tokens: i32,
    blocks: i32,
    max_splits: i32,
    partial: DevicePtr,
    partial_sum: DevicePtr,
}

/// Whether this device, these dtypes and this layout are the kernel's.
pub(super) fn takes(cx: &Context, op: &Attention) -> Result<bool> {
    let cache = op.k_cache.dtype();
    let dtypes =
        [op.q.dtype(), op.out.dtype()] == [DType::BF16; 2] && cache == op.v_cache.dtype() && matches!(cache, DType::BF16 | DType::F16);
    let [heads, head_dim] = [1, 2].map(|axis| op.q.shape()[axis]);
    let block_tokens = op.k_cache.shape()[2];
    let q_strides = op.q.strides();
    Ok(cx.has(STEM)
        && dtypes
        && Tile::of(head_dim).is_some()
        && block_tokens.is_power_of_two()
        && block_tokens >= 8
        && q_strides[2] == 1
        && q_strides[..2].iter().all(|s| s.is_multiple_of(8))
        && ptr(op.q)?.is_multiple_of(16)
        && op.out.strides() == [heads * head_dim, head_dim, 1]
        && ptr(op.out)?.is_multiple_of(16)
        && op.k_cache.is_contiguous()
        && op.v_cache.is_contiguous())
}

/// Attention of the sequences that have at least `min_query_len` query rows; the rows of the others stay as they are.
/// [`takes`] holds.
pub(super) fn run(cx: &Context, op: &Attention, min_query_len: usize) -> Result<()> {
    let [tokens, heads, head_dim] = [0, 1, 2].map(|axis| op.q.shape()[axis]);
    let [kv_heads, block_tokens] = [1, 2].map(|axis| op.k_cache.shape()[axis]);
    let seqs = op.context_lens.shape()[0];
    if tokens == 0 {
        return Ok(());
    }
    let tile = Tile::of(head_dim).expect("`takes` holds");
    let shape = Shape { tokens, seqs, heads, max_query_len: op.max_query_len };
    let pack = tile.pack(heads / kv_heads, op.max_query_len);
    let sms = cx.device().attributes().sms as usize;
    let max_splits = tile.max_splits(&shape, pack, sms);
    let blocks = if max_splits > 1 { sms } else { tile.items(&shape, pack).min(sms) };
    let (mut partial, mut partial_sum) = (0, 0);
    if max_splits > 1 {
        partial = cx.workspace(max_splits * Tile::partial_bytes(head_dim, &shape))?;
        partial_sum = partial + (max_splits * tokens * heads * head_dim * 4) as DevicePtr;
    }
    let box_rows = tile.box_rows(block_tokens);
    let f16 = op.k_cache.dtype() == DType::F16;
    let cache_map = |cache| {
        let rows = op.k_cache.shape()[0] * kv_heads * block_tokens;
        let dtype = if f16 { TensorMapDType::F16 } else { TensorMapDType::BF16 };
        let row_bytes = 2 * head_dim as u64;
        TensorMapSpec {
            ptr: ptr(cache)?,
            dtype,
            shape: [head_dim as u64, rows as u64],
            stride_bytes: [2, row_bytes],
            box_shape: [BOX_COLUMNS as u32, box_rows as u32],
            swizzle: Swizzle::B128,
        }
        .encode()
    };
    let q = TensorMapSpec {
        ptr: ptr(op.q)?,
        dtype: TensorMapDType::BF16,
        shape: [head_dim as u64, heads as u64, tokens as u64],
        stride_bytes: [2, 2 * stride(op.q, 1) as u64, 2 * stride(op.q, 0) as u64],
        box_shape: [BOX_COLUMNS as u32, pack as u32, (tile.rows() / pack) as u32],
        swizzle: Swizzle::B128,
    };
    let log2_e = std::f32::consts::LOG2_E;
    let params = AttnPrefillParams {
        q: q.encode()?,
        k: cache_map(op.k_cache)?,
        v: cache_map(op.v_cache)?,
        out: ptr(op.out)?,
        block_tables: ptr(op.block_tables)?,
        cu_seqlens: ptr(op.cu_seqlens)?,
        context_lens: ptr(op.context_lens)?,
        sinks: ptr_or_null(op.sinks)?,
        ticket: cx.counters(2)?,
        seqs: seqs as i32,
        heads: heads as i32,
        kv_heads: kv_heads as i32,
        max_blocks: stride(op.block_tables, 0) as i32,
        log2_block_tokens: block_tokens.ilog2() as i32,
        box_rows: box_rows as i32,
        log2_pack: pack.ilog2() as i32,
        min_query_len: min_query_len as i32,
        // Half of the range, so that positions less windows stay in it.
        window: op.window.map_or(i32::MAX / 2, |w| w.min(i32::MAX as usize / 2) as i32),
        scale_log2: if op.softcap.is_some() { log2_e } else { op.scale * log2_e },
        softcap: op.softcap.unwrap_or(0.0),
        softcap_log2: op.softcap.map_or(0.0, |cap| 2.0 * log2_e * op.scale / cap),
        tokens: tokens as i32,
        blocks: blocks as i32,
        max_splits: max_splits as i32,
        partial,
        partial_sum,
    };
    let grid = Grid { shared_bytes: tile.shared_bytes(), ..Grid::new(blocks, tile.threads()) };
    // SAFETY: the contract and `takes` hold, so every tensor has the size and the layout that the kernel documents; what
    // the index tensors hold is the runner's to get right. The counters are zero, and the kernel's last block zeroes them.
    unsafe { cx.launch(STEM, if f16 { tile.f16 } else { tile.bf16 }, grid, &params) }?;
    if max_splits > 1 {
        let blocks = [tokens as u32, heads.div_ceil(COMBINE_HEADS) as u32, 1];
        let grid = Grid { blocks, ..Grid::new(1, 32 * COMBINE_HEADS as u32) };
        // SAFETY: as above, and the workspace holds the parts until this kernel has ended.
        unsafe { cx.launch(STEM, tile.combine, grid, &params) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_a_multiprocessor() {
        for tile in TILES {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}");
            // 128 · (groups + 1) threads start with equal shares of the registers.
            assert!(tile.threads() <= 640 && tile.head_dim % 16 == 0 && tile.keys % 16 == 0, "{tile:?}");
            assert!(tile.bf16.ends_with(&format!("_bf16_hd{}", tile.head_dim)) && Tile::of(tile.head_dim) == Some(&tile));
        }
        assert_eq!(Tile::of(128).map(|t| t.shared_bytes()), Some((2 * 32 + 4 * 32 + 1) << 10));
        assert_eq!(Tile::of(72), None);
    }

    #[test]
    fn boxes_divide_tiles_and_blocks() {
        for tile in TILES {
            for block_tokens in [8, 16, 64, 256] {
                let rows = tile.box_rows(block_tokens);
                assert!(rows <= 256 && tile.keys.is_multiple_of(rows) && block_tokens.is_multiple_of(rows), "{tile:?} {block_tokens}");
            }
        }
    }

    #[test]
    fn heads_fill_tiles_that_tokens_do_not() {
        let tile = Tile::of(128).unwrap();
        assert_eq!([2048, 129, 64, 20, 9, 1].map(|len| tile.pack(4, len)), [1, 1, 2, 4, 4, 4]);
        assert_eq!([1, 3, 6, 7, 12, 64].map(|group| tile.pack(group, 1)), [1, 1, 2, 1, 4, 16]);
        assert_eq!(Tile::of(64).unwrap().pack(4, 8192), 4);
        for tile in TILES {
            for pack in [1, 2, 4, 8, 16] {
                assert!(tile.rows().is_multiple_of(pack) && tile.rows() / pack <= 256);
            }
        }
    }

    #[test]
    fn items_are_never_too_few() {
        let tile = Tile::of(128).unwrap();
        for (lens, pack) in [(vec![1, 1, 1], 4), (vec![128, 129, 1], 1), (vec![300, 20], 2)] {
            let exact: usize = lens.iter().map(|len: &usize| (len * pack).div_ceil(128) * (8 / pack)).sum();
            assert!(tile.items(&shape(&lens, 8), pack) >= exact);
        }
    }

    #[test]
    fn contexts_are_divided_where_queries_are_few() {
        let tile = Tile::of(128).unwrap();
        let splits = |lens: &[usize], heads| tile.max_splits(&shape(lens, heads), 1, 132);
        assert_eq!([8192, 300, 256, 128, 20].map(|len| splits(&[len], 32)), [1, 1, 2, 4, 4]);
        assert_eq!(splits(&[20], 2), MAX_SPLITS);
        // Beside so many other tokens, more parts would take too much memory.
        assert_eq!(splits(&[vec![100; 19], vec![20]].concat(), 32), 2);
    }

    fn shape(lens: &[usize], heads: usize) -> Shape {
        Shape { tokens: lens.iter().sum(), seqs: lens.len(), heads, max_query_len: lens.iter().copied().max().unwrap() }
    }
}
