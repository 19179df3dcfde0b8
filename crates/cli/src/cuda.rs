//! The CUDA backend, when this program was built with it: the only place that asks.

use std::sync::Arc;

use ferrum_kernels::Backend;

/// What `ferrum doctor` tells about GPUs.
pub struct Gpu {
    pub name: String,
    pub memory_bytes: u64,
    pub compute_capability: String,
    /// CUDA version of the driver
    pub driver: String,
    /// Without it, dense matrix products take this program's own kernels, which are slower
    pub has_cublaslt: bool,
}

/// The first GPU's backend.
///
/// # Errors
/// When this program was built without CUDA, or there is no usable GPU.
#[cfg(feature = "cuda")]
pub fn backend() -> anyhow::Result<Arc<dyn Backend>> {
    Ok(Arc::new(ferrum_cuda::CudaBackend::new(0)?))
}

/// The first GPU.
///
/// # Errors
/// As [`backend`].
#[cfg(feature = "cuda")]
pub fn gpu() -> anyhow::Result<Gpu> {
    let device = ferrum_cuda::driver::Device::open(0)?;
    let a = device.attributes();
    Ok(Gpu {
        name: a.name.clone(),
        memory_bytes: a.memory_bytes as u64,
        compute_capability: format!("{}.{}", a.compute_capability.0, a.compute_capability.1),
        driver: format!("{}.{}", a.driver.0, a.driver.1),
        has_cublaslt: ferrum_cuda::driver::has_cublaslt(),
    })
}

#[cfg(not(feature = "cuda"))]
pub fn backend() -> anyhow::Result<Arc<dyn Backend>> {
    Err(not_built())
}

#[cfg(not(feature = "cuda"))]
pub fn gpu() -> anyhow::Result<Gpu> {
    Err(not_built())
}

#[cfg(not(feature = "cuda"))]
fn not_built() -> anyhow::Error {
    anyhow::anyhow!("this program was built without CUDA; build it with `cargo build --release --features cuda`")
}
