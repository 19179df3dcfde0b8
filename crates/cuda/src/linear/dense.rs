//! Dense BF16 weights: one product, one kernel, chosen by shape.
//!
//! | tokens | on sm_90 | elsewhere |
//! |---|---|---|
//! | 1 … 16 | `sm90_linear_stream.cu`, the norm in front included; `sm90_linear_wgmma.cu` where cols % 64 ≠ 0 | `linear_mma.cu` |
//! | 17 … 127, small weights … 256 | `sm90_linear_wgmma.cu` | `linear_mma.cu` |
//! | more | cuBLASLt; gated, with a bias, or where it is missing, `sm90_linear_wgmma.cu` | cuBLASLt, or `linear_mma.cu` |
//!
//! A gated product is one kernel on sm_90, and elsewhere up to [`tiles::GATED_TOKENS`]. Rows that are not whole 16-byte packs
//! (cols % 8 ≠ 0) go to `linear_naive.cu`.

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
    weight_policy: u64,
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

/// L2 eviction policies, as `hopper.cuh` has them: weights that are read once, and weights that several tiles read.
const EVICT_FIRST: u64 = 0x12F0_0000_0000_0000;
const EVICT_NORMAL: u64 = 0x1000_0000_0000_0000;

/// Whether one kernel does all of `op`, whose weight is dense.
///
/// # Errors
/// When `x` is a tensor of another backend.
pub(super) fn fuses(cx: &Context, op: &Linear) -> Result<bool> {
    let tokens = op.x.shape()[0];
    let streamed = streams(cx, op)?;
    if op.norm.is_some() {
        return Ok(streamed);
    }
    let gated = matches!(op.epilogue, Epilogue::ActMul { .. });
    Ok(!gated || streamed || is_packable(op)? && (cx.has("sm90_linear_wgmma") || tokens <= tiles::GATED_TOKENS || cx.lt().is_none()))
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

/// Queues the kernel for `op` and its weight `[rows, cols]` BF16. `op` is one that [`fuses`].
///
/// # Errors
/// When no kernel takes its dtypes, or the device fails.
pub(super) fn linear(cx: &Context, op: &Linear, weight: &DeviceBuffer, rows: usize) -> Result<()> {
    let ([tokens, cols], columns) = ([op.x.shape()[0], op.x.shape()[1]], op.out.shape()[1]);
    if tokens == 0 {
        return Ok(());
    }
    if !is_packable(op)? {
        return naive::linear(cx, op, (DType::BF16, weight));
    }
    let stride = if tokens == 1 { columns } else { op.out.strides()[0] };
    let output = Output {
        out: ptr(op.out)?,
        bias: ptr_or_null(op.bias)?,
        tokens: tokens as i32,
        columns: columns as i32,
        stride: stride as i32,
        epilogue: match op.epilogue {
            Epilogue::Store if op.out.dtype() == DType::BF16 => 0,
            Epilogue::Store => 1,
            Epilogue::Add => 2,
            Epilogue::ActMul { activation: Activation::Silu, .. } => 3,
            Epilogue::ActMul { activation: Activation::GeluTanh, .. } => 4,
        },
    };
    let product = Product { op, weight, shape: tiles::Shape { tokens, columns, gated: rows > columns, cols }, output };
    if streams(cx, op)? {
        return product.stream(cx);
    }
    // What follows wgmma stores packs of neighbouring columns.
    let packs = columns.is_multiple_of(8) && stride.is_multiple_of(8) && (output.out | output.bias).is_multiple_of(16);
    let hopper = packs && cx.has("sm90_linear_wgmma");
    if tiles::is_for_lt(&product.shape)
        && op.bias.is_none()
        && let Some(lt) = cx.lt()
    {
        let (x_stride, out_f32, add) = (x_stride(op), op.out.dtype() == DType::F32, matches!(op.epilogue, Epilogue::Add));
        let product = lt::Product { tokens, rows, cols, x_stride, out_stride: stride, out_f32, add };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        return unsafe { lt.run(cx.stream(), &product, weight.ptr(), ptr(op.x)?, output.out) };
    }
    if hopper { product.wgmma(cx) } else { product.mma(cx) }
}

/// An operation with what its launchers share.
struct Product<'a> {
    op: &'a Linear<'a>,
    weight: &'a DeviceBuffer,
    shape: tiles::Shape,
    output: Output,
}

