//! Memory of the CPU backend, and typed views of it for kernels.

use std::{any::Any, ptr::NonNull, slice, sync::Arc};

use bytemuck::Pod;
use ferrum_kernels::{DType, Error, Result, Storage, Tensor};
use half::{bf16, f16};

/// From this size on, memory is asked for in huge pages: reading 4 KiB pages costs a quarter of the bandwidth.
const HUGE_BYTES: usize = 2 << 20;

/// Zeroed, page-aligned memory straight from the system.
#[derive(Debug)]
pub(crate) struct CpuStorage {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only touched by operations and copies, and those hold the lock of `backend.rs`; within an
// operation, each kernel gives disjoint parts of what it writes to its threads.
unsafe impl Send for CpuStorage {}
// SAFETY: as above.
unsafe impl Sync for CpuStorage {}

impl CpuStorage {
    pub fn zeroed(len: usize) -> Result<Self> {
        let short =
            || Error::OutOfMemory { what: "a CPU buffer", needed_bytes: len as u64, available_bytes: crate::features::memory_bytes().1 };
        if len == 0 {
            return Ok(Self { start: NonNull::<u64>::dangling().cast(), len });
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the system's choice touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(short());
        }
        #[cfg(target_os = "linux")]
        if len >= HUGE_BYTES {
            // SAFETY: the range is the mapping made above. Advice that is refused changes speed only.
            unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        }
        let start = NonNull::new(start.cast()).ok_or_else(short)?;
        Ok(Self { start, len })
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Memory for weights, taken in large pieces so that small ones too lie in huge pages.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    piece: Option<Arc<CpuStorage>>,
    used: usize,
}

impl Arena {
    /// The system gives memory when it is first touched, so what is left of a piece costs nothing.
    const PIECE_BYTES: usize = 64 << 20;

