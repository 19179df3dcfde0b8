//! From the magic to the last tensor info.

use super::cursor::Cursor;
use super::tensor_type::TensorType;
use super::value::{Entry, Value};
use crate::files::table::{MAX_NAME_BYTES, MAX_TENSORS};
use crate::files::{FileError, MappedFile, TensorInfo};

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// What stands before the tensor data.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) entries: Vec<Entry>,
    /// With offsets from the start of the file.
    pub(super) tensors: Vec<TensorInfo>,
}

/// Real files have a few dozen; the cap bounds what a hostile one can make us allocate.
const MAX_METADATA_KEYS: usize = 1 << 16;
/// The format's own limit.
const MAX_KEY_BYTES: usize = 65_535;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: usize = 64 * 1024;

/// Key length, one byte of key, type, one byte of value.
const MIN_ENTRY_BYTES: usize = 8 + 1 + 4 + 1;
/// Name length, one byte of name, number of dimensions, type, offset.
const MIN_TENSOR_INFO_BYTES: usize = 8 + 1 + 4 + 4 + 8;

pub(super) fn read(file: &MappedFile) -> Result<Header, FileError> {
    let mut cursor = Cursor::new(file, 0);
    let version = read_version(&mut cursor, file)?;
    let tensor_count = cursor.u64("tensor count")?;
    let entry_count = cursor.u64("metadata count")?;

    let entry_count = cursor.checked_count(entry_count, MIN_ENTRY_BYTES, MAX_METADATA_KEYS, "metadata count")?;
    let mut entries = Vec::with_capacity(entry_count);
    for _ in 0..entry_count {
        let key = cursor.name(MAX_KEY_BYTES, "metadata key")?;
        entries.push(Entry::read(&mut cursor, key)?);
    }
    let alignment = alignment(&cursor, file, &entries)?;

    let tensor_count = cursor.checked_count(tensor_count, MIN_TENSOR_INFO_BYTES, MAX_TENSORS, "tensor count")?;
    let mut tensors = Vec::with_capacity(tensor_count);
    for _ in 0..tensor_count {
        tensors.push(read_tensor_info(&mut cursor, alignment)?);
    }

    let data_start = cursor.at().checked_next_multiple_of(alignment).ok_or_else(|| cursor.error("padding", "it overflows"))?;
    for tensor in &mut tensors {
        tensor.offset = tensor.offset.checked_add(data_start).ok_or_else(|| {
            let reason = format!("offset {} overflows", tensor.offset);
            cursor.error(&format!("tensor `{}`", tensor.name), reason)
        })?;
    }
    Ok(Header { version, entries, tensors })
}

fn read_version(cursor: &mut Cursor<'_>, file: &MappedFile) -> Result<u32, FileError> {
    let refuse = |reason: String| Err(FileError::Format { path: file.path().to_owned(), reason });
    let magic = cursor.array::<4>("magic")?;
    if magic != MAGIC {
        return refuse(format!("not a GGUF file: it begins with the bytes {magic:02x?} and not with `GGUF`"));
    }
    match cursor.u32("version")? {
        version @ 2..=3 => Ok(version),
        1 => refuse("GGUF version 1 is not read; convert the model again, which gives version 3".into()),
        // A version is small, so its low half is only empty when the bytes are in the other order.
        version if version & 0xffff == 0 => refuse("a big-endian GGUF file; convert the model to little-endian".into()),
        version => refuse(format!("GGUF version {version} is not known; versions 2 and 3 are read")),
    }
}

fn alignment(cursor: &Cursor<'_>, file: &MappedFile, entries: &[Entry]) -> Result<usize, FileError> {
    let Some(entry) = entries.iter().find(|e| e.key == ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let refuse = |got: String| {
        let reason = format!("{got}; it must be a power of two from 1 to {MAX_ALIGNMENT}");
        cursor.error_at(entry.range.start, &format!("metadata key `{ALIGNMENT_KEY}`"), reason)
    };
    match entry.value(file) {
        Some(Value::Int(n)) => match usize::try_from(n) {
            Ok(a) if a.is_power_of_two() && a <= MAX_ALIGNMENT => Ok(a),
            _ => Err(refuse(format!("the alignment is {n}"))),
        },
        _ => Err(refuse(format!("the alignment is a {}", entry.type_name()))),
    }
}

/// One tensor info, its offset still counted from the start of the tensor data.
fn read_tensor_info(cursor: &mut Cursor<'_>, alignment: usize) -> Result<TensorInfo, FileError> {
    let start = cursor.at();
    let name = cursor.name(MAX_NAME_BYTES, "tensor name")?;
    let field = format!("tensor `{name}`");
    let n_dims = cursor.u32(&field)?;
    if n_dims > MAX_DIMS {
        return Err(cursor.error_at(start, &field, format!("{n_dims} dimensions; at most {MAX_DIMS} are possible")));
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        dims.push(cursor.u64(&field)?);
    }
    let type_id = cursor.u32(&field)?;
    let offset = cursor.u64(&field)?;

    let refuse = |reason: String| Err(cursor.error_at(start, &field, reason));
    let Some(stored) = TensorType::from_id(type_id) else {
        return refuse(format!("its type has the number {type_id}, which stands for no tensor type known to this version"));
    };
    // The file lists the fastest axis first.
    let shape: Option<Vec<usize>> = dims.iter().rev().map(|&d| usize::try_from(d).ok().filter(|&d| d > 0)).collect();
    let elements = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
    let (Some(shape), Some(elements)) = (shape, elements) else {
        return refuse(format!("the dimensions {dims:?} are zero or overflow"));
    };
    let row_len = shape.last().copied().unwrap_or(1);
    let (true, Some(len_bytes)) = (row_len.is_multiple_of(stored.block_len), stored.bytes(elements)) else {
        return refuse(format!("rows of {row_len} elements do not hold whole {} blocks of {}", stored.name, stored.block_len));
    };
    let offset = match usize::try_from(offset) {
        Ok(offset) if offset.is_multiple_of(alignment) => offset,
        _ => return refuse(format!("offset {offset} is no multiple of the alignment {alignment}")),
    };
    Ok(TensorInfo { name, shape, type_name: stored.name, dtype: stored.dtype, file: 0, offset, len_bytes })
}
