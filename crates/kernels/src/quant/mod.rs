//! The weight dtypes as codecs: every float and GGML block type to f32, and f32 to every one of them.
//!
//! Each block type is a plain-old-data struct whose bytes are exactly those of a GGUF file, so that kernels can view a
//! packed tensor as `&[BlockQ4K]`. [`Block::dequantize`] defines what the bytes mean, down to the order of the f32
//! operations; [`Block::quantize`] is deterministic and picks scales by least squares.
//!
//! Multi-byte fields are little-endian, as in the file; so are the hosts that this crate supports.

mod fit;
mod iq4;
mod k_quants;
mod legacy;

use bytemuck::Pod;
use half::{bf16, f16};
use thiserror::Error;

use crate::DType;
pub use iq4::{BlockIq4Nl, BlockIq4Xs, IQ4_VALUES};
pub use k_quants::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K};
pub use legacy::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};

const _: () = assert!(cfg!(target_endian = "little"), "block structs are read in place and GGUF is little-endian");

/// Why bytes or values could not be converted.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum QuantError {
    #[error("{dtype} is not a weight dtype; use a float or a block type")]
    NotAWeight { dtype: DType },
    #[error("{elements} elements are not whole {dtype} blocks of {block_len}; use a dtype whose block length divides the row", block_len = dtype.block_len())]
    PartialBlock { dtype: DType, elements: usize },
    #[error("{elements} {dtype} elements take {expected} bytes, got {got}; check the shape against the data")]
    ByteLength { dtype: DType, elements: usize, expected: usize, got: usize },
    #[error("element {index} is {value}; only finite values can be quantised")]
    NotFinite { index: usize, value: f32 },
    #[error("a value of elements {index}..{end} is too large for {dtype}; use BF16 or F32", end = index + dtype.block_len())]
    OutOfRange { dtype: DType, index: usize },
}

/// One packed block of `N` consecutive elements of a row.
pub trait Block<const N: usize>: Pod {
    const DTYPE: DType;

    /// The `N` elements in f32: the definition of this block type.
    fn dequantize(&self, out: &mut [f32; N]);

    /// The block that stands for `x`, whose values must be finite. When they are too large for the f16 scales, the
    /// result is not [finite](Block::is_finite).
    fn quantize(x: &[f32; N]) -> Self;

    /// Whether all f16 scales are finite.
    fn is_finite(&self) -> bool;
}

