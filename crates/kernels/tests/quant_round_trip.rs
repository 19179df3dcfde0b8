//! What the quantisers promise: error on normal data no worse than that of the established quantisers, sane results at
//! the edges of f16, and errors instead of panics or garbage.

use ferrum_kernels::DType;
use ferrum_kernels::quant::{QuantError, dequantize, quantize};

use proptest::prelude::*;

const BLOCK_TYPES: usize = 12;

/// Root mean square error of ggml 0.25.3 (`ggml_quantize_chunk` without importance matrix, rows of 256) on `normal(1 << 18)`.
const GGML_RMSE: [(DType, f64); BLOCK_TYPES] = [
    (DType::Q4_0, 0.085829),
    (DType::Q4_1, 0.078207),
    (DType::Q5_0, 0.042620),
    (DType::Q5_1, 0.037747),
    (DType::Q8_0, 0.005344),
    (DType::Q2_K, 0.296339),
    (DType::Q3_K, 0.150787),
    (DType::Q4_K, 0.071341),
    (DType::Q5_K, 0.036018),
    (DType::Q6_K, 0.017745),
    (DType::IQ4_NL, 0.076040),
    (DType::IQ4_XS, 0.076638),
];

#[test]
fn error_on_normal_data_is_within_two_percent_of_ggml() {
    let x = normal(1 << 18);
    for (dtype, reference) in GGML_RMSE {
        let y = round_trip(dtype, &x).unwrap();
        let squares: f64 = x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        let rmse = (squares / x.len() as f64).sqrt();
        assert!(rmse <= 1.02 * reference, "{dtype}: rmse {rmse:.6}, ggml {reference:.6}");
        // Far below is a broken measurement: nothing stores more in these bits.
        assert!(rmse >= 0.85 * reference, "{dtype}: rmse {rmse:.6}, ggml {reference:.6}");
    }
}

#[test]
fn floats_round_trip() {
    let x = normal(1024);
    assert_eq!(round_trip(DType::F32, &x).unwrap(), x);
    for (x, y) in x.iter().zip(round_trip(DType::F16, &x).unwrap()) {
        assert!((x - y).abs() <= x.abs() / 2048.0 + 1e-7, "{x} {y}");
    }
    for (x, y) in x.iter().zip(round_trip(DType::BF16, &x).unwrap()) {
        assert!((x - y).abs() <= x.abs() / 256.0, "{x} {y}");
    }
}

#[test]
fn zeros_stay_zero() {
    for dtype in DType::weights() {
        assert_eq!(round_trip(dtype, &[0.0; 256]).unwrap(), [0.0; 256], "{dtype}");
        assert_eq!(round_trip(dtype, &[-0.0; 256]).unwrap(), [0.0; 256], "{dtype}");
    }
}

#[test]
fn constant_rows_keep_their_value() {
    for dtype in block_types() {
        for value in [0.5f32, -0.5, 0.037, -120.0] {
            for y in round_trip(dtype, &[value; 256]).unwrap() {
                assert!((y - value).abs() <= 0.01 * value.abs(), "{dtype}: {value} became {y}");
            }
        }
    }
}

#[test]
fn an_outlier_survives_and_the_rest_stays_small() {
    for dtype in block_types() {
        for outlier in [100.0f32, -100.0] {
            let mut x = [0.01; 256];
            x[77] = outlier;
            let y = round_trip(dtype, &x).unwrap();
            assert!((y[77] - outlier).abs() <= 0.05 * outlier.abs(), "{dtype}: {outlier} became {}", y[77]);
            let rest = y.iter().enumerate().filter(|(i, _)| *i != 77).map(|(_, y)| y.abs()).fold(0.0, f32::max);
            assert!(rest <= 5.0, "{dtype}: {rest}");
        }
    }
}

#[test]
fn scales_in_the_subnormal_range_of_f16_do_not_clip() {
    // From normal f16 scales down to where they vanish. A step of the coarsest type is about 0.45 of the extreme. To that
    // comes the f16 grid: half a gap of the IQ4 table, or, where a sub-block's scale rounds to zero, half its reach.
    let x = normal(256);
    for dtype in block_types() {
        for exponent in -40..-4 {
            let factor = 2f32.powi(exponent);
            let x: Vec<f32> = x.iter().map(|x| x * factor).collect();
            let y = round_trip(dtype, &x).unwrap();
            let extreme = x.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
            let grid_steps = if dtype.block_len() == 32 { 8.0 } else { 64.0 };
            let bound = extreme * 0.45 + 2f32.powi(-24) * grid_steps;
            for (x, y) in x.iter().zip(&y) {
                assert!((x - y).abs() <= bound, "{dtype} at 2^{exponent}: {x:e} became {y:e}");
            }
        }
    }
}

