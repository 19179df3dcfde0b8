//! From rows of a file to a panel: transposes of eight rows at a time.
//!
//! Per block and eight rows: 16 bytes of each row become four vectors of words, one row per lane, in 8 loads and 8 shuffles. Scales are
//! unpacked in that form, all rows at once, and then their bytes change places, so that those of one sub-block become neighbours.
//! The next panel's rows are fetched meanwhile: as many streams as rows are more than the prefetcher follows.

use std::{arch::x86_64::*, ops::Range};

use ferrum_kernels::DType;

use super::super::panels::Shape;

/// Rows one behind the other, as the file holds them.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    /// From the first row of a panel on
    pub data: &'a [u8],
    pub row_bytes: usize,
    /// How many there are, those of later panels included
    pub count: usize,
}

/// Writes `blocks` of the panel of the first `lanes` of `rows`. Rows that do not exist become zeros.
///
/// # Safety
/// The processor has AVX2; `lanes` is 8 or 16; the rows have the blocks; `to` has room for them.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn fill_panel(dtype: DType, lanes: usize, rows: &StoredRows, blocks: Range<usize>, to: *mut u8) {
    // One copy per dtype and width, so that the loops over fields have constant lengths.
    macro_rules! each {
        ($($dtype:ident)*) => {
            match (dtype, lanes) {
                $((DType::$dtype, 16) => fill(DType::$dtype, 16, rows, blocks, to),
                  (DType::$dtype, 8) => fill(DType::$dtype, 8, rows, blocks, to),)*
                _ => unreachable!("no kernel has panels of {lanes} {dtype} rows"),
            }
        };
    }
    each!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS);
}

/// The longest block
const BLOCK_BYTES: usize = 210;

#[inline(always)]
unsafe fn fill(dtype: DType, lanes: usize, rows: &StoredRows, blocks: Range<usize>, to: *mut u8) {
    static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let (shape, block_bytes) = (Shape::of(dtype), dtype.block_bytes());
    let (data, count) = (rows.data.as_ptr(), rows.count.min(lanes));
    let after = &rows.data[count * rows.row_bytes..];
    for (n, block) in blocks.enumerate() {
        let lines = after.chunks(64).skip(block * lanes * block_bytes / 64).take((lanes * block_bytes).div_ceil(64));
        for line in lines {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
        for lane in (0..lanes).step_by(8) {
            let mut from = [ZEROS.as_ptr(); 8];
            for r in 0..8 {
                if lane + r < count {
                    from[r] = data.add((lane + r) * rows.row_bytes + block * block_bytes);
                }
            }
            let to = Lanes { block: to.add(n * lanes * shape.block_bytes()), lanes, lane, shape };
            scales(dtype, &from, to);
            for four in 0..(shape.words - shape.bits) / 4 {
                let words = words_of(&from, shape.from + 16 * four);
                for w in 0..4 {
                    to.word(shape.bits + 4 * four + w, words[w]);
                }
            }
        }
    }
}

/// Eight lanes of a panel's block.
#[derive(Clone, Copy)]
struct Lanes {
    block: *mut u8,
    lanes: usize,
    /// The first
    lane: usize,
    shape: Shape,
}

impl Lanes {
    #[inline(always)]
    unsafe fn word(self, n: usize, v: __m256i) {
        let first = self.shape.offsets(self.lanes).1;
        _mm256_storeu_si256(self.block.add(first + 4 * (n * self.lanes + self.lane)).cast(), v);
    }

    /// The `n`-th f16 number.
    #[inline(always)]
    unsafe fn half(self, n: usize, v: __m128i) {
        _mm_storeu_si128(self.block.add(2 * (n * self.lanes + self.lane)).cast(), v);
    }

    /// The bytes of `v`, four per lane, to places `at`.
    #[inline(always)]
    unsafe fn bytes(self, at: [usize; 4], v: __m256i) {
        let by_byte =
            _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let v = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(v, by_byte), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let first = self.block.add(self.shape.offsets(self.lanes).0 + self.lane);
        let [low, high] = [_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)];
        _mm_storel_epi64(first.add(at[0] * self.lanes).cast(), low);
        _mm_storel_epi64(first.add(at[1] * self.lanes).cast(), _mm_unpackhi_epi64(low, low));
        _mm_storel_epi64(first.add(at[2] * self.lanes).cast(), high);
        _mm_storel_epi64(first.add(at[3] * self.lanes).cast(), _mm_unpackhi_epi64(high, high));
    }

    /// [`Lanes::bytes`] to four places from `at` on.
    #[inline(always)]
    unsafe fn four_bytes(self, at: usize, v: __m256i) {
        self.bytes([at, at + 1, at + 2, at + 3], v);
    }
}

