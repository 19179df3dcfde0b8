//! Dtypes, tensors, the [`Backend`] trait, and every operation as a contract, a scalar reference and test cases.
#![forbid(unsafe_code)]

mod backend;
mod contract;
pub mod dtype;
mod error;
pub mod host;
pub mod host_bytes;
pub mod ops;
pub mod quant;
mod reference;
mod tensor;
pub mod testkit;
mod weight;

pub use backend::{Backend, DeviceInfo, Graph, ImmediateReadback, Readback};
pub use contract::{Contract, DTypes};
pub use dtype::DType;
pub use error::{Error, Result};
pub use host_bytes::{HostBytes, Owner};
pub use reference::ReferenceBackend;
pub use tensor::{MAX_RANK, Storage, Tensor};
pub use weight::{PreparedWeight, Weight, WeightPart};
