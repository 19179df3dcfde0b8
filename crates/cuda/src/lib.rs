//! The CUDA backend: every operation as CUDA C++ in `kernels/`, compiled ahead of time and loaded through the driver.
//!
//! Nothing of CUDA is linked: a machine without a driver runs the same program, and [`CudaBackend::new`] says why it
//! cannot be had there.

mod attention;
mod backend;
mod context;
pub mod driver;
mod lanes;
mod linear;
mod ops;
mod storage;
mod upload;

pub use backend::CudaBackend;

/// What `--backend` takes.
pub(crate) const NAME: &str = "cuda";
