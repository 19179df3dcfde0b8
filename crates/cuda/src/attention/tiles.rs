//! Which instance of the tensor-core kernels takes which shape. The tables must equal the lists of instances in
//! `kernels/attn_decode_*.cu` and `kernels/attn_prefill_*.cu`.

/// Sequences with at most this many query rows are decoded: their context is split. The others are prefilled.
pub(super) const DECODE_QUERY_ROWS: usize = 8;
/// Warps of a decoding CTA.
const DECODE_WARPS: usize = 4;
/// Pieces of context that partial results are kept for.
pub(super) const MAX_CHUNKS: usize = 4096;

/// Query rows of a sequence with new tokens in one tile, and new tokens of one: `RawRows` of `kernels/attn_decode_heads.cuh`.
const RAW_ROWS: usize = 16;
const RAW_TOKENS: usize = 4;
/// An instance of `attn_decode` or `rope_attn_decode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DecodeTile {
    /// Heads may be shorter
    pub head_dim: usize,
    /// Tiles of 16 query rows: tokens times query heads of one KV head
    row_tiles: usize,
    /// Tiles of tokens in flight
    stages: usize,
    /// CTAs that one multiprocessor runs at once, as its launch bounds say
    ctas_per_sm: usize,
    /// Whether it takes heads as the projection left them: `rope_attn_decode`
    raw: bool,
    pub bf16: &'static str,
    pub f16: &'static str,
}

macro_rules! decode_tile {
    ($head_dim:literal, row_tiles $row_tiles:literal, stages $stages:literal, ctas_per_sm $ctas_per_sm:literal) => {
        DecodeTile {
            head_dim: $head_dim,
            row_tiles: $row_tiles,
            stages: $stages,
            ctas_per_sm: $ctas_per_sm,
            raw: false,
            bf16: concat!("attn_decode_bf16_hd", $head_dim, "_m", $row_tiles, "_s", $stages),
            f16: concat!("attn_decode_f16_hd", $head_dim, "_m", $row_tiles, "_s", $stages),
        }
    };
}

macro_rules! rope_decode_tile {
    ($head_dim:literal, stages $stages:literal, ctas_per_sm $ctas_per_sm:literal) => {
        DecodeTile {
            head_dim: $head_dim,
            row_tiles: 1,
            stages: $stages,
            ctas_per_sm: $ctas_per_sm,
            raw: true,
            bf16: concat!("rope_attn_decode_bf16_hd", $head_dim, "_s", $stages),
            f16: concat!("rope_attn_decode_f16_hd", $head_dim, "_s", $stages),
        }
    };
}

/// By head, then by what is better where it fits.
const DECODE_TILES: [DecodeTile; 9] = [
    decode_tile!(64, row_tiles 1, stages 3, ctas_per_sm 3),
    decode_tile!(64, row_tiles 2, stages 3, ctas_per_sm 3),
    decode_tile!(80, row_tiles 1, stages 3, ctas_per_sm 3),
    decode_tile!(96, row_tiles 1, stages 3, ctas_per_sm 2),
    decode_tile!(128, row_tiles 1, stages 3, ctas_per_sm 2),
    decode_tile!(128, row_tiles 2, stages 3, ctas_per_sm 2),
    decode_tile!(128, row_tiles 1, stages 2, ctas_per_sm 3),
    decode_tile!(256, row_tiles 1, stages 3, ctas_per_sm 1),
    decode_tile!(256, row_tiles 1, stages 1, ctas_per_sm 2),
];

/// As [`DECODE_TILES`], for heads of exactly this size.
const ROPE_DECODE_TILES: [DecodeTile; 3] = [
    rope_decode_tile!(64, stages 3, ctas_per_sm 3),
    rope_decode_tile!(128, stages 2, ctas_per_sm 2),
    rope_decode_tile!(256, stages 1, ctas_per_sm 2),
];
/// For few sequences, where blocks are fewer than multiprocessors and only latency counts.
const ROPE_DECODE_FEW: DecodeTile = rope_decode_tile!(256, stages 3, ctas_per_sm 1);
const FEW_SEQS: usize = 4;
/// Small enough for a multiprocessor that a block of another kernel occupies; slower than the others on one of its own.
const ROPE_DECODE_BESIDE: DecodeTile = rope_decode_tile!(128, stages 1, ctas_per_sm 1);
/// Its launch bounds allow no more.
const BESIDE_REGISTERS: u32 = 128;

/// What `rope_attention` wants of an instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawShape {
    pub head_dim: usize,
    /// Query heads of a KV head
    pub group: usize,
    pub seqs: usize,
    /// Most new tokens of a sequence
    pub tokens: usize,
}

impl DecodeTile {
    pub const THREADS: u32 = 32 * DECODE_WARPS as u32;

