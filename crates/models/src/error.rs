//! Why a model cannot be loaded or run.

use std::path::PathBuf;

use crate::{files::FileError, text::TextError};

/// The result of loading and running models.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Kernel(#[from] ferrum_kernels::Error),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: not valid JSON: {source}; download the file again", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{what} `{name}` is not supported; supported are {known}")]
    UnknownArchitecture { what: &'static str, name: String, known: String },
    #[error("config key `{key}` is missing")]
    MissingKey { key: String },
    #[error("config key `{key}` is {got}: {requirement}")]
    ConfigValue { key: String, got: String, requirement: String },
    #[error(
        "the config sets {}, which this version does not honour and which could change the result; convert the model or use another",
        keys.join(", ")
    )]
    UnhonouredKeys { keys: Vec<String> },
    #[error("tensors missing from the checkpoint: {}", names.join(", "))]
    MissingTensors { names: Vec<String> },
    #[error("tensors in the checkpoint that this model does not use: {}", names.join(", "))]
    UnusedTensors { names: Vec<String> },
    #[error("tensor `{name}` has shape {got:?}, but the config asks for {expected:?}")]
    TensorShape { name: String, expected: Vec<usize>, got: Vec<usize> },
}
