//! Random weights of a given shape and dtype, for measuring a model whose file is not at hand.

use std::cell::Cell;

use ferrum_kernels::{DType, HostBytes, quant};

use crate::{
    files::{FileError, TensorView},
    loader::TensorSource,
};

/// Makes each tensor when it is asked for.
#[derive(Debug)]
pub struct DummySource {
    quant: DType,
    bytes: Cell<u64>,
}

/// Rows that are really quantised; a matrix repeats them with rows shifted, which costs kernels the same.
const DISTINCT_ROWS: usize = 64;

impl DummySource {
    /// Matrices in `quant`, or in Q8_0 where their rows are not whole blocks of it; vectors in F32.
    pub fn new(quant: DType) -> Self {
        Self { quant, bytes: Cell::new(0) }
    }

    /// Bytes made so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    fn dtype(&self, cols: usize) -> DType {
        [self.quant, DType::Q8_0].into_iter().find(|d| cols.is_multiple_of(d.block_len())).unwrap_or(DType::F32)
    }
}

impl TensorSource for DummySource {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView, FileError> {
        let broken = |reason: String| FileError::Format { path: name.into(), reason };
        let (rows, cols) = match *shape {
            [rows, cols] => (rows, cols),
            _ => (1, shape.iter().product()),
        };
        let dtype = if shape.len() == 2 { self.dtype(cols) } else { DType::F32 };
        let distinct = rows.min(DISTINCT_ROWS);
        let mut state = name.bytes().fold(0x9E37_79B9u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)) | 1;
        let scale = if shape.len() == 2 { (cols as f32).powf(-0.5) } else { 1.0 };
        let values: Vec<f32> = (0..distinct * cols).map(|_| uniform(&mut state) * scale).collect();
        let made = quant::quantize(dtype, &values).map_err(|e| broken(e.to_string()))?;
        let row_bytes = made.len() / distinct.max(1);
        let mut bytes = Vec::with_capacity(rows * row_bytes);
        while bytes.len() < rows * row_bytes {
            let start = uniform_index(&mut state, distinct) * row_bytes;
            let take = (made.len() - start).min(rows * row_bytes - bytes.len());
            bytes.extend_from_slice(&made[start..start + take]);
        }
        self.bytes.set(self.bytes.get() + bytes.len() as u64);
        Ok(TensorView { name: name.to_owned(), shape: shape.to_vec(), dtype, bytes: HostBytes::from_vec(bytes) })
    }
}

/// Uniform in −√3 ‥ √3, which has variance 1 (xorshift32, Marsaglia 2003).
fn uniform(state: &mut u32) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    (*state as f32 / u32::MAX as f32 * 2.0 - 1.0) * 3f32.sqrt()
}

fn uniform_index(state: &mut u32, len: usize) -> usize {
    uniform(state);
    *state as usize % len.max(1)
}
