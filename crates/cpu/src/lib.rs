//! The CPU backend: every operation in SIMD on the threads of its own pool.

mod backend;
mod bandwidth;
mod embed;
mod features;
mod linear;
mod ops;
mod pool;
mod storage;

pub use backend::{CpuBackend, CpuOptions, Precision};
pub use bandwidth::read_bandwidth;
pub use features::Simd;

/// What `--backend` takes.
pub(crate) const NAME: &str = "cpu";
