//! What can be wrong with a weight file.

use std::io;
use std::path::PathBuf;

/// Why a weight file cannot be used. Every message names the file, and the offset, key or tensor where there is one.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: cannot {what}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },

    #[error("{}: not a regular file", path.display())]
    NotAFile { path: PathBuf },

    #[error("{}: {mapped} files are mapped already, which is the most at once; close a model first", path.display())]
    TooManyMappings { path: PathBuf, mapped: usize },

    #[error("{}: the file shrank while it was in use ({mapped_bytes} bytes mapped, {now_bytes} now); restore it and load the model again", path.display())]
    Shrunk { path: PathBuf, mapped_bytes: u64, now_bytes: u64 },

    /// A format, version or byte order that this reader does not take.
    #[error("{}: {reason}", path.display())]
    Format { path: PathBuf, reason: String },

    /// Contents that contradict the format. `offset` counts bytes from the start of the file.
    #[error("{}: broken at byte {offset}, {field}: {reason}; download the file again", path.display())]
    Malformed { path: PathBuf, offset: u64, field: String, reason: String },

    #[error("{}: metadata key `{key}` is missing", path.display())]
    MissingKey { path: PathBuf, key: String },

    #[error("{}: metadata key `{key}` is {got}, expected {expected}", path.display())]
    WrongType { path: PathBuf, key: String, expected: &'static str, got: String },

    #[error("{}: there is no tensor `{name}`", path.display())]
    MissingTensor { path: PathBuf, name: String },

    #[error("{}: tensor `{name}` has type {type_name}, which cannot be computed with yet; use another quantisation of the model", path.display())]
    UnsupportedTensor { path: PathBuf, name: String, type_name: &'static str },
}
