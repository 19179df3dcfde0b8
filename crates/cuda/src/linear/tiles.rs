//! Which tile takes which shape: pure functions over tables of the instances that `kernels/` has.

/// Most tokens of `sm90_linear_stream.cu`.
pub(super) const STREAM_TOKENS: usize = 16;
/// Up to here our own kernels are about as fast as cuBLASLt's best or faster; those of small weights, and where attention
/// follows, further: a kernel of cuBLASLt does not start while the one in front ends, nor lets the next one start.
const OWN_TOKENS: usize = 127;
const OWN_TOKENS_SMALL: usize = 256;
const SMALL_WEIGHT: usize = 8 << 20;
/// What a block of decode attention takes of a multiprocessor, for heads of up to 128. Of heads of 256 it finds no room, and waits.
pub(crate) const ATTENTION_BYTES: usize = 80 << 10;

/// A product as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub tokens: usize,
    /// Columns of the result: weight rows, or half of them when gated
    pub columns: usize,
    /// Every column needs two weight rows
    pub gated: bool,
    /// Columns of x and of the weight
    pub cols: usize,
    /// Of each token the largest result alone is wanted
    pub argmax: bool,
    /// Attention of a decode step reads the result
    pub before_decode: bool,
}

impl Shape {
    pub fn weight_rows(&self) -> usize {
        if self.gated { 2 * self.columns } else { self.columns }
    }
}

/// Whether cuBLASLt is to take a product of more than [`STREAM_TOKENS`].
pub(super) fn is_for_lt(shape: &Shape) -> bool {
    let small = shape.weight_rows() * shape.cols <= SMALL_WEIGHT;
    !shape.gated && shape.tokens > if small || shape.before_decode { OWN_TOKENS_SMALL } else { OWN_TOKENS }
}

/// An instance of `sm90_linear_stream.cu`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StreamTile {
    pub kernel: &'static str,
    pub norm_kernel: &'static str,
    pub f16_kernel: &'static str,
    /// Tokens / 8
    token_tiles: usize,
    /// Weight rows of a stage / 8
    units: usize,
    /// Columns of a stage / 64
    pub chunks: usize,
    /// Warps that split the columns
    k_warps: usize,
    stages: usize,
}

/// An instance of `sm90_linear_wgmma.cu`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WgmmaTile {
    pub kernel: &'static str,
    pub f16_kernel: &'static str,
    tokens: usize,
    rows: usize,
    warpgroups: usize,
    /// CTAs of a cluster that share weight rows, that share tokens, that split the columns
    ct: usize,
    cr: usize,
    sk: usize,
    /// Columns of a stage / 64
    chunks: usize,
    stages: usize,
}

/// An instance of `linear_mma.cu`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MmaTile {
    pub kernel: &'static str,
    pub f16_kernel: &'static str,
    pub tokens: usize,
    rows: usize,
}

macro_rules! stream_tiles {
    ($(($t:literal, $u:literal, $c:literal, $kw:literal, $s:literal)),* $(,)?) => {
        [$(StreamTile {
            kernel: concat!("linear_stream_t", $t, "_u", $u, "_c", $c),
            norm_kernel: concat!("linear_stream_t", $t, "_u", $u, "_c", $c, "_norm"),
            f16_kernel: concat!("linear_stream_t", $t, "_u", $u, "_c", $c, "_f16"),
            token_tiles: $t,
            units: $u,
            chunks: $c,
            k_warps: $kw,
            stages: $s,
        }),*]
    };
}

macro_rules! wgmma_tiles {
    ($(($t:literal, $n:literal, $wg:literal, $ct:literal, $cr:literal, $sk:literal, $c:literal, $s:literal)),* $(,)?) => {
        [$(WgmmaTile {
            kernel: concat!("linear_wgmma_", $t, "x", $n, "_c", $ct, "x", $cr, "_k", $sk),
            f16_kernel: concat!("linear_wgmma_", $t, "x", $n, "_c", $ct, "x", $cr, "_k", $sk, "_f16"),
            tokens: $t,
            rows: $n,
            warpgroups: $wg,
            ct: $ct,
            cr: $cr,
            sk: $sk,
            chunks: $c,
            stages: $s,
        }),*]
    };
}