/// Everything but the codes that stay as they are.
#[inline(always)]
unsafe fn scales(dtype: DType, from: &[*const u8; 8], to: Lanes) {
    match dtype {
        DType::Q4_0 | DType::Q8_0 | DType::IQ4_NL => to.half(0, halves_of(from, 0)),
        DType::Q4_1 => {
            to.half(0, halves_of(from, 0));
            to.half(1, halves_of(from, 2));
        }
        DType::Q5_0 => {
            to.half(0, halves_of(from, 0));
            to.word(0, bits_by_step(word_of(from, 2)));
        }
        DType::Q5_1 => {
            to.half(0, halves_of(from, 0));
            to.half(1, halves_of(from, 2));
            to.word(0, bits_by_step(word_of(from, 4)));
        }
        DType::Q2_K => {
            to.half(0, halves_of(from, 80));
            to.half(1, halves_of(from, 82));
            let words = words_of(from, 0);
            for w in 0..4 {
                to.four_bytes(4 * w, words[w]);
            }
        }
        DType::Q3_K => {
            to.half(0, halves_of(from, 108));
            // Four bits of scales 0 to 7 and 8 to 15, then two bits of four times four; less 32.
            let [_, a, b, high] = words_of(from, 92);
            let low = [moved::<0>(a, 15), moved::<0>(b, 15), moved::<4>(a, 15), moved::<4>(b, 15)];
            let high = [moved::<-4>(high, 0x30), moved::<-2>(high, 0x30), moved::<0>(high, 0x30), moved::<2>(high, 0x30)];
            for w in 0..4 {
                to.four_bytes(4 * w, _mm256_sub_epi8(_mm256_or_si256(low[w], high[w]), _mm256_set1_epi8(32)));
            }
        }
        DType::Q4_K | DType::Q5_K => {
            let [d, a, b, c] = words_of(from, 0);
            let d = _mm256_packus_epi32(_mm256_and_si256(d, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32::<16>(d));
            let d = _mm256_permute4x64_epi64::<0b11_01_10_00>(d);
            to.half(0, _mm256_castsi256_si128(d));
            to.half(1, _mm256_extracti128_si256::<1>(d));
            // Six bits of scales 0 to 3, of minimums 0 to 3; then four bits of the others, whose high two are above the first.
            to.four_bytes(0, moved::<0>(a, 63));
            to.four_bytes(4, _mm256_or_si256(moved::<0>(c, 15), moved::<2>(a, 0x30)));
            to.four_bytes(8, moved::<0>(b, 63));
            to.four_bytes(12, _mm256_or_si256(moved::<4>(c, 15), moved::<2>(b, 0x30)));
        }
        DType::Q6_K => {
            to.half(0, halves_of(from, 208));
            let words = words_of(from, 192);
            for w in 0..4 {
                to.four_bytes(4 * w, words[w]);
            }
        }
        DType::IQ4_XS => {
            to.half(0, halves_of(from, 0));
            // Two high bits of eight scales; then their low four, two in a byte; less 32.
            let [high, low, ..] = words_of(from, 0);
            let high = _mm256_srli_epi32::<16>(high);
            for odd in 0..2 {
                let (low, high) = if odd == 0 { (low, high) } else { (_mm256_srli_epi32::<4>(low), _mm256_srli_epi32::<2>(high)) };
                let a = _mm256_or_si256(moved_words::<-4>(high, 0x30), moved_words::<-8>(high, 0x3000));
                let b = _mm256_or_si256(moved_words::<-12>(high, 0x30_0000), moved_words::<-16>(high, 0x3000_0000));
                let scales = _mm256_or_si256(moved::<0>(low, 15), _mm256_or_si256(a, b));
                to.bytes([odd, odd + 2, odd + 4, odd + 6], _mm256_sub_epi8(scales, _mm256_set1_epi8(32)));
            }
        }
        _ => {}
    }
}

/// 16 bytes from `at` on of each row, as four words of all rows.
#[inline(always)]
unsafe fn words_of(rows: &[*const u8; 8], at: usize) -> [__m256i; 4] {
    let mut v = [_mm256_setzero_si256(); 4];
    for r in 0..4 {
        let (low, high) = (_mm_loadu_si128(rows[r].add(at).cast()), _mm_loadu_si128(rows[r + 4].add(at).cast()));
        v[r] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
    }
    let (ab, cd) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpacklo_epi32(v[2], v[3]));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[2], v[3]));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The word at `at` of each row.
