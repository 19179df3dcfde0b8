//! Random weights of a given shape and dtype, for measuring a model whose file is not at hand.

use std::{cell::Cell, thread};

use ferrum_kernels::{DType, HostBytes, quant};

use crate::{
    files::{FileError, TensorView},
    loader::TensorSource,
};

/// Which dtype each matrix of a model gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DummyFormat {
    /// All the same
    Uniform(DType),
    /// Q4_K, with Q6_K for the output head and for half of the value and down projections, as `llama-quantize` mixes them
    Q4KM,
}

impl DummyFormat {
    /// `q4_k_m`, or the name of the dtype.
    pub fn name(self) -> String {
        match self {
            Self::Uniform(dtype) => dtype.name().to_ascii_lowercase(),
            Self::Q4KM => "q4_k_m".into(),
        }
    }

    /// The dtype of a matrix by its name in the checkpoint.
    fn dtype(self, name: &str, layers: usize, tied: bool) -> DType {
        let dtype = match self {
            Self::Uniform(dtype) => return dtype,
            Self::Q4KM => DType::Q4_K,
        };
        let layer = name.split('.').nth(2).and_then(|n| n.parse().ok());
        let better = match layer {
            Some(layer) if name.contains("v_proj") || name.contains("down_proj") => gets_more_bits(layer, layers),
            Some(_) => false,
            None => name.starts_with("lm_head") || tied,
        };
        if better { DType::Q6_K } else { dtype }
    }
}

/// The first and last eighth of the layers, and every third between them.
fn gets_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// Makes each tensor when it is asked for.
#[derive(Debug)]
pub struct DummySource {
    format: DummyFormat,
    layers: usize,
    tied: bool,
    threads: usize,
    bytes: Cell<u64>,
}

/// Rows that are really quantised; a matrix repeats them with rows shifted, which costs kernels the same.
const DISTINCT_ROWS: usize = 64;
/// Bytes that one thread fills at least.
const PART_BYTES: usize = 4 << 20;

impl DummySource {
    /// Matrices in `format`, or in Q8_0 or F32 where their rows are not whole blocks of it; vectors in F32. `layers` is the
    /// model's number of layers, `tied` whether the embedding table is the output head.
    pub fn new(format: DummyFormat, layers: usize, tied: bool) -> Self {
        let threads = thread::available_parallelism().map_or(1, |n| n.get());
        Self { format, layers, tied, threads, bytes: Cell::new(0) }
    }

    /// Bytes made so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }
}

impl TensorSource for DummySource {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView, FileError> {
        let broken = |reason: String| FileError::Format { path: name.into(), reason };
        let (rows, cols) = match *shape {
            [rows, cols] => (rows, cols),
            _ => (1, shape.iter().product()),
        };
        let dtype = if shape.len() == 2 {
            let wanted = [self.format.dtype(name, self.layers, self.tied), DType::Q8_0];
            wanted.into_iter().find(|d| cols.is_multiple_of(d.block_len())).unwrap_or(DType::F32)
        } else {
            DType::F32
        };
        let distinct = rows.min(DISTINCT_ROWS);
        let mut state = name.bytes().fold(0x9E37_79B9u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)) | 1;
        let scale = if shape.len() == 2 { (cols as f32).powf(-0.5) } else { 1.0 };
        let values: Vec<f32> = (0..distinct * cols).map(|_| uniform(&mut state) * scale).collect();
        let made = quant::quantize(dtype, &values).map_err(|e| broken(e.to_string()))?;
        let row_bytes = made.len() / distinct.max(1);
        let mut bytes = vec![0; rows * row_bytes];
        let part = (rows.div_ceil(self.threads) * row_bytes).max(PART_BYTES).next_multiple_of(row_bytes.max(1)).max(1);
        thread::scope(|scope| {
            for (n, part) in (1u32..).zip(bytes.chunks_mut(part)) {
                let (made, seed) = (&made, (state ^ n.wrapping_mul(0x9E37_79B9)) | 1);
                let mut repeat = move || fill(part, made, row_bytes, seed);
                if rows * row_bytes > PART_BYTES {
                    scope.spawn(repeat);
                } else {
                    repeat();
                }
            }
        });
        self.bytes.set(self.bytes.get() + bytes.len() as u64);
        Ok(TensorView { name: name.to_owned(), shape: shape.to_vec(), dtype, bytes: HostBytes::from_vec(bytes) })
    }
}

/// Fills whole rows of `to` with rows of `made`, from random ones on.
fn fill(mut to: &mut [u8], made: &[u8], row_bytes: usize, mut state: u32) {
    while !to.is_empty() {
        let start = uniform_index(&mut state, made.len() / row_bytes.max(1)) * row_bytes;
        let (now, later) = to.split_at_mut((made.len() - start).min(to.len()));
        now.copy_from_slice(&made[start..start + now.len()]);
        to = later;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As `llama-quantize` made Llama-3.1-8B: 32 layers, of which 16 have better value and down projections.
    #[test]
    fn the_mixture_is_that_of_real_files() {
        let better: Vec<usize> = (0..32).filter(|&layer| gets_more_bits(layer, 32)).collect();
        assert_eq!(better, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        let dtype = |name, tied| DummyFormat::Q4KM.dtype(name, 32, tied);
        assert_eq!(dtype("model.layers.6.self_attn.v_proj.weight", false), DType::Q6_K);
        assert_eq!(dtype("model.layers.7.mlp.down_proj.weight", false), DType::Q4_K);
        assert_eq!(dtype("model.layers.0.mlp.up_proj.weight", false), DType::Q4_K);
        assert_eq!([dtype("lm_head.weight", false), dtype("model.embed_tokens.weight", false)], [DType::Q6_K, DType::Q4_K]);
        assert_eq!(dtype("model.embed_tokens.weight", true), DType::Q6_K);
    }

    #[test]
    fn rows_are_filled_to_the_end() {
        let source = DummySource::new(DummyFormat::Uniform(DType::BF16), 1, false);
        let view = source.tensor("w", &[70_001, 48]).unwrap();
        let rows: Vec<&[u8]> = view.bytes.as_slice().chunks(96).collect();
        assert_eq!(rows.len(), 70_001);
        assert!(rows.iter().all(|row| row.iter().any(|&b| b != 0)));
        assert!(rows.windows(2).filter(|w| w[0] == w[1]).count() < 7000);
    }
}
