//! What can go wrong between a model and a device.

use crate::DType;

/// The result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation was asked for something its contract, the device or the backend does not allow.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{op}: `{arg}` has shape {got:?}, but axis `{axis}` must be {expected}")]
    Axis { op: &'static str, arg: &'static str, axis: &'static str, expected: usize, got: Vec<usize> },
    #[error("{op}: `{arg}` has shape {got:?}, but rank {expected} is needed")]
    Rank { op: &'static str, arg: &'static str, expected: usize, got: Vec<usize> },
    #[error("{op}: `{arg}` is {got}, expected {expected}")]
    DType { op: &'static str, arg: &'static str, expected: &'static str, got: DType },
    #[error("{op}: `{arg}` is {got}: {requirement}")]
    Value { op: &'static str, arg: &'static str, got: String, requirement: &'static str },
    #[error("the {backend} backend cannot run {op} with {what}; choose another backend or convert the model")]
    Unsupported { backend: &'static str, op: &'static str, what: String },
    #[error("{what} needs {needed_bytes} bytes, but only {available_bytes} are available; lower the context length or the batch size")]
    OutOfMemory { what: &'static str, needed_bytes: u64, available_bytes: u64 },
    #[error("weight `{name}`: {reason}")]
    Weight { name: String, reason: String },
    #[error("a tensor of another backend was passed to the {backend} backend")]
    ForeignTensor { backend: &'static str },
    #[error("{backend}: {reason}")]
    Device { backend: &'static str, reason: String },
}
