//! Activations rounded to 8 bits: `x ≈ d · q`, one `d` per 32 elements, `|q| ≤ 127`; or as [`super::fours`] has them.
//!
//! A scale per 32 elements and not per 256 keeps the rounding error at an NMSE of 2.8e-5 on normal data even where a few
//! channels are far larger than the rest, as they are in most models.

use std::{arch::x86_64::*, ops::Range};

use super::{fours::Fours, woven::Woven};

/// Elements with one scale.
pub(super) const BLOCK: usize = 32;
/// The most outliers of a token.
const MAX_OUTLIERS: usize = 8;
/// How many times the mean magnitude of its token an outlier exceeds.
const OUTLIER: f32 = 8.0;

/// The elements of a token that are left out of its codes (zero there) and multiplied in F32, by column.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outliers {
    count: usize,
    columns: [u32; MAX_OUTLIERS],
    values: [f32; MAX_OUTLIERS],
}

impl Outliers {
    /// Column and value of the `n`-th; columns ascend.
    #[inline(always)]
    pub fn get(&self, n: usize) -> Option<(usize, f32)> {
        if n < self.count { Some((self.columns[n] as usize, self.values[n])) } else { None }
    }

    /// Column and value of each.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = (usize, f32)> {
        self.columns.iter().zip(&self.values).take(self.count).map(|(&column, &value)| (column as usize, value))
    }

    /// The first block from `from` on that has one, or a number beyond all blocks.
    #[inline(always)]
    pub fn next_block(&self, from: usize) -> usize {
        let mut blocks = self.columns.iter().take(self.count).map(|&column| column as usize / BLOCK);
        blocks.find(|&block| block >= from).unwrap_or(usize::MAX / 2)
    }

    /// Adds an element; when there is no room, the smallest goes.
    fn push(&mut self, column: usize, value: f32) {
        if self.count == MAX_OUTLIERS {
            let mut least = 0;
            for n in 1..MAX_OUTLIERS {
                if self.values[n].abs() < self.values[least].abs() {
                    least = n;
                }
            }
            if self.values[least].abs() >= value.abs() {
                return;
            }
            self.columns.copy_within(least + 1.., least);
            self.values.copy_within(least + 1.., least);
            self.count -= 1;
        }
        self.columns[self.count] = column as u32;
        self.values[self.count] = value;
        self.count += 1;
    }
}

/// 32 bytes from `31 − n` on are all 0 but the `n`-th, which is 1: the codes of an outlier alone.
static ONE_HOT: [i8; 64] = {
    let mut bytes = [0; 64];
    bytes[31] = 1;
    bytes
};

/// 32 readable codes of which only the `n`-th is 1, the others 0.
#[inline(always)]
pub(super) fn one_hot(n: usize) -> *const i8 {
    ONE_HOT[31 - n % BLOCK..].as_ptr()
}

/// Tokens that meet a tile at a time.
pub(super) const GROUP: usize = 4;

/// Which [`Columns`] a product takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// [`Block`] or [`Woven`]
    Blocks,
    /// [`Fours`]
    Fours,
}

/// 32 columns of `T` tokens side by side, so that a tile reads the activations of a group from one place to the next. Tokens
/// that meet panels as dot products lie on their own, with `T` = 1. As many blocks of one token as a group has take no more memory
/// than one of a group.
pub(super) trait Columns<const T: usize>: Copy {
    const ROUNDING: Rounding;
    const ZERO: Self;

    fn codes(&mut self) -> &mut [[[i8; 4]; T]; 8];

    /// Returns the codes of token `t` and writes the rest.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA.
    unsafe fn round(&mut self, t: usize, v: [__m256; 4]) -> __m256i;
}

/// Whether no number is NaN or infinite. The scale of others is NaN, as comparing may lose them, and codes cannot tell.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn are_finite(v: [__m256; 4]) -> bool {
    let noughts = v.map(|v| _mm256_sub_ps(v, v));
    let sum = _mm256_add_ps(_mm256_add_ps(noughts[0], noughts[1]), _mm256_add_ps(noughts[2], noughts[3]));
    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(sum, sum)) == 0
}

