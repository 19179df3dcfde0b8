//! `linear` and `embed`: weights in the layout that the kernels want, and which kernel takes which shape.

mod dense;
mod lt;
mod naive;
mod packed;
mod packed_tiles;
mod tiles;

use std::{borrow::Cow, sync::Arc};

use ferrum_kernels::{
    Backend, DType, Error, PreparedWeight, Result, Weight, WeightPart,
    ops::{Embed, Epilogue, Linear, Norm, RmsNorm},
};

use crate::{
    backend::CudaBackend,
    context::{Context, unsupported},
    driver::{DeviceBuffer, DevicePtr},
    upload::Ring,
};

pub(crate) use lt::{LT_BYTES, Lt};
pub(crate) use packed::Next;
use packed::Packed;
#[cfg(test)]
pub(crate) use tiles::ATTENTION_BYTES;

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
    /// `[rows, cols]` BF16 or F16, row-major
    Dense { dtype: DType, data: DeviceBuffer },
    /// One block type, in tiles
    Packed(Packed),
}

/// Uploads a weight. Neighbouring parts that end in one dtype become one matrix.
///
/// F32 is rounded to BF16, the dtype of the activations. F16 has three bits more than BF16, and rounding them away takes
/// results beyond `linear`'s tolerance: it stays.
///
/// # Errors
/// [`ferrum_kernels::Error::Unsupported`] when no kernel reads this dtype.
pub(crate) fn prepare(cx: &Context, ring: &mut Ring, weight: &Weight) -> Result<PreparedWeight> {
    let (mut parts, mut first_row, mut bytes) = (Vec::new(), 0, 0);
    let kept = |part: &WeightPart| if part.dtype == DType::F32 { DType::BF16 } else { part.dtype };
    for same in weight.parts.chunk_by(|a, b| kept(a) == kept(b)) {
        let dtype = kept(&same[0]);
        if !dtype.is_float() {
            let packed = packed::prepare(cx, ring, weight.cols, same)?;
            let rows = packed.rows();
            bytes += packed.bytes();
            parts.push(Part { first_row, rows, layout: Layout::Packed(packed) });
            first_row += rows;
            continue;
        }
        cx.lt(); // opened while loading, not in the middle of a step
        let rows = same.iter().map(|p| p.rows).sum::<usize>();
        let data = DeviceBuffer::new(cx.device(), 2 * rows * weight.cols)?;
        let mut at = data.ptr();
        for part in same {
            for piece in pieces(part) {
                let piece = to_half(part.dtype, piece).map_err(|reason| Error::Weight { name: weight.name.clone(), reason })?;
                // SAFETY: the buffer has room for the parts one behind the other.
                unsafe { ring.upload(cx, at, &piece)? };
                at += piece.len() as DevicePtr;
            }
        }
        bytes += data.len();
        parts.push(Part { first_row, rows, layout: Layout::Dense { dtype, data } });
        first_row += rows;
    }
    Ok(PreparedWeight::new(weight, bytes, Arc::new(CudaWeight { parts })))
}

/// A part in pieces that are converted one by one; what is not converted is one.
fn pieces(part: &WeightPart) -> std::slice::Chunks<'_, u8> {
    let data = part.data.as_slice();
    data.chunks(if part.dtype == DType::F32 { 1 << 20 } else { data.len().max(1) })
}

/// F32 as BF16; 16-bit numbers as they are.
fn to_half(dtype: DType, bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if dtype != DType::F32 {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut values = vec![0.0f32; bytes.len() / 4];
    ferrum_kernels::quant::dequantize(dtype, bytes, &mut values).map_err(|e| e.to_string())?;
    Ok(Cow::Owned(values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()))
}

/// Queues what `op` asks for, in one kernel where there is one for it.
///
/// # Errors
/// When an argument breaks the contract, no kernel takes its dtypes, or the device fails.
pub(crate) fn run(backend: &CudaBackend, cx: &Context, op: &Linear) -> Result<()> {
    op.check()?;
    let weight: &CudaWeight = op.weight.downcast(crate::NAME)?;
    if matches!(op.epilogue, Epilogue::Argmax { .. }) {
        return argmax(backend, cx, op, &weight.parts);
    }
    let fused = match &weight.parts[..] {
        [Part { layout: Layout::Dense { dtype, .. }, .. }] => dense::fuses(cx, op, *dtype)?,
        [Part { layout: Layout::Packed(packed), .. }] => packed.fuses(cx, op),
        parts if packed::fuses_parts(cx, op, parts) => return packed::linear_parts(cx, op, parts),
        _ => op.norm.is_none() && !matches!(op.epilogue, Epilogue::ActMul { .. }),
    };
    if !fused {
        return op.unfused(backend);
    }
    for part in &weight.parts {
        // A single part stays whole: gated, its results are half as many as its rows.
        let whole = weight.parts.len() == 1;
        let out = if whole { op.out.clone() } else { op.out.narrow(1, part.first_row, part.rows) };
        let bias = op.bias.map(|b| b.narrow(0, part.first_row, part.rows));
        let op = Linear { bias: bias.as_ref(), out: &out, ..*op };
        match &part.layout {
            Layout::Dense { dtype, data } => dense::linear(cx, &op, (*dtype, data), part.rows)?,
            Layout::Packed(packed) => packed.linear(cx, &op)?,
        }
    }
    Ok(())
}

/// The largest results of an `op` whose epilogue is [`Epilogue::Argmax`].
fn argmax(backend: &CudaBackend, cx: &Context, op: &Linear, parts: &[Part]) -> Result<()> {
    let [Part { layout: Layout::Dense { dtype, data }, .. }] = parts else { return op.unfused(backend) };
    if !dense::takes_argmax(cx, op)? {
        return op.unfused(backend);
    }
    let Some(Norm { weight, eps, normed }) = op.norm else { return dense::argmax(cx, op, (*dtype, data)) };
    backend.rms_norm(&RmsNorm { x: op.x, weight, eps, out: normed })?;
    dense::argmax(cx, &Linear { x: normed, norm: None, ..*op }, (*dtype, data))
}

pub(crate) fn embed(cx: &Context, op: &Embed) -> Result<()> {
    op.check()?;
    let table: &CudaWeight = op.table.downcast(crate::NAME)?;
    let [part] = &table.parts[..] else { return Err(unsupported("embed", "a table of several dtypes")) };
    match &part.layout {
        Layout::Dense { dtype, data } => naive::embed(cx, op, (*dtype, data)),
        Layout::Packed(packed) => packed.embed(cx, op),
    }
}