    /// `len` zeroed bytes from the returned offset on, at the start of a cache line. They are given back with the last
    /// reference to their piece.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn take(&mut self, len: usize) -> Result<(Arc<CpuStorage>, usize)> {
        let start = self.used.next_multiple_of(64);
        if let Some(piece) = self.piece.as_ref().filter(|p| start + len <= p.len) {
            self.used = start + len;
            return Ok((piece.clone(), start));
        }
        let piece = Arc::new(CpuStorage::zeroed(len.max(Self::PIECE_BYTES))?);
        if len < Self::PIECE_BYTES {
            (self.piece, self.used) = (Some(piece.clone()), len);
        }
        Ok((piece, 0))
    }
}

impl Drop for CpuStorage {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: exactly the mapping that `zeroed` made; no view outlives the tensors that own this storage.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

impl Storage for CpuStorage {
    fn len_bytes(&self) -> usize {
        self.len
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A Rust type that holds the elements of a dtype.
pub(crate) trait Element: Pod + Send + Sync {
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// A tensor of `R` axes as kernels see it: a pointer, sizes and strides in elements, checked once against the storage.
///
/// The pointer is raw because operations may read and write the same tensor and threads write disjoint parts of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<T, const R: usize> {
    start: *mut T,
    pub shape: [usize; R],
    strides: [usize; R],
}

// SAFETY: a view gives access only through unsafe methods, whose callers answer for what threads do with it.
unsafe impl<T: Element, const R: usize> Send for View<T, R> {}
// SAFETY: as above.
unsafe impl<T: Element, const R: usize> Sync for View<T, R> {}

/// `[rows, cols]`, rows may be strided.
pub(crate) type Rows<T> = View<T, 2>;
/// `[tokens, heads, head_dim]`, tokens and heads may be strided.
pub(crate) type Heads<T> = View<T, 3>;

impl<T: Element, const R: usize> View<T, R> {
    /// Looks at `t`, the argument `arg` of `op`. The tensor must outlive every use of the view.
    ///
    /// # Errors
    /// When it has another dtype or rank, or is memory of another backend.
    pub fn of(op: &'static str, arg: &'static str, t: &Tensor) -> Result<Self> {
        let storage: &CpuStorage = t.storage().as_any().downcast_ref().ok_or(Error::ForeignTensor { backend: crate::NAME })?;
        if t.dtype() != T::DTYPE {
            return Err(Error::DType { op, arg, expected: T::DTYPE.name(), got: t.dtype() });
        }
        let (Ok(shape), Ok(strides)) = (<[usize; R]>::try_from(t.shape()), <[usize; R]>::try_from(t.strides())) else {
            return Err(Error::Rank { op, arg, expected: R, got: t.shape().to_vec() });
        };
        // One past the largest index; an empty tensor reaches nothing.
        let end = if t.elements() == 0 { 0 } else { t.offset() + 1 + shape.iter().zip(strides).map(|(n, s)| (n - 1) * s).sum::<usize>() };
        if end * size_of::<T>() > storage.len {
            let got = format!("{shape:?} at {}", t.offset());
            return Err(Error::Value { op, arg, got, requirement: "it must lie within its storage" });
        }
        // SAFETY: the offset is within the mapping or one past it, checked above (an empty tensor keeps the start).
        let start = unsafe { storage.as_ptr().cast::<T>().add(if end == 0 { 0 } else { t.offset() }) };
        Ok(Self { start, shape, strides })
    }

    /// Elements from one index of `axis` to the next.
    pub fn stride(&self, axis: usize) -> usize {
        self.strides[axis]
    }

    /// A pointer to one element, for kernels that walk along the axes themselves.
    ///
    /// # Safety
    /// `index` lies within `shape`.
    #[inline]
    pub unsafe fn at(&self, index: [usize; R]) -> *mut T {
        debug_assert!(index.iter().zip(self.shape).all(|(&i, n)| i < n), "{index:?} of {:?}", self.shape);
        // SAFETY: `of` checked that every index within the shape lies within the storage.
        unsafe { self.start.add(index.iter().zip(self.strides).map(|(i, s)| i * s).sum()) }
    }

    /// The elements from `index` to the end of its last axis.
    ///
    /// # Safety
    /// `index` lies within `shape`, and nobody writes these elements while the slice lives.
    #[inline]
    pub unsafe fn row<'a>(&self, index: [usize; R]) -> &'a [T] {
        // SAFETY: in bounds as `at`; the last axis has stride 1.
        unsafe { slice::from_raw_parts(self.at(index), self.shape[R - 1] - index[R - 1]) }
    }

    /// The elements from `index` to the end of its last axis, to be written.
    ///
    /// # Safety
    /// `index` lies within `shape`, and nobody else reads or writes these elements while the slice lives.
    #[inline]
    pub unsafe fn row_mut<'a>(&self, index: [usize; R]) -> &'a mut [T] {
        // SAFETY: in bounds as `at`; the last axis has stride 1.
        unsafe { slice::from_raw_parts_mut(self.at(index), self.shape[R - 1] - index[R - 1]) }
    }

    /// Whether the memory spans of two views have a byte in common.
    pub fn overlaps<U: Element, const S: usize>(&self, other: &View<U, S>) -> bool {
        let (a, b) = (self.span_bytes(), other.span_bytes());
        a.start < b.end && b.start < a.end
    }

    fn span_bytes(&self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        if self.shape.contains(&0) {
            return start..start;
        }
        let last: usize = self.shape.iter().zip(self.strides).map(|(n, s)| (n - 1) * s).sum();
        start..start + (last + 1) * size_of::<T>()
    }
}

/// Copies host bytes into a contiguous tensor.
///
/// # Errors
/// When the sizes differ or the tensor is foreign or not contiguous.
pub(crate) fn upload(dst: &Tensor, src: &[u8]) -> Result<()> {
    let start = copy_start(dst, src.len())?;
    // SAFETY: `copy_start` checked that `src.len()` bytes from there lie within the storage; the caller holds the lock.
    unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), start, src.len()) };
    Ok(())
}

/// Copies a contiguous tensor to the host.
///
/// # Errors
/// When the sizes differ or the tensor is foreign or not contiguous.
pub(crate) fn download(src: &Tensor, dst: &mut [u8]) -> Result<()> {
    let start = copy_start(src, dst.len())?;
    // SAFETY: as in `upload`.
    unsafe { std::ptr::copy_nonoverlapping(start, dst.as_mut_ptr(), dst.len()) };
    Ok(())
}

fn copy_start(t: &Tensor, len: usize) -> Result<*mut u8> {
    ferrum_kernels::host::check_copy(t, len)?;
    let storage: &CpuStorage = t.storage().as_any().downcast_ref().ok_or(Error::ForeignTensor { backend: crate::NAME })?;
    let start = t.offset() / t.dtype().block_len() * t.dtype().block_bytes();
    if start + len > storage.len {
        let got = format!("{:?} at {}", t.shape(), t.offset());
        return Err(Error::Value { op: "copy", arg: "tensor", got, requirement: "it must lie within its storage" });
    }
    // SAFETY: within the mapping, checked above.
    Ok(unsafe { storage.as_ptr().add(start) })
}