/// With one scale.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Block<const T: usize> {
    /// Of eight steps of four columns
    pub codes: [[[i8; 4]; T]; 8],
    /// `d`
    pub scales: [f32; T],
    /// `d · Σ q`, for minimums
    pub sums: [f32; T],
    /// The same over each half
    pub half_sums: [[f32; T]; 2],
    /// 32 · Σ q over columns 0 and 1, and over 2 and 3, of the four steps of each half: what codes centred on 32 have too much
    /// in the two 16-bit lanes of a row
    pub centres: [[[i16; 2]; T]; 2],
}

impl<const T: usize> Columns<T> for Block<T> {
    const ROUNDING: Rounding = Rounding::Blocks;
    const ZERO: Self =
        Self { codes: [[[0; 4]; T]; 8], scales: [0.0; T], sums: [0.0; T], half_sums: [[0.0; T]; 2], centres: [[[0; 2]; T]; 2] };

    fn codes(&mut self) -> &mut [[[i8; 4]; T]; 8] {
        &mut self.codes
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn round(&mut self, t: usize, v: [__m256; 4]) -> __m256i {
        let (d, bytes) = Self::codes_of(v);
        let halves = Self::sums_of_four_steps(bytes);
        self.scales[t] = d;
        self.sums[t] = d * f32::from(halves.as_flattened().iter().sum::<i16>());
        for (h, [even, odd]) in halves.into_iter().enumerate() {
            self.half_sums[h][t] = d * f32::from(even + odd);
            self.centres[h][t] = [32 * even, 32 * odd];
        }
        bytes
    }
}

impl<const T: usize> Block<T> {
    /// `d` and `q` of each column.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn codes_of(v: [__m256; 4]) -> (f32, __m256i) {
        let magnitude = v.map(|v| _mm256_andnot_ps(_mm256_set1_ps(-0.0), v));
        let m = _mm256_max_ps(_mm256_max_ps(magnitude[0], magnitude[1]), _mm256_max_ps(magnitude[2], magnitude[3]));
        let m = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
        let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        let max = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
        let d = if are_finite(v) { max / 127.0 } else { f32::NAN };
        // A block of zeros, or of numbers too small to have an inverse, is all zeros.
        let inverse = if max > 1e-30 { 127.0 / max } else { 0.0 };
        let q = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(inverse))));
        // The packs work within 128-bit halves: four-byte groups come out as 0 2 4 6 | 1 3 5 7.
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        (d, bytes)
    }

    /// The sums of the first two bytes and the last two of each four, over four fours at a time.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn sums_of_four_steps(bytes: __m256i) -> [[i16; 2]; 2] {
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
        let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
        let both = [_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs)].map(|s| _mm_cvtsi128_si32(s));
        both.map(|s| [s as i16, (s >> 16) as i16])
    }
}

/// Quantised rows, made anew for every `linear`.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// `[groups, blocks]`, or in the same memory another kind or `[tokens, blocks]`
    blocks: Vec<Woven>,
    /// As `blocks`
    fours: Vec<Fours<GROUP>>,
    /// `[tokens]`
    outliers: Vec<Outliers>,
}

impl Activations {
    /// What [`Activations::reserve`] takes for each of `roundings`.
    pub fn bytes(roundings: &[Rounding], tokens: usize, cols: usize) -> usize {
        let block = |rounding: &Rounding| match rounding {
            Rounding::Blocks => size_of::<Woven>(),
            Rounding::Fours => size_of::<Fours<GROUP>>(),
        };
        tokens.div_ceil(GROUP) * cols.div_ceil(BLOCK) * roundings.iter().map(block).sum::<usize>() + tokens * size_of::<Outliers>()
    }

