//! The tensors of a weight file, whatever its format.

use std::collections::HashMap;
use std::path::Path;

use ferrum_kernels::{DType, HostBytes};

use super::{FileError, MappedFile};

/// One tensor of a file, with its bytes as they are stored.
#[derive(Clone, Debug)]
pub struct TensorView {
    pub name: String,
    /// Row-major: the last axis is the one whose elements lie side by side.
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub bytes: HostBytes,
}

/// What a file's header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Row-major: the last axis is the one whose elements lie side by side.
    pub shape: Vec<usize>,
    /// The stored type as its format calls it, e.g. `Q4_K` or `F8_E4M3`.
    pub type_name: &'static str,
    /// The same type, if it is one that we compute with.
    pub dtype: Option<DType>,
    /// Which of the weight's files holds it.
    pub file: usize,
    /// Where its bytes begin, from the start of that file.
    pub offset: usize,
    pub len_bytes: usize,
}

/// A checkpoint: one or more files that together hold named tensors.
pub trait WeightFile: Send + Sync {
    /// The files and tensors.
    fn table(&self) -> &TensorTable;

    /// The first file.
    fn path(&self) -> &Path {
        self.table().path()
    }

    /// Names of all tensors, in file order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.table().infos().iter().map(|t| t.name.as_str()))
    }

    /// The tensor `name` with its bytes, which stay in the mapping.
    ///
    /// # Errors
    /// There is no such tensor, it has no elements, or we cannot compute with its type.
    fn tensor(&self, name: &str) -> Result<TensorView, FileError> {
        self.table().tensor(name)
    }

    /// Whether all files still have all their bytes; see [`MappedFile::check`].
    fn check(&self) -> Result<(), FileError> {
        self.table().files().iter().try_for_each(MappedFile::check)
    }
}

/// The files of a checkpoint and where each tensor lies in them.
///
/// Names are unique, and every tensor lies inside its file and overlaps no other.
pub struct TensorTable {
    files: Vec<MappedFile>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// The most tensors a checkpoint may have: bounds what a hostile header can make us allocate. A mixture of experts that stores
/// each expert by itself has some 100,000.
pub(super) const MAX_TENSORS: usize = 1 << 18;

/// The longest tensor name in bytes.
pub(super) const MAX_NAME_BYTES: usize = 1024;

/// The most files a checkpoint may be split into.
pub(super) const MAX_FILES: usize = 512;

impl TensorTable {
    /// Checks and indexes the tensors of `files`, of which there is at least one.
    pub(super) fn new(files: Vec<MappedFile>, tensors: Vec<TensorInfo>) -> Result<Self, FileError> {
        for (i, file) in files.iter().enumerate() {
            check_extents(file, tensors.iter().filter(|t| t.file == i))?;
        }
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), i).is_some() {
                return Err(malformed(&files[tensor.file], tensor.offset, &tensor.name, "a second tensor of this name".into()));
            }
        }
        Ok(Self { files, tensors, by_name })
    }

    /// The first file.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), MappedFile::path)
    }

    /// All files, as [`TensorInfo::file`] counts them.
    pub fn files(&self) -> &[MappedFile] {
        &self.files
    }

    /// All tensors, in file order.
    pub fn infos(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// What the header says about the tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    fn tensor(&self, name: &str) -> Result<TensorView, FileError> {
        let Some(info) = self.info(name) else {
            return Err(FileError::MissingTensor { path: self.path().to_owned(), name: name.to_owned() });
        };
        let file = &self.files[info.file];
        let Some(dtype) = info.dtype else {
            let path = file.path().to_owned();
            return Err(FileError::UnsupportedTensor { path, name: name.to_owned(), type_name: info.type_name });
        };
        if info.len_bytes == 0 {
            return Err(malformed(file, info.offset, name, "the tensor has no elements".into()));
        }
        let bytes = file
            .slice(info.offset..info.offset + info.len_bytes)
            .ok_or_else(|| malformed(file, info.offset, name, "the tensor lies outside of the file".into()))?;
        Ok(TensorView { name: name.to_owned(), shape: info.shape.clone(), dtype, bytes })
    }
}

/// Refuses tensors that reach past the end of their file or into each other.
fn check_extents<'a>(file: &MappedFile, tensors: impl Iterator<Item = &'a TensorInfo>) -> Result<(), FileError> {
    let mut by_offset: Vec<_> = tensors.collect();
    by_offset.sort_by_key(|t| (t.offset, t.len_bytes));
    let mut used_up_to = 0;
    for tensor in by_offset {
        if tensor.offset < used_up_to {
            return Err(malformed(file, tensor.offset, &tensor.name, "the tensor overlaps another".into()));
        }
        let end = tensor.offset.checked_add(tensor.len_bytes).filter(|&end| end <= file.bytes().len());
        used_up_to = end.ok_or_else(|| {
            let reason = format!("{} bytes reach past the end of the file at {}", tensor.len_bytes, file.bytes().len());
            malformed(file, tensor.offset, &tensor.name, reason)
        })?;
    }
    Ok(())
}

fn malformed(file: &MappedFile, offset: usize, tensor: &str, reason: String) -> FileError {
    FileError::Malformed { path: file.path().to_owned(), offset: offset as u64, field: format!("tensor `{tensor}`"), reason }
}
