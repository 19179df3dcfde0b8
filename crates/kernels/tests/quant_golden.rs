//! Block decoding against the fixtures written by `tools/golden/quant.py`, an independent implementation.

use std::path::PathBuf;

use ferrum_kernels::{DType, quant};

#[test]
fn dequantize_matches_the_gguf_package() {
    for dtype in DType::ALL.into_iter().filter(|d| d.is_block()) {
        let packed = fixture(dtype, "q");
        let expected: Vec<f32> = fixture(dtype, "f32").as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let mut got = vec![f32::NAN; expected.len()];
        quant::dequantize(dtype, &packed, &mut got).unwrap();
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.to_bits(), expected.to_bits(), "{dtype} element {i}: got {got:e}, expected {expected:e}");
        }
    }
}

fn fixture(dtype: DType, kind: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/quant/{dtype}.{kind}.bin"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
