//! Bytes in host memory that someone else may own: a file mapping, a vector, a download.

use std::fmt;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::Arc;

/// Whoever keeps the bytes: returns the same ones on every call, as a vector or a read-only mapping does.
pub trait Owner: Send + Sync {
    fn bytes(&self) -> &[u8];

    /// Whether the bytes are those of a file, kept in the system's cache, so that holding on to them takes no memory.
    fn is_file(&self) -> bool {
        false
    }

    /// The file's path, once a part of it was gone when it was read, so that other bytes stood in its place. One atomic load.
    fn lost(&self) -> Option<&Path> {
        None
    }

    /// The bytes of `range` will hardly be read again: memory that can be filled anew from elsewhere may be given back.
    fn release(&self, _range: Range<usize>) {}
}

impl Owner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A range of bytes kept alive by a shared owner. Cloning and slicing copy no bytes.
///
/// Weights travel in this form from the file that holds them to the backend that packs them, so that neither has to know
/// whether the bytes are mapped or allocated.
#[derive(Clone)]
pub struct HostBytes {
    owner: Arc<dyn Owner>,
    start: usize,
    len: usize,
}

impl HostBytes {
    /// All of `bytes`, which moves behind the shared owner.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self { owner: Arc::new(bytes), start: 0, len }
    }

    /// The part `range` of what `owner` holds, or `None` when the range is reversed or reaches past the end.
    pub fn from_owner(owner: Arc<dyn Owner>, range: impl RangeBounds<usize>) -> Option<Self> {
        let total = owner.bytes().len();
        let (start, len) = checked_range(range, total)?;
        Some(Self { owner, start, len })
    }

    /// The part `range` of these bytes, counted from their start, or `None` when it is reversed or reaches past the end.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Option<Self> {
        let (start, len) = checked_range(range, self.len)?;
        Some(Self { owner: Arc::clone(&self.owner), start: self.start + start, len })
    }

    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        &self.owner.bytes()[self.start..self.start + self.len]
    }

    /// Whether they are the bytes of a file, so that holding on to them takes no memory.
    pub fn is_of_file(&self) -> bool {
        self.owner.is_file()
    }

    /// `None` as long as all that was read of their owner were its own bytes: see [`Owner::lost`]. Asked after a read, it tells
    /// whether that read can be trusted.
    pub fn lost(&self) -> Option<&Path> {
        self.owner.lost()
    }

    /// Tells the owner that the part `range` will hardly be read again. It can be, at the price of fetching it.
    ///
    /// # Panics
    /// When the range is reversed or reaches past the end.
    pub fn release(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        self.owner.release(self.start + range.start..self.start + range.end);
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl AsRef<[u8]> for HostBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::ops::Deref for HostBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl From<Vec<u8>> for HostBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_vec(bytes)
    }
}

impl fmt::Debug for HostBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBytes({} bytes)", self.len)
    }
}

/// `range` as start and length inside `0..total`.
fn checked_range(range: impl RangeBounds<usize>, total: usize) -> Option<(usize, usize)> {
    let start = match range.start_bound() {
        Bound::Included(&s) => s,
        Bound::Excluded(&s) => s.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&e) => e.checked_add(1)?,
        Bound::Excluded(&e) => e,
        Bound::Unbounded => total,
    };
    (start <= end && end <= total).then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_the_owner() {
        let all = HostBytes::from_vec((0..10).collect());
        let part = all.slice(2..8).and_then(|p| p.slice(1..=3)).unwrap();
        assert_eq!(part.as_slice(), [3, 4, 5]);
        assert_eq!(part.as_slice().as_ptr(), all.as_slice()[3..].as_ptr());
        drop(all);
        assert_eq!(part.len(), 3);
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn ranges_outside_are_refused() {
        let b = HostBytes::from_vec(vec![0; 4]);
        assert!(b.slice(..=4).is_none());
        assert!(b.slice(3..2).is_none());
        assert!(b.slice(..=usize::MAX).is_none());
        assert!(b.slice(5..).is_none());
        assert!(b.slice(4..).is_some_and(|e| e.is_empty()));
        assert!(HostBytes::from_owner(Arc::new(vec![0u8; 4]), 1..6).is_none());
        // A slice cannot reach back into the rest of its owner.
        assert!(b.slice(1..3).unwrap().slice(0..3).is_none());
    }
}
