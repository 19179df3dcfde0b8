//! Writing GGUF version 3.

use std::collections::HashSet;
use std::io::{self, Write};

use ferrum_kernels::{DType, HostBytes};

use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC};
use super::tensor_type::TensorType;
use super::value::ValueType;

/// A GGUF file in the making: metadata and tensors, written in the order in which they were added.
///
/// Tensor bytes are shared, not copied, until [`write_to`](Self::write_to) streams them.
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<(String, ValueType, Vec<u8>)>,
    tensors: Vec<Tensor>,
    names: HashSet<String>,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    type_id: u32,
    bytes: HostBytes,
}

/// Why something cannot be added to a file.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the name `{name}` is used twice or empty")]
    Name { name: String },
    #[error("tensor `{name}`: a GGUF file cannot store {dtype}")]
    Type { name: String, dtype: DType },
    #[error("tensor `{name}`: {dtype} of shape {shape:?} does not take {got_bytes} bytes")]
    Shape { name: String, dtype: DType, shape: Vec<usize>, got_bytes: usize },
    #[error("metadata key `{key}`: an array holds elements of several types")]
    MixedArray { key: String },
}

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(Vec<u8>),
    /// Elements of one type, which is stated for the sake of empty arrays.
    Array(ValueType, Vec<MetaValue>),
}

impl GgufWriter {
    /// A file without contents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata value.
    ///
    /// # Errors
    /// The key was added before or is empty, or an array is of mixed types.
    pub fn set(&mut self, key: &str, value: impl Into<MetaValue>) -> Result<(), WriteError> {
        let value = value.into();
        let mut bytes = Vec::new();
        encode(&value, &mut bytes).ok_or_else(|| WriteError::MixedArray { key: key.to_owned() })?;
        self.set_raw(key, value.kind(), bytes)
    }

    /// Adds a metadata value as [`Metadata::raw`](super::Metadata::raw) returned it from another file.
    ///
    /// # Errors
    /// The key was added before or is empty.
    pub fn set_raw(&mut self, key: &str, kind: ValueType, bytes: impl Into<Vec<u8>>) -> Result<(), WriteError> {
        if key.is_empty() || self.metadata.iter().any(|(k, ..)| k == key) {
            return Err(WriteError::Name { name: key.to_owned() });
        }
        self.metadata.push((key.to_owned(), kind, bytes.into()));
        Ok(())
    }

    /// Adds a tensor. `shape` is row-major, as everywhere outside of the file itself.
    ///
    /// # Errors
    /// The name was added before or is empty, the format lacks the dtype, or shape and bytes disagree.
    pub fn tensor(&mut self, name: &str, shape: &[usize], dtype: DType, bytes: HostBytes) -> Result<(), WriteError> {
        let Some(stored) = TensorType::from_dtype(dtype) else {
            return Err(WriteError::Type { name: name.to_owned(), dtype });
        };
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d).filter(|&n| n > 0));
        let whole_rows = shape.last().copied().unwrap_or(1).is_multiple_of(stored.block_len);
        if shape.len() > 4 || !whole_rows || elements.and_then(|n| stored.bytes(n)) != Some(bytes.len()) {
            return Err(WriteError::Shape { name: name.to_owned(), dtype, shape: shape.to_owned(), got_bytes: bytes.len() });
        }
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            return Err(WriteError::Name { name: name.to_owned() });
        }
        self.tensors.push(Tensor { name: name.to_owned(), shape: shape.to_owned(), type_id: stored.id, bytes });
        Ok(())
    }

    /// Writes the whole file.
    ///
    /// # Errors
    /// Those of `out`, and `InvalidData` when the metadata sets `general.alignment` to something that is not a power of two
    /// from 1 to 64 Ki.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let alignment = self.alignment()?;
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.metadata {
            put_string(key.as_bytes(), &mut head);
            head.extend((*kind as u32).to_le_bytes());
            head.extend(bytes);
        }
        let mut offset = 0usize;
        for tensor in &self.tensors {
            put_string(tensor.name.as_bytes(), &mut head);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&d| head.extend((d as u64).to_le_bytes()));
            head.extend(tensor.type_id.to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(alignment);
        }
        head.resize(head.len().next_multiple_of(alignment), 0);
        out.write_all(&head)?;
        let padding = vec![0; alignment];
        for tensor in &self.tensors {
            out.write_all(&tensor.bytes)?;
            let len = tensor.bytes.len();
            out.write_all(&padding[..len.next_multiple_of(alignment) - len])?;
        }
        Ok(())
    }

    /// The whole file in memory.
    ///
    /// # Errors
    /// As for [`write_to`](Self::write_to).
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write_to(&mut out)?;
        Ok(out)
    }

    fn alignment(&self) -> io::Result<usize> {
        let Some((_, kind, bytes)) = self.metadata.iter().find(|(k, ..)| k == ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
        match (kind, bytes.as_slice().try_into().map(u32::from_le_bytes)) {
            (ValueType::U32, Ok(a)) if a.is_power_of_two() && a <= 1 << 16 => Ok(a as usize),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "general.alignment is not a u32 power of two up to 65536")),
        }
    }
}

impl MetaValue {
    fn kind(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F32(_) => ValueType::F32,
            Self::F64(_) => ValueType::F64,
            Self::Bool(_) => ValueType::Bool,
            Self::Str(_) => ValueType::String,
            Self::Array(..) => ValueType::Array,
        }
    }
}

/// Appends the value as the file stores it; `None` for an array of mixed types.
fn encode(value: &MetaValue, out: &mut Vec<u8>) -> Option<()> {
    match value {
        MetaValue::U8(n) => out.push(*n),
        MetaValue::I8(n) => out.extend(n.to_le_bytes()),
        MetaValue::U16(n) => out.extend(n.to_le_bytes()),
        MetaValue::I16(n) => out.extend(n.to_le_bytes()),
        MetaValue::U32(n) => out.extend(n.to_le_bytes()),
        MetaValue::I32(n) => out.extend(n.to_le_bytes()),
        MetaValue::U64(n) => out.extend(n.to_le_bytes()),
        MetaValue::I64(n) => out.extend(n.to_le_bytes()),
        MetaValue::F32(x) => out.extend(x.to_le_bytes()),
        MetaValue::F64(x) => out.extend(x.to_le_bytes()),
        MetaValue::Bool(b) => out.push((*b).into()),
        MetaValue::Str(s) => put_string(s, out),
        MetaValue::Array(kind, items) => {
            out.extend((*kind as u32).to_le_bytes());
            out.extend((items.len() as u64).to_le_bytes());
            for item in items {
                (item.kind() == *kind).then_some(())?;
                encode(item, out)?;
            }
        }
    }
    Some(())
}

fn put_string(s: &[u8], out: &mut Vec<u8>) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s);
}

macro_rules! meta_value_from {
    ($($t:ty => $variant:ident),*) => {$(
        impl From<$t> for MetaValue {
            fn from(value: $t) -> Self {
                Self::$variant(value.into())
            }
        }

        impl From<Vec<$t>> for MetaValue {
            fn from(values: Vec<$t>) -> Self {
                Self::Array(Self::$variant(<$t>::default().into()).kind(), values.into_iter().map(Self::from).collect())
            }
        }
    )*};
}

meta_value_from!(u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64, bool => Bool, &str => Str, String => Str);
