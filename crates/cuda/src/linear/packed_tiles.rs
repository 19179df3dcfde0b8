//! Sizes of the tiles of `kernels/packed.cuh`, and how the kernels that read them are launched: pure functions.

use ferrum_kernels::DType;

use crate::driver::Grid;

const TILE_ROWS: usize = 16;
const TILE_COLS: usize = 64;
/// Tiles of a chunk: the columns of one warp.
const CHUNK_TILES: usize = 4;
/// Of a block on bytes: more takes longer to fill before the first product
const BYTES_SHARED_BYTES: usize = 160 << 10;
/// Most tokens of `packed_skinny.cuh`
pub(super) const SLICE_TOKENS: usize = 16;

/// A block type's layout: `LayoutOf` of `packed.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    index: u32,
    /// Bytes of 16 rows × 64 columns
    tile: usize,
    /// Bytes in front of a chunk
    super_: usize,
    /// Eights of groups of a chunk whose sums of x are needed, for minimums or biases of codes
    sums: usize,
}

impl Format {
    /// `None` for what is no block type.
    pub fn of(dtype: DType) -> Option<Self> {
        // (bits of low and high parts together, scale bytes of a row pair, bytes in front, eights of sums)
        let (index, bits, pair, super_, sums) = match dtype {
            DType::Q4_0 => (0, 4, 8, 0, 1),
            DType::Q4_1 => (1, 4, 16, 0, 1),
            DType::Q5_0 => (2, 5, 8, 0, 1),
            DType::Q5_1 => (3, 5, 16, 0, 1),
            DType::Q8_0 => (4, 8, 8, 0, 0),
            DType::Q2_K => (5, 2, 8, 64, 2),
            DType::Q3_K => (6, 3, 8, 32, 2),
            DType::Q4_K => (7, 4, 8, 64, 1),
            DType::Q5_K => (8, 5, 8, 64, 1),
            DType::Q6_K => (9, 6, 8, 32, 2),
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

    /// Relative time of a tile on bytes: 16 columns to a scale are twice the sums.
    pub fn tile_cost(self) -> usize {
        let of_16 = matches!(self.index, 5 | 6 | 9);
        self.tile * if of_16 { 5 } else { 4 }
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

/// Tiles of a product of `sm90_packed_linear.cuh`: 128 weight rows each.
pub(super) fn sm90_blocks(tokens: usize, columns: usize, gated: bool) -> usize {
    tokens.div_ceil(block_tokens(tokens)) * columns.div_ceil(if gated { 64 } else { 128 })
}

/// Most tokens of the kernel of `packed_linear.cuh` or `packed_skinny.cuh` that takes so many.
pub(super) fn kernel_tokens(tokens: usize) -> usize {
    match tokens {
        ..=2 => tokens,
        3..=4 => 4,
        5..=8 => 8,
        _ => SLICE_TOKENS,
    }
}

/// Parts that the columns are dealt to, for products that are too few blocks of `sm90_packed_linear.cuh` to fill the machine.
pub(super) fn splits(products: usize, cols: usize, sms: usize) -> usize {
    // A part is a chunk of columns at least, and eight take longer to add up than they save.
    (sms / products.max(1)).min(k_tiles(cols).div_ceil(CHUNK_TILES)).clamp(1, 8)
}

/// What `packed_linear.cuh` and `packed_skinny.cuh` compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Columns of the result
    pub columns: usize,
    /// Columns of the weight
    pub cols: usize,
    /// Every column needs two weight rows
    pub gated: bool,
    /// Most tokens of the kernel: 1 and 2 of `packed_linear.cuh`, 4, 8 and 16 of `packed_skinny.cuh`
    pub tokens: usize,
}

/// What it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub sms: usize,
    pub block_shared_bytes: usize,
    /// Neighbouring blocks can share memory
    pub clusters: bool,
    /// Most of a block
    pub warps: usize,
}

/// How they are launched; the fields are those of `PackedLinearParams`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub blocks: usize,
    pub threads: u32,
    /// Blocks that divide the columns
    pub cluster: usize,
    pub group_warps: usize,
    pub stages: usize,
    pub pass_tiles: usize,
    pub slab: usize,
    pub shared_bytes: usize,
}

impl Plan {
    pub fn grid(&self) -> Grid {
        Grid { shared_bytes: self.shared_bytes as u32, cluster: self.cluster as u32, ..Grid::new(self.blocks, self.threads) }
    }
}

/// `None` where shared memory has no room for so many tokens: 8 always fit.
pub(super) fn plan(format: Format, shape: &Shape, machine: &Machine) -> Option<Plan> {
    if shape.tokens <= 2 { bytes(format, shape, machine) } else { skinny(format, shape, machine) }
}

/// The columns over all warps; where there are fewer chunks than warps and row tiles to spare, these side by side. Row tiles
/// in as few passes as their partial sums have room for, rings as deep as the rest allows.
///
/// On large shared memory a launch fills all multiprocessors alike: blocks of 16 warps, which want all registers. Of blocks that
/// leave room for another of their kind, some multiprocessors get two and others none. All weights take the same amount: a multiprocessor that has to divide its memory anew runs empty first.
fn bytes(format: Format, shape: &Shape, machine: &Machine) -> Option<Plan> {
    let large = machine.block_shared_bytes > 200 << 10;
    // Warps, bytes of a block, most row tiles of a pass
    let (warps, shared_bytes, most) = if large { (16, BYTES_SHARED_BYTES, 8) } else { (8, machine.block_shared_bytes, 2) };
    // Sums of a row tile, of a warp
    let sums = 256;
    let chunks = k_tiles(shape.cols).div_ceil(CHUNK_TILES);
    let row_tiles = shape.columns.div_ceil(TILE_ROWS);
    let mut group_warps = chunks.next_power_of_two().min(warps);
    while group_warps < warps && row_tiles * group_warps < machine.sms * warps {
        group_warps *= 2;
    }
    let groups = warps / group_warps;
    let blocks = machine.sms.min(row_tiles.div_ceil(groups)).max(1);
    let halves = 1 + usize::from(shape.gated);
    let own = row_tiles.div_ceil(blocks * groups) * halves;
    let ring = format.super_ + CHUNK_TILES * format.tile + 8;
    let with = |most: usize| {
        let pass_tiles = own.div_ceil(own.div_ceil(most)).next_multiple_of(halves);
        let fixed = warps * (pass_tiles * sums + 4 * shape.tokens);
        let stages = shared_bytes.checked_sub(fixed)? / (warps * ring);
        let threads = 32 * warps as u32;
        (stages > 0).then_some(Plan { blocks, threads, cluster: 1, group_warps, stages, pass_tiles, slab: chunks, shared_bytes })
    };
    // Better another pass than nothing on its way.
    with(most).filter(|plan| plan.stages > 1).or_else(|| with(most / 2)).or_else(|| with(most))
}

/// Of a block of `packed_skinny.cuh`: fewer where rings of large tiles and x of many tokens want the same memory.
pub(super) fn warps(format: Format, tokens: usize, machine: &Machine) -> usize {
    let most = match machine.block_shared_bytes > 200 << 10 {
        true if tokens > 8 && format.tile > 704 => 12,
        true => 16,
        false => 8,
    };
    most.min(machine.warps)
}

/// Blocks that divide the columns: two where bringing x into order would take long.
pub(super) fn cluster(tokens: usize, cols: usize, machine: &Machine) -> usize {
    let chunks = k_tiles(cols).div_ceil(CHUNK_TILES);
    let long = tokens > 8 && chunks > 1 || tokens > 2 && chunks > 32;
    if machine.clusters && long { 2 } else { 1 }
}

/// As [`bytes`], but a block holds x in shared memory, in slabs where it does not fit whole, and few warps share a row tile: the more
/// tokens, the more there is to add up for each.
fn skinny(format: Format, shape: &Shape, machine: &Machine) -> Option<Plan> {
    let tokens = shape.tokens;
    let (warps, shared_bytes) = (warps(format, tokens, machine), machine.block_shared_bytes);
    let all_chunks = k_tiles(shape.cols).div_ceil(CHUNK_TILES);
    let row_tiles = shape.columns.div_ceil(TILE_ROWS);
    let cluster = cluster(tokens, shape.cols, machine);
    let chunks = all_chunks.div_ceil(cluster);
    let clusters = machine.sms / cluster;
    let mut group_warps = chunks.next_power_of_two().clamp(2, if warps == 12 { 4 } else { 32 / tokens });
    while warps.is_multiple_of(2 * group_warps) && row_tiles * group_warps < clusters * warps {
        group_warps *= 2;
    }
    let groups = warps / group_warps;
    let blocks = clusters.min(row_tiles.div_ceil(groups)).max(1);
    let halves = 1 + usize::from(shape.gated);
    let own = row_tiles.div_ceil(blocks * groups) * halves;
    let ring = format.super_ + CHUNK_TILES * format.tile + 8;
    // Of a chunk of x: itself, sums of its groups, scales of what is in bytes. Of a row tile: sums, of a warp. Of a warp: Σ x².
    let (x, squares) = if tokens > 8 { (512 * (tokens + format.sums), 32) } else { (516 * tokens + 64 * tokens * format.sums, 16) };
    let sums = 64 * tokens;
    let with = |slabs: usize, most: usize| {
        let pass_tiles = own.div_ceil(own.div_ceil(most)).next_multiple_of(halves);
        let slab = if slabs > 1 { chunks.div_ceil(slabs).next_multiple_of(group_warps) } else { chunks };
        let received = groups * (cluster - 1) * pass_tiles * sums / cluster;
        let fixed = slab * x + warps * pass_tiles * sums + received + cluster * warps * squares + groups * (4 * tokens + 16) + 8;
        let stages = shared_bytes.checked_sub(fixed)? / (warps * ring);
        let (blocks, threads) = (blocks * cluster, 32 * warps as u32);
        (stages > 0).then_some(Plan { blocks, threads, cluster, group_warps, stages, pass_tiles, slab, shared_bytes })
    };
    let plans = || (1..=chunks.div_ceil(group_warps)).flat_map(|slabs| [4, 2].into_iter().filter_map(move |most| with(slabs, most)));
    // Better more passes or slabs than nothing on its way, but where many warps divide columns of many tokens.
    let least = if tokens > 8 && warps == 16 { 1 } else { 2 };
    plans().find(|plan| plan.stages >= least).or_else(|| plans().next())
}

/// Blocks of each part of a weight, `(row tiles, cost of one)`, of `blocks` in all: the largest share is as small as can be.
pub(super) fn blocks_of_parts(parts: &[(usize, usize)], blocks: usize) -> Vec<usize> {
    let mut given = vec![1; parts.len()];
    for _ in parts.len()..blocks {
        let share = |&i: &usize| parts[i].0.div_ceil(given[i]) * parts[i].1;
        let Some(largest) = (0..parts.len()).filter(|&i| given[i] < parts[i].0).max_by_key(share) else { break };
        given[largest] += 1;
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Machine = Machine { sms: 132, block_shared_bytes: 227 << 10, clusters: true, warps: 16 };
    const RTX_4090: Machine = Machine { sms: 128, block_shared_bytes: 99 << 10, clusters: false, warps: 16 };

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
                    for (gated, tokens) in [1, 2, 4, 8, 16].map(|tokens| [(false, tokens), (true, tokens)]).concat() {
                        let shape = Shape { columns: 4096, cols, gated, tokens };
                        let Some(plan) = plan(format, &shape, &machine) else {
                            assert!(tokens > 8, "{dtype} {shape:?}");
                            continue;
                        };
                        assert!(plan.shared_bytes <= machine.block_shared_bytes, "{dtype} {shape:?}: {plan:?}");
                        assert!((plan.threads as usize / 32).is_multiple_of(plan.group_warps) && plan.blocks > 0, "{plan:?}");
                        assert!(plan.pass_tiles > 0 && plan.pass_tiles.is_multiple_of(1 + usize::from(gated)), "{plan:?}");
                    }
                }
            }
            for tokens in [64, 128, 256] {
                assert!(format.sm90_shared_bytes(tokens) <= H100.block_shared_bytes, "{dtype} {tokens}");
            }
        }
    }

    #[test]
    fn columns_are_split_where_rows_are_few() {
        // 4096, 6144 and 28672 rows in blocks of 128, on an H100.
        assert_eq!([splits(32, 4096, 132), splits(48, 4096, 132), splits(224, 4096, 132)], [4, 2, 1]);
        assert_eq!(splits(1, 512, 132), 2);
    }

    #[test]
    fn few_products_are_split_by_columns() {
        // 64 tokens: 4096 and 6144 rows of 4096 columns, 4096 of 14336, then a gated pair of 14336
        let splits = |columns, cols, gated| splits(sm90_blocks(64, columns, gated), cols, H100.sms);
        assert_eq!([splits(4096, 4096, false), splits(6144, 4096, false), splits(4096, 14336, false)], [4, 2, 4]);
        assert_eq!(splits(14336, 4096, true), 1);
        // No part without a chunk of columns
        assert_eq!([splits(128, 32, false), splits(128, 512, false), splits(128, 8192, false)], [1, 2, 8]);
    }

    #[test]
    fn llama_8b_fills_the_machine() {
        let format = Format::of(DType::Q4_K).expect("a block type");
        let plan = |columns, cols, gated| {
            let plan = plan(format, &Shape { columns, cols, gated, tokens: 1 }, &H100).expect("8 tokens fit");
            (plan.blocks, plan.group_warps, plan.pass_tiles)
        };
        assert_eq!(plan(6144, 4096, false), (132, 16, 3));
        assert_eq!(plan(14336, 4096, true), (132, 16, 8));
        assert_eq!(plan(128256, 4096, false), (132, 16, 8));
        assert_eq!(plan(4096, 14336, false), (132, 16, 2));
        assert_eq!(plan(1024, 1024, false), (64, 16, 1));
    }

    #[test]
    fn few_tokens_divide_columns_and_rows() {
        let plan = |tokens, columns, cols, gated, dtype| {
            let format = Format::of(dtype).expect("a block type");
            let plan = plan(format, &Shape { columns, cols, gated, tokens }, &H100).expect("16 tokens fit");
            (plan.threads / 32, plan.blocks, plan.cluster, plan.group_warps, plan.pass_tiles, plan.slab, plan.stages)
        };
        assert_eq!(plan(4, 6144, 4096, false, DType::Q4_K), (16, 132, 1, 8, 2, 16, 4));
        assert_eq!(plan(4, 4096, 14336, false, DType::Q4_K), (16, 132, 2, 8, 2, 28, 4));
        assert_eq!(plan(8, 14336, 4096, true, DType::Q4_K), (16, 132, 1, 4, 4, 16, 3));
        assert_eq!(plan(16, 14336, 4096, true, DType::Q4_K), (16, 132, 2, 2, 4, 8, 2));
        assert_eq!(plan(16, 6144, 4096, false, DType::Q8_0), (12, 132, 2, 4, 2, 8, 2));
        // x of half of the columns does not fit.
        assert_eq!(plan(16, 4096, 14336, false, DType::Q4_K), (16, 132, 2, 8, 2, 16, 1));
        assert_eq!(plan(16, 4096, 14336, false, DType::Q6_K), (12, 132, 2, 4, 2, 12, 2));
        // Few rows: more warps to each.
        assert_eq!(plan(8, 256, 4096, false, DType::Q4_K), (16, 16, 1, 16, 1, 16, 3));
    }

    #[test]
    fn parts_share_the_blocks_by_cost() {
        // q and k in Q4_K, v in Q6_K, of an 8B
        let cost = |dtype| Format::of(dtype).expect("a block type").tile_cost();
        assert_eq!(blocks_of_parts(&[(320, cost(DType::Q4_K)), (64, cost(DType::Q6_K))], 132), [100, 32]);
        assert_eq!(blocks_of_parts(&[(1, 4), (2, 5)], 132), [1, 2]);
    }
}
