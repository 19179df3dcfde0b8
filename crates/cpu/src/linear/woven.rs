//! [`Block`] as tiles of AVX2 take it: a step has two columns of each half of the block, so that one 16-bit lane of a row adds up
//! the products of one half, another those of the other, and what widens the sums multiplies both with scales of their own.

use std::arch::x86_64::*;

use super::activations::{Block, Columns, GROUP, Rounding};

/// 32 columns of a group of tokens. Step `k` has columns 2k, 2k + 1, 16 + 2k and 17 + 2k.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Woven {
    pub codes: [[[i8; 4]; GROUP]; 8],
    pub scales: [f32; GROUP],
    pub sums: [f32; GROUP],
    pub half_sums: [[f32; GROUP]; 2],
    /// 32 · Σ q of the columns of each half, over the first four steps, the last four, and all (of that the low 16 bits): what codes
    /// centred on 32 have too much in the two 16-bit lanes of a row
    pub centres: [[[i16; 2]; GROUP]; 3],
}

// Of the two, memory is taken for the larger.
const _: () = assert!(size_of::<Woven>() >= size_of::<Block<GROUP>>());

/// The step and the place in it of a column.
#[inline(always)]
pub(super) fn place(column: usize) -> (usize, usize) {
    (column % 16 / 2, column / 16 * 2 + column % 2)
}

impl Columns<GROUP> for Woven {
    const ROUNDING: Rounding = Rounding::Blocks;
    const ZERO: Self = Self {
        codes: [[[0; 4]; GROUP]; 8],
        scales: [0.0; GROUP],
        sums: [0.0; GROUP],
        half_sums: [[0.0; GROUP]; 2],
        centres: [[[0; 2]; GROUP]; 3],
    };

    fn codes(&mut self) -> &mut [[[i8; 4]; GROUP]; 8] {
        &mut self.codes
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn round(&mut self, t: usize, v: [__m256; 4]) -> __m256i {
        let (d, bytes) = Block::<1>::codes_of(v);
        let (first, second) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
        let bytes = _mm256_setr_m128i(_mm_unpacklo_epi16(first, second), _mm_unpackhi_epi16(first, second));
        let [a, b] = Block::<1>::sums_of_four_steps(bytes);
        self.scales[t] = d;
        self.sums[t] = d * f32::from(a[0] + a[1] + b[0] + b[1]);
        for h in 0..2 {
            self.half_sums[h][t] = d * f32::from(a[h] + b[h]);
            for (centre, sum) in self.centres.iter_mut().zip([a[h], b[h], a[h] + b[h]]) {
                centre[t][h] = sum.wrapping_mul(32);
            }
        }
        bytes
    }
}
