//! `linear` of many tokens in F32 on x86-64: F32, F16 and BF16 weights, and packed ones where activations must not be rounded.
//!
//! A product goes through [`TILE_COLS`] columns at a time. Column `k` of them belongs to lane `k % 8`, as it does in the dot
//! products of few tokens: a sum is formed per lane, then the lanes are added to what there was, one behind the other. The
//! activations are packed first, once for all workers, `[8, groups, steps, 6]`; then each worker widens [`ROWS`] rows into
//! its tile, `[vectors / 2, 8, steps, 2, N]`, and goes lane by lane through all tokens: a lane of the tile (12 KiB) stays in the L1 cache,
//! and per column two vectors of rows meet six tokens: two loads and six broadcasts, one place behind the other, for twelve
//! multiplications. Bound by the multipliers.
//!
//! Intel Xeon of 4.0 GHz (126 GFLOP/s a core in AVX2), 2 threads, 2026-11-25: SmolLM2 F16 reads a prompt of 512 tokens at 850 tok/s,
//! of which nine tenths of the time in tiles are the twelve multiplications, at their peak. Sums of a lane over 32 columns, with
//! activations where they lie, made it 752: the sums between them took a fifth.

use std::{arch::x86_64::*, ops::Range};

use ferrum_kernels::{DType, quant};

use super::{
    super::{Job, MAX_TOKENS},
    float::{Bf16, F16, F32, Floats},
    lanes::Lanes,
    product::VECS,
    tile::{Place, ROWS, Tile, begin, end},
};

/// Columns that a product goes through at a time: a multiple of all block lengths.
pub(super) const TILE_COLS: usize = 768;
/// Tokens that meet two vectors of rows at a time: with them twelve sums, which with the rows and a token fill the 16 registers
/// of AVX2.
const GROUP: usize = 6;

/// The floats of packed activations of up to `cols` columns.
pub(crate) const fn packed_floats(tokens: usize, cols: usize) -> usize {
    let cols = if cols < TILE_COLS { cols } else { TILE_COLS };
    cols.div_ceil(8) * 8 * tokens.div_ceil(GROUP) * GROUP
}

/// Some tokens and up to [`TILE_COLS`] columns of the activations, `[8, groups, steps, GROUP]`. What does not exist is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    start: *mut f32,
    token: usize,
    tokens: usize,
    first: usize,
    cols: usize,
}

// SAFETY: workers write groups of their own, and only read once all are written.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// `tokens` and `columns` in memory of [`packed_floats`].
    pub fn new(memory: &mut [f32], tokens: Range<usize>, columns: Range<usize>) -> Self {
        assert!(packed_floats(tokens.len(), columns.len()) <= memory.len() && tokens.len() <= MAX_TOKENS && columns.len() <= TILE_COLS);
        Self { start: memory.as_mut_ptr(), token: tokens.start, tokens: tokens.len(), first: columns.start, cols: columns.len() }
    }

    pub fn groups(&self) -> usize {
        self.tokens.div_ceil(GROUP)
    }

    fn steps(&self) -> usize {
        self.cols.div_ceil(8)
    }

    #[inline(always)]
    unsafe fn at(&self, lane: usize, group: usize) -> *mut f32 {
        self.start.add((lane * self.groups() + group) * self.steps() * GROUP)
    }
}

/// Packs some groups of the tokens of `job`.
///
/// # Safety
/// The processor has AVX2; tokens and columns are of the job, and nobody else uses these groups.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn pack(job: &Job, to: &Packed, groups: Range<usize>) {
    for group in groups {
        let count = GROUP.min(to.tokens - group * GROUP);
        let mut x = [std::ptr::null::<f32>(); GROUP];
        for t in 0..count {
            x[t] = job.x.at([to.token + group * GROUP + t, to.first]);
        }
        for step in 0..to.steps() {
            let (mut rows, width) = ([_mm256_setzero_si256(); 8], 8.min(to.cols - 8 * step));
            for t in 0..count {
                rows[t] = if width == 8 { _mm256_loadu_si256(x[t].add(8 * step).cast()) } else { part(x[t].add(8 * step), width) };
            }
            for (lane, v) in transpose(rows).into_iter().enumerate() {
                let to = to.at(lane, group).add(step * GROUP);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(v));
                _mm_storel_epi64(to.add(4).cast(), _mm256_extracti128_si256::<1>(v));
            }
        }
    }
}

/// `width` elements, then zeros.
#[inline(always)]
unsafe fn part(from: *const f32, width: usize) -> __m256i {
    let mut v = [0.0f32; 8];
    std::ptr::copy_nonoverlapping(from, v.as_mut_ptr(), width);
    _mm256_loadu_si256(v.as_ptr().cast())
}

