//! Safetensors: one file, or shards with an index.
//!
//! A file is: length of the header (`u64`), the header (JSON), tensor data. The header maps each name to dtype, shape and the
//! tensor's place in the data, which the tensors fill without gaps.

mod dtype;
mod json;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use self::dtype::StoredType;
use self::json::{Header, Index};
use super::table::{MAX_FILES, MAX_NAME_BYTES};
use super::{FileError, MappedFile, TensorInfo, TensorTable, WeightFile};

/// An open safetensors checkpoint: one file or all shards of an index.
pub struct SafeTensors {
    metadata: HashMap<String, String>,
    table: TensorTable,
}

const SINGLE_NAME: &str = "model.safetensors";
const INDEX_NAME: &str = "model.safetensors.index.json";
/// The length of the header stands before it.
const HEADER_START: usize = 8;
/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_INDEX_BYTES: usize = 64 << 20;

impl SafeTensors {
    /// Opens a `.safetensors` file, an index (`….index.json`), or a folder that has one or the other under its usual name.
    ///
    /// # Errors
    /// A file is missing or contradicts itself, or index and shards disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        if path.is_dir() {
            let index = path.join(INDEX_NAME);
            return if index.exists() { open_sharded(&index) } else { Self::parse(MappedFile::open(path.join(SINGLE_NAME))?) };
        }
        match path.extension() {
            Some(extension) if extension == "json" => open_sharded(path),
            _ => Self::parse(MappedFile::open(path)?),
        }
    }

    /// Reads a checkpoint that is one file.
    ///
    /// # Errors
    /// The file contradicts itself.
    pub fn parse(file: MappedFile) -> Result<Self, FileError> {
        let (metadata, tensors) = read_header(&file, 0)?;
        Ok(Self { metadata, table: TensorTable::new(vec![file], tensors)? })
    }

    /// The free-form `__metadata__` of the (first) file.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }
}

impl WeightFile for SafeTensors {
    fn table(&self) -> &TensorTable {
        &self.table
    }
}

/// Metadata and tensors of `file`, which is number `file_index` of its checkpoint.
fn read_header(file: &MappedFile, file_index: usize) -> Result<(HashMap<String, String>, Vec<TensorInfo>), FileError> {
    let bytes = file.bytes();
    let broken = |offset: usize, field: &str, reason: String| FileError::Malformed {
        path: file.path().to_owned(),
        offset: offset as u64,
        field: field.to_owned(),
        reason,
    };
    let Some((length, rest)) = bytes.split_first_chunk::<HEADER_START>() else {
        return Err(broken(0, "header length", format!("the file has only {} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER_BYTES).and_then(|n| rest.split_at_checked(n));
    let Some((header, data)) = header else {
        let reason = format!("{length} bytes; the file has {} more and at most {MAX_HEADER_BYTES} are read", rest.len());
        return Err(broken(0, "header length", reason));
    };
    let header: Header = serde_json::from_slice(header).map_err(|e| broken(HEADER_START, "header", e.to_string()))?;

    let data_start = bytes.len() - data.len();
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, entry) in header.tensors {
        let field = format!("tensor `{name}`");
        let (begin, end) = entry.data_offsets;
        let refuse = |reason: String| Err(broken(data_start, &field, reason));
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return refuse(format!("a name of {} bytes, allowed are 1 to {MAX_NAME_BYTES}", name.len()));
        }
        let Some(stored) = StoredType::from_name(&entry.dtype) else {
            return refuse(format!("dtype {:?} does not exist in this format", entry.dtype));
        };
        if begin > end || end > data.len() {
            return refuse(format!("offsets {begin} to {end} are reversed or behind the {} bytes of data", data.len()));
        }
        let expected = stored.bytes(&entry.shape.0);
        if expected != Some(end - begin) {
            let expected = expected.map_or("no whole number of".to_owned(), |n| n.to_string());
            return refuse(format!("{} of shape {:?} takes {expected} bytes and has {}", entry.dtype, entry.shape.0, end - begin));
        }
        tensors.push(TensorInfo {
            name,
            shape: entry.shape.0,
            type_name: stored.name,
            dtype: stored.dtype,
            file: file_index,
            offset: data_start + begin,
            len_bytes: end - begin,
        });
    }
    tensors.sort_by_key(|t| (t.offset, t.len_bytes));
    let mut filled = data_start;
    for tensor in &tensors {
        if tensor.offset != filled {
            let what = if tensor.offset < filled { "overlaps the one before it" } else { "leaves a gap before it" };
            return Err(broken(tensor.offset, &format!("tensor `{}`", tensor.name), format!("it {what}")));
        }
        filled += tensor.len_bytes;
    }
    if filled != bytes.len() {
        return Err(broken(filled, "tensor data", format!("{} bytes belong to no tensor", bytes.len() - filled)));
    }
    Ok((header.metadata.0, tensors))
}

/// Opens all shards that the index at `path` names.
fn open_sharded(path: &Path) -> Result<SafeTensors, FileError> {
    let refuse = |field: &str, reason: String| FileError::Malformed { path: path.to_owned(), offset: 0, field: field.to_owned(), reason };
    let file = MappedFile::open(path)?;
    if file.bytes().len() > MAX_INDEX_BYTES {
        return Err(refuse("index", format!("{} bytes; at most {MAX_INDEX_BYTES} are read", file.bytes().len())));
    }
    let index: Index = serde_json::from_slice(file.bytes()).map_err(|e| refuse("index", e.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));

    let mut shard_names: Vec<&str> = index.weight_map.0.values().map(String::as_str).collect();
    shard_names.sort_unstable();
    shard_names.dedup();
    if shard_names.is_empty() || shard_names.len() > MAX_FILES {
        return Err(refuse("`weight_map`", format!("{} shards; 1 to {MAX_FILES} are read", shard_names.len())));
    }
    let mut files = Vec::new();
    let mut tensors = Vec::new();
    let mut metadata = HashMap::new();
    for (i, &shard) in shard_names.iter().enumerate() {
        let file = MappedFile::open(
            shard_path(folder, shard)
                .ok_or_else(|| refuse("`weight_map`", format!("shard {shard:?} is not the plain name of a .safetensors file")))?,
        )?;
        let (its_metadata, its_tensors) = read_header(&file, i)?;
        if i == 0 {
            metadata = its_metadata;
        }
        tensors.extend(its_tensors);
        files.push(file);
    }
    let table = TensorTable::new(files, tensors)?;
    for (name, shard) in &index.weight_map.0 {
        match table.info(name) {
            None => return Err(refuse(&format!("tensor `{name}`"), format!("it is not in {shard}, nor in another shard"))),
            Some(info) if shard_names[info.file] != shard => {
                return Err(refuse(&format!("tensor `{name}`"), format!("it is in {} and not in {shard}", shard_names[info.file])));
            }
            Some(_) => {}
        }
    }
    Ok(SafeTensors { metadata, table })
}

/// The shard beside the index, or `None` for a name that could lead elsewhere.
fn shard_path(folder: &Path, shard: &str) -> Option<PathBuf> {
    let mut components = Path::new(shard).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == shard);
    (plain && shard.ends_with(".safetensors") && !shard.contains(['/', '\\', ':', '\0'])).then(|| folder.join(shard))
}
