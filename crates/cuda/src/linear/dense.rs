//! Dense weights: one product, one kernel, chosen by shape.
//!
//! | tokens | on sm_90 |
//! |---|---|
//! | 1 … 16 | `sm90_linear_stream.cu`, the norm in front included; `sm90_linear_wgmma.cu` where cols % 64 ≠ 0 |
//! | 17 … 127; small weights, and what attention reads, … 256 | `sm90_linear_wgmma.cu` |
//! | more | cuBLASLt; gated, with a bias, or where it is missing, `sm90_linear_wgmma.cu` |
//!
//! Elsewhere cuBLASLt takes all but products with a bias, the activation in a kernel of its own: `linear_mma.cu`, which is for
//! what is left, is no match for it (on an H100, an 8B decodes 1, 16, 64 sequences in 14.0, 16.6, 27.1 ms; with cuBLASLt in
//! 6.1, 6.4, 7.1). Rows that are not whole 16-byte packs (cols % 8 ≠ 0) go to `linear_naive.cu`.
//!
//! F16 weights are multiplied by x as F16, made so in a kernel before. cuBLASLt is not for them: it has no BF16 results of F16.

use ferrum_kernels::{
    DType, Result,
    ops::{Activation, Epilogue, Linear},
};

use super::{lt, naive, tiles};
use crate::{
    context::Context,
    driver::{DeviceBuffer, DevicePtr, Grid, Swizzle, TensorMap, TensorMapDType, TensorMapSpec},
    storage::{has_packs, ptr, ptr_or_null},
};