macro_rules! mma_tiles {
    ($(($t:literal, $n:literal)),* $(,)?) => {
        [$(MmaTile {
            kernel: concat!("linear_mma_", $t, "x", $n),
            f16_kernel: concat!("linear_mma_", $t, "x", $n, "_f16"),
            tokens: $t,
            rows: $n,
        }),*]
    };
}

static STREAM: [StreamTile; 6] =
    stream_tiles![(1, 2, 8, 8, 6), (1, 4, 8, 8, 6), (1, 6, 8, 8, 4), (2, 2, 8, 8, 6), (2, 4, 8, 8, 5), (2, 6, 8, 8, 3)];

static WGMMA: [WgmmaTile; 20] = wgmma_tiles![
    (64, 32, 1, 1, 1, 1, 1, 16),
    (64, 48, 1, 1, 1, 1, 1, 14),
    (64, 64, 1, 1, 1, 1, 1, 12),
    (64, 64, 1, 1, 1, 2, 2, 6),
    (64, 96, 1, 1, 1, 1, 1, 10),
    (64, 112, 1, 1, 1, 1, 1, 9),
    (64, 128, 1, 1, 1, 1, 1, 8),
    (64, 192, 1, 1, 1, 1, 1, 6),
    (64, 224, 1, 1, 1, 1, 1, 5),
    (128, 32, 2, 1, 1, 1, 1, 10),
    (128, 48, 2, 1, 1, 1, 1, 9),
    (128, 64, 2, 1, 1, 1, 1, 8),
    (128, 64, 2, 2, 1, 1, 1, 8),
    (128, 96, 2, 2, 1, 1, 1, 7),
    (128, 96, 2, 1, 1, 1, 2, 4),
    (128, 112, 2, 1, 1, 1, 1, 7),
    (128, 128, 2, 1, 1, 1, 1, 6),
    (128, 192, 2, 1, 1, 1, 1, 5),
    (128, 224, 2, 2, 1, 1, 1, 4),
    (128, 256, 2, 1, 1, 1, 1, 4),
];

static MMA: [MmaTile; 3] = mma_tiles![(16, 64), (32, 128), (64, 128)];

/// The instance for at most [`STREAM_TOKENS`] tokens: the slab that a CTA's share of the rows fills best.
pub(super) fn stream(shape: &Shape, sms: usize) -> &'static StreamTile {
    let share = shape.columns.div_ceil(8).div_ceil(sms) * if shape.gated { 2 } else { 1 };
    let units = if share <= 2 {
        2
    } else if share <= 4 {
        4
    } else {
        6
    };
    let token_tiles = shape.tokens.div_ceil(8);
    STREAM.iter().find(|t| t.token_tiles == token_tiles && t.units == units).expect("the table has every pair")
}

impl StreamTile {
    pub fn threads(&self) -> u32 {
        9 * 32
    }

    /// `StreamTile::SMEM` of the kernel.
    pub fn shared_bytes(&self) -> u32 {
        let red = self.units.div_ceil(2) * self.token_tiles * 128;
        (1024 + self.stages * self.units * self.chunks * 1024 + 2 * self.k_warps * red * 4 + self.k_warps * self.token_tiles * 32) as u32
    }

    /// One CTA for every SM that has a unit of 8 columns to do.
    pub fn blocks(&self, shape: &Shape, sms: usize) -> usize {
        shape.columns.div_ceil(8).min(sms)
    }
}

/// The instance with the least estimated time.
pub(super) fn wgmma(shape: &Shape, sms: usize) -> &'static WgmmaTile {
    let tiles = WGMMA.iter().filter(|t| t.suits(shape));
    tiles.min_by(|a, b| a.cost(shape, sms).total_cmp(&b.cost(shape, sms))).expect("the table is not empty")
}

