//! Packed block weights: the tiles of `kernels/packed.cuh`, made once at load, and the kernels that read them.
//!
//! | tokens | on sm_90 | elsewhere |
//! |---|---|---|
//! | 1, 2 | `packed_linear_*.cu` | the same |
//! | 3 … 16 | `packed_skinny_*.cu` | the same |
//! | more | `sm90_packed_linear_*.cu`, and `packed_combine.cu` where the columns are split | `packed_skinny_*.cu`, 16 or 8 tokens at a time |
//!
//! Up to 16 tokens the norm in front is included, and rows of several block types are one launch.

use std::sync::{Arc, OnceLock, Weak};

use ferrum_kernels::{
    DType, Result, Tensor, WeightPart,
    ops::{Activation, Embed, Epilogue, Linear},
};

use super::{
    Layout, Part,
    packed_tiles::{self, Format, Machine, Plan, SLICE_TOKENS, Shape},
};
use crate::{
    context::{Context, by_float, unsupported},
    driver::{DeviceBuffer, DevicePtr, Grid, Swizzle, TensorMap, TensorMapDType, TensorMapSpec},
    storage::{has_packs, ptr, ptr_or_null, stride},
    upload::Ring,
};

/// A matrix of one block type, in tiles.
#[derive(Debug)]
pub(crate) struct Packed {
    dtype: DType,
    format: Format,
    rows: usize,
    cols: usize,
    tiles: Arc<DeviceBuffer>,
    next: Next,
}

/// The tiles of the weight that was used after this one, when it was used first.
pub(crate) type Next = Arc<OnceLock<Weak<DeviceBuffer>>>;