    /// Makes room for `tokens` rows of `cols`, so that later calls with no more allocate nothing.
    pub fn reserve(&mut self, rounding: Rounding, tokens: usize, cols: usize) {
        let blocks = tokens.div_ceil(GROUP) * cols.div_ceil(BLOCK);
        match rounding {
            Rounding::Blocks if self.blocks.len() < blocks => self.blocks.resize(blocks, Woven::ZERO),
            Rounding::Fours if self.fours.len() < blocks => self.fours.resize(blocks, Fours::ZERO),
            _ => {}
        }
        if self.outliers.len() < tokens {
            self.outliers.resize(tokens, Outliers::default());
        }
    }

    /// The memory of rows of `cols` elements, for kernels that take some roundings.
    ///
    /// # Panics
    /// When `reserve` made less room than `tokens` rows.
    pub fn rows(&mut self, takes: &dyn Fn(Rounding) -> bool, tokens: usize, cols: usize) -> ActivationRows {
        let blocks = cols / BLOCK;
        for (rounding, room) in [(Rounding::Blocks, self.blocks.len()), (Rounding::Fours, self.fours.len())] {
            let enough = tokens.div_ceil(GROUP) * blocks <= room && tokens <= self.outliers.len();
            assert!(enough || !takes(rounding), "reserve comes first");
        }
        let (as_blocks, as_fours) = (self.blocks.as_mut_ptr(), self.fours.as_mut_ptr());
        ActivationRows { as_blocks, as_fours, outliers: self.outliers.as_mut_ptr(), blocks }
    }
}

/// Pointers to the first of rows that all lie in groups or all on their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActivationRows {
    as_blocks: *mut Woven,
    as_fours: *mut Fours<GROUP>,
    pub outliers: *mut Outliers,
    /// Of a row
    pub blocks: usize,
}

// SAFETY: workers write the rows they are given, disjoint by token, and only read once all are written.
unsafe impl Send for ActivationRows {}
// SAFETY: as above.
unsafe impl Sync for ActivationRows {}

impl ActivationRows {
    /// The first block of the group that `token` begins; with `T` = 1, of the token.
    ///
    /// # Safety
    /// `token` is below the count given to [`Activations::rows`] with the rounding of `C`, and a multiple of `T`.
    #[inline(always)]
    pub unsafe fn group<C: Columns<T>, const T: usize>(&self, token: usize) -> *mut C {
        let start: *mut C = match C::ROUNDING {
            Rounding::Blocks => self.as_blocks.cast(),
            Rounding::Fours => self.as_fours.cast(),
        };
        // SAFETY: `reserve` made room for the blocks of whole groups, in which those of single tokens fit as well.
        unsafe { start.add(token / T * self.blocks) }
    }
}

/// Quantises `tokens`, of which the first begins a group, into groups of `T`; `row` gives the elements of one.
///
/// # Safety
/// The processor has AVX2 and FMA; each row has `rows.blocks` whole blocks; nobody else uses these groups of `rows`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn quantize_avx2<C: Columns<T>, const T: usize>(
    rows: &ActivationRows,
    tokens: Range<usize>,
    row: impl Fn(usize) -> *const f32,
) {
    for first in tokens.clone().step_by(T) {
        let count = T.min(tokens.end - first);
        let (mut x, mut outliers) = ([std::ptr::null(); T], [Outliers::default(); T]);
        for t in 0..count {
            x[t] = row(first + t);
            // SAFETY: promised by the caller.
            unsafe {
                outliers[t] = find_outliers(x[t], rows.blocks);
                *rows.outliers.add(first + t) = outliers[t];
            }
        }
        for block in 0..rows.blocks {
            // SAFETY: promised by the caller.
            unsafe {
                let to = &mut *rows.group::<C, T>(first).add(block);
                let mut codes = [_mm256_setzero_si256(); T];
                for t in 0..count {
                    codes[t] = to.round(t, without_outliers(x[t].add(block * BLOCK), block, &outliers[t]));
                }
                store_by_step(&codes, to.codes());
            }
        }
    }
}

