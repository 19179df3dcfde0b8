//! Models: weight files, tokenizers and chat templates, layers, and one file per model family.
//!
//! `unsafe` is confined to [`files::mmap`]; everything else in this crate denies it.
#![deny(unsafe_code)]

pub mod config;
mod dummy;
mod error;
pub mod families;
pub mod files;
mod gguf_config;
mod gguf_names;
pub mod hub;
pub mod layers;
mod load;
mod load_pooling;
mod load_text;
pub mod loader;
mod model;
pub mod rope;
pub mod text;

pub use dummy::DummyFormat;
pub use error::{Error, Result};
pub use load::{Checkpoint, Inspection, TensorSummary, load_dummy, read_json};
pub use model::{Batch, KvCache, Model, ModelInfo, Pooling, Scratch, Step, Tap};
