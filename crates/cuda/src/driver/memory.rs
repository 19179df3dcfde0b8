//! Memory of the device, and host memory that the device copies from and to on its own.

use std::{fmt, ptr::NonNull, slice, sync::Arc};

use ferrum_kernels::{Error, Result};

use super::{Device, DevicePtr, Stream, check, sys};

/// Device memory, not initialised, at least 256-byte aligned.
pub struct DeviceBuffer {
    device: Arc<Device>,
    ptr: DevicePtr,
    len: usize,
}

impl DeviceBuffer {
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        device.bind()?;
        let mut ptr = 0;
        // SAFETY: our context is current; the driver writes one address. An empty buffer still gets one of its own.
        let result = unsafe { sys::cuMemAlloc_v2(&mut ptr, len.max(1)) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let free = device.memory_bytes().map_or(0, |(free, _)| free);
            return Err(Error::OutOfMemory { what: "a GPU buffer", needed_bytes: len as u64, available_bytes: free as u64 });
        }
        check("cuMemAlloc", result)?;
        Ok(Self { device: device.clone(), ptr, len })
    }

    /// As [`DeviceBuffer::new`], filled with zeros in the order of `stream`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(stream: &Stream, len: usize) -> Result<Self> {
        let buffer = Self::new(stream.device(), len)?;
        if len > 0 {
            // SAFETY: exactly this buffer's bytes, which nobody else knows yet.
            check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(buffer.ptr, 0, len, stream.raw()) })?;
        }
        Ok(buffer)
    }

    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated once in `new`; freeing waits for the work that uses it. Errors mean that the context is gone.
        let _ = self.device.bind().map(|()| unsafe { sys::cuMemFree_v2(self.ptr) });
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer({} bytes at {:#x})", self.len, self.ptr)
    }
}

/// Page-locked host memory: copies from and to it run on their own, while the host goes on.
///
/// Whoever starts such a copy keeps the host away from the bytes until it has run.
pub struct PinnedBuffer {
    device: Arc<Device>,
    start: NonNull<u8>,
    on_device: DevicePtr,
    len: usize,
}

// SAFETY: plain memory with one owner, like a boxed slice.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Zeroed.
    ///
    /// # Errors
    /// When the system will not lock so much memory.
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        device.bind()?;
        let mut start = std::ptr::null_mut();
        // SAFETY: our context is current; the driver writes one address. Flags 1 and 2: usable from every context, and by kernels.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut start, len.max(1), 1 | 2) })?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| super::error("cuMemHostAlloc returned no memory"))?;
        // SAFETY: `len` bytes that nobody else knows.
        unsafe { start.as_ptr().write_bytes(0, len) };
        let mut buffer = Self { device: device.clone(), start, on_device: 0, len };
        // SAFETY: that memory; the driver writes one address.
        let found = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut buffer.on_device, start.as_ptr().cast(), 0) };
        check("cuMemHostGetDevicePointer", found)?;
        Ok(buffer)
    }

    /// Where kernels find it.
    pub fn device_ptr(&self) -> DevicePtr {
        self.on_device
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: initialised in `new`, and borrowed as long as the slice.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated once in `new`; freeing waits for copies that use it.
        let _ = self.device.bind().map(|()| unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) });
    }
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} bytes)", self.len)
    }
}