/// Widens [`ROWS`] rows (fewer at the end of the part) from `first` on and adds their products with `x` to the output, which
/// the first columns begin.
///
/// # Safety
/// The processor has AVX2, FMA, F16C and `L`; the rows lie in the part, no other thread writes them to `job.out`; `x` is of this
/// job, and packed.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes>(job: &Job, x: &Packed, first: usize, tile: *mut Tile) {
    let place = Place { first, count: ROWS.min(job.part.rows - first), block: 0, blocks: 0, token: x.token, tokens: x.tokens };
    let vecs = place.count.div_ceil(VECS * L::N) * VECS;
    match job.part.dtype {
        DType::F32 => widen::<L, F32>(job, place, x, vecs, tile),
        DType::F16 => widen::<L, F16>(job, place, x, vecs, tile),
        DType::BF16 => widen::<L, Bf16>(job, place, x, vecs, tile),
        _ => unpack::<L>(job, place, x, vecs, tile),
    }
    let later = Job { bias: None, add: true, ..*job };
    let before = if x.first == 0 { job } else { &later };
    for lane in 0..8 {
        for group in 0..x.groups() {
            let tokens = group * GROUP..x.tokens.min((group + 1) * GROUP);
            if lane == 0 {
                for token in tokens.clone() {
                    for v in 0..vecs {
                        L::store_f(Tile::float_sum::<L>(tile, token, v), begin::<L>(before, place, x.token + token, v));
                    }
                }
            }
            match tokens.len() {
                1 => lane_of_group::<L, 1>(x, lane, group, vecs, tile),
                2 => lane_of_group::<L, 2>(x, lane, group, vecs, tile),
                3 => lane_of_group::<L, 3>(x, lane, group, vecs, tile),
                4 => lane_of_group::<L, 4>(x, lane, group, vecs, tile),
                5 => lane_of_group::<L, 5>(x, lane, group, vecs, tile),
                _ => lane_of_group::<L, GROUP>(x, lane, group, vecs, tile),
            }
            if lane == 7 {
                for token in tokens {
                    for v in 0..vecs {
                        end::<L>(job, place, x.token + token, v, L::load_f(Tile::float_sum::<L>(tile, token, v)));
                    }
                }
            }
        }
    }
}

/// Adds the products of every eighth column to the sums of the first `T` tokens of a group.
#[inline(always)]
unsafe fn lane_of_group<L: Lanes, const T: usize>(x: &Packed, lane: usize, group: usize, vecs: usize, tile: *mut Tile) {
    for vec in (0..vecs).step_by(VECS) {
        let (mut w, mut at) = (lane_of_tile::<L>(tile, vec, lane).cast_const(), x.at(lane, group).cast_const());
        let mut acc = [[L::zero_f(); VECS]; T];
        let mut steps = x.steps();
        while steps >= 4 {
            for _ in 0..4 {
                step::<L, T>(w, at, &mut acc);
                (w, at) = (w.add(VECS * L::N), at.add(GROUP));
            }
            steps -= 4;
        }
        for _ in 0..steps {
            step::<L, T>(w, at, &mut acc);
            (w, at) = (w.add(VECS * L::N), at.add(GROUP));
        }
        for t in 0..T {
            for v in 0..VECS {
                let sum = Tile::float_sum::<L>(tile, group * GROUP + t, vec + v);
                L::store_f(sum, L::add(L::load_f(sum), acc[t][v]));
            }
        }
    }
}

/// One column.
#[inline(always)]
unsafe fn step<L: Lanes, const T: usize>(w: *const f32, x: *const f32, acc: &mut [[L::F; VECS]; T]) {
    let mut rows = [L::zero_f(); VECS];
    for v in 0..VECS {
        rows[v] = L::load_f(w.add(v * L::N));
    }
    for t in 0..T {
        let x = L::broadcast_f(x.add(t));
        for v in 0..VECS {
            acc[t][v] = L::fma(rows[v], x, acc[t][v]);
        }
    }
}

/// Where in the tile the columns of a lane begin, of [`VECS`] vectors from `vec` on.
#[inline(always)]
unsafe fn lane_of_tile<L: Lanes>(tile: *mut Tile, vec: usize, lane: usize) -> *mut f32 {
    Tile::float::<L>(tile, lane, 0).add(vec * TILE_COLS * L::N)
}

