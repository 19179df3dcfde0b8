//! Tensors in ordinary host memory: what the reference backend computes on.

use std::{
    any::Any,
    sync::{PoisonError, RwLock},
};

use half::{bf16, f16};

use crate::{DType, Error, Result, Storage, Tensor};

/// Host memory behind a lock.
#[derive(Debug)]
pub struct HostStorage {
    bytes: RwLock<Vec<u8>>,
    len: usize,
}

impl HostStorage {
    pub fn zeros(len: usize) -> Self {
        Self { bytes: RwLock::new(vec![0; len]), len }
    }
}

impl Storage for HostStorage {
    fn len_bytes(&self) -> usize {
        self.len
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn storage(t: &Tensor) -> Result<&HostStorage> {
    t.storage().as_any().downcast_ref().ok_or(Error::ForeignTensor { backend: super::reference::NAME })
}

/// Calls `f` with the element index of the start of every innermost row of `t`, in row-major order.
fn for_each_row(t: &Tensor, mut f: impl FnMut(usize)) {
    let (shape, strides) = (t.shape(), t.strides());
    let outer = shape.len().saturating_sub(1);
    let rows: usize = shape[..outer].iter().product();
    for row in 0..rows {
        let (mut rest, mut index) = (row, t.offset());
        for axis in (0..outer).rev() {
            index += rest % shape[axis] * strides[axis];
            rest /= shape[axis];
        }
        f(index);
    }
}

/// Every element of a plain-number tensor, row-major.
///
/// # Errors
/// When the tensor belongs to another backend.
pub fn read(t: &Tensor) -> Result<Vec<f64>> {
    let bytes = storage(t)?.bytes.read().unwrap_or_else(PoisonError::into_inner);
    let cols = t.shape().last().copied().unwrap_or(1);
    let size = t.dtype().block_bytes();
    let mut out = Vec::with_capacity(t.elements());
    for_each_row(t, |start| {
        for element in bytes[start * size..(start + cols) * size].chunks_exact(size) {
            out.push(decode(t.dtype(), element));
        }
    });
    Ok(out)
}

/// Every element of an I32 tensor, row-major.
///
/// # Errors
/// When the tensor belongs to another backend.
pub fn read_i32(t: &Tensor) -> Result<Vec<i32>> {
    Ok(read(t)?.into_iter().map(|v| v as i32).collect())
}

/// Overwrites every element of a plain-number tensor, row-major, rounding to its dtype.
///
/// # Errors
/// When the tensor belongs to another backend.
pub fn write(t: &Tensor, values: &[f64]) -> Result<()> {
    let mut bytes = storage(t)?.bytes.write().unwrap_or_else(PoisonError::into_inner);
    let cols = t.shape().last().copied().unwrap_or(1);
    let size = t.dtype().block_bytes();
    let mut values = values.iter();
    for_each_row(t, |start| {
        for (element, &v) in bytes[start * size..(start + cols) * size].chunks_exact_mut(size).zip(&mut values) {
            encode(t.dtype(), v, element);
        }
    });
    Ok(())
}

/// Copies raw bytes into a contiguous tensor.
///
/// # Errors
/// When the sizes differ or the tensor is foreign or not contiguous.
pub fn write_bytes(t: &Tensor, src: &[u8]) -> Result<()> {
    check_copy(t, src.len())?;
    let start = t.offset() * t.dtype().block_bytes();
    storage(t)?.bytes.write().unwrap_or_else(PoisonError::into_inner)[start..start + src.len()].copy_from_slice(src);
    Ok(())
}

/// Copies raw bytes out of a contiguous tensor.
///
/// # Errors
/// When the sizes differ or the tensor is foreign or not contiguous.
pub fn read_bytes(t: &Tensor, dst: &mut [u8]) -> Result<()> {
    check_copy(t, dst.len())?;
    let start = t.offset() * t.dtype().block_bytes();
    dst.copy_from_slice(&storage(t)?.bytes.read().unwrap_or_else(PoisonError::into_inner)[start..start + dst.len()]);
    Ok(())
}

/// The contract of host ↔ device copies: a contiguous tensor of exactly `len` bytes.
///
/// # Errors
/// [`Error::Value`].
pub fn check_copy(t: &Tensor, len: usize) -> Result<()> {
    if t.is_contiguous() && t.bytes() == len {
        return Ok(());
    }
    let got = format!("{:?} {} against {len} bytes", t.shape(), t.dtype());
    Err(Error::Value { op: "copy", arg: "tensor", got, requirement: "it must be contiguous and of the same size" })
}

fn decode(dtype: DType, b: &[u8]) -> f64 {
    match dtype {
        DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).into(),
        DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).into(),
        DType::I32 => i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        DType::U8 => b[0].into(),
        packed => unreachable!("activations are never {packed}"),
    }
}

fn encode(dtype: DType, v: f64, out: &mut [u8]) {
    match dtype {
        DType::F32 => out.copy_from_slice(&(v as f32).to_le_bytes()),
        // Through f32: `from_f64` of the half crate ignores the low 32 bits and so breaks ties the wrong way.
        DType::F16 => out.copy_from_slice(&f16::from_f32(v as f32).to_le_bytes()),
        DType::BF16 => out.copy_from_slice(&bf16::from_f32(v as f32).to_le_bytes()),
        DType::I32 => out.copy_from_slice(&(v as i32).to_le_bytes()),
        DType::U8 => out[0] = v as u8,
        packed => unreachable!("activations are never {packed}"),
    }
}
