//! Metadata by key, with its type checked at the moment it is asked for.

use std::collections::HashMap;

use super::value::{Array, Entry, StrArray, Value, ValueType};
use crate::files::{FileError, MappedFile};

/// The key-value pairs of a GGUF file, in file order.
pub struct Metadata {
    file: MappedFile,
    entries: Vec<Entry>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    pub(super) fn new(file: MappedFile, entries: Vec<Entry>) -> Result<Self, FileError> {
        let mut by_key = HashMap::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            if by_key.insert(entry.key.clone(), i).is_some() {
                let (path, offset) = (file.path().to_owned(), entry.range.start as u64);
                let field = format!("metadata key `{}`", entry.key);
                return Err(FileError::Malformed { path, offset, field, reason: "a second value of this key".into() });
            }
        }
        Ok(Self { file, entries, by_key })
    }

    /// All keys, in file order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|e| e.key.as_str())
    }

    /// Whether there is a value for `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// The value of `key`, whatever its type.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.entry(key)?.value(&self.file)
    }

    /// Type and bytes of the value of `key` as stored, for copying it into another file.
    pub fn raw(&self, key: &str) -> Option<(ValueType, &[u8])> {
        let entry = self.entry(key)?;
        Some((entry.kind, self.file.bytes().get(entry.range.clone())?))
    }

    /// The value of `key` as `T`: `bool`, any of `u32 u64 usize i32 i64` from an integer of any width that holds it, `f32` from
    /// either float, `&str` from a UTF-8 string, [`Array`], [`StrArray`], or a `Vec` of numbers or bools.
    ///
    /// # Errors
    /// The key is missing, or its value is not a `T`.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, FileError> {
        self.opt(key)?.ok_or_else(|| FileError::MissingKey { path: self.file.path().to_owned(), key: key.to_owned() })
    }

    /// Like [`get`](Self::get), and `None` when the key is missing.
    ///
    /// # Errors
    /// The value is not a `T`.
    pub fn opt<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, FileError> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        match entry.value(&self.file).and_then(T::from_value) {
            Some(value) => Ok(Some(value)),
            None => Err(FileError::WrongType {
                path: self.file.path().to_owned(),
                key: key.to_owned(),
                expected: T::EXPECTED,
                got: self.describe(entry),
            }),
        }
    }

    /// [`get`](Self::get) for `u32`.
    pub fn get_u32(&self, key: &str) -> Result<u32, FileError> {
        self.get(key)
    }

    /// [`get`](Self::get) for `f32`.
    pub fn get_f32(&self, key: &str) -> Result<f32, FileError> {
        self.get(key)
    }

    /// [`get`](Self::get) for `bool`.
    pub fn get_bool(&self, key: &str) -> Result<bool, FileError> {
        self.get(key)
    }

    /// [`get`](Self::get) for `&str`.
    pub fn get_str(&self, key: &str) -> Result<&str, FileError> {
        self.get(key)
    }

    /// [`get`](Self::get) for an array of strings.
    pub fn get_str_array(&self, key: &str) -> Result<StrArray<'_>, FileError> {
        self.get(key)
    }

    /// [`get`](Self::get) for an array of floats.
    pub fn get_f32_array(&self, key: &str) -> Result<Vec<f32>, FileError> {
        self.get(key)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.by_key.get(key).map(|&i| &self.entries[i])
    }

    /// Type and, for a number, value: what an error shows as "got".
    fn describe(&self, entry: &Entry) -> String {
        let name = entry.type_name();
        match entry.value(&self.file) {
            Some(Value::Int(n)) => format!("{name} {n}"),
            Some(Value::BigInt(n)) => format!("{name} {n}"),
            Some(Value::Float(x)) => format!("{name} {x}"),
            Some(Value::Bool(b)) => format!("{name} {b}"),
            Some(Value::Str(s)) if std::str::from_utf8(s).is_err() => format!("{name} that is not UTF-8"),
            _ => name,
        }
    }
}

/// What [`Metadata::get`] can return.
pub trait FromValue<'a>: Sized {
    /// The expectation in messages, e.g. `an integer of 32 bits`.
    const EXPECTED: &'static str;

    /// `value` as this type, if it is one.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

macro_rules! from_integer {
    ($($t:ty, $expected:literal, $expected_array:literal;)*) => {$(
        impl<'a> FromValue<'a> for $t {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: Value<'a>) -> Option<Self> {
                match value {
                    Value::Int(n) => n.try_into().ok(),
                    Value::BigInt(n) => n.try_into().ok(),
                    _ => None,
                }
            }
        }

        impl<'a> FromValue<'a> for Vec<$t> {
            const EXPECTED: &'static str = $expected_array;

            fn from_value(value: Value<'a>) -> Option<Self> {
                vec_from_array(value)
            }
        }
    )*};
}

from_integer! {
    u32, "an unsigned 32-bit integer", "an array of unsigned 32-bit integers";
    u64, "an unsigned integer", "an array of unsigned integers";
    usize, "an unsigned integer", "an array of unsigned integers";
    i32, "a 32-bit integer", "an array of 32-bit integers";
    i64, "an integer", "an array of integers";
}

impl<'a> FromValue<'a> for f32 {
    const EXPECTED: &'static str = "a float";

    fn from_value(value: Value<'a>) -> Option<Self> {
        match value {
            Value::Float(x) => Some(x as f32),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for bool {
    const EXPECTED: &'static str = "a bool";

    fn from_value(value: Value<'a>) -> Option<Self> {
        match value {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a UTF-8 string";

    fn from_value(value: Value<'a>) -> Option<Self> {
        match value {
            Value::Str(s) => std::str::from_utf8(s).ok(),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    const EXPECTED: &'static str = "an array";

    fn from_value(value: Value<'a>) -> Option<Self> {
        match value {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for StrArray<'a> {
    const EXPECTED: &'static str = "an array of strings";

    fn from_value(value: Value<'a>) -> Option<Self> {
        Array::from_value(value)?.strings()
    }
}

impl<'a> FromValue<'a> for Vec<f32> {
    const EXPECTED: &'static str = "an array of floats";

    fn from_value(value: Value<'a>) -> Option<Self> {
        vec_from_array(value)
    }
}

impl<'a> FromValue<'a> for Vec<bool> {
    const EXPECTED: &'static str = "an array of bools";

    fn from_value(value: Value<'a>) -> Option<Self> {
        vec_from_array(value)
    }
}

/// All elements of an array, or `None` when one of them is not a `T`.
fn vec_from_array<'a, T: FromValue<'a>>(value: Value<'a>) -> Option<Vec<T>> {
    let array = Array::from_value(value)?;
    let values: Vec<T> = array.values().map(T::from_value).collect::<Option<_>>()?;
    (values.len() == array.len()).then_some(values)
}
