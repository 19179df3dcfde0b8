//! The greatest sums that the integer kernels of `linear` can meet: a sum that leaves its 16 bits shows here and nowhere else,
//! as codes and activations of models are seldom all at their bounds.

use std::sync::Arc;

use bytemuck::bytes_of;
use ferrum_cpu::{CpuBackend, CpuOptions, Precision, Simd};
use ferrum_kernels::{
    Backend, DType, HostBytes, Weight,
    ops::Linear,
    quant::{
        self, BlockIq4Nl, BlockIq4Xs, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
        BlockQ8_0,
    },
};
use half::f16;

/// Whole panels of every level, and rows of one that is not whole
const ROWS: usize = 35;
/// Whole blocks of every dtype
const COLS: usize = 512;
/// Every activation has this magnitude, so that 8 bits hold it exactly: ±127.
const X: f32 = 0.75;

#[test]
fn the_greatest_codes_and_activations_do_not_overflow() {
    for simd in Simd::ALL.into_iter().filter(|simd| simd.is_available()) {
        let options = CpuOptions { threads: Some(1), precision: Precision::Int8, simd: Some(simd) };
        let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(options).unwrap());
        for dtype in DType::weights().filter(|dtype| dtype.is_block()) {
            // One and four tokens are dot products, more are tiles.
            for (tokens, x) in [1, 4, 8].into_iter().flat_map(|tokens| [(tokens, X), (tokens, -X)]) {
                check(&*backend, dtype, tokens, x, &format!("{simd} {dtype} m={tokens} x={x}"));
            }
        }
    }
}

fn check(backend: &dyn Backend, dtype: DType, tokens: usize, x: f32, label: &str) {
    // Rows of the greatest codes, of the least, and of both in turn.
    let row = |n: usize| (0..COLS / dtype.block_len()).flat_map(move |b| block(dtype, [true, false, b % 2 == 0][n % 3]));
    let packed: Vec<u8> = (0..ROWS).flat_map(row).collect();
    let mut elements = vec![0.0; ROWS * COLS];
    quant::dequantize(dtype, &packed, &mut elements).unwrap();
    let weight = backend.prepare(Weight::new("w", dtype, [ROWS, COLS], HostBytes::from_vec(packed)).unwrap()).unwrap();
    let xs = backend.tensor_f32(&[tokens, COLS], &vec![x; tokens * COLS]).unwrap();
    let out = backend.zeros(DType::F32, &[tokens, ROWS]).unwrap();
    backend.linear(&Linear::new(&xs, &weight, &out)).unwrap();
    for (n, got) in backend.read_f32(&out).unwrap().into_iter().enumerate() {
        let row = &elements[n % ROWS * COLS..][..COLS];
        let (want, magnitude) = row.iter().fold((0.0, 0.0), |(sum, magnitude), &w| {
            let product = f64::from(w) * f64::from(x);
            (sum + product, magnitude + product.abs())
        });
        assert!((f64::from(got) - want).abs() < 1e-5 * magnitude, "{label} row {}: {got}, not {want}", n % ROWS);
    }
}

/// A block of codes that are all the `greatest`, or all the least, with the greatest scales.
fn block(dtype: DType, greatest: bool) -> Vec<u8> {
    let (d, byte) = (f16::ONE, if greatest { 0xFF } else { 0 });
    // Minimums that take no part of the sum away.
    let (m, dmin) = (f16::ONE, f16::NEG_ONE);
    match dtype {
        DType::Q4_0 => bytes_of(&BlockQ4_0 { d, qs: [byte; 16] }).to_vec(),
        DType::Q4_1 => bytes_of(&BlockQ4_1 { d, m, qs: [byte; 16] }).to_vec(),
        DType::Q5_0 => bytes_of(&BlockQ5_0 { d, qh: [byte; 4], qs: [byte; 16] }).to_vec(),
        DType::Q5_1 => bytes_of(&BlockQ5_1 { d, m, qh: [byte; 4], qs: [byte; 16] }).to_vec(),
        DType::Q8_0 => bytes_of(&BlockQ8_0 { d, qs: [if greatest { i8::MAX } else { i8::MIN }; 32] }).to_vec(),
        DType::Q2_K => bytes_of(&BlockQ2K { scales: [0xFF; 16], qs: [byte; 64], d, dmin }).to_vec(),
        DType::Q3_K => bytes_of(&BlockQ3K { hmask: [byte; 32], qs: [byte; 64], scales: [0; 12], d }).to_vec(),
        DType::Q4_K => bytes_of(&BlockQ4K { d, dmin, scales: [0xFF; 12], qs: [byte; 128] }).to_vec(),
        DType::Q5_K => bytes_of(&BlockQ5K { d, dmin, scales: [0xFF; 12], qh: [byte; 32], qs: [byte; 128] }).to_vec(),
        DType::Q6_K => bytes_of(&BlockQ6K { ql: [byte; 128], qh: [byte; 64], scales: [i8::MIN; 16], d }).to_vec(),
        DType::IQ4_NL => bytes_of(&BlockIq4Nl { d, qs: [byte; 16] }).to_vec(),
        DType::IQ4_XS => bytes_of(&BlockIq4Xs { d, scales_h: 0, scales_l: [0; 4], qs: [byte; 128] }).to_vec(),
        DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::U8 => unreachable!("{dtype} has no blocks"),
    }
}
