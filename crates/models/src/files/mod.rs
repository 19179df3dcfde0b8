//! Weight files: GGUF and safetensors, memory-mapped and checked before use.
//!
//! Opening a file checks its whole header: every count, length and offset against the file's size, with checked arithmetic.
//! What cannot be right is a [`FileError`]; nothing here panics on the contents of a file, and parsing allocates no more than a
//! small multiple of the header, whose counts are capped.

mod error;
pub mod gguf;
#[allow(unsafe_code)]
pub mod mmap;
pub mod safetensors;
mod table;

pub use error::FileError;
pub use gguf::Gguf;
pub use mmap::MappedFile;
pub use safetensors::SafeTensors;
pub use table::{TensorInfo, TensorTable, TensorView, WeightFile};
