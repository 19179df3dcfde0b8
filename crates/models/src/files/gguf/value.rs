//! Metadata values, and what can be asked of them.

use std::ops::Range;

use super::cursor::Cursor;
use crate::files::{FileError, MappedFile};

/// The type of a metadata value, with the format's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of one value; `None` for strings and arrays, whose length is stored with them.
    pub fn fixed_bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// The name in messages, e.g. `u32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// A metadata value. Strings and arrays stay in the file.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Int(i64),
    /// Only for a `u64` above the range of `i64`.
    BigInt(u64),
    Float(f64),
    Bool(bool),
    /// UTF-8 in a sound file, but nothing has checked that.
    Str(&'a [u8]),
    Array(Array<'a>),
}

/// An array in the file's metadata.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    file: &'a MappedFile,
    layout: ArrayLayout,
    /// Start of each string, and one more: where a string after the last would start. Empty for other elements.
    strings: &'a [usize],
}

/// Where an array lies in its file.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArrayLayout {
    pub(super) element: ValueType,
    pub(super) len: usize,
    /// Offset of the first element.
    pub(super) start: usize,
}

/// Arrays in arrays in arrays: nothing real goes deeper than two.
const MAX_ARRAY_DEPTH: usize = 4;

/// Length field of a string.
const STRING_HEADER_BYTES: usize = 8;

/// Type and length field of an array.
const ARRAY_HEADER_BYTES: usize = 12;

impl<'a> Array<'a> {
    pub(super) fn new(file: &'a MappedFile, layout: ArrayLayout, strings: &'a [usize]) -> Self {
        Self { file, layout, strings }
    }

    /// Type of the elements.
    pub fn element_type(&self) -> ValueType {
        self.layout.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.layout.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.layout.len == 0
    }

    /// The elements as strings, or `None` when they are something else or this array lies in another.
    pub fn strings(&self) -> Option<StrArray<'a>> {
        (self.layout.element == ValueType::String && self.strings.len() > self.layout.len)
            .then_some(StrArray { bytes: self.file.bytes(), starts: self.strings })
    }

    /// The elements in order. Each is read as it is reached; the iterator ends early if the file has changed meanwhile and no
    /// longer holds them.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let ArrayLayout { element, len, start } = self.layout;
        let mut cursor = Cursor::new(self.file, start);
        let file = self.file;
        (0..len).map_while(move |_| read_value(&mut cursor, file, element).ok())
    }
}

impl std::fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({} × {})", self.layout.len, self.layout.element.name())
    }
}

/// The strings of an array such as the vocabulary, found without reading those before them.
///
/// They are bytes and not `str`: vocabularies in the wild hold tokens that are parts of UTF-8 sequences.
#[derive(Clone, Copy)]
pub struct StrArray<'a> {
    bytes: &'a [u8],
    starts: &'a [usize],
}

impl<'a> StrArray<'a> {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// String `i`, or `None` past the end.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        let start = *self.starts.get(i)?;
        let end = self.starts.get(i + 1)?.checked_sub(STRING_HEADER_BYTES)?;
        self.bytes.get(start..end)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let all = *self;
        (0..all.len()).map(move |i| all.get(i).unwrap_or_default())
    }
}

/// A value as the header's reader found it. Scalars are read again when asked for, like the elements of an array.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) kind: ValueType,
    /// The value in the file, without its type field.
    pub(super) range: Range<usize>,
    array: Option<(ArrayLayout, Vec<usize>)>,
}

impl Entry {
    /// Reads over the value of `key` and checks all of it.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: String) -> Result<Self, FileError> {
        let field = format!("metadata key `{key}`");
        let kind = cursor.value_type(&field)?;
        let start = cursor.at();
        let array = match kind {
            ValueType::Array => Some(skip_array(cursor, &field, 1)?),
            _ => skip_scalar(cursor, kind, &field).map(|()| None)?,
        };
        Ok(Self { key, kind, range: start..cursor.at(), array })
    }

    pub(super) fn value<'a>(&'a self, file: &'a MappedFile) -> Option<Value<'a>> {
        match &self.array {
            Some((layout, strings)) => Some(Value::Array(Array::new(file, *layout, strings))),
            None => read_value(&mut Cursor::new(file, self.range.start), file, self.kind).ok(),
        }
    }

    /// The type in messages, e.g. `u32` or `array of string`.
    pub(super) fn type_name(&self) -> String {
        match &self.array {
            Some((layout, _)) => format!("array of {}", layout.element.name()),
            None => self.kind.name().to_owned(),
        }
    }
}

