//! Work in order: copies, kernels, events.

use std::{fmt, ptr, sync::Arc};

use ferrum_kernels::Result;

use super::{Device, DeviceBuffer, DevicePtr, Event, check, sys};

/// A queue of work that runs in the order it was given. Streams run beside each other.
pub struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
}

// SAFETY: the driver lets any thread queue work on any stream.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// # Errors
    /// When the context is lost.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: our context is current; the driver writes one handle, destroyed once in `drop`.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Self { device: device.clone(), raw })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// For calls of [`sys`] and of CUDA's libraries.
    pub fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits for everything queued so far.
    ///
    /// # Errors
    /// When some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream lives.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Lets `event` happen when everything queued so far is done.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn record(&self, event: &Event) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw(), self.raw) })
    }

    /// Lets what is queued from now on wait for `event`, without keeping the host.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live; there are no flags.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw(), 0) })
    }

    /// Whether what is queued is being recorded into a graph instead of running.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn is_capturing(&self) -> Result<bool> {
        self.device.bind()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream lives; the driver writes one number.
        check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(self.raw, &mut status) })?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Queues zeros for all of `buffer`.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn clear(&self, buffer: &DeviceBuffer) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the buffer lives, and its memory is freed in the order of all work.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(buffer.ptr(), 0, buffer.len(), self.raw) })
    }

    /// Queues a copy to the device. From ordinary memory the host waits until `src` was read.
    ///
    /// # Safety
    /// `dst` has `src.len()` bytes in live device memory. If `src` is pinned it stays as it is until the copy has run.
    ///
    /// # Errors
    /// When the context is lost.
    pub unsafe fn copy_to_device(&self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the caller answers for both sides.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(dst, src.as_ptr().cast(), src.len(), self.raw) })
    }

    /// Queues a copy to the host. Into ordinary memory it is done on return.
    ///
    /// # Safety
    /// `src` has `dst.len()` bytes in live device memory. If `dst` is pinned nobody touches it until the copy has run.
    ///
    /// # Errors
    /// When the context is lost.
    pub unsafe fn copy_to_host(&self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the caller answers for both sides.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src, dst.len(), self.raw) })
    }

    /// Queues a copy within the device.
    ///
    /// # Safety
    /// Both ranges of `bytes` are live device memory and do not overlap.
    ///
    /// # Errors
    /// When the context is lost.
    pub unsafe fn copy_on_device(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the caller answers for both sides.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(dst, src, bytes, self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once in `new`; work still queued is finished by the driver.
        let _ = self.device.bind().map(|()| unsafe { sys::cuStreamDestroy_v2(self.raw) });
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:p})", self.raw)
    }
}
