//! Tensors: a shape over memory that a backend owns.

use std::{any::Any, fmt, sync::Arc};

use crate::{DType, Error, Result};

/// Memory of one backend. Only its own backend looks inside.
pub trait Storage: Any + Send + Sync + fmt::Debug {
    /// Size in bytes.
    fn len_bytes(&self) -> usize;
    /// For the owning backend to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// At most this many axes.
pub const MAX_RANK: usize = 4;

/// A view of backend memory: up to four axes, the last one contiguous.
///
/// Cloning and slicing share the memory and allocate nothing. Which operations may write to a tensor is part of each
/// operation's contract; a backend runs operations in the order they are issued.
#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Arc<dyn Storage>,
    dtype: DType,
    rank: usize,
    shape: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
    offset: usize,
}

impl Tensor {
    /// A contiguous tensor at the start of `storage`.
    ///
    /// # Errors
    /// When the shape does not fit the storage or has more than [`MAX_RANK`] axes.
    pub fn new(storage: Arc<dyn Storage>, dtype: DType, shape: &[usize]) -> Result<Self> {
        let op = "tensor";
        if shape.len() > MAX_RANK {
            return Err(Error::Rank { op, arg: "shape", expected: MAX_RANK, got: shape.to_vec() });
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        match elements.and_then(|n| dtype.bytes(n)) {
            Some(bytes) if bytes <= storage.len_bytes() => {}
            _ => {
                return Err(Error::Value { op, arg: "shape", got: format!("{shape:?} {dtype}"), requirement: "it must fit its storage" });
            }
        }
        let (mut dims, mut strides) = ([1; MAX_RANK], [1; MAX_RANK]);
        dims[..shape.len()].copy_from_slice(shape);
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            strides[axis] = strides[axis + 1] * dims[axis + 1];
        }
        Ok(Self { storage, dtype, rank: shape.len(), shape: dims, strides, offset: 0 })
    }

    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    /// Elements from one index of an axis to the next; the last axis always has stride 1.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank]
    }

    /// Elements between the start of the storage and the first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Bytes of the elements seen through this view.
    pub fn bytes(&self) -> usize {
        self.elements() / self.dtype.block_len() * self.dtype.block_bytes()
    }

    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        (0..self.rank).rev().all(|axis| {
            let ok = self.shape[axis] == 1 || self.strides[axis] == expected;
            expected *= self.shape[axis];
            ok
        })
    }

    /// The indices `start..start + len` of `axis`.
    ///
    /// # Panics
    /// When the range leaves the axis: views are cut by code, never by data from outside.
    #[must_use]
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Self {
        assert!(
            axis < self.rank && start.checked_add(len).is_some_and(|end| end <= self.shape[axis]),
            "narrow {start}+{len} of axis {axis} of {:?}",
            self.shape()
        );
        let mut view = self.clone();
        view.offset += start * self.strides[axis];
        view.shape[axis] = len;
        view
    }

    /// One index of the first axis, which goes away.
    ///
    /// # Panics
    /// When `index` leaves the axis.
    #[must_use]
    pub fn select(&self, index: usize) -> Self {
        let mut view = self.narrow(0, index, 1);
        view.shape.copy_within(1..MAX_RANK, 0);
        view.strides.copy_within(1..MAX_RANK, 0);
        view.shape[MAX_RANK - 1] = 1;
        view.rank -= 1;
        view
    }

    /// `[…, heads · head_dim]` seen as `[…, heads, head_dim]`.
    ///
    /// # Panics
    /// When the last axis is not a multiple of `head_dim` or four axes are in use.
    #[must_use]
    pub fn split_heads(&self, head_dim: usize) -> Self {
        let last = self.rank - 1;
        assert!(self.rank < MAX_RANK && self.shape[last].is_multiple_of(head_dim), "split {:?} by {head_dim}", self.shape());
        let mut view = self.clone();
        view.rank += 1;
        view.shape[last] = self.shape[last] / head_dim;
        view.shape[last + 1] = head_dim;
        view.strides[last] = head_dim;
        view.strides[last + 1] = 1;
        view
    }

    /// The same elements in another shape.
    ///
    /// # Panics
    /// When this view is not contiguous or the element counts differ.
    #[must_use]
    pub fn reshape(&self, shape: &[usize]) -> Self {
        assert!(self.is_contiguous() && shape.iter().product::<usize>() == self.elements(), "reshape {:?} to {shape:?}", self.shape());
        let mut view = self.clone();
        view.rank = shape.len();
        view.shape = [1; MAX_RANK];
        view.strides = [1; MAX_RANK];
        view.shape[..shape.len()].copy_from_slice(shape);
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            view.strides[axis] = view.strides[axis + 1] * view.shape[axis + 1];
        }
        view
    }
}
