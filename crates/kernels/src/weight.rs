//! Weight matrices: as a checkpoint holds them, and as a backend keeps them.

use std::{any::Any, fmt, sync::Arc};

use crate::{DType, Error, HostBytes, Result};

/// A matrix `[rows, cols]` as it lies in a checkpoint, made of one or more row ranges that may differ in dtype.
///
/// Fused projections (q, k, v in one launch) are declared by stacking the parts of several checkpoint tensors.
#[derive(Clone, Debug)]
pub struct Weight {
    pub name: String,
    pub cols: usize,
    pub parts: Vec<WeightPart>,
}

/// `rows` consecutive rows of a [`Weight`], row-major, in one dtype.
#[derive(Clone, Debug)]
pub struct WeightPart {
    pub dtype: DType,
    pub rows: usize,
    pub data: HostBytes,
}

impl Weight {
    /// A weight of one part.
    ///
    /// # Errors
    /// When `data` is not exactly `rows · cols` elements of `dtype`.
    pub fn new(name: impl Into<String>, dtype: DType, [rows, cols]: [usize; 2], data: HostBytes) -> Result<Self> {
        let name = name.into();
        let expected = rows.checked_mul(cols).and_then(|n| dtype.bytes(n));
        if !cols.is_multiple_of(dtype.block_len()) || expected != Some(data.len()) {
            let reason = format!("{} bytes do not hold [{rows}, {cols}] {dtype}", data.len());
            return Err(Error::Weight { name, reason });
        }
        Ok(Self { name, cols, parts: vec![WeightPart { dtype, rows, data }] })
    }

    /// Rows of `self` followed by rows of `below`.
    ///
    /// # Errors
    /// When the column counts differ.
    pub fn stack(mut self, below: Self) -> Result<Self> {
        if self.cols != below.cols {
            let reason = format!("cannot be stacked on `{}`: {} and {} columns", self.name, below.cols, self.cols);
            return Err(Error::Weight { name: below.name, reason });
        }
        self.name = format!("{}+{}", self.name, below.name);
        self.parts.extend(below.parts);
        Ok(self)
    }

    pub fn rows(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }

    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.data.len()).sum()
    }

    /// The whole matrix as F32, row-major.
    ///
    /// # Errors
    /// When a part is not a weight dtype.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.rows() * self.cols];
        let mut rest = &mut values[..];
        for part in &self.parts {
            let (head, tail) = rest.split_at_mut(part.rows * self.cols);
            crate::quant::dequantize(part.dtype, part.data.as_slice(), head)
                .map_err(|e| Error::Weight { name: self.name.clone(), reason: e.to_string() })?;
            rest = tail;
        }
        Ok(values)
    }
}

/// A [`Weight`] in the layout one backend's kernels want. Cloning shares it.
#[derive(Clone)]
pub struct PreparedWeight {
    inner: Arc<dyn Any + Send + Sync>,
    name: Arc<str>,
    rows: usize,
    cols: usize,
    bytes: usize,
}

impl PreparedWeight {
    /// Wraps what a backend made of `weight`; `bytes` is the memory it takes beyond the mapped file.
    pub fn new(weight: &Weight, bytes: usize, inner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { inner, name: weight.name.as_str().into(), rows: weight.rows(), cols: weight.cols, bytes }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Memory taken beyond the mapped file.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The backend's own type, or an error when another backend made it.
    ///
    /// # Errors
    /// [`Error::ForeignTensor`].
    pub fn downcast<T: 'static>(&self, backend: &'static str) -> Result<&T> {
        self.inner.downcast_ref().ok_or(Error::ForeignTensor { backend })
    }
}

impl fmt::Debug for PreparedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PreparedWeight({} [{}, {}])", self.name, self.rows, self.cols)
    }
}
