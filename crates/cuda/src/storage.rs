//! Device memory behind tensors, and how launchers look at them.

use std::any::Any;

use ferrum_kernels::{Error, Result, Storage, Tensor};

use crate::driver::{DeviceBuffer, DevicePtr, Stream};

/// Memory of one allocation.
#[derive(Debug)]
pub(crate) struct CudaStorage {
    buffer: DeviceBuffer,
}

impl CudaStorage {
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(stream: &Stream, bytes: usize) -> Result<Self> {
        Ok(Self { buffer: DeviceBuffer::zeroed(stream, bytes)? })
    }
}

impl Storage for CudaStorage {
    fn len_bytes(&self) -> usize {
        self.buffer.len()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The address of the first element.
///
/// # Errors
/// When it is a tensor of another backend.
pub(crate) fn ptr(t: &Tensor) -> Result<DevicePtr> {
    let storage: &CudaStorage = t.storage().as_any().downcast_ref().ok_or(Error::ForeignTensor { backend: crate::NAME })?;
    Ok(storage.buffer.ptr() + (t.offset() * t.dtype().block_bytes()) as DevicePtr)
}

/// The address of an optional tensor, or 0.
///
/// # Errors
/// As [`ptr`].
pub(crate) fn ptr_or_null(t: Option<&Tensor>) -> Result<DevicePtr> {
    t.map_or(Ok(0), ptr)
}

/// Whether every innermost row of the tensors starts at a multiple of 16 bytes and is as long: kernels may then read
/// packs of 16 bytes.
///
/// # Errors
/// As [`ptr`].
pub(crate) fn has_packs(tensors: &[&Tensor]) -> Result<bool> {
    for t in tensors {
        let size = t.dtype().block_bytes();
        let (last, outer) = (t.shape().len() - 1, &t.strides()[..t.shape().len() - 1]);
        let rows = outer.iter().zip(t.shape()).all(|(stride, &n)| n == 1 || (stride * size).is_multiple_of(16));
        if !(rows && ptr(t)?.is_multiple_of(16) && (t.shape()[last] * size).is_multiple_of(16)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Elements from one index of `axis` to the next, as kernels take it.
pub(crate) fn stride(t: &Tensor, axis: usize) -> i64 {
    t.strides()[axis] as i64
}
