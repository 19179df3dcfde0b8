//! Which instance of the tensor-core kernels takes which shape. The tables must equal the lists of instances in
//! `kernels/attn_decode_*.cu` and `kernels/attn_prefill_*.cu`.

/// Sequences with at most this many query rows are decoded: their context is split. The others are prefilled.
pub(super) const DECODE_QUERY_ROWS: usize = 8;
/// Warps of a decoding CTA.
const DECODE_WARPS: usize = 4;
/// Pieces of context that partial results are kept for.
pub(super) const MAX_CHUNKS: usize = 4096;

/// An instance of `attn_decode`.
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
            bf16: concat!("attn_decode_bf16_hd", $head_dim, "_m", $row_tiles, "_s", $stages),
            f16: concat!("attn_decode_f16_hd", $head_dim, "_m", $row_tiles, "_s", $stages),
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

    fn rows(&self) -> usize {
        16 * self.row_tiles
    }

    /// `Tile::SMEM_BYTES` of the kernel.
    pub fn shared_bytes(&self) -> usize {
        let stage = 2 * 16 * (self.head_dim + 8) * 2;
        DECODE_WARPS * self.stages * stage + DECODE_WARPS * self.rows() * 8 + 16
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
    fn decode_tiles_fill_a_multiprocessor() {
        for tile in DECODE_TILES {
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