fn skip_scalar(cursor: &mut Cursor<'_>, kind: ValueType, field: &str) -> Result<(), FileError> {
    match kind.fixed_bytes() {
        Some(len) => {
            let start = cursor.at();
            let range = cursor.skip(len as u64, field)?;
            if kind == ValueType::Bool {
                check_bools(cursor, range, start, field)?;
            }
        }
        None => {
            cursor.string(field)?;
        }
    }
    Ok(())
}

/// Reads over an array and checks its extent, with where each of its strings lies.
fn skip_array(cursor: &mut Cursor<'_>, field: &str, depth: usize) -> Result<(ArrayLayout, Vec<usize>), FileError> {
    if depth > MAX_ARRAY_DEPTH {
        return Err(cursor.error(field, format!("arrays are nested more than {MAX_ARRAY_DEPTH} deep")));
    }
    let element = cursor.value_type(field)?;
    let count = cursor.u64(field)?;
    let min_bytes = match element {
        ValueType::String => STRING_HEADER_BYTES,
        ValueType::Array => ARRAY_HEADER_BYTES,
        _ => element.fixed_bytes().unwrap_or(1),
    };
    let len = cursor.checked_count(count, min_bytes, usize::MAX, field)?;
    let layout = ArrayLayout { element, len, start: cursor.at() };
    let mut strings = Vec::new();
    match element {
        ValueType::String if depth == 1 => {
            // At least as many bytes of the file stand for them.
            strings.reserve_exact(len + 1);
            for _ in 0..len {
                strings.push(cursor.string(field)?.start);
            }
            strings.push(cursor.at() + STRING_HEADER_BYTES);
        }
        ValueType::String => (0..len).try_for_each(|_| cursor.string(field).map(|_| ()))?,
        ValueType::Array => (0..len).try_for_each(|_| skip_array(cursor, field, depth + 1).map(|_| ()))?,
        _ => {
            let range = cursor.skip(len as u64 * min_bytes as u64, field)?;
            if element == ValueType::Bool {
                check_bools(cursor, range, layout.start, field)?;
            }
        }
    }
    Ok((layout, strings))
}

fn check_bools(cursor: &Cursor<'_>, range: Range<usize>, start: usize, field: &str) -> Result<(), FileError> {
    match cursor.bytes()[range].iter().position(|&b| b > 1) {
        Some(i) => Err(cursor.error_at(start + i, field, "a bool that is neither 0 nor 1")),
        None => Ok(()),
    }
}

fn read_value<'a>(cursor: &mut Cursor<'a>, file: &'a MappedFile, kind: ValueType) -> Result<Value<'a>, FileError> {
    let field = "metadata value";
    Ok(match kind {
        ValueType::U8 => Value::Int(u8::from_le_bytes(cursor.array(field)?).into()),
        ValueType::I8 => Value::Int(i8::from_le_bytes(cursor.array(field)?).into()),
        ValueType::U16 => Value::Int(u16::from_le_bytes(cursor.array(field)?).into()),
        ValueType::I16 => Value::Int(i16::from_le_bytes(cursor.array(field)?).into()),
        ValueType::U32 => Value::Int(cursor.u32(field)?.into()),
        ValueType::I32 => Value::Int(i32::from_le_bytes(cursor.array(field)?).into()),
        ValueType::F32 => Value::Float(f32::from_le_bytes(cursor.array(field)?).into()),
        ValueType::Bool => Value::Bool(cursor.array::<1>(field)?[0] != 0),
        ValueType::U64 => {
            let n = cursor.u64(field)?;
            i64::try_from(n).map_or(Value::BigInt(n), Value::Int)
        }
        ValueType::I64 => Value::Int(i64::from_le_bytes(cursor.array(field)?)),
        ValueType::F64 => Value::Float(f64::from_le_bytes(cursor.array(field)?)),
        ValueType::String => {
            let range = cursor.string(field)?;
            Value::Str(cursor.bytes().get(range).unwrap_or_default())
        }
        // An array in an array: its string starts are not kept, so `strings` finds nothing and `values` does.
        ValueType::Array => Value::Array(Array::new(file, skip_array(cursor, field, 2)?.0, &[])),
    })
}
