//! Activations rounded for products with codes that take all eight bits: `x ≈ d · m · q`, one `d` per 32 elements and one whole
//! `m` per four of them, so that of four `q` neither the positive nor the negative ones add up to more than 128.
//!
//! Any four unsigned bytes times them then fit 16 bits, and `m` costs nothing: the instruction that widens sums to 32 bits
//! multiplies them. Where one scale for 32 elements gives the largest of them eight bits, this gives each four six to eight, and
//! of all `m` the one nearest to their numbers: an NMSE of 2.9e-5 in place of 2.8e-5 on normal data, 2.2e-5 in place of 9.2e-5 on
//! heavy tails.

use std::arch::x86_64::*;

use super::activations::{Columns, Rounding, are_finite};

/// What four `q` of one sign add up to before they are rounded, which adds a half each. Four equal elements are exact.
const SUM: f32 = 124.0;
/// `m` of the four that add up to most, nearly: 16 products of it and 16 bits fit 32 bits.
const LARGEST: f32 = 4000.0;

/// 32 columns of `T` tokens side by side. A batch is eight columns, of which 0, 1, 4 and 5 are four that share `m`, and the
/// others as well: they meet in one 16-bit lane.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Fours<const T: usize> {
    /// `q`, of eight steps of four columns
    pub codes: [[[i8; 4]; T]; 8],
    /// `m`, of four batches
    pub factors: [[[i16; 2]; T]; 4],
    /// `d`
    pub scales: [f32; T],
    /// `−128 · Σ m · q`: what codes that are 128 too high have too much
    pub centres: [i32; T],
}

impl<const T: usize> Columns<T> for Fours<T> {
    const ROUNDING: Rounding = Rounding::Fours;
    const ZERO: Self = Self { codes: [[[0; 4]; T]; 8], factors: [[[0; 2]; T]; 4], scales: [0.0; T], centres: [0; T] };

    fn codes(&mut self) -> &mut [[[i8; 4]; T]; 8] {
        &mut self.codes
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn round(&mut self, t: usize, v: [__m256; 4]) -> __m256i {
        let (zero, mut sums, mut most) = (_mm256_setzero_ps(), v, _mm256_setzero_ps());
        for i in 0..4 {
            let positive = _mm256_max_ps(v[i], zero);
            let negative = _mm256_sub_ps(positive, v[i]);
            // Zeros, and numbers without an inverse, are to be zeros.
            sums[i] = _mm256_max_ps(_mm256_max_ps(sum_of_fours(positive), sum_of_fours(negative)), _mm256_set1_ps(1e-30));
            most = _mm256_max_ps(most, sums[i]);
        }
        let m = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        let most = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehl_ps(m, m)));
        let by = _mm256_set1_ps(SUM * LARGEST / most);
        let (mut factors, mut q) = ([_mm256_setzero_si256(); 4], [_mm256_setzero_si256(); 4]);
        for i in 0..4 {
            let codes = _mm256_round_ps::<NEAREST>(_mm256_mul_ps(v[i], _mm256_div_ps(_mm256_set1_ps(SUM), sums[i])));
            // The factor with the least squared error.
            let (product, square) = (sum_of_fours(_mm256_mul_ps(v[i], codes)), sum_of_fours(_mm256_mul_ps(codes, codes)));
            let best = _mm256_div_ps(product, _mm256_max_ps(square, _mm256_set1_ps(1.0)));
            factors[i] = _mm256_cvtps_epi32(_mm256_mul_ps(best, by));
            q[i] = _mm256_cvtps_epi32(codes);
        }
        // The packs work within 128-bit halves: four-byte groups come out as 0 2 4 6 | 1 3 5 7, factors of batches twice the same.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        let bytes = _mm256_permutevar8x32_epi32(bytes, order);
        // Of each batch its two factors, each twice in a row; then one of each, twice.
        let factors = [_mm256_packs_epi32(factors[0], factors[1]), _mm256_packs_epi32(factors[2], factors[3])];
        let once = _mm_setr_epi8(0, 1, 4, 5, 0, 1, 4, 5, 8, 9, 12, 13, 8, 9, 12, 13);
        let factors = factors.map(|f| _mm_shuffle_epi8(_mm256_castsi256_si128(f), once));
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let sums = _mm256_madd_epi16(pairs, _mm256_setr_m128i(factors[0], factors[1]));
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
        for (i, two) in factors.into_iter().enumerate() {
            let (first, second) = (_mm_cvtsi128_si32(two), _mm_extract_epi32::<2>(two));
            self.factors[2 * i][t] = [first as i16, (first >> 16) as i16];
            self.factors[2 * i + 1][t] = [second as i16, (second >> 16) as i16];
        }
        self.scales[t] = if are_finite(v) { most / (SUM * LARGEST) } else { f32::NAN };
        self.centres[t] = _mm_cvtsi128_si32(sum).wrapping_mul(-128);
        bytes
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// In each of eight columns the sum of the four that it shares `m` with.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_fours(v: __m256) -> __m256 {
    let v = _mm256_add_ps(v, _mm256_permute2f128_ps::<0x01>(v, v));
    _mm256_add_ps(v, _mm256_permute_ps::<0b10_11_00_01>(v))
}