#[inline(always)]
unsafe fn word_of(rows: &[*const u8; 8], at: usize) -> __m256i {
    let mut v = [0i32; 8];
    for r in 0..8 {
        v[r] = rows[r].add(at).cast::<i32>().read_unaligned();
    }
    _mm256_setr_epi32(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])
}

/// The half word at `at` of each row.
#[inline(always)]
unsafe fn halves_of(rows: &[*const u8; 8], at: usize) -> __m128i {
    let mut v = [0i16; 8];
    for r in 0..8 {
        v[r] = rows[r].add(at).cast::<i16>().read_unaligned();
    }
    _mm_setr_epi16(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])
}

/// Bits of each byte, `BITS` to the right or, when negative, to the left; `mask` leaves out what crossed into a neighbour.
#[inline(always)]
unsafe fn moved<const BITS: i32>(v: __m256i, mask: i8) -> __m256i {
    moved_words::<BITS>(v, i32::from_ne_bytes([mask as u8; 4]))
}

#[inline(always)]
unsafe fn moved_words<const BITS: i32>(v: __m256i, mask: i32) -> __m256i {
    let count = _mm_cvtsi32_si128(BITS.abs());
    let v = if BITS < 0 { _mm256_sll_epi32(v, count) } else { _mm256_srl_epi32(v, count) };
    _mm256_and_si256(v, _mm256_set1_epi32(mask))
}

/// The high bits of 32 elements, from bit `4k + j` for element `4k + j` to bit `k` of byte `j`: where step `k` of a dot
/// product finds those of its four elements at the same place of the four bytes.
#[inline(always)]
unsafe fn bits_by_step(bits: __m256i) -> __m256i {
    // The bits of the place, `k k k j j`, change places two by two until they are `j j k k k`.
    let bits = exchange::<14>(bits, 0x0000_cccc);
    let bits = exchange::<7>(bits, 0x00aa_00aa);
    let bits = exchange::<2>(bits, 0x0c0c_0c0c);
    exchange::<1>(bits, 0x2222_2222)
}

/// Exchanges the bits in `mask` with those `BY` places higher.
#[inline(always)]
unsafe fn exchange<const BY: i32>(v: __m256i, mask: i32) -> __m256i {
    let t = _mm256_and_si256(_mm256_xor_si256(v, _mm256_srli_epi32::<BY>(v)), _mm256_set1_epi32(mask));
    _mm256_xor_si256(v, _mm256_xor_si256(t, _mm256_slli_epi32::<BY>(t)))
}