impl WgmmaTile {
    pub fn threads(&self) -> u32 {
        (self.warpgroups * 128 + 32) as u32
    }

    /// How many stages are to be used on a device whose blocks may have `shared_bytes`: all, or, where attention follows, fewer,
    /// so that its blocks start beside, and fetch keys and values meanwhile.
    pub fn stages(&self, shape: &Shape, shared_bytes: usize) -> usize {
        let room = shared_bytes - if shape.before_decode { ATTENTION_BYTES } else { 0 };
        ((room - self.shared_bytes(0) as usize) / self.stage_bytes()).min(self.stages)
    }

    /// What a block with so many stages takes.
    pub fn shared_bytes(&self, stages: usize) -> u32 {
        let parts = (self.sk - 1) * self.tokens * self.rows / self.sk * 4;
        (stages * self.stage_bytes() + parts + 1024) as u32
    }

    fn stage_bytes(&self) -> usize {
        self.chunks * (self.tokens + self.rows) * 128
    }

    /// Two chunks a stage are measured for small weights only. Where CTAs split the columns, each has some, and none holds both
    /// gates and ups.
    fn suits(&self, shape: &Shape) -> bool {
        let small = shape.weight_rows() * shape.cols <= SMALL_WEIGHT;
        (self.chunks == 1 || small) && (self.sk == 1 || !shape.gated && shape.cols >= 64 * self.chunks * self.sk)
    }

    pub fn cluster(&self) -> usize {
        self.ct * self.cr * self.sk
    }

    /// Weight rows of one tensor copy: never gates and ups in one.
    pub fn weight_box(&self) -> usize {
        self.rows / self.ct.max(2)
    }

    /// Tokens of one tensor copy. A copy takes its time for rows outside of x too.
    pub fn x_box(&self, shape: &Shape) -> usize {
        if self.cr > 1 { self.tokens / self.cr } else { self.tokens.min(shape.tokens.next_multiple_of(8)) }
    }

    /// How often the tokens' tiles go over the weight.
    pub fn token_groups(&self, shape: &Shape) -> usize {
        shape.tokens.div_ceil(self.tokens * self.ct)
    }

    /// Groups of tokens that go over the weight together: as many as leave room in L2 for the weights that pass by.
    pub fn band(&self, shape: &Shape) -> usize {
        const BYTES: usize = 8 << 20;
        (BYTES / (self.tokens * self.ct * shape.cols * 2)).clamp(1, self.token_groups(shape))
    }

    fn tiles(&self, shape: &Shape) -> usize {
        let columns = if shape.gated { self.rows / 2 } else { self.rows };
        self.token_groups(shape) * shape.columns.div_ceil(columns * self.cr)
    }

    /// How many clusters run at once. Four CTAs do not find room everywhere: a GPC may have 16 or 18 SMs.
    fn clusters(&self, sms: usize) -> usize {
        match self.cluster() {
            cluster @ 1..=2 => sms / cluster,
            cluster => sms * 10 / 11 / cluster,
        }
    }

    /// Clusters walk over the tiles, all at once; where they split the columns, each has one tile.
    pub fn blocks(&self, shape: &Shape, sms: usize) -> usize {
        let tiles = self.tiles(shape);
        self.cluster() * if self.sk > 1 { tiles } else { tiles.min(self.clusters(sms)) }
    }

