//! `linear` and `embed`: weights in the layout that the kernels want, and which kernel takes which shape.

mod naive;

use std::sync::Arc;

use ferrum_kernels::{
    DType, PreparedWeight, Result, Weight,
    ops::{Embed, Epilogue, Linear},
};

use crate::{
    backend::CudaBackend,
    context::{Context, unsupported},
    driver::{DeviceBuffer, DevicePtr},
    upload::Ring,
};

/// A weight on the device: consecutive row ranges, each in one layout.
#[derive(Debug)]
pub(crate) struct CudaWeight {
    parts: Vec<Part>,
}

/// Some rows of a weight.
#[derive(Debug)]
pub(crate) struct Part {
    /// Index of its first row within the weight
    first_row: usize,
    rows: usize,
    layout: Layout,
}

#[derive(Debug)]
pub(crate) enum Layout {
    /// `[rows, cols]` F32, F16 or BF16, row-major
    Dense { dtype: DType, data: DeviceBuffer },
}

/// Uploads a weight. Neighbouring parts of one dtype become one.
///
/// # Errors
/// [`ferrum_kernels::Error::Unsupported`] when no kernel reads this dtype.
pub(crate) fn prepare(cx: &Context, ring: &mut Ring, weight: &Weight) -> Result<PreparedWeight> {
    let mut parts = Vec::new();
    let mut first_row = 0;
    for same in weight.parts.chunk_by(|a, b| a.dtype == b.dtype) {
        let dtype = same[0].dtype;
        if !dtype.is_float() {
            return Err(unsupported("linear", format!("{dtype} weights (`{}`)", weight.name)));
        }
        let data = DeviceBuffer::new(cx.device(), same.iter().map(|p| p.data.len()).sum())?;
        let mut at = data.ptr();
        for part in same {
            // SAFETY: the buffer has room for the parts one behind the other.
            unsafe { ring.upload(cx.stream(), at, part.data.as_slice())? };
            at += part.data.len() as DevicePtr;
        }
        let rows = same.iter().map(|p| p.rows).sum();
        parts.push(Part { first_row, rows, layout: Layout::Dense { dtype, data } });
        first_row += rows;
    }
    let bytes = weight.bytes();
    Ok(PreparedWeight::new(weight, bytes, Arc::new(CudaWeight { parts })))
}

pub(crate) fn run(backend: &CudaBackend, cx: &Context, op: &Linear) -> Result<()> {
    op.check()?;
    if op.norm.is_some() || matches!(op.epilogue, Epilogue::ActMul { .. }) {
        return op.unfused(backend);
    }
    let weight: &CudaWeight = op.weight.downcast(crate::NAME)?;
    for part in &weight.parts {
        let out = op.out.narrow(1, part.first_row, part.rows);
        let bias = op.bias.map(|b| b.narrow(0, part.first_row, part.rows));
        match &part.layout {
            Layout::Dense { dtype, data } => {
                naive::linear(cx, &Linear { bias: bias.as_ref(), out: &out, ..*op }, (*dtype, data))?;
            }
        }
    }
    Ok(())
}

pub(crate) fn embed(cx: &Context, op: &Embed) -> Result<()> {
    op.check()?;
    let table: &CudaWeight = op.table.downcast(crate::NAME)?;
    let [part] = &table.parts[..] else { return Err(unsupported("embed", "a table of several dtypes")) };
    match &part.layout {
        Layout::Dense { dtype, data } => naive::embed(cx, op, *dtype, data),
    }
}