#[cfg(test)]
mod tests {
    use super::{super::activations::Block, *};

    fn rounded<C: Columns<1>>(x: &[f32; 32]) -> C {
        let mut to = C::ZERO;
        // SAFETY: the caller found AVX2 and FMA; 32 numbers are four vectors, and 32 codes are one.
        unsafe {
            let v = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
            let codes = to.round(0, v);
            _mm256_storeu_si256(to.codes().as_mut_ptr().cast(), codes);
        }
        to
    }

    /// The columns that share the factor of `column`, and that factor.
    fn four(b: &Fours<1>, column: usize) -> ([usize; 4], i32) {
        let first = column / 8 * 8 + column % 4 / 2 * 2;
        ([first, first + 1, first + 4, first + 5], i32::from(b.factors[column / 8][0][column % 4 / 2]))
    }

    /// Blocks of normal numbers, of kind 0 and 7 as they are; of 1 with one that is far larger, of 2 of one sign, of 3 equal, of 4 with
    /// small ones beside large ones, of 5 all small, of 6 with heavy tails.
    fn blocks() -> impl Iterator<Item = (usize, [f32; 32])> {
        let mut state = 1u32;
        let mut normal = move || {
            let mut sum = -6.0;
            for _ in 0..12 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                sum += (state >> 8) as f32 / 16_777_216.0;
            }
            sum
        };
        (0..20_000).map(move |round| {
            let x = std::array::from_fn(|n| match round % 8 {
                1 if n == round % 32 => 100.0 * normal(),
                2 => normal().abs(),
                3 => 0.3,
                4 => normal() * if n % 4 == 0 { 1.0 } else { 1e-3 },
                5 => 1e-33 * normal(),
                6 => normal() * normal().exp(),
                _ => normal(),
            });
            (round % 8, x)
        })
    }

    fn runs_here() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }

    #[test]
    fn no_four_codes_leave_16_bits() {
        for (kind, x) in blocks().filter(|_| runs_here()) {
            let b: Fours<1> = rounded(&x);
            let mut centre = 0;
            for (n, &want) in x.iter().enumerate() {
                let (columns, factor) = four(&b, n);
                let codes = columns.map(|c| i32::from(b.codes[c / 4][0][c % 4]));
                let of_sign = |sign: i32| codes.iter().filter(|q| **q * sign > 0).sum::<i32>().abs();
                assert!(of_sign(1) <= 128 && of_sign(-1) <= 128 && (0..=4050).contains(&factor), "{codes:?}, {factor}");
                let q = factor * i32::from(b.codes[n / 4][0][n % 4]);
                centre -= 128 * q;
                assert!(kind != 3 || (b.scales[0] * q as f32 - want).abs() < 1e-6, "equal ones are exact");
            }
            assert_eq!(b.centres[0], centre);
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for (bad, n) in [(f32::NAN, 0), (f32::NAN, 31), (f32::INFINITY, 5), (f32::NEG_INFINITY, 12)] {
            let x = std::array::from_fn(|i| if i == n || i == (n + 9) % 32 { bad } else { 1.0 });
            assert!(!runs_here() || rounded::<Fours<1>>(&x).scales[0].is_nan(), "{bad} at {n}");
            assert!(!runs_here() || rounded::<Block<1>>(&x).scales[0].is_nan(), "{bad} at {n}");
        }
    }

    #[test]
    fn the_error_is_near_that_of_one_scale_and_less_of_heavy_tails() {
        // Of one scale and of fours, of normal numbers and of heavy tails.
        let (mut errors, mut squares) = ([[0.0f64; 2]; 2], [0.0f64; 2]);
        for (kind, x) in blocks().filter(|(kind, _)| [0, 6].contains(kind) && runs_here()) {
            let (one, fours): (Block<1>, Fours<1>) = (rounded(&x), rounded(&x));
            for (n, &want) in x.iter().enumerate() {
                let (q, f) = (one.codes[n / 4][0][n % 4], fours.codes[n / 4][0][n % 4]);
                let got = [one.scales[0] * f32::from(q), fours.scales[0] * (four(&fours, n).1 * i32::from(f)) as f32];
                for (got, errors) in got.into_iter().zip(&mut errors) {
                    errors[kind / 6] += f64::from(got - want).powi(2);
                }
                squares[kind / 6] += f64::from(want).powi(2);
            }
        }
        let nmse = errors.map(|e| [e[0] / squares[0], e[1] / squares[1]]);
        assert!(!runs_here() || nmse[1][0] < 3e-5 && nmse[1][1] < nmse[0][1] / 3.0, "{nmse:?}");
    }
}