    /// A time in nanoseconds for comparing tiles. Its constants are fitted to what an H100 measured for the products of an
    /// 8B and a 0.6B model at 64 … 1,024 tokens: over those, the tile it finds is 4 % slower than the best one on average.
    fn cost(&self, shape: &Shape, sms: usize) -> f64 {
        let [tokens, rows] = [self.tokens, self.rows].map(|n| n as f64);
        let weight_bytes = (shape.weight_rows() * shape.cols * 2) as f64;
        let steps = shape.cols.div_ceil(64).div_ceil(self.sk);
        let waves = self.tiles(shape).div_ceil(self.clusters(sms)) as f64;
        let stage = if self.chunks > 1 { 0.8 } else { 1.0 }; // what a stage costs is shared by its chunks
        let copy = stage * ((self.x_box(shape) * self.cr + self.rows) * 128) as f64 / 90.0;
        let multiply = tokens / 16.0 * (0.36 * rows).max(17.0 + rows / 8.0); // the tensor cores, or reading shared memory
        let work = waves * steps as f64 * copy.max(multiply);
        let read = weight_bytes / 2950.0;
        let again = weight_bytes * (self.token_groups(shape) - 1) as f64 / 40_000.0;
        let cluster = if self.cluster() > 1 { 270.0 } else { 0.0 } + 100.0 * (self.sk - 1) as f64;
        read.max(work) + 0.75 * read.min(work) + 0.8 * waves * tokens * rows + again + cluster
    }
}

/// The instance for any number of tokens: few of them take the small tile, which wastes less.
pub(super) fn mma(shape: &Shape) -> &'static MmaTile {
    &MMA[match shape.tokens {
        ..=16 => 0,
        17..=32 => 1,
        _ => 2,
    }]
}

impl MmaTile {
    /// Result columns of a block.
    pub fn columns(&self, shape: &Shape) -> usize {
        if shape.gated { self.rows / 2 } else { self.rows }
    }