    /// The instance for heads of `head_dim` elements and `rows` query rows of a KV head, on a device whose blocks may have
    /// `shared_bytes` of shared memory. Rows that do not fit take several passes over the context.
    pub fn of(head_dim: usize, rows: usize, shared_bytes: usize) -> Option<&'static Self> {
        let fits = |t: &&Self| t.head_dim >= head_dim && t.shared_bytes() <= shared_bytes;
        let first = DECODE_TILES.iter().find(fits)?;
        let wider = DECODE_TILES.iter().filter(fits).find(|t| t.head_dim == first.head_dim && t.row_tiles > first.row_tiles);
        if rows > first.rows() { wider.or(Some(first)) } else { Some(first) }
    }

    /// As [`Self::of`], for heads as the projection left them. `beside` says whether a block of so many threads, registers each and
    /// bytes of shared memory runs beside one of the kernel in front.
    pub fn of_raw(shape: &RawShape, shared_bytes: usize, beside: impl Fn(u32, u32, usize) -> bool) -> Option<&'static Self> {
        if shape.tokens > RAW_TOKENS || shape.tokens * shape.group > RAW_ROWS {
            return None;
        }
        let fits = |t: &&Self| t.head_dim == shape.head_dim && t.shared_bytes() <= shared_bytes;
        let few = [&ROPE_DECODE_FEW].into_iter().filter(|_| shape.seqs <= FEW_SEQS);
        let small =
            [&ROPE_DECODE_BESIDE].into_iter().filter(|t| shape.seqs == 1 && beside(Self::THREADS, BESIDE_REGISTERS, t.shared_bytes()));
        small.chain(few).chain(&ROPE_DECODE_TILES).find(fits)
    }

    fn rows(&self) -> usize {
        16 * self.row_tiles
    }

    /// `Tile::SMEM_BYTES` of the kernel, with raw heads and `RawRows::BYTES`.
    pub fn shared_bytes(&self) -> usize {
        let row = (self.head_dim + 8) * 2;
        let raw = (RAW_ROWS + 2 * RAW_TOKENS) * row + RAW_TOKENS * self.head_dim * 4;
        DECODE_WARPS * self.stages * 2 * 16 * row + DECODE_WARPS * self.rows() * 8 + 16 + if self.raw { raw } else { 0 }
    }

    /// CTAs of a launch: those that the device runs at once. They share out the context among themselves.
    pub fn ctas(&self, sms: usize) -> usize {
        self.ctas_per_sm * sms
    }

    /// Bytes of the partial outputs, and of their maxima and sums.
    pub fn partial_bytes(&self) -> [usize; 2] {
        [MAX_CHUNKS * self.rows() * self.head_dim * 4, MAX_CHUNKS * self.rows() * 8]
    }
}

/// An instance of `attn_prefill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrefillTile {
    /// Heads may be shorter
    head_dim: usize,
    /// Tiles of 16 query rows of a warp
    row_tiles: usize,
    warps: usize,
    /// Keys of one step
    tokens: usize,
    pub bf16: &'static str,
    pub f16: &'static str,
}

macro_rules! prefill_tile {
    ($head_dim:literal, row_tiles $row_tiles:literal, warps $warps:literal, tokens $tokens:literal) => {
        PrefillTile {
            head_dim: $head_dim,
            row_tiles: $row_tiles,
            warps: $warps,
            tokens: $tokens,
            bf16: concat!("attn_prefill_bf16_hd", $head_dim),
            f16: concat!("attn_prefill_f16_hd", $head_dim),
        }
    };
}

const PREFILL_TILES: [PrefillTile; 5] = [
    prefill_tile!(64, row_tiles 2, warps 4, tokens 64),
    prefill_tile!(80, row_tiles 2, warps 4, tokens 64),
    prefill_tile!(96, row_tiles 2, warps 4, tokens 64),
    prefill_tile!(128, row_tiles 2, warps 4, tokens 32),
    prefill_tile!(256, row_tiles 1, warps 4, tokens 32),
];