#[test]
fn f32_subnormals_become_zero() {
    for dtype in block_types() {
        let x: Vec<f32> = (0..256).map(|i| f32::from_bits(i * 1000) * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        for y in round_trip(dtype, &x).unwrap() {
            assert_eq!(y, 0.0, "{dtype}");
        }
    }
}

#[test]
fn values_beyond_the_scales_are_refused_by_block() {
    let mut x = vec![1.0; 768];
    x[600] = 3e38;
    for dtype in block_types() {
        let index = 600 / dtype.block_len() * dtype.block_len();
        assert_eq!(quantize(dtype, &x), Err(QuantError::OutOfRange { dtype, index }));
    }
    assert_eq!(quantize(DType::F16, &x), Err(QuantError::OutOfRange { dtype: DType::F16, index: 600 }));
    assert!(quantize(DType::BF16, &x).is_ok());
    assert_eq!(quantize(DType::BF16, &[f32::MAX]), Err(QuantError::OutOfRange { dtype: DType::BF16, index: 0 }));
    // Large, yet within reach of every block type.
    let large: Vec<f32> = normal(256).iter().map(|x| x * 10_000.0).collect();
    for dtype in block_types() {
        assert!(round_trip(dtype, &large).unwrap().iter().all(|y| y.is_finite()), "{dtype}");
    }
}

#[test]
fn bad_input_is_named() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for dtype in DType::weights() {
            let mut x = [0.0; 256];
            x[200] = value;
            assert!(matches!(quantize(dtype, &x), Err(QuantError::NotFinite { index: 200, .. })), "{dtype}");
        }
    }
    assert_eq!(quantize(DType::Q4_K, &[0.0; 32]), Err(QuantError::PartialBlock { dtype: DType::Q4_K, elements: 32 }));
    assert_eq!(quantize(DType::I32, &[0.0; 32]), Err(QuantError::NotAWeight { dtype: DType::I32 }));
    assert_eq!(dequantize(DType::U8, &[0; 32], &mut [0.0; 32]), Err(QuantError::NotAWeight { dtype: DType::U8 }));
    assert_eq!(
        dequantize(DType::Q8_0, &[0; 33], &mut [0.0; 32]),
        Err(QuantError::ByteLength { dtype: DType::Q8_0, elements: 32, expected: 34, got: 33 })
    );
    assert_eq!(quantize(DType::Q4_0, &[]), Ok(vec![]));
}

#[test]
fn unaligned_bytes_decode() {
    for dtype in DType::weights() {
        let x = normal(512);
        let packed = quantize(dtype, &x).unwrap();
        let shifted = [&[0u8][..], &packed].concat();
        let (mut a, mut b) = (vec![0.0; 512], vec![0.0; 512]);
        dequantize(dtype, &packed, &mut a).unwrap();
        dequantize(dtype, &shifted[1..], &mut b).unwrap();
        assert_eq!(a, b, "{dtype}");
    }
}

proptest! {
    /// Any bytes decode, and what they decode to can be quantised again or is refused.
    #[test]
    fn any_bytes_decode(seed in prop::collection::vec(any::<u8>(), 210..420)) {
        for dtype in DType::weights() {
            let elements = seed.len() / dtype.block_bytes() * dtype.block_len();
            let mut values = vec![0.0; elements];
            dequantize(dtype, &seed[..dtype.bytes(elements).unwrap()], &mut values).unwrap();
            let finite = values.iter().all(|v| v.is_finite());
            prop_assert!(finite || quantize(dtype, &values).is_err());
            if let Ok(packed) = quantize(dtype, &values) {
                dequantize(dtype, &packed, &mut values).unwrap();
                prop_assert!(values.iter().all(|v| v.is_finite()));
            }
        }
    }

    /// Any f32 bit patterns are quantised to finite values of about the same range, or refused.
    #[test]
    fn any_floats_quantise(bits in prop::collection::vec(any::<u32>(), 256), exponent in 0u32..256) {
        // Half of the cases share one exponent, so that not every block is ruled by its largest.
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(if exponent > 127 { b & 0x807f_ffff | (exponent - 64) << 23 } else { *b })).collect();
        for dtype in DType::weights() {
            if let Ok(y) = round_trip(dtype, &x) {
                let extreme = x.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
                for y in y {
                    prop_assert!(y.abs() <= extreme * 1.5 + 1e-6, "{} decodes to {} where the largest is {}", dtype, y, extreme);
                }
            }
        }
    }
}

fn round_trip(dtype: DType, x: &[f32]) -> Result<Vec<f32>, QuantError> {
    let packed = quantize(dtype, x)?;
    assert_eq!(packed.len(), dtype.bytes(x.len()).unwrap());
    let mut y = vec![f32::NAN; x.len()];
    dequantize(dtype, &packed, &mut y)?;
    Ok(y)
}

fn block_types() -> impl Iterator<Item = DType> {
    GGML_RMSE.into_iter().map(|(dtype, _)| dtype)
}

/// Standard normal values: SplitMix64 from seed 42, Box–Muller.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 42u64;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let pairs = std::iter::repeat_with(|| (uniform(), uniform()));
    pairs.map(|(u, v)| ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32).take(n).collect()
}
