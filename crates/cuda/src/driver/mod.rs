//! A small safe layer over the driver API: what kernels' launchers need, and no more.
//!
//! Three layers: `cudarc::driver::sys` holds the C functions, [`check`] makes a `Result` of what they return, the types
//! here own what was made and free it once. A missing driver is an error of [`Device::open`]; nothing else can run
//! before it.

mod device;
mod event;
mod fatbins;
mod graph;
mod memory;
mod module;
mod stream;
mod tensor_map;

pub use cudarc::driver::sys;
pub use device::{Attributes, Device};
pub use event::Event;
pub use fatbins::fatbin;
pub use graph::Graph;
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use module::{Grid, Kernel, Module};
pub use stream::Stream;
pub use tensor_map::{Swizzle, TensorMap, TensorMapDType, TensorMapSpec};

use std::ffi::CStr;

use ferrum_kernels::{Error, Result};

/// An address in device memory, as kernels' parameter structs hold it. 0 stands for `nullptr`.
pub type DevicePtr = u64;

/// Names the failed call and the driver's own words for what happened.
///
/// # Errors
/// When `result` is not success.
pub fn check(call: &str, result: sys::CUresult) -> Result<()> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver writes a pointer to a static string, or null for a code that it does not know.
    let known = unsafe { sys::cuGetErrorString(result, &mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: as above: static and NUL-terminated.
    let words = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    Err(error(format!("{call}: {words} ({result:?})")))
}

/// Whether cuBLASLt can be opened.
pub fn has_cublaslt() -> bool {
    // SAFETY: looks for the library and loads it, which runs its initialisers and nothing of ours.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

/// An error of this backend.
pub(crate) fn error(reason: impl Into<String>) -> Error {
    Error::Device { backend: crate::NAME, reason: reason.into() }
}