/// `Output` of `linear_dense.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Output {
    out: DevicePtr,
    bias: DevicePtr,
    tokens: i32,
    columns: i32,
    stride: i32,
    epilogue: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinearStreamParams {
    weight: TensorMap,
    x: DevicePtr,
    norm: DevicePtr,
    eps: f32,
    cols: i32,
    x_stride: i32,
    output: Output,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinearWgmmaParams {
    weight: TensorMap,
    x: TensorMap,
    output: Output,
    cols: i32,
    band: i32,
    x_box: i32,
    stages: i32,
    weight_policy: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TakeLargestParams {
    largest: DevicePtr,
    out: DevicePtr,
    seqs: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ToF16Params {
    x: DevicePtr,
    out: DevicePtr,
    x_stride: i64,
    cols: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinearMmaParams {
    weight: DevicePtr,
    x: DevicePtr,
    cols: i32,
    x_stride: i32,
    output: Output,
}

// `Epilogue` of `linear_dense.cuh`.
const STORE_BF16: i32 = 0;
const STORE_F32: i32 = 1;
const ADD: i32 = 2;
const ARGMAX: i32 = 3;
const SILU: i32 = 4;
const GELU_TANH: i32 = 5;

/// L2 eviction policies, as `hopper.cuh` has them: weights that are read once, and weights that several tiles read.
const EVICT_FIRST: u64 = 0x12F0_0000_0000_0000;
const EVICT_NORMAL: u64 = 0x1000_0000_0000_0000;

/// Whether one kernel does all of `op`, whose weight is dense.
///
/// # Errors
/// When `x` is a tensor of another backend.
pub(super) fn fuses(cx: &Context, op: &Linear, dtype: DType) -> Result<bool> {
    let f16 = dtype == DType::F16;
    let streamed = streams(cx, op)?;
    if op.norm.is_some() {
        return Ok(streamed && !f16);
    }
    let gated = matches!(op.epilogue, Epilogue::ActMul { .. });
    let one_kernel = f16 || cx.has("sm90_linear_wgmma") || cx.lt().is_none();
    Ok(!gated || streamed || one_kernel && is_packable(op)?)
}

/// Whether `op` is for `sm90_linear_stream.cu`.
fn streams(cx: &Context, op: &Linear) -> Result<bool> {
    let [tokens, cols] = [op.x.shape()[0], op.x.shape()[1]];
    Ok(tokens <= tiles::STREAM_TOKENS && cx.has("sm90_linear_stream") && cols.is_multiple_of(64) && is_packable(op)?)
}

/// Whether x is BF16 in rows of whole 16-byte packs, and the results are what these kernels write.
fn is_packable(op: &Linear) -> Result<bool> {
    let store = matches!(op.epilogue, Epilogue::Store);
    let dtypes = op.x.dtype() == DType::BF16 && (op.out.dtype() == DType::BF16 || store && op.out.dtype() == DType::F32);
    Ok(dtypes && has_packs(&[op.x])?)
}

fn x_stride(op: &Linear) -> usize {
    // One row has any stride; this one passes every check.
    if op.x.shape()[0] == 1 { op.x.shape()[1] } else { op.x.strides()[0] }
}

/// Queues the kernel for `op` and its weight `[rows, cols]`, BF16 or F16. `op` is one that [`fuses`].
///
/// # Errors
/// When no kernel takes its dtypes, or the device fails.
pub(super) fn linear(cx: &Context, op: &Linear, (dtype, weight): (DType, &DeviceBuffer), rows: usize) -> Result<()> {
    let ([tokens, cols], columns) = ([op.x.shape()[0], op.x.shape()[1]], op.out.shape()[1]);
    if tokens == 0 {
        return Ok(());
    }
    if !is_packable(op)? {
        return naive::linear(cx, op, (dtype, weight));
    }
    let f16 = dtype == DType::F16;
    // As many tokens as have room in scratch memory as F16, and in a grid.
    let most = (cx.workspace_len() / (2 * cols)).clamp(1, 65535);
    if f16 && tokens > most {
        for first in (0..tokens).step_by(most) {
            let [x, out] = [op.x, op.out].map(|t| t.narrow(0, first, most.min(tokens - first)));
            linear(cx, &Linear { x: &x, out: &out, ..*op }, (dtype, weight), rows)?;
        }
        return Ok(());
    }
    let stride = if tokens == 1 { columns } else { op.out.strides()[0] };
    let output = Output {
        out: ptr(op.out)?,
        bias: ptr_or_null(op.bias)?,
        tokens: tokens as i32,
        columns: columns as i32,
        stride: stride as i32,
        epilogue: match op.epilogue {
            Epilogue::Store if op.out.dtype() == DType::BF16 => STORE_BF16,
            Epilogue::Store => STORE_F32,
            Epilogue::Add => ADD,
            Epilogue::ActMul { activation: Activation::Silu, .. } => SILU,
            Epilogue::ActMul { activation: Activation::GeluTanh, .. } => GELU_TANH,
            Epilogue::Argmax { .. } => unreachable!("`argmax` takes these"),
        },
    };
    let (x, x_stride) = if f16 { (to_f16(cx, op)?, cols) } else { (ptr(op.x)?, x_stride(op)) };
    let product = Product {
        op,
        f16,
        weight,
        x,
        x_stride,
        shape: tiles::Shape { tokens, columns, gated: rows > columns, cols, argmax: false, before_decode: op.before_decode },
        output,
    };
    if streams(cx, op)? {
        return product.stream(cx);
    }
    // What follows wgmma stores packs of neighbouring columns.
    let packs = columns.is_multiple_of(8) && stride.is_multiple_of(8) && (output.out | output.bias).is_multiple_of(16);
    let hopper = packs && cx.has("sm90_linear_wgmma");
    let for_lt = if cx.has("sm90_linear_wgmma") { tiles::is_for_lt(&product.shape) } else { packs && !product.shape.gated };
    if for_lt
        && !f16
        && op.bias.is_none()
        && let Some(lt) = cx.lt()
    {
        let (out_f32, add) = (op.out.dtype() == DType::F32, matches!(op.epilogue, Epilogue::Add));
        let product = lt::Product { tokens, rows, cols, x_stride, out_stride: stride, out_f32, add };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        return unsafe { lt.run(cx.stream(), &product, weight.ptr(), x, output.out) };
    }
    if hopper { product.wgmma(cx) } else { product.mma(cx) }
}

/// Whether [`argmax`] takes `op` once it is normed: more tokens than a stream's, whose logits are few.
///
/// # Errors
/// When `x` is a tensor of another backend.
pub(super) fn takes_argmax(cx: &Context, op: &Linear) -> Result<bool> {
    let x = op.norm.map_or(op.x, |norm| norm.normed);
    let many = x.shape()[0] > tiles::STREAM_TOKENS && op.weight.rows().is_multiple_of(8);
    Ok(many && cx.has("sm90_linear_wgmma") && x.dtype() == DType::BF16 && has_packs(&[x])?)
}

/// Queues `op`, which [`takes_argmax`] and has no norm, on its weight `[rows, cols]`, BF16 or F16: logits are compared where
/// they are made, and never in memory.
///
/// # Errors
/// When the device fails.
pub(super) fn argmax(cx: &Context, op: &Linear, (dtype, weight): (DType, &DeviceBuffer)) -> Result<()> {
    // Found before anything is queued: the other kernel alone would leave its candidates in the counters.
    cx.kernel("sample", "take_largest")?;
    let f16 = dtype == DType::F16;
    let ([tokens, cols], columns) = ([op.x.shape()[0], op.x.shape()[1]], op.weight.rows());
    let largest = cx.counters(2 * tokens)?;
    let output =
        Output { out: largest, bias: ptr_or_null(op.bias)?, tokens: tokens as i32, columns: columns as i32, stride: 0, epilogue: ARGMAX };
    let shape = tiles::Shape { tokens, columns, gated: false, cols, argmax: true, before_decode: false };
    let (x, x_stride) = if f16 { (to_f16(cx, op)?, cols) } else { (ptr(op.x)?, x_stride(op)) };
    Product { op, f16, weight, x, x_stride, shape, output }.wgmma(cx)?;
    let params = TakeLargestParams { largest, out: ptr(op.out)?, seqs: tokens as i32 };
    // SAFETY: there is a counter of 64 bits and a result for each token.
    unsafe { cx.launch("sample", "take_largest", Grid::new(tokens.div_ceil(256), 256), &params) }
}

/// x as F16 `[tokens, cols]`, in scratch memory.
fn to_f16(cx: &Context, op: &Linear) -> Result<DevicePtr> {
    let [tokens, cols] = [op.x.shape()[0], op.x.shape()[1]];
    let out = cx.workspace(2 * tokens * cols)?;
    let params = ToF16Params { x: ptr(op.x)?, out, x_stride: x_stride(op) as i64, cols: cols as i32 };
    let blocks = [cols.div_ceil(8 * 256) as u32, tokens as u32, 1];
    // SAFETY: x is BF16 in whole packs, and the scratch memory has room for it.
    unsafe { cx.launch("copy", "to_f16", Grid { blocks, ..Grid::new(1, 256) }, &params)? };
    Ok(out)
}

/// An operation with what its launchers share.
struct Product<'a> {
    op: &'a Linear<'a>,
    /// Whether weight and x are F16 instead of BF16
    f16: bool,
    weight: &'a DeviceBuffer,
    x: DevicePtr,
    x_stride: usize,
    shape: tiles::Shape,
    output: Output,
}

impl Product<'_> {
    fn stream(&self, cx: &Context) -> Result<()> {
        let (op, shape, sms) = (self.op, &self.shape, cx.device().attributes().sms as usize);
        let tile = tiles::stream(shape, sms);
        let weight = TensorMapSpec {
            ptr: self.weight.ptr(),
            dtype: if self.f16 { TensorMapDType::F16 } else { TensorMapDType::BF16 },
            shape: [64, shape.weight_rows() as u64, shape.cols as u64 / 64],
            stride_bytes: [2, 2 * shape.cols as u64, 128],
            box_shape: [64, 8, tile.chunks as u32],
            swizzle: Swizzle::B128,
        };
        let params = LinearStreamParams {
            weight: weight.encode()?,
            x: self.x,
            norm: ptr_or_null(op.norm.map(|n| n.weight))?,
            eps: op.norm.map_or(0.0, |n| n.eps),
            cols: shape.cols as i32,
            x_stride: self.x_stride as i32,
            output: self.output,
        };
        let name = match op.norm {
            Some(_) => tile.norm_kernel,
            None if self.f16 => tile.f16_kernel,
            None => tile.kernel,
        };
        let grid = Grid { shared_bytes: tile.shared_bytes(), ..Grid::new(tile.blocks(shape, sms), tile.threads()) };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        unsafe { cx.launch("sm90_linear_stream", name, grid, &params) }
    }

    fn wgmma(&self, cx: &Context) -> Result<()> {
        let (shape, sms) = (&self.shape, cx.device().attributes().sms as usize);
        let tile = tiles::wgmma(shape, sms);
        let map = |ptr, rows: usize, stride: usize, box_rows: usize| {
            TensorMapSpec {
                ptr,
                dtype: if self.f16 { TensorMapDType::F16 } else { TensorMapDType::BF16 },
                shape: [shape.cols as u64, rows as u64],
                stride_bytes: [2, 2 * stride as u64],
                box_shape: [64, box_rows as u32],
                swizzle: Swizzle::B128,
            }
            .encode()
        };
        let x_box = tile.x_box(shape);
        let stages = tile.stages(shape, cx.device().attributes().block_shared_bytes);
        let params = LinearWgmmaParams {
            weight: map(self.weight.ptr(), shape.weight_rows(), shape.cols, tile.weight_box())?,
            x: map(self.x, shape.tokens, self.x_stride, x_box)?,
            output: self.output,
            cols: shape.cols as i32,
            band: tile.band(shape) as i32,
            x_box: x_box as i32,
            stages: stages as i32,
            weight_policy: if tile.token_groups(shape) == 1 { EVICT_FIRST } else { EVICT_NORMAL },
        };
        let (shared_bytes, cluster) = (tile.shared_bytes(stages), tile.cluster() as u32);
        let grid = Grid { shared_bytes, cluster, ..Grid::new(tile.blocks(shape, sms), tile.threads()) };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        unsafe { cx.launch("sm90_linear_wgmma", if self.f16 { tile.f16_kernel } else { tile.kernel }, grid, &params) }
    }

    fn mma(&self, cx: &Context) -> Result<()> {
        let shape = &self.shape;
        let tile = tiles::mma(shape);
        let params = LinearMmaParams {
            weight: self.weight.ptr(),
            x: self.x,
            cols: shape.cols as i32,
            x_stride: self.x_stride as i32,
            output: self.output,
        };
        let blocks = [shape.columns.div_ceil(tile.columns(shape)) as u32, shape.tokens.div_ceil(tile.tokens) as u32, 1];
        let grid = Grid { blocks, shared_bytes: tile.shared_bytes(), ..Grid::new(1, 128) };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        unsafe { cx.launch("linear_mma", if self.f16 { tile.f16_kernel } else { tile.kernel }, grid, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epilogues_are_those_of_the_kernels() {
        let ours = [
            ("STORE_BF16", STORE_BF16),
            ("STORE_F32", STORE_F32),
            ("ADD", ADD),
            ("ARGMAX", ARGMAX),
            ("SILU", SILU),
            ("GELU_TANH", GELU_TANH),
        ];
        let listed = ours.map(|(name, number)| format!("{name} = {number}")).join(", ");
        assert!(include_str!("../../kernels/linear_dense.cuh").contains(&format!("enum Epilogue : int {{ {listed} }};")));
    }
}
