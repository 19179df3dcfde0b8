//! Models: weight files, tokenizers and chat templates, layers, and one file per model family.
//!
//! `unsafe` is confined to [`files::mmap`]; everything else in this crate denies it.
#![deny(unsafe_code)]

pub mod files;
pub mod hub;
pub mod text;
