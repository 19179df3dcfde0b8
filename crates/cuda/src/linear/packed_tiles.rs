//! Sizes of the tiles of `kernels/packed.cuh`, and how the kernels that read them are launched: pure functions.

use ferrum_kernels::DType;

const TILE_ROWS: usize = 16;
const TILE_COLS: usize = 64;
/// Tiles of a chunk: the columns of one warp.
const CHUNK_TILES: usize = 4;
/// `LINEAR_WARPS` and the other warps of `packed_linear.cuh`.
const WARPS: usize = 16;
pub(super) const THREADS: u32 = 32 * (WARPS as u32 + OTHER_WARPS);
const OTHER_WARPS: u32 = 2;
/// `STAGE_TILES` of `packed_linear.cuh`
const STAGE_TILES: usize = 2;
/// Blocks of a cluster that every GPU with clusters can place.
const MAX_CLUSTER: usize = 8;
/// Most tokens of `packed_linear.cuh`
pub(super) const SLICE_TOKENS: usize = 16;

/// A block type's layout: `LayoutOf` of `packed.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    index: u32,
    /// Bytes of 16 rows × 64 columns
    tile: usize,
    /// Bytes in front of a chunk
    super_: usize,
    /// Sums of x per tile: `GROUPS` where `RAW`
    sums: usize,
}

impl Format {
    /// `None` for what is no block type.
    pub fn of(dtype: DType) -> Option<Self> {
        // (bits of low and high parts together, scale bytes of a row pair, bytes in front, sums)
        let (index, bits, pair, super_, sums) = match dtype {
            DType::Q4_0 => (0, 4, 8, 0, 2),
            DType::Q4_1 => (1, 4, 16, 0, 2),
            DType::Q5_0 => (2, 5, 8, 0, 2),
            DType::Q5_1 => (3, 5, 16, 0, 2),
            DType::Q8_0 => (4, 8, 8, 0, 0),
            DType::Q2_K => (5, 2, 8, 64, 4),
            DType::Q3_K => (6, 3, 8, 32, 0),
            DType::Q4_K => (7, 4, 8, 64, 2),
            DType::Q5_K => (8, 5, 8, 64, 2),
            DType::Q6_K => (9, 6, 8, 32, 0),
            DType::IQ4_NL => (10, 4, 8, 0, 0),
            DType::IQ4_XS => (11, 4, 4, 32, 0),
            _ => return None,
        };
        Some(Self { index, tile: 128 * bits + 8 * pair, super_, sums })
    }

    /// `Format` of `packed.cuh`.
    pub fn index(self) -> u32 {
        self.index
    }

    pub fn row_tile_bytes(self, cols: usize) -> usize {
        k_tiles(cols) * self.tile + k_tiles(cols).div_ceil(CHUNK_TILES) * self.super_
    }

    /// Shared memory of `sm90_packed_linear.cuh` with blocks of `tokens`.
    pub fn sm90_shared_bytes(self, tokens: usize) -> usize {
        let stages = match tokens {
            64 => 8,
            128 => 6,
            _ => 4,
        };
        let stage = 128 * tokens + (8 * (self.super_ + self.tile)).next_multiple_of(1024);
        stages * (stage + 16) + 256 * tokens.min(128)
    }
}

pub(super) fn k_tiles(cols: usize) -> usize {
    cols.div_ceil(TILE_COLS)
}

/// Tokens of a block of `sm90_packed_linear.cuh`: 256 are twice as fast as 128, where there are as many.
pub(super) fn block_tokens(tokens: usize) -> usize {
    match tokens {
        ..=64 => 64,
        65..=128 => 128,
        _ => 256,
    }
}

/// What `packed_linear.cuh` computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Columns of the result
    pub columns: usize,
    /// Columns of the weight
    pub cols: usize,
    /// Every column needs two weight rows
    pub gated: bool,
    /// Tokens / 8: 1 or 2
    pub eights: usize,
}

/// What it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub sms: usize,
    pub block_shared_bytes: usize,
    /// Whether blocks form clusters
    pub clusters: bool,
}

/// How `packed_linear.cuh` is launched; the fields are those of `PackedLinearParams`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub cluster: usize,
    pub blocks: usize,
    pub group_warps: usize,
    pub groups: usize,
    pub stages: usize,
    pub slots: usize,
    pub scratch: usize,
    pub shared_bytes: usize,
}

/// One chunk of columns for each warp of a cluster; where a block's warps are more than that, row tiles side by side. Rings as
/// deep as shared memory allows. `None` where it has no room for so many tokens: 8 always fit.
pub(super) fn plan(format: Format, shape: &Shape, machine: &Machine) -> Option<Plan> {
    let slots = [4, 2, 1];
    let plans = slots.into_iter().filter_map(|slots| plan_with(slots, format, shape, machine));
    // Rings before slots: a ring of one stage waits for every copy.
    plans.max_by_key(|plan| (plan.stages.min(3), plan.slots))
}