/// Fills `vecs` vectors of rows. Rows that do not exist repeat the last.
#[inline(always)]
unsafe fn widen<L: Lanes, W: Floats>(job: &Job, place: Place, x: &Packed, vecs: usize, tile: *mut Tile) {
    let stored = job.part.stored().as_ptr().add(x.first * W::BYTES);
    for eight in (0..vecs * L::N).step_by(8) {
        let mut rows = [stored; 8];
        for r in 0..8 {
            rows[r] = stored.add((place.first + (eight + r).min(place.count - 1)) * job.part.row_bytes);
        }
        for step in 0..x.steps() {
            let (mut v, width) = ([_mm256_setzero_si256(); 8], 8.min(x.cols - 8 * step));
            for r in 0..8 {
                let at = rows[r].add(8 * step * W::BYTES);
                v[r] = if width == 8 { _mm256_castps_si256(W::eight(at)) } else { part_of::<W>(at, width) };
            }
            store::<L>(v, eight, step, tile);
        }
    }
}

/// `width` elements, then zeros.
#[inline(always)]
unsafe fn part_of<W: Floats>(from: *const u8, width: usize) -> __m256i {
    let mut v = [0.0f32; 8];
    for k in 0..width {
        v[k] = W::one(from.add(k * W::BYTES));
    }
    _mm256_loadu_si256(v.as_ptr().cast())
}

/// [`widen`] for packed dtypes.
#[inline(always)]
unsafe fn unpack<L: Lanes>(job: &Job, place: Place, x: &Packed, vecs: usize, tile: *mut Tile) {
    let dtype = job.part.dtype;
    // Whole blocks: both ends are multiples of the block length.
    let bytes = |cols: usize| cols / dtype.block_len() * dtype.block_bytes();
    let mut buffer = [[0.0f32; TILE_COLS]; 8];
    for eight in (0..vecs * L::N).step_by(8) {
        for r in 0..8 {
            let row = place.first + (eight + r).min(place.count - 1);
            let packed = &job.part.stored()[row * job.part.row_bytes + bytes(x.first)..][..bytes(x.cols)];
            quant::dequantize(dtype, packed, &mut buffer[r][..x.cols]).expect("prepare checked dtype and row length");
        }
        for step in 0..x.steps() {
            let mut v = [_mm256_setzero_si256(); 8];
            for r in 0..8 {
                v[r] = _mm256_loadu_si256(buffer[r].as_ptr().add(8 * step).cast());
            }
            store::<L>(v, eight, step, tile);
        }
    }
}

/// Stores eight columns of eight rows, of which the first is the `row`-th of the tile.
#[inline(always)]
unsafe fn store<L: Lanes>(rows: [__m256i; 8], row: usize, step: usize, tile: *mut Tile) {
    let (vec, within) = (row / L::N, row % L::N);
    for (lane, column) in transpose(rows).into_iter().enumerate() {
        let to = lane_of_tile::<L>(tile, vec / VECS * VECS, lane).add((step * VECS + vec % VECS) * L::N + within);
        _mm256_storeu_si256(to.cast(), column);
    }
}

/// Eight by eight 32-bit numbers.
#[inline(always)]
unsafe fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let (a0, a1) = (_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[0], r[1]));
    let (a2, a3) = (_mm256_unpacklo_epi32(r[2], r[3]), _mm256_unpackhi_epi32(r[2], r[3]));
    let (a4, a5) = (_mm256_unpacklo_epi32(r[4], r[5]), _mm256_unpackhi_epi32(r[4], r[5]));
    let (a6, a7) = (_mm256_unpacklo_epi32(r[6], r[7]), _mm256_unpackhi_epi32(r[6], r[7]));
    let (b0, b1) = (_mm256_unpacklo_epi64(a0, a2), _mm256_unpackhi_epi64(a0, a2));
    let (b2, b3) = (_mm256_unpacklo_epi64(a1, a3), _mm256_unpackhi_epi64(a1, a3));
    let (b4, b5) = (_mm256_unpacklo_epi64(a4, a6), _mm256_unpackhi_epi64(a4, a6));
    let (b6, b7) = (_mm256_unpacklo_epi64(a5, a7), _mm256_unpackhi_epi64(a5, a7));
    [
        _mm256_permute2x128_si256(b0, b4, 0x20),
        _mm256_permute2x128_si256(b1, b5, 0x20),
        _mm256_permute2x128_si256(b2, b6, 0x20),
        _mm256_permute2x128_si256(b3, b7, 0x20),
        _mm256_permute2x128_si256(b0, b4, 0x31),
        _mm256_permute2x128_si256(b1, b5, 0x31),
        _mm256_permute2x128_si256(b2, b6, 0x31),
        _mm256_permute2x128_si256(b3, b7, 0x31),
    ]
}