#[repr(C)]
#[derive(Clone, Copy)]
struct PackedRepackParams {
    blocks: DevicePtr,
    tiles: DevicePtr,
    rows: u32,
    cols: u32,
    k_tiles: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PackedEmbedParams {
    ids: DevicePtr,
    drawn: DevicePtr,
    tiles: DevicePtr,
    out: DevicePtr,
    rows: u32,
    cols: u32,
    k_tiles: u32,
    out_stride: u32,
    format: u32,
    drawn_rows: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PackedLinearParams {
    x: DevicePtr,
    norm: DevicePtr,
    data: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    tokens: u32,
    cols: u32,
    columns: u32,
    x_stride: u32,
    out_stride: u32,
    k_tiles: u32,
    group_warps: u32,
    stages: u32,
    pass_tiles: u32,
    slab: u32,
    epilogue: u32,
    out_f32: u32,
    format: u32,
    first_block: u32,
    blocks: u32,
    eps: f32,
    next_bytes: u32,
    next: DevicePtr,
}

const MOST_PARTS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct PackedLinearPartsParams {
    part: [PackedLinearParams; MOST_PARTS],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sm90PackedLinearParams {
    x: TensorMap,
    data: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    tokens: u32,
    columns: u32,
    k_tiles: u32,
    out_stride: u32,
    epilogue: u32,
    out_f32: u32,
    splits: u32,
    partials: DevicePtr,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PackedCombineParams {
    partials: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    tokens: u32,
    columns: u32,
    splits: u32,
    out_stride: u32,
    epilogue: u32,
    out_f32: u32,
}

/// Blocks that are uploaded before they are repacked: the most that the scratch memory takes.
const PIECE_BYTES: usize = 64 << 20;
/// Of the next weight, into L2; also the most that a weight has whose kernel leaves the memory idle for so long.
const PREFETCH_BYTES: usize = 16 << 20;
const TILE_ROWS: usize = 16;

/// `(file, kernel)` of the dtype's instance of a family of kernels.
macro_rules! by_format {
    ($dtype:expr, $family:literal, $suffix:literal) => {
        match $dtype {
            DType::Q4_0 => (concat!($family, "_32"), concat!($family, "_q4_0", $suffix)),
            DType::Q4_1 => (concat!($family, "_32"), concat!($family, "_q4_1", $suffix)),
            DType::Q5_0 => (concat!($family, "_32"), concat!($family, "_q5_0", $suffix)),
            DType::Q5_1 => (concat!($family, "_32"), concat!($family, "_q5_1", $suffix)),
            DType::Q8_0 => (concat!($family, "_32"), concat!($family, "_q8_0", $suffix)),
            DType::IQ4_NL => (concat!($family, "_32"), concat!($family, "_iq4_nl", $suffix)),
            DType::Q2_K => (concat!($family, "_k"), concat!($family, "_q2_k", $suffix)),
            DType::Q3_K => (concat!($family, "_k"), concat!($family, "_q3_k", $suffix)),
            DType::Q4_K => (concat!($family, "_k"), concat!($family, "_q4_k", $suffix)),
            DType::Q5_K => (concat!($family, "_k"), concat!($family, "_q5_k", $suffix)),
            DType::Q6_K => (concat!($family, "_k"), concat!($family, "_q6_k", $suffix)),
            _ => (concat!($family, "_k"), concat!($family, "_iq4_xs", $suffix)),
        }
    };
}

/// Uploads rows of one block type and brings them into tiles.
///
/// # Errors
/// [`ferrum_kernels::Error::Unsupported`] when no kernel reads this dtype, or memory is short.
pub(super) fn prepare(cx: &Context, ring: &mut Ring, cols: usize, parts: &[WeightPart]) -> Result<Packed> {
    let dtype = parts[0].dtype;
    let format = Format::of(dtype).ok_or_else(|| unsupported("linear", format!("{dtype} weights")))?;
    let rows = parts.iter().map(|p| p.rows).sum::<usize>();
    let row_bytes = cols / dtype.block_len() * dtype.block_bytes();
    let row_tile_bytes = format.row_tile_bytes(cols);
    let tiles = DeviceBuffer::new(cx.device(), rows.div_ceil(TILE_ROWS) * row_tile_bytes)?;
    let piece_rows = (PIECE_BYTES / row_bytes.max(1) / TILE_ROWS * TILE_ROWS).max(TILE_ROWS);
    let staging = cx.workspace(row_bytes * piece_rows.min(rows))?;
    let (_, kernel) = by_format!(dtype, "packed_repack", "");
    for first in (0..rows).step_by(piece_rows) {
        let last = rows.min(first + piece_rows);
        let (mut at, mut part_first) = (staging, 0);
        for part in parts {
            // The part's share of rows first..last.
            let from = first.clamp(part_first, part_first + part.rows) - part_first;
            let to = last.clamp(part_first, part_first + part.rows) - part_first;
            let bytes = &part.data.as_slice()[from * row_bytes..to * row_bytes];
            // SAFETY: the scratch memory has room for the piece's rows one behind the other.
            unsafe { ring.upload(cx, at, bytes)? };
            at += bytes.len() as DevicePtr;
            part_first += part.rows;
        }
        let params = PackedRepackParams {
            blocks: staging,
            tiles: tiles.ptr() + (first / TILE_ROWS * row_tile_bytes) as DevicePtr,
            rows: (last - first) as u32,
            cols: cols as u32,
            k_tiles: packed_tiles::k_tiles(cols) as u32,
        };
        let blocks = (last - first).div_ceil(TILE_ROWS) * packed_tiles::k_tiles(cols);
        let grid = Grid::new(blocks.div_ceil(8).min(8 * cx.device().attributes().sms as usize), 256);
        // SAFETY: the piece was uploaded whole, and its tiles lie within the buffer.
        unsafe { cx.launch("packed_repack", kernel, grid, &params)? };
    }
    Ok(Packed { dtype, format, rows, cols, tiles: Arc::new(tiles), next: Next::default() })
}

/// Whether [`linear_parts`] does all of `op` at once.
pub(super) fn fuses_parts(cx: &Context, op: &Linear, parts: &[Part]) -> bool {
    let packed = parts.iter().all(|part| matches!(part.layout, Layout::Packed(_)));
    let most = if cx.has("sm90_packed_linear_k") { SLICE_TOKENS } else { 8 };
    packed && parts.len() <= MOST_PARTS && op.x.shape()[0] <= most && !matches!(op.epilogue, Epilogue::ActMul { .. })
}

/// Queues `op`, which is one that [`fuses_parts`], as one launch in which every part has blocks of its own.
///
/// # Errors
/// When no kernel takes its dtypes or strides, or the device fails.
pub(super) fn linear_parts(cx: &Context, op: &Linear, parts: &[Part]) -> Result<()> {
    check(op)?;
    let tokens = op.x.shape()[0];
    let packed = parts.iter().filter_map(|part| match &part.layout {
        Layout::Packed(packed) => Some((part.first_row, packed)),
        Layout::Dense { .. } => None,
    });
    let tiles = packed.clone().map(|(_, p)| (p.rows.div_ceil(TILE_ROWS), p.format.tile_cost())).collect::<Vec<_>>();
    let (most, machine) = (packed_tiles::kernel_tokens(tokens), machine(cx));
    let cluster = packed_tiles::cluster(most, op.weight.cols(), &machine);
    let clusters = packed_tiles::blocks_of_parts(&tiles, machine.sms / cluster);
    let warps = packed.clone().map(|(_, p)| packed_tiles::warps(p.format, most, &machine)).min().unwrap_or(machine.warps);
    let (mut all, mut launched, mut first_block) = (Vec::new(), Grid::new(0, 0), 0);
    for ((first_row, packed), clusters) in packed.zip(clusters) {
        let out = op.out.narrow(1, first_row, packed.rows);
        let bias = op.bias.map(|b| b.narrow(0, first_row, packed.rows));
        let share = Machine { sms: clusters * cluster, warps, ..machine };
        let Some(plan) = packed.plan(&share, most, packed.rows) else {
            return Err(unsupported("linear", format!("{} columns on so little shared memory", packed.cols)));
        };
        let params = packed.params(&Linear { bias: bias.as_ref(), ..*op }, op.x, &out, &plan)?;
        all.push(PackedLinearParams { first_block, ..params });
        first_block += params.blocks;
        let grid = plan.grid();
        launched = Grid { shared_bytes: launched.shared_bytes.max(grid.shared_bytes), ..grid };
    }
    if let Some(Layout::Packed(last)) = parts.last().map(|part| &part.layout) {
        last.follow(cx);
    }
    let end = PackedLinearParams { first_block, blocks: 0, ..all[0] };
    let part = std::array::from_fn(|i| all.get(i).copied().unwrap_or(end));
    let (file, kernel) = match most {
        1 => ("packed_linear_parts", "packed_linear_parts_t1"),
        2 => ("packed_linear_parts", "packed_linear_parts_t2"),
        4 => ("packed_skinny_parts", "packed_skinny_parts_t4"),
        8 => ("packed_skinny_parts", "packed_skinny_parts_t8"),
        _ => ("packed_skinny_parts", "packed_skinny_parts_t16"),
    };
    let grid = Grid { blocks: [first_block, 1, 1], ..launched };
    // SAFETY: the operation's contract holds, and the parts were repacked whole.
    unsafe { cx.launch(file, kernel, grid, &PackedLinearPartsParams { part }) }
}

fn machine(cx: &Context) -> Machine {
    let attributes = cx.device().attributes();
    let clusters = cx.has("sm90_packed_linear_k");
    Machine { sms: attributes.sms as usize, block_shared_bytes: attributes.block_shared_bytes, clusters, warps: 16 }
}

/// What all kernels ask of `op`.
fn check(op: &Linear) -> Result<()> {
    let store = matches!(op.epilogue, Epilogue::Store);
    if op.x.dtype() != DType::BF16 || !(op.out.dtype() == DType::BF16 || store && op.out.dtype() == DType::F32) {
        return Err(unsupported("linear", format!("{} activations and {} results", op.x.dtype(), op.out.dtype())));
    }
    if !has_packs(&[op.x])? {
        return Err(unsupported("linear", "rows of x that do not start at multiples of 16 bytes"));
    }
    Ok(())
}

impl Packed {
    pub fn bytes(&self) -> usize {
        self.tiles.len()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether [`Self::linear`] does all of `op`, for an `op` on rows of this weight only.
    pub fn fuses(&self, cx: &Context, op: &Linear) -> bool {
        let norm = op.norm.is_none() || op.x.shape()[0] <= SLICE_TOKENS || !cx.has("sm90_packed_linear_k");
        let gate = !matches!(op.epilogue, Epilogue::ActMul { .. }) || (self.rows / 2).is_multiple_of(TILE_ROWS);
        norm && gate
    }

    /// Queues `op`, which is one that this [`fuses`](Self::fuses).
    ///
    /// # Errors
    /// When no kernel takes its dtypes or strides, or the device fails.
    pub fn linear(&self, cx: &Context, op: &Linear) -> Result<()> {
        check(op)?;
        self.follow(cx);
        let tokens = op.x.shape()[0];
        if tokens > SLICE_TOKENS && cx.has("sm90_packed_linear_k") {
            return self.many(cx, op);
        }
        let slice = if self.plan(&machine(cx), SLICE_TOKENS, op.out.shape()[1]).is_some() { SLICE_TOKENS } else { 8 };
        for first in (0..tokens).step_by(slice) {
            let count = slice.min(tokens - first);
            self.few(cx, op, &op.x.narrow(0, first, count), &op.out.narrow(0, first, count))?;
        }
        Ok(())
    }

    /// Tells the weight that was used last what comes after it.
    fn follow(&self, cx: &Context) {
        if let Some(last) = cx.last_weight(&self.next) {
            last.get_or_init(|| Arc::downgrade(&self.tiles));
        }
    }

    fn plan(&self, machine: &Machine, tokens: usize, columns: usize) -> Option<Plan> {
        packed_tiles::plan(self.format, &Shape { columns, cols: self.cols, gated: self.rows > columns, tokens }, machine)
    }

    fn few(&self, cx: &Context, op: &Linear, x: &Tensor, out: &Tensor) -> Result<()> {
        let (tokens, columns) = (x.shape()[0], out.shape()[1]);
        let most = packed_tiles::kernel_tokens(tokens);
        let Some(plan) = self.plan(&machine(cx), most, columns) else {
            return Err(unsupported("linear", format!("{} columns on so little shared memory", self.cols)));
        };
        let params = self.params(op, x, out, &plan)?;
        let (file, kernel) = match most {
            1 => by_format!(self.dtype, "packed_linear", "_t1"),
            2 => by_format!(self.dtype, "packed_linear", "_t2"),
            4 => by_format!(self.dtype, "packed_skinny", "_t4"),
            8 => by_format!(self.dtype, "packed_skinny", "_t8"),
            _ => by_format!(self.dtype, "packed_skinny", "_t16"),
        };
        // SAFETY: the operation's contract holds, and the weight was repacked whole.
        unsafe { cx.launch(file, kernel, plan.grid(), &params) }
    }

    fn params(&self, op: &Linear, x: &Tensor, out: &Tensor, plan: &Plan) -> Result<PackedLinearParams> {
        let next = self.next.get().and_then(Weak::upgrade).filter(|_| self.tiles.len() <= PREFETCH_BYTES);
        let (next, next_bytes) = next.map_or((0, 0), |tiles| (tiles.ptr(), tiles.len().min(PREFETCH_BYTES) as u32));
        Ok(PackedLinearParams {
            x: ptr(x)?,
            norm: ptr_or_null(op.norm.map(|n| n.weight))?,
            data: self.tiles.ptr(),
            bias: ptr_or_null(op.bias)?,
            out: ptr(out)?,
            tokens: x.shape()[0] as u32,
            cols: self.cols as u32,
            columns: out.shape()[1] as u32,
            x_stride: stride(x, 0) as u32,
            out_stride: stride(out, 0) as u32,
            k_tiles: packed_tiles::k_tiles(self.cols) as u32,
            group_warps: plan.group_warps as u32,
            stages: plan.stages as u32,
            pass_tiles: plan.pass_tiles as u32,
            slab: plan.slab as u32,
            epilogue: epilogue(op),
            out_f32: u32::from(out.dtype() == DType::F32),
            format: self.format.index(),
            first_block: 0,
            blocks: plan.blocks as u32,
            eps: op.norm.map_or(0.0, |n| n.eps),
            next_bytes,
            next,
        })
    }

    fn many(&self, cx: &Context, op: &Linear) -> Result<()> {
        let (tokens, columns) = (op.x.shape()[0], op.out.shape()[1]);
        let block = packed_tiles::block_tokens(tokens);
        let x = TensorMapSpec {
            ptr: ptr(op.x)?,
            dtype: TensorMapDType::BF16,
            shape: [self.cols as u64, tokens as u64],
            stride_bytes: [2, 2 * op.x.strides()[0] as u64],
            box_shape: [64, block as u32],
            swizzle: Swizzle::B128,
        };
        let products = packed_tiles::sm90_blocks(tokens, columns, self.rows > columns);
        let sms = cx.device().attributes().sms as usize;
        let splits = packed_tiles::splits(products, self.cols, sms);
        let partials = if splits > 1 { cx.workspace(4 * splits * tokens * self.rows)? } else { 0 };
        let params = Sm90PackedLinearParams {
            x: x.encode()?,
            data: self.tiles.ptr(),
            bias: ptr_or_null(op.bias)?,
            out: ptr(op.out)?,
            tokens: tokens as u32,
            columns: columns as u32,
            k_tiles: packed_tiles::k_tiles(self.cols) as u32,
            out_stride: stride(op.out, 0) as u32,
            epilogue: epilogue(op),
            out_f32: u32::from(op.out.dtype() == DType::F32),
            splits: splits as u32,
            partials,
        };
        let (file, kernel) = match block {
            64 => by_format!(self.dtype, "sm90_packed_linear", "_t64"),
            128 => by_format!(self.dtype, "sm90_packed_linear", "_t128"),
            _ => by_format!(self.dtype, "sm90_packed_linear", "_t256"),
        };
        let shared_bytes = self.format.sm90_shared_bytes(block) as u32;
        let grid = Grid { shared_bytes, ..Grid::new((products * splits).min(sms), 384) };
        // SAFETY: the operation's contract holds, and the weight was repacked whole; the parts lie in the scratch memory.
        unsafe { cx.launch(file, kernel, grid, &params)? };
        if splits == 1 {
            return Ok(());
        }
        let params = PackedCombineParams {
            partials,
            bias: params.bias,
            out: params.out,
            tokens: params.tokens,
            columns: params.columns,
            splits: params.splits,
            out_stride: params.out_stride,
            epilogue: params.epilogue,
            out_f32: params.out_f32,
        };
        let blocks = [columns.div_ceil(256) as u32, tokens as u32, 1];
        // SAFETY: as above; the kernel in front wrote all parts.
        unsafe { cx.launch("packed_combine", "packed_combine", Grid { blocks, ..Grid::new(1, 256) }, &params) }
    }

    /// Rows of the table.
    ///
    /// # Errors
    /// When the device fails.
    pub fn embed(&self, cx: &Context, op: &Embed) -> Result<()> {
        let [tokens, cols] = [op.out.shape()[0], op.out.shape()[1]];
        let params = PackedEmbedParams {
            ids: ptr(op.ids)?,
            drawn: ptr_or_null(op.drawn)?,
            tiles: self.tiles.ptr(),
            out: ptr(op.out)?,
            rows: self.rows as u32,
            cols: cols as u32,
            k_tiles: packed_tiles::k_tiles(cols) as u32,
            out_stride: stride(op.out, 0) as u32,
            format: self.format.index(),
            drawn_rows: op.drawn.map_or(0, |d| d.shape()[0]) as u32,
            scale: op.scale,
        };
        let blocks = [cols.div_ceil(256) as u32, tokens as u32, 1];
        // SAFETY: the operation's contract holds, and the table was repacked whole.
        unsafe { cx.launch("packed_embed", by_float!(op.out.dtype(), "packed_embed"), Grid { blocks, ..Grid::new(1, 256) }, &params) }
    }
}

/// `Epilogue` of `packed.cuh`.
fn epilogue(op: &Linear) -> u32 {
    match op.epilogue {
        Epilogue::Store => 0,
        Epilogue::Add => 1,
        Epilogue::ActMul { activation: Activation::Silu, .. } => 2,
        Epilogue::ActMul { activation: Activation::GeluTanh, .. } => 3,
        Epilogue::Argmax { .. } => unreachable!("an argmax is a kernel of its own"),
    }
}