    /// Three stages of 64 columns.
    pub fn shared_bytes(&self) -> u32 {
        (3 * (self.tokens + self.rows) * 128) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMS: usize = 132;
    const SHARED_BYTES: u32 = 227 << 10;

    fn shape(tokens: usize, columns: usize, gated: bool, cols: usize) -> Shape {
        Shape { tokens, columns, gated, cols, argmax: false, before_decode: false }
    }

    /// The numbers of every `INSTANCE(…)` line.
    fn instances(source: &str) -> Vec<Vec<usize>> {
        let calls = source.lines().filter_map(|l| l.strip_prefix("INSTANCE(")?.strip_suffix(')'));
        calls.map(|c| c.split(',').map(|n| n.trim().parse().expect("a number")).collect()).collect()
    }

    #[test]
    fn tables_are_what_the_kernels_have() {
        let stream = instances(include_str!("../../kernels/sm90_linear_stream.cu"));
        let table: Vec<_> = STREAM.iter().map(|t| vec![t.token_tiles, t.units, t.chunks, t.k_warps, t.stages]).collect();
        assert_eq!(stream, table);
        let wgmma = instances(include_str!("../../kernels/sm90_linear_wgmma.cu"));
        let table: Vec<_> = WGMMA.iter().map(|t| vec![t.tokens, t.rows, t.warpgroups, t.ct, t.cr, t.sk, t.chunks, t.stages]).collect();
        assert_eq!(wgmma, table);
        let mma = instances(include_str!("../../kernels/linear_mma.cu"));
        assert_eq!(mma, MMA.iter().map(|t| vec![t.tokens, t.rows]).collect::<Vec<_>>());
    }

    /// What an H100 measured to be the fastest, or within 5 % of it.
    #[test]
    fn the_cost_finds_the_fast_tiles() {
        for (tokens, columns, gated, cols, kernel) in [
            (64, 6144, false, 4096, "linear_wgmma_64x48_c1x1_k1"),
            (128, 6144, false, 4096, "linear_wgmma_128x48_c1x1_k1"),
            (256, 6144, false, 4096, "linear_wgmma_128x96_c2x1_k1"),
            (64, 4096, false, 4096, "linear_wgmma_64x32_c1x1_k1"),
            (256, 4096, false, 4096, "linear_wgmma_128x64_c2x1_k1"),
            (128, 14336, true, 4096, "linear_wgmma_128x112_c1x1_k1"),
            (256, 14336, true, 4096, "linear_wgmma_128x224_c2x1_k1"),
            (64, 4096, false, 14336, "linear_wgmma_64x32_c1x1_k1"),
            (256, 4096, false, 14336, "linear_wgmma_128x64_c2x1_k1"),
            (64, 1024, false, 2048, "linear_wgmma_64x64_c1x1_k2"),
            (64, 1024, false, 3072, "linear_wgmma_64x64_c1x1_k2"),
            (128, 1024, false, 3072, "linear_wgmma_64x64_c1x1_k2"),
            (256, 1024, false, 2048, "linear_wgmma_64x64_c1x1_k2"),
            (256, 1024, false, 3072, "linear_wgmma_64x64_c1x1_k2"),
            (256, 3072, true, 1024, "linear_wgmma_128x96_c1x1_k1"),
            (256, 4096, false, 1024, "linear_wgmma_128x64_c1x1_k1"),
            (2048, 14336, true, 4096, "linear_wgmma_128x224_c2x1_k1"),
            (8192, 14336, true, 4096, "linear_wgmma_128x224_c2x1_k1"),
        ] {
            assert_eq!(wgmma(&shape(tokens, columns, gated, cols), SMS).kernel, kernel, "{tokens} × {columns} × {cols}");
        }
        for (columns, gated, norm_units) in [(6144, false, 6), (4096, false, 4), (14336, true, 6), (1024, false, 2), (3072, true, 6)] {
            assert_eq!(stream(&shape(1, columns, gated, 4096), SMS).units, norm_units, "{columns} columns");
        }
    }

    #[test]
    fn large_products_of_many_tokens_are_for_cublaslt() {
        for (tokens, columns, gated, cols, expected) in [
            (127, 4096, false, 4096, false),
            (128, 4096, false, 4096, true),
            (256, 4096, false, 1024, false),
            (257, 4096, false, 1024, true),
            (8192, 14336, true, 4096, false),
        ] {
            assert_eq!(is_for_lt(&shape(tokens, columns, gated, cols)), expected, "{tokens} × {columns} × {cols}");
        }
        assert!(
            [(256, false), (257, true)]
                .iter()
                .all(|&(tokens, expected)| { is_for_lt(&Shape { before_decode: true, ..shape(tokens, 6144, false, 4096) }) == expected })
        );
    }

    #[test]
    fn tiles_fit_in_shared_memory() {
        assert!(STREAM.iter().all(|t| t.shared_bytes() <= SHARED_BYTES));
        for tile in &WGMMA {
            let [all, some] = [false, true]
                .map(|before_decode| tile.stages(&Shape { before_decode, ..shape(64, 4096, false, 4096) }, SHARED_BYTES as usize));
            assert_eq!(all, tile.stages, "{tile:?}");
            // A stage is released when the next one has been multiplied.
            assert!((2..=all).contains(&some) && tile.shared_bytes(all) + 1024 <= SHARED_BYTES, "{tile:?}: {some}");
            assert!(tile.shared_bytes(some) as usize + ATTENTION_BYTES <= SHARED_BYTES as usize, "{tile:?}: {some}");
        }
    }

    #[test]
    fn boxes_and_tiles_cover_a_shape() {
        for tile in &WGMMA {
            assert!(tile.weight_box().is_multiple_of(8) && tile.x_box(&shape(5, 8, false, 8)).is_multiple_of(8), "{tile:?}");
            for (tokens, columns, gated) in [(1, 8, true), (17, 4096, false), (300, 14336, true), (8192, 128_256, false)] {
                let shape = shape(tokens, columns, gated, 4096);
                let tile_columns = if gated { tile.rows / 2 } else { tile.rows };
                let (token_groups, tiles) = (tile.token_groups(&shape), tile.tiles(&shape));
                assert!(token_groups * tile.tokens * tile.ct >= tokens, "{tile:?}");
                assert!(tiles / token_groups * tile_columns * tile.cr >= columns, "{tile:?}");
                assert_eq!(tile.blocks(&shape, SMS) % tile.cluster(), 0);
                assert!((1..=token_groups).contains(&tile.band(&shape)), "{tile:?}");
            }
        }
    }
}
