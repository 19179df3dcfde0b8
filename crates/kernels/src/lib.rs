//! Dtypes, tensors, the [`Backend`] trait, and every operation as a contract, a scalar reference and test cases.
#![forbid(unsafe_code)]

pub mod dtype;
pub mod host_bytes;
pub mod quant;

pub use dtype::DType;
pub use host_bytes::HostBytes;