impl PrefillTile {
    pub fn of(head_dim: usize) -> Option<&'static Self> {
        PREFILL_TILES.iter().find(|t| t.head_dim >= head_dim)
    }

    fn rows(&self) -> usize {
        16 * self.row_tiles * self.warps
    }

    pub fn threads(&self) -> u32 {
        32 * self.warps as u32
    }

    /// `Tile::SMEM_BYTES` of the kernel.
    pub fn shared_bytes(&self) -> usize {
        (self.rows() + 4 * self.tokens) * (self.head_dim + 8) * 2
    }

    /// The most row tiles that sequences can have, when no more of them is known than their number and their sum.
    pub fn blocks(&self, tokens: usize, seqs: usize, group: usize) -> usize {
        (tokens * group).div_ceil(self.rows()) + seqs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::ATTENTION_BYTES;

    /// Shared memory that a block may have on sm_86, 89 and 120, on sm_80, and on sm_90 and 100.
    const SHARED_BYTES: [usize; 3] = [99 << 10, 163 << 10, 227 << 10];

    #[test]
    fn every_head_is_decoded_on_every_device() {
        for shared_bytes in SHARED_BYTES {
            for head_dim in (8..=256).step_by(8) {
                let tile = DecodeTile::of(head_dim, 1, shared_bytes).unwrap();
                assert!(tile.head_dim >= head_dim && tile.shared_bytes() <= shared_bytes, "{head_dim} {shared_bytes}: {tile:?}");
                assert!(tile.bf16.ends_with(&format!("_hd{}_m{}_s{}", tile.head_dim, tile.row_tiles, tile.stages)));
            }
        }
        assert_eq!(DecodeTile::of(264, 1, 227 << 10), None);
    }

    #[test]
    fn decode_tiles_are_as_wide_as_the_group() {
        let rows = |head_dim, rows| DecodeTile::of(head_dim, rows, 227 << 10).map(DecodeTile::rows);
        assert_eq!([1, 16, 17, 32, 80].map(|n| rows(128, n)), [16, 16, 32, 32, 32].map(Some));
        assert_eq!(rows(256, 20), Some(16));
    }

    #[test]
    fn raw_heads_are_decoded_where_they_fit() {
        let raw = |head_dim, group, seqs, tokens, room| {
            let shape = RawShape { head_dim, group, seqs, tokens };
            DecodeTile::of_raw(&shape, 227 << 10, |_, _, bytes| bytes <= room).map(|t| t.bf16)
        };
        assert_eq!(raw(128, 16, 1, 1, 0), Some("rope_attn_decode_bf16_hd128_s2"));
        assert_eq!(raw(128, 4, 1, 4, 64 << 10), Some("rope_attn_decode_bf16_hd128_s1"));
        assert_eq!(raw(128, 4, 2, 1, 64 << 10), Some("rope_attn_decode_bf16_hd128_s2"));
        assert_eq!(
            [4, 5].map(|seqs| raw(256, 4, seqs, 1, 0)),
            ["s3", "s1"].map(|s| Some(format!("rope_attn_decode_bf16_hd256_{s}"))).each_ref().map(Option::as_deref)
        );
        assert_eq!([raw(128, 1, 1, 5, 0), raw(128, 5, 1, 4, 0), raw(120, 1, 1, 1, 0), raw(96, 1, 1, 1, 0)], [None; 4]);
        for shared_bytes in SHARED_BYTES {
            for head_dim in [64, 128, 256] {
                let shape = RawShape { head_dim, group: 8, seqs: 1, tokens: 1 };
                assert!(DecodeTile::of_raw(&shape, shared_bytes, |_, _, _| false).unwrap().shared_bytes() <= shared_bytes);
            }
        }
    }

    #[test]
    fn raw_heads_find_the_room_that_is_left_for_them() {
        for head_dim in [64, 128] {
            let shape = RawShape { head_dim, group: 4, seqs: 64, tokens: 1 };
            let tile = DecodeTile::of_raw(&shape, 227 << 10, |_, _, _| false).unwrap();
            assert!(tile.shared_bytes() + 1024 <= ATTENTION_BYTES, "{tile:?}");
        }
    }

    #[test]
    fn decode_tiles_fill_a_multiprocessor() {
        for tile in DECODE_TILES.into_iter().chain(ROPE_DECODE_TILES).chain([ROPE_DECODE_FEW, ROPE_DECODE_BESIDE]) {
            // A block takes 1 KiB more than it asks for.
            assert!(tile.ctas_per_sm * (tile.shared_bytes() + 1024) <= 228 << 10, "{tile:?}");
            assert!(tile.stages >= tile.row_tiles, "{tile:?}: the kernel joins its warps in the ring");
            assert!(tile.partial_bytes().iter().sum::<usize>() <= 128 << 20, "{tile:?}");
        }
    }

    #[test]
    fn prefill_tiles_fit_every_device() {
        for tile in PREFILL_TILES {
            assert!(tile.shared_bytes() <= SHARED_BYTES[0], "{tile:?}");
            assert!(64 % tile.tokens == 0 && tile.bf16.ends_with(&format!("_hd{}", tile.head_dim)), "{tile:?}");
        }
        assert_eq!(PrefillTile::of(72).map(|t| t.head_dim), Some(80));
    }

    #[test]
    fn blocks_are_never_too_few() {
        let tile = PrefillTile::of(128).unwrap();
        for lens in [vec![1, 1, 1], vec![128, 129, 1], vec![300, 20]] {
            let exact: usize = lens.iter().map(|len: &usize| (len * 4).div_ceil(tile.rows())).sum();
            assert!(tile.blocks(lens.iter().sum(), lens.len(), 4) >= exact);
        }
    }
}
