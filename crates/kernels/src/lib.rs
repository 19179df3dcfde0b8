//! Dtypes, tensors, the [`Backend`] trait, and every operation as a contract, a scalar reference and test cases.
#![forbid(unsafe_code)]

pub mod dtype;

pub use dtype::DType;