/// # Safety
/// The processor has AVX2 and FMA; `x` has `blocks` whole blocks.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn find_outliers(x: *const f32, blocks: usize) -> Outliers {
    let mut outliers = Outliers::default();
    // SAFETY: promised by the caller.
    unsafe {
        let threshold = OUTLIER * mean_magnitude(x, blocks);
        for block in 0..blocks {
            let v: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.add(block * BLOCK + 8 * i)));
            let [a, b, c, d] = v.map(|v| above(v, threshold));
            if _mm256_movemask_ps(_mm256_or_ps(_mm256_or_ps(a, b), _mm256_or_ps(c, d))) == 0 {
                continue;
            }
            for (i, v) in [a, b, c, d].into_iter().enumerate() {
                let mut found = _mm256_movemask_ps(v);
                while found != 0 {
                    let n = block * BLOCK + 8 * i + found.trailing_zeros() as usize;
                    outliers.push(n, *x.add(n));
                    found &= found - 1;
                }
            }
        }
    }
    outliers
}

/// A block of a token without its outliers, which are zeros.
///
/// # Safety
/// The processor has AVX2 and FMA; `x` has a whole block.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn without_outliers(x: *const f32, block: usize, outliers: &Outliers) -> [__m256; 4] {
    // SAFETY: promised by the caller; `one_hot` has 32 bytes.
    unsafe {
        let mut v: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.add(8 * i)));
        if outliers.next_block(block) == block {
            for (column, _) in outliers.iter().filter(|o| o.0 / BLOCK == block) {
                for (i, v) in v.iter_mut().enumerate() {
                    let n = _mm256_cvtepi8_epi32(_mm_loadl_epi64(one_hot(column).add(8 * i).cast()));
                    *v = _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(n, _mm256_setzero_si256())), *v);
                }
            }
        }
        v
    }
}

/// Writes the codes of `T` tokens, one or [`GROUP`], side by side.
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_by_step<const T: usize>(codes: &[__m256i; T], to: &mut [[[i8; 4]; T]; 8]) {
    let to: *mut i8 = to.as_mut_ptr().cast();
    let &[a, b, c, d] = codes.as_slice() else {
        const { assert!(T == 1 || T == GROUP && GROUP == 4) };
        // SAFETY: 32 bytes of the one token.
        return unsafe { _mm256_storeu_si256(to.cast(), codes[0]) };
    };
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    // Steps `n` and `n + 4` in the halves of a vector.
    let steps = [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ];
    for (n, step) in steps.into_iter().enumerate() {
        // SAFETY: eight steps of 16 bytes each.
        unsafe {
            _mm_storeu_si128(to.add(16 * n).cast(), _mm256_castsi256_si128(step));
            _mm_storeu_si128(to.add(16 * (n + 4)).cast(), _mm256_extracti128_si256::<1>(step));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn mean_magnitude(x: *const f32, blocks: usize) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    for block in 0..blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `x` has `blocks` whole blocks, as `quantize_avx2` was promised.
            let v = unsafe { _mm256_loadu_ps(x.add(block * BLOCK + 8 * i)) };
            *sum = _mm256_add_ps(*sum, _mm256_andnot_ps(_mm256_set1_ps(-0.0), v));
        }
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let mut lanes = [0.0f32; 8];
    // SAFETY: eight elements are written to eight.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes.iter().sum::<f32>() / (blocks * BLOCK) as f32
}

/// All ones where `|v|` is above `threshold`; nowhere if either is NaN.
#[target_feature(enable = "avx2")]
fn above(v: __m256, threshold: f32) -> __m256 {
    _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_andnot_ps(_mm256_set1_ps(-0.0), v), _mm256_set1_ps(threshold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_counts_what_is_reserved() {
        let (mut a, both) = (Activations::default(), [Rounding::Blocks, Rounding::Fours]);
        for (n, rounding) in both.into_iter().enumerate() {
            a.reserve(rounding, 7, 96);
            let bytes = size_of_val(&a.blocks[..]) + size_of_val(&a.fours[..]) + size_of_val(&a.outliers[..]);
            assert_eq!(Activations::bytes(&both[..=n], 7, 96), bytes);
        }
    }
}
