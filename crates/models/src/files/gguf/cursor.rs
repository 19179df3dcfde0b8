//! Reading little-endian fields with every length checked.

use std::ops::Range;

use super::value::ValueType;
use crate::files::{FileError, MappedFile};

/// A place in a file. Each read checks that what it takes is there.
pub(super) struct Cursor<'a> {
    file: &'a MappedFile,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a MappedFile, at: usize) -> Self {
        Self { file, bytes: file.bytes(), at }
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes from here to the end of the file.
    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The error "broken here", about `field`.
    pub(super) fn error(&self, field: &str, reason: impl Into<String>) -> FileError {
        self.error_at(self.at, field, reason)
    }

    pub(super) fn error_at(&self, offset: usize, field: &str, reason: impl Into<String>) -> FileError {
        FileError::Malformed { path: self.file.path().to_owned(), offset: offset as u64, field: field.to_owned(), reason: reason.into() }
    }

    /// Takes `len` bytes and returns where they lie.
    #[inline]
    pub(super) fn skip(&mut self, len: u64, field: &str) -> Result<Range<usize>, FileError> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len)).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.error(field, format!("needs {len} bytes and the file has {} more", self.left())));
        };
        let start = std::mem::replace(&mut self.at, end);
        Ok(start..end)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], FileError> {
        let range = self.skip(N as u64, field)?;
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[range]);
        Ok(out)
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32, FileError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    #[inline]
    pub(super) fn u64(&mut self, field: &str) -> Result<u64, FileError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A length and that many bytes; returns where the bytes lie.
    #[inline]
    pub(super) fn string(&mut self, field: &str) -> Result<Range<usize>, FileError> {
        let len = self.u64(field)?;
        self.skip(len, field)
    }

    /// A name: a string that is UTF-8, not empty and at most `max_bytes` long.
    pub(super) fn name(&mut self, max_bytes: usize, field: &str) -> Result<String, FileError> {
        let start = self.at;
        let range = self.string(field)?;
        if range.is_empty() || range.len() > max_bytes {
            return Err(self.error_at(start, field, format!("a name of {} bytes, allowed are 1 to {max_bytes}", range.len())));
        }
        match std::str::from_utf8(&self.bytes[range]) {
            Ok(name) => Ok(name.to_owned()),
            Err(e) => Err(self.error_at(start, field, format!("the name is not UTF-8: {e}"))),
        }
    }

    /// How many of something follow, each at least `min_bytes` long: bounded by the rest of the file and by `max`.
    pub(super) fn checked_count(&self, count: u64, min_bytes: usize, max: usize, field: &str) -> Result<usize, FileError> {
        let fits = self.left() / min_bytes;
        match usize::try_from(count) {
            Ok(n) if n <= max && n <= fits => Ok(n),
            _ if fits < max => Err(self.error(field, format!("{count} of them cannot fit in the {} bytes left", self.left()))),
            _ => Err(self.error(field, format!("{count} of them; at most {max} are read"))),
        }
    }

    pub(super) fn value_type(&mut self, field: &str) -> Result<ValueType, FileError> {
        let start = self.at;
        let id = self.u32(field)?;
        ValueType::from_id(id).ok_or_else(|| self.error_at(start, field, format!("value type {id} does not exist")))
    }
}