/// Converts packed `bytes` of any weight dtype to f32.
///
/// `bytes` may be unaligned. Non-finite scales in hostile files give non-finite values, never a panic.
///
/// # Errors
/// When `dtype` is no weight dtype, or `bytes` does not hold exactly `out.len()` elements in whole blocks.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let expected = dtype.bytes(out.len()).ok_or(QuantError::PartialBlock { dtype, elements: out.len() })?;
    if bytes.len() != expected {
        return Err(QuantError::ByteLength { dtype, elements: out.len(), expected, got: bytes.len() });
    }
    match dtype {
        DType::F32 => decode_floats::<4>(bytes, out, f32::from_le_bytes),
        DType::F16 => decode_floats::<2>(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => decode_floats::<2>(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        DType::I32 | DType::U8 => return Err(QuantError::NotAWeight { dtype }),
        DType::Q4_0 => decode_blocks::<BlockQ4_0, _>(bytes, out),
        DType::Q4_1 => decode_blocks::<BlockQ4_1, _>(bytes, out),
        DType::Q5_0 => decode_blocks::<BlockQ5_0, _>(bytes, out),
        DType::Q5_1 => decode_blocks::<BlockQ5_1, _>(bytes, out),
        DType::Q8_0 => decode_blocks::<BlockQ8_0, _>(bytes, out),
        DType::Q2_K => decode_blocks::<BlockQ2K, _>(bytes, out),
        DType::Q3_K => decode_blocks::<BlockQ3K, _>(bytes, out),
        DType::Q4_K => decode_blocks::<BlockQ4K, _>(bytes, out),
        DType::Q5_K => decode_blocks::<BlockQ5K, _>(bytes, out),
        DType::Q6_K => decode_blocks::<BlockQ6K, _>(bytes, out),
        DType::IQ4_NL => decode_blocks::<BlockIq4Nl, _>(bytes, out),
        DType::IQ4_XS => decode_blocks::<BlockIq4Xs, _>(bytes, out),
    }
    Ok(())
}

/// Converts f32 `values` to packed bytes of any weight dtype; rows are whole blocks, so their number does not matter.
///
/// # Errors
/// When `dtype` is no weight dtype, `values` is not whole blocks, or a value is NaN, infinite or beyond the dtype's range.
pub fn quantize(dtype: DType, values: &[f32]) -> Result<Vec<u8>, QuantError> {
    let bytes = dtype.bytes(values.len()).ok_or(QuantError::PartialBlock { dtype, elements: values.len() })?;
    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
        return Err(QuantError::NotFinite { index, value: values[index] });
    }
    let mut out = vec![0; bytes];
    match dtype {
        DType::F32 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(raw, v)| *raw = v.to_le_bytes()),
        DType::F16 => encode_floats(dtype, values, &mut out, |v| Some(f16::from_f32(v)).filter(|h| h.is_finite()).map(f16::to_le_bytes))?,
        DType::BF16 => {
            encode_floats(dtype, values, &mut out, |v| Some(bf16::from_f32(v)).filter(|h| h.is_finite()).map(bf16::to_le_bytes))?
        }
        DType::I32 | DType::U8 => return Err(QuantError::NotAWeight { dtype }),
        DType::Q4_0 => encode_blocks::<BlockQ4_0, _>(values, &mut out)?,
        DType::Q4_1 => encode_blocks::<BlockQ4_1, _>(values, &mut out)?,
        DType::Q5_0 => encode_blocks::<BlockQ5_0, _>(values, &mut out)?,
        DType::Q5_1 => encode_blocks::<BlockQ5_1, _>(values, &mut out)?,
        DType::Q8_0 => encode_blocks::<BlockQ8_0, _>(values, &mut out)?,
        DType::Q2_K => encode_blocks::<BlockQ2K, _>(values, &mut out)?,
        DType::Q3_K => encode_blocks::<BlockQ3K, _>(values, &mut out)?,
        DType::Q4_K => encode_blocks::<BlockQ4K, _>(values, &mut out)?,
        DType::Q5_K => encode_blocks::<BlockQ5K, _>(values, &mut out)?,
        DType::Q6_K => encode_blocks::<BlockQ6K, _>(values, &mut out)?,
        DType::IQ4_NL => encode_blocks::<BlockIq4Nl, _>(values, &mut out)?,
        DType::IQ4_XS => encode_blocks::<BlockIq4Xs, _>(values, &mut out)?,
    }
    Ok(out)
}

fn decode_floats<const W: usize>(bytes: &[u8], out: &mut [f32], to_f32: impl Fn([u8; W]) -> f32) {
    for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<W>().0) {
        *value = to_f32(*raw);
    }
}

fn decode_blocks<B: Block<N>, const N: usize>(bytes: &[u8], out: &mut [f32]) {
    const { assert!(size_of::<B>() == B::DTYPE.block_bytes() && N == B::DTYPE.block_len(), "block struct and dtype disagree") };
    for (values, raw) in out.as_chunks_mut::<N>().0.iter_mut().zip(bytes.chunks_exact(size_of::<B>())) {
        bytemuck::pod_read_unaligned::<B>(raw).dequantize(values);
    }
}

fn encode_floats(dtype: DType, values: &[f32], out: &mut [u8], encode: impl Fn(f32) -> Option<[u8; 2]>) -> Result<(), QuantError> {
    for (index, (raw, &value)) in out.as_chunks_mut::<2>().0.iter_mut().zip(values).enumerate() {
        *raw = encode(value).ok_or(QuantError::OutOfRange { dtype, index })?;
    }
    Ok(())
}

fn encode_blocks<B: Block<N>, const N: usize>(values: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    for (i, (raw, values)) in out.chunks_exact_mut(size_of::<B>()).zip(values.as_chunks::<N>().0).enumerate() {
        let block = B::quantize(values);
        if !block.is_finite() {
            return Err(QuantError::OutOfRange { dtype: B::DTYPE, index: i * N });
        }
        raw.copy_from_slice(bytemuck::bytes_of(&block));
    }
    Ok(())
}
