//! `out = x · wᵀ + bias` over packed weights, which are read where they lie: in the file's mapping.

#[cfg(target_arch = "x86_64")]
mod activations;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{any::Any, sync::Arc};

use ferrum_kernels::{DType, Error, HostBytes, PreparedWeight, Result, Weight, ops::Linear};

use crate::{
    features::Simd,
    pool::Pool,
    storage::{Rows, View},
};

/// The most tokens of one step; scratch memory is sized for it.
pub(crate) const MAX_TOKENS: usize = 512;

/// Which kernels to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub simd: Simd,
    pub int8: bool,
}

/// Whether there are integer kernels for this level.
pub(crate) fn has_int8(simd: Simd) -> bool {
    simd != Simd::Portable
}

/// A weight as the checkpoint holds it, cut into row ranges of one dtype each.
#[derive(Debug)]
pub(crate) struct CpuWeight {
    cols: usize,
    rows: usize,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    dtype: DType,
    first_row: usize,
    rows: usize,
    row_bytes: usize,
    data: HostBytes,
}

impl CpuWeight {
    pub fn of(weight: &PreparedWeight) -> Result<&Self> {
        weight.downcast(crate::NAME)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Dtype and bytes of one row.
    ///
    /// # Panics
    /// When `row` is not below [`CpuWeight::rows`].
    pub fn row(&self, row: usize) -> (DType, &[u8]) {
        let part = self.parts.iter().rev().find(|p| p.first_row <= row && p.rows > 0).expect("the first part with rows starts at 0");
        (part.dtype, &part.data.as_slice()[(row - part.first_row) * part.row_bytes..][..part.row_bytes])
    }
}

/// Memory that every `linear` uses anew, sized by [`prepare`].
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Of the portable kernels: per worker, one row in F32
    rows: Vec<Vec<f32>>,
    #[cfg(target_arch = "x86_64")]
    activations: activations::Activations,
    #[cfg(target_arch = "x86_64")]
    tiles: Vec<x86::Tile>,
}

impl Scratch {
    pub fn new(workers: usize) -> Self {
        Self {
            rows: vec![Vec::new(); workers],
            #[cfg(target_arch = "x86_64")]
            activations: activations::Activations::default(),
            #[cfg(target_arch = "x86_64")]
            tiles: vec![x86::Tile::ZERO; workers],
        }
    }

    /// What a scratch for `workers` takes once [`prepare`] has seen weights of up to `cols` columns.
    pub fn bytes(how: How, workers: usize, cols: usize) -> usize {
        let rows = if how.simd == Simd::Portable { workers * cols * size_of::<f32>() } else { 0 };
        #[cfg(target_arch = "x86_64")]
        let rows = rows + workers * size_of::<x86::Tile>() + if how.int8 { activations::Activations::bytes(MAX_TOKENS, cols) } else { 0 };
        rows
    }

    fn reserve(&mut self, how: How, tokens: usize, cols: usize) {
        #[cfg(target_arch = "x86_64")]
        if how.int8 {
            self.activations.reserve(tokens, cols);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (tokens, how.int8);
        if how.simd == Simd::Portable {
            self.rows.iter_mut().filter(|row| row.len() < cols).for_each(|row| row.resize(cols, 0.0));
        }
    }
}

pub(crate) fn prepare(how: How, scratch: &mut Scratch, weight: Weight) -> Result<PreparedWeight> {
    let cols = weight.cols;
    let (mut parts, mut rows) = (Vec::new(), 0usize);
    for part in &weight.parts {
        let bad = |reason| Error::Weight { name: weight.name.clone(), reason };
        if matches!(part.dtype, DType::I32 | DType::U8) {
            let what = format!("weights of type {} (tensor `{}`)", part.dtype, weight.name);
            return Err(Error::Unsupported { backend: crate::NAME, op: "linear", what });
        }
        let row_bytes = part.dtype.bytes(cols).ok_or_else(|| bad(format!("{cols} columns are not whole {} blocks", part.dtype)))?;
        if part.rows.checked_mul(row_bytes) != Some(part.data.len()) {
            return Err(bad(format!("{} bytes do not hold [{}, {cols}] {}", part.data.len(), part.rows, part.dtype)));
        }
        parts.push(Part { dtype: part.dtype, first_row: rows, rows: part.rows, row_bytes, data: part.data.clone() });
        rows += part.rows;
    }
    scratch.reserve(how, MAX_TOKENS, cols);
    let inner: Arc<dyn Any + Send + Sync> = Arc::new(CpuWeight { cols, rows, parts });
    Ok(PreparedWeight::new(&weight, 0, inner))
}

pub(crate) fn run(how: How, pool: &Pool, scratch: &mut Scratch, op: &Linear) -> Result<()> {
    op.check()?;
    let (x, out) = (Rows::<f32>::of("linear", "x", op.x)?, Rows::<f32>::of("linear", "out", op.out)?);
    let bias = op.bias.map(|b| View::<f32, 1>::of("linear", "bias", b)).transpose()?;
    if x.overlaps(&out) || bias.is_some_and(|b| b.overlaps(&out)) {
        let requirement = "it must not share memory with the inputs";
        return Err(Error::Value { op: "linear", arg: "out", got: "overlapping".into(), requirement });
    }
    let weight = CpuWeight::of(op.weight)?;
    if x.shape[0] == 0 || weight.rows == 0 {
        return Ok(());
    }
    // SAFETY: there are rows, so the bias has an element 0; nobody writes it during this operation.
    let bias = bias.map(|b| unsafe { b.row([0]) });
    scratch.reserve(how, x.shape[0], weight.cols);
    let job = |part| Job { part, cols: weight.cols, x, bias, out };
    #[cfg(target_arch = "x86_64")]
    if how.simd != Simd::Portable {
        let packed = how.int8 && weight.parts.iter().any(|p| p.dtype.is_block());
        let acts = packed.then(|| quantize(pool, &mut scratch.activations, x));
        x86::run(how.simd, pool, &mut scratch.tiles, acts.as_ref(), weight, &job);
        return Ok(());
    }
    weight.parts.iter().for_each(|part| portable::run(pool, &mut scratch.rows, &job(part)));
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn quantize(pool: &Pool, activations: &mut activations::Activations, x: Rows<f32>) -> activations::ActivationRows {
    let rows = activations.rows(x.shape[0], x.shape[1]);
    pool.chunks(x.shape[0], 4, &|_, tokens| {
        // SAFETY: every level with integer kernels includes AVX2 and FMA; packed weights have whole blocks of columns, and
        // `x` as many; each token belongs to one chunk.
        unsafe { activations::quantize_avx2(&rows, tokens, |token| x.at([token, 0])) };
    });
    rows
}

/// One part of a weight applied to all tokens.
struct Job<'a> {
    part: &'a Part,
    cols: usize,
    /// `[tokens, cols]`
    x: Rows<f32>,
    /// Of the whole weight
    bias: Option<&'a [f32]>,
    /// `[tokens, rows of the whole weight]`
    out: Rows<f32>,
}

impl Job<'_> {
    /// The bias of a row of the part.
    fn bias(&self, row: usize) -> f32 {
        self.bias.map_or(0.0, |b| b[self.part.first_row + row])
    }
}
