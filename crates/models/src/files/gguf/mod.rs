//! GGUF files, versions 2 and 3, little-endian.
//!
//! A file is: magic, version, counts, metadata, tensor infos, padding to the alignment, tensor data. The format is described in
//! `docs/gguf.md` of the ggml project.

mod cursor;
mod header;
mod metadata;
mod split;
mod tensor_type;
mod value;
mod writer;

use std::path::Path;

use super::{FileError, MappedFile, TensorTable, WeightFile};

pub use metadata::{FromValue, Metadata};
pub use tensor_type::TensorType;
pub use value::{Array, StrArray, Value, ValueType};
pub use writer::{GgufWriter, MetaValue, WriteError};

/// An open GGUF model: metadata and tensors of one file, or of all files of a split model.
pub struct Gguf {
    version: u32,
    metadata: Metadata,
    table: TensorTable,
}

impl Gguf {
    /// Opens the model at `path`. Any file of a split model (`…-00001-of-00003.gguf`) opens all of them.
    ///
    /// # Errors
    /// A file is missing, is not GGUF of version 2 or 3, or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        split::open(MappedFile::open(path)?)
    }

    /// Reads a model that is one file.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn parse(file: MappedFile) -> Result<Self, FileError> {
        let header = header::read(&file)?;
        let metadata = Metadata::new(file.clone(), header.entries)?;
        Ok(Self { version: header.version, metadata, table: TensorTable::new(vec![file], header.tensors)? })
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Metadata of the (first) file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl WeightFile for Gguf {
    fn table(&self) -> &TensorTable {
        &self.table
    }
}
