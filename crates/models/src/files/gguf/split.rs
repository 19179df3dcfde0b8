//! Models split over several GGUF files: `NAME-00001-of-00003.gguf` and so on.

use std::path::PathBuf;

use super::{Gguf, Metadata, header};
use crate::files::table::MAX_FILES;
use crate::files::{FileError, MappedFile, TensorTable};

const COUNT_KEY: &str = "split.count";
const NUMBER_KEY: &str = "split.no";
const TENSORS_KEY: &str = "split.tensors.count";

/// Opens the model that `file` belongs to. The metadata is that of the first file.
pub(super) fn open(file: MappedFile) -> Result<Gguf, FileError> {
    let header = header::read(&file)?;
    let metadata = Metadata::new(file.clone(), header.entries)?;
    let count: usize = metadata.opt(COUNT_KEY)?.unwrap_or(1);
    if count <= 1 {
        return Ok(Gguf { version: header.version, metadata, table: TensorTable::new(vec![file], header.tensors)? });
    }
    let mut files = Vec::new();
    let mut tensors = Vec::new();
    let mut first = None;
    for (i, path) in sibling_paths(&file, count)?.into_iter().enumerate() {
        let file = MappedFile::open(path)?;
        let header = header::read(&file)?;
        let metadata = Metadata::new(file.clone(), header.entries)?;
        let (number, its_count) = (metadata.get::<usize>(NUMBER_KEY)?, metadata.get::<usize>(COUNT_KEY)?);
        if (number, its_count) != (i, count) {
            let reason = format!("its name says part {} of {count}, its metadata part {} of {its_count}", i + 1, number.saturating_add(1));
            return Err(FileError::Format { path: file.path().to_owned(), reason });
        }
        tensors.extend(header.tensors.into_iter().map(|t| crate::files::TensorInfo { file: i, ..t }));
        files.push(file);
        first.get_or_insert((header.version, metadata));
    }
    let Some((version, metadata)) = first else {
        return Err(FileError::Format { path: file.path().to_owned(), reason: "a split model without files".into() });
    };
    match metadata.opt::<usize>(TENSORS_KEY)? {
        Some(expected) if expected != tensors.len() => {
            let reason = format!("the parts hold {} tensors together, `{TENSORS_KEY}` says {expected}", tensors.len());
            Err(FileError::Format { path: file.path().to_owned(), reason })
        }
        _ => Ok(Gguf { version, metadata, table: TensorTable::new(files, tensors)? }),
    }
}

/// Paths of all `count` parts, from the name of one of them.
fn sibling_paths(file: &MappedFile, count: usize) -> Result<Vec<PathBuf>, FileError> {
    let refuse = |reason: String| FileError::Format { path: file.path().to_owned(), reason };
    if count > MAX_FILES {
        return Err(refuse(format!("split into {count} parts; at most {MAX_FILES} are read")));
    }
    let name = file.path().file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf")).and_then(|rest| rest.rsplit_once('-'));
    let Some((prefix, _)) = stem.filter(|(_, number)| number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit())) else {
        return Err(refuse(format!("one of {count} parts, whose name must end in `-00001-of-{count:05}.gguf` or the like")));
    };
    Ok((1..=count).map(|i| file.path().with_file_name(format!("{prefix}-{i:05}-of-{count:05}.gguf"))).collect())
}
