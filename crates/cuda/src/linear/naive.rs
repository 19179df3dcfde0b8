//! The kernels for what no faster one takes: `kernels/linear_naive.cu` and `embed_dense` of `kernels/copy.cu`.

use ferrum_kernels::{
    DType, Result,
    ops::{Embed, Epilogue, Linear},
};

use crate::{
    context::{Context, by_float, unsupported},
    driver::{DeviceBuffer, DevicePtr, Grid},
    storage::{ptr, ptr_or_null, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct LinearNaiveParams {
    x: DevicePtr,
    weight: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    x_stride: i64,
    out_stride: i64,
    tokens: i32,
    rows: i32,
    cols: i32,
    add: i32,
}

/// Output features of a block, one per warp.
const ROWS: usize = 8;
/// Tokens of a block: `TOKENS` of the kernel.
const TOKENS: usize = 8;

/// `out = x · wᵀ + bias` or `out += …` for a row-major weight of 16-bit numbers.
pub(super) fn linear(cx: &Context, op: &Linear, (dtype, weight): (DType, &DeviceBuffer)) -> Result<()> {
    let Linear { x, bias, out, .. } = *op;
    let f16 = dtype == DType::F16;
    let kernel = match (x.dtype(), out.dtype()) {
        (DType::F32, DType::F32) if f16 => "linear_naive_f32_f16_f32",
        (DType::F32, DType::F32) => "linear_naive_f32_bf16_f32",
        (DType::F16, DType::F16) if f16 => "linear_naive_f16_f16_f16",
        (DType::F16, DType::F16) => "linear_naive_f16_bf16_f16",
        (DType::F16, DType::F32) if f16 => "linear_naive_f16_f16_f32",
        (DType::F16, DType::F32) => "linear_naive_f16_bf16_f32",
        (DType::BF16, DType::BF16) if f16 => "linear_naive_bf16_f16_bf16",
        (DType::BF16, DType::BF16) => "linear_naive_bf16_bf16_bf16",
        (DType::BF16, DType::F32) if f16 => "linear_naive_bf16_f16_f32",
        (DType::BF16, DType::F32) => "linear_naive_bf16_bf16_f32",
        (from, to) => return Err(unsupported("linear", format!("{from} activations and {to} results"))),
    };
    let ([tokens, cols], rows) = ([x.shape()[0], x.shape()[1]], out.shape()[1]);
    let params = LinearNaiveParams {
        x: ptr(x)?,
        weight: weight.ptr(),
        bias: ptr_or_null(bias)?,
        out: ptr(out)?,
        x_stride: stride(x, 0),
        out_stride: stride(out, 0),
        tokens: tokens as i32,
        rows: rows as i32,
        cols: cols as i32,
        add: i32::from(matches!(op.epilogue, Epilogue::Add)),
    };
    let blocks = [rows.div_ceil(ROWS) as u32, tokens.div_ceil(TOKENS) as u32, 1];
    // SAFETY: the operation's contract holds, and the weight was uploaded whole.
    unsafe { cx.launch("linear_naive", kernel, Grid { blocks, ..Grid::new(1, 32 * ROWS as u32) }, &params) }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct EmbedDenseParams {
    ids: DevicePtr,
    drawn: DevicePtr,
    table: DevicePtr,
    out: DevicePtr,
    out_stride: i64,
    drawn_rows: i32,
    vocab: i32,
    cols: i32,
    scale: f32,
}

/// Rows of a table of 16-bit numbers.
pub(super) fn embed(cx: &Context, op: &Embed, (dtype, data): (DType, &DeviceBuffer)) -> Result<()> {
    let to = op.out.dtype();
    let kernel = if dtype == DType::F16 { by_float!(to, "embed_dense_f16") } else { by_float!(to, "embed_dense_bf16") };
    let [tokens, cols] = [op.out.shape()[0], op.out.shape()[1]];
    let params = EmbedDenseParams {
        ids: ptr(op.ids)?,
        drawn: ptr_or_null(op.drawn)?,
        table: data.ptr(),
        out: ptr(op.out)?,
        out_stride: stride(op.out, 0),
        drawn_rows: op.drawn.map_or(0, |d| d.shape()[0]) as i32,
        vocab: op.table.rows() as i32,
        cols: cols as i32,
        scale: op.scale,
    };
    let blocks = [cols.div_ceil(256) as u32, tokens as u32, 1];
    // SAFETY: the operation's contract holds, and the table was uploaded whole.
    unsafe { cx.launch("copy", kernel, Grid { blocks, ..Grid::new(1, 256) }, &params) }
}