impl Product<'_> {
    fn stream(&self, cx: &Context) -> Result<()> {
        let (op, shape, sms) = (self.op, &self.shape, cx.device().attributes().sms as usize);
        let tile = tiles::stream(shape, sms);
        let weight = TensorMapSpec {
            ptr: self.weight.ptr(),
            dtype: TensorMapDType::BF16,
            shape: [64, shape.weight_rows() as u64, shape.cols as u64 / 64],
            stride_bytes: [2, 2 * shape.cols as u64, 128],
            box_shape: [64, 8, tile.chunks as u32],
            swizzle: Swizzle::B128,
        };
        let params = LinearStreamParams {
            weight: weight.encode()?,
            x: ptr(op.x)?,
            norm: ptr_or_null(op.norm.map(|n| n.weight))?,
            eps: op.norm.map_or(0.0, |n| n.eps),
            cols: shape.cols as i32,
            x_stride: x_stride(op) as i32,
            output: self.output,
        };
        let name = if op.norm.is_some() { tile.norm_kernel } else { tile.kernel };
        let grid = Grid { shared_bytes: tile.shared_bytes(), ..Grid::new(tile.blocks(shape, sms), tile.threads()) };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        unsafe { cx.launch("sm90_linear_stream", name, grid, &params) }
    }

    fn wgmma(&self, cx: &Context) -> Result<()> {
        let (op, shape, sms) = (self.op, &self.shape, cx.device().attributes().sms as usize);
        let tile = tiles::wgmma(shape, sms);
        let map = |ptr, rows: usize, stride: usize, box_rows: usize| {
            TensorMapSpec {
                ptr,
                dtype: TensorMapDType::BF16,
                shape: [shape.cols as u64, rows as u64],
                stride_bytes: [2, 2 * stride as u64],
                box_shape: [64, box_rows as u32],
                swizzle: Swizzle::B128,
            }
            .encode()
        };
        let x_box = tile.x_box(shape);
        let params = LinearWgmmaParams {
            weight: map(self.weight.ptr(), shape.weight_rows(), shape.cols, tile.weight_box())?,
            x: map(ptr(op.x)?, shape.tokens, x_stride(op), x_box)?,
            output: self.output,
            cols: shape.cols as i32,
            band: tile.band(shape) as i32,
            x_box: x_box as i32,
            weight_policy: if tile.token_groups(shape) == 1 { EVICT_FIRST } else { EVICT_NORMAL },
        };
        let (shared_bytes, cluster) = (tile.shared_bytes(), tile.cluster() as u32);
        let grid = Grid { shared_bytes, cluster, ..Grid::new(tile.blocks(shape, sms), tile.threads()) };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        unsafe { cx.launch("sm90_linear_wgmma", tile.kernel, grid, &params) }
    }

    fn mma(&self, cx: &Context) -> Result<()> {
        let (op, shape) = (self.op, &self.shape);
        let tile = tiles::mma(shape);
        let params = LinearMmaParams {
            weight: self.weight.ptr(),
            x: ptr(op.x)?,
            cols: shape.cols as i32,
            x_stride: x_stride(op) as i32,
            output: self.output,
        };
        let blocks = [shape.columns.div_ceil(tile.columns(shape)) as u32, shape.tokens.div_ceil(tile.tokens) as u32, 1];
        let grid = Grid { blocks, shared_bytes: tile.shared_bytes(), ..Grid::new(1, 128) };
        // SAFETY: the operation's contract holds, and the weight was uploaded whole.
        unsafe { cx.launch("linear_mma", tile.kernel, grid, &params) }
    }
}