fn plan_with(slots: usize, format: Format, shape: &Shape, machine: &Machine) -> Option<Plan> {
    let chunks = k_tiles(shape.cols).div_ceil(CHUNK_TILES);
    let cluster = if machine.clusters { chunks.div_ceil(WARPS).next_power_of_two().min(MAX_CLUSTER) } else { 1 };
    let group_warps = chunks.div_ceil(cluster).min(WARPS);
    let groups = WARPS / group_warps;
    let (writers, halves) = (cluster * group_warps, 1 + usize::from(shape.gated));
    let partials = groups * slots * writers * halves * shape.eights * 512;
    let sums = WARPS * shape.eights * CHUNK_TILES * format.sums * 32;
    let squares = groups * writers * shape.eights * 32;
    let row_tile_barriers = groups * slots * (1 + cluster) * 8;
    let scratch_bytes = WARPS * shape.eights * 1024;
    // x passes through the place of the partial sums, unless it does so again and again.
    let apart = partials < scratch_bytes || chunks > writers;
    let fixed = partials + sums + squares + row_tile_barriers + if apart { scratch_bytes + 16 } else { 0 };
    let stage = format.super_ + STAGE_TILES * format.tile;
    let stages = (machine.block_shared_bytes.checked_sub(fixed)? / (WARPS * (stage + 8))).min(16);
    if stages == 0 {
        return None;
    }
    let shared_bytes = fixed + WARPS * stages * (stage + 8);
    let scratch = if apart { (shared_bytes - scratch_bytes) / 16 * 16 } else { WARPS * stages * stage };
    let row_tiles = shape.columns.div_ceil(TILE_ROWS);
    let blocks = cluster * (machine.sms / cluster).min(row_tiles.div_ceil(groups)).max(1);
    Some(Plan { cluster, blocks, group_warps, groups, stages, slots, scratch, shared_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Machine = Machine { sms: 132, block_shared_bytes: 227 << 10, clusters: true };
    const RTX_4090: Machine = Machine { sms: 128, block_shared_bytes: 99 << 10, clusters: false };

    fn formats() -> impl Iterator<Item = (DType, Format)> {
        DType::weights().filter_map(|dtype| Some((dtype, Format::of(dtype)?)))
    }

    #[test]
    fn tiles_are_about_as_large_as_the_file() {
        for (dtype, format) in formats() {
            let file = 16 * 4096 / dtype.block_len() * dtype.block_bytes();
            let ours = format.row_tile_bytes(4096);
            assert!(ours >= file && ours * 100 <= file * 104, "{dtype}: {ours} of {file} bytes");
        }
    }

    #[test]
    fn every_plan_fits_and_covers_the_columns() {
        for (dtype, format) in formats() {
            for machine in [H100, RTX_4090] {
                for cols in [32, 256, 576, 896, 4096, 14336, 53248] {
                    for (gated, eights) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
                        let shape = Shape { columns: 4096, cols, gated, eights };
                        let Some(plan) = plan(format, &shape, &machine) else {
                            assert!(eights > 1, "{dtype} {shape:?}");
                            continue;
                        };
                        assert!(plan.shared_bytes <= machine.block_shared_bytes, "{dtype} {shape:?}: {plan:?}");
                        assert!(plan.group_warps * plan.groups <= WARPS && plan.blocks.is_multiple_of(plan.cluster), "{plan:?}");
                        assert!(plan.scratch.is_multiple_of(16) && plan.scratch + WARPS * eights * 1024 <= plan.shared_bytes, "{plan:?}");
                    }
                }
            }
            for tokens in [64, 128, 256] {
                assert!(format.sm90_shared_bytes(tokens) <= H100.block_shared_bytes, "{dtype} {tokens}");
            }
        }
    }

    #[test]
    fn llama_8b_fills_the_machine() {
        let format = Format::of(DType::Q4_K).expect("a block type");
        let qkv = plan(format, &Shape { columns: 6144, cols: 4096, gated: false, eights: 1 }, &H100).expect("8 tokens fit");
        assert_eq!((qkv.cluster, qkv.blocks, qkv.group_warps, qkv.groups), (1, 132, 16, 1));
        let down = plan(format, &Shape { columns: 4096, cols: 14336, gated: false, eights: 1 }, &H100).expect("8 tokens fit");
        assert_eq!((down.cluster, down.blocks, down.group_warps, down.groups), (4, 132, 14, 1));
        let small = plan(format, &Shape { columns: 1024, cols: 1024, gated: false, eights: 1 }, &H100).expect("8 tokens fit");
        assert_eq!((small.cluster, small.blocks, small.group_warps, small.groups), (1, 16, 4, 4));
    }
}
