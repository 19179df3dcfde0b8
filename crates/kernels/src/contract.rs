//! Shape contracts: the text of a contract is its check.

use crate::{DType, Error, PreparedWeight, Result, Tensor};

/// Unifies the symbolic axis sizes of one operation's arguments.
///
/// ```
/// # use ferrum_kernels::{Contract, DTypes, ReferenceBackend, Backend, DType};
/// # use std::sync::Arc;
/// # let backend: Arc<dyn Backend> = Arc::new(ReferenceBackend);
/// # let (x, w) = (backend.zeros(DType::F32, &[3, 8])?, backend.zeros(DType::F32, &[8])?);
/// let mut contract = Contract::new("rms_norm");
/// contract.tensor("x", &x, ["tokens", "hidden"], DTypes::FLOAT)?;
/// contract.tensor("weight", &w, ["hidden"], DTypes::F32)?;
/// # Ok::<(), ferrum_kernels::Error>(())
/// ```
#[derive(Debug)]
pub struct Contract {
    op: &'static str,
    bound: [(&'static str, usize); 12],
    len: usize,
}

/// A set of dtypes with the name that error messages use.
#[derive(Clone, Copy, Debug)]
pub struct DTypes(&'static str, fn(DType) -> bool);

impl DTypes {
    pub const FLOAT: Self = Self("F32, F16 or BF16", DType::is_float);
    pub const F32: Self = Self("F32", |d| matches!(d, DType::F32));
    pub const I32: Self = Self("I32", |d| matches!(d, DType::I32));
    pub const U8: Self = Self("U8", |d| matches!(d, DType::U8));
}

impl Contract {
    pub fn new(op: &'static str) -> Self {
        Self { op, bound: [("", 0); 12], len: 0 }
    }

    /// Checks one tensor argument against its axes and dtypes.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::Axis`] or [`Error::DType`], naming operation and argument.
    pub fn tensor<const R: usize>(&mut self, arg: &'static str, t: &Tensor, axes: [&'static str; R], dtypes: DTypes) -> Result<()> {
        if !dtypes.1(t.dtype()) {
            return Err(Error::DType { op: self.op, arg, expected: dtypes.0, got: t.dtype() });
        }
        if t.shape().len() != R {
            return Err(Error::Rank { op: self.op, arg, expected: R, got: t.shape().to_vec() });
        }
        for (axis, &size) in axes.into_iter().zip(t.shape()) {
            self.bind(axis, size).map_err(|expected| Error::Axis { op: self.op, arg, axis, expected, got: t.shape().to_vec() })?;
        }
        Ok(())
    }

    /// Checks a prepared weight matrix `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::Axis`], naming operation and argument.
    pub fn weight(&mut self, arg: &'static str, w: &PreparedWeight, axes: [&'static str; 2]) -> Result<()> {
        for (axis, size) in axes.into_iter().zip([w.rows(), w.cols()]) {
            self.bind(axis, size).map_err(|expected| Error::Axis { op: self.op, arg, axis, expected, got: vec![w.rows(), w.cols()] })?;
        }
        Ok(())
    }

    /// Checks a number that is not a shape.
    ///
    /// # Errors
    /// [`Error::Value`] when `ok` is false.
    pub fn require(&self, ok: bool, arg: &'static str, got: impl ToString, requirement: &'static str) -> Result<()> {
        if ok { Ok(()) } else { Err(Error::Value { op: self.op, arg, got: got.to_string(), requirement }) }
    }

    /// The size an axis name was bound to.
    ///
    /// # Panics
    /// When no argument named that axis: a mistake in the contract itself.
    pub fn size(&self, axis: &'static str) -> usize {
        self.lookup(axis).unwrap_or_else(|| panic!("{}: axis `{axis}` is in no argument", self.op))
    }

    /// Sets an axis that is derived from others, e.g. `2·inner`.
    ///
    /// # Panics
    /// When more than twelve axes are named.
    pub fn define(&mut self, axis: &'static str, size: usize) {
        self.bound[self.len] = (axis, size);
        self.len += 1;
    }

    fn bind(&mut self, axis: &'static str, size: usize) -> std::result::Result<(), usize> {
        match self.lookup(axis) {
            Some(expected) if expected != size => Err(expected),
            Some(_) => Ok(()),
            None => {
                self.define(axis, size);
                Ok(())
            }
        }
    }

    fn lookup(&self, axis: &str) -> Option<usize> {
        self.bound[..self.len].iter().find(|(name, _)| *name == axis).map(|&(_, size)| size)
    }
}
