//! `out = x · wᵀ + bias`.
//!
//! Float weights are read where they lie: in the file's mapping. Packed ones that meet 8-bit activations are rearranged
//! into [`panels::Panels`]: at load when they lie in memory of ours, and when they lie in a file bit by bit as they are used;
//! otherwise they too stay where they are.

#[cfg(target_arch = "x86_64")]
mod activations;
#[cfg(target_arch = "x86_64")]
mod fours;
#[cfg(target_arch = "x86_64")]
mod pace;
#[cfg(target_arch = "x86_64")]
mod panels;
mod portable;
#[cfg(target_arch = "x86_64")]
mod woven;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use std::time::Instant;
use std::{any::Any, path::Path, sync::Arc};

use ferrum_kernels::{
    DType, Error, HostBytes, PreparedWeight, Result, Weight, WeightPart,
    ops::{Epilogue, Linear},
    quant,
};

#[cfg(target_arch = "x86_64")]
use self::{
    activations::{Block, GROUP, Rounding},
    fours::Fours,
    woven::Woven,
};
use crate::{
    features::Simd,
    pool::Pool,
    storage::{self, Arena, View},
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

/// A weight, cut into row ranges of one dtype each.
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
    /// As stored
    row_bytes: usize,
    data: Rows,
}

#[derive(Debug)]
enum Rows {
    AsStored(HostBytes),
    #[cfg(target_arch = "x86_64")]
    Panels(panels::Panels),
}

impl Part {
    /// How its activations are rounded, if they are.
    #[cfg(target_arch = "x86_64")]
    fn rounding(&self, simd: Simd) -> Option<Rounding> {
        (!self.is_as_stored()).then(|| x86::rounding(simd, self.dtype))
    }

    fn is_as_stored(&self) -> bool {
        matches!(self.data, Rows::AsStored(_))
    }

    /// # Panics
    /// When the rows have been rearranged.
    fn stored(&self) -> &[u8] {
        match &self.data {
            Rows::AsStored(data) => data.as_slice(),
            #[cfg(target_arch = "x86_64")]
            Rows::Panels(_) => unreachable!("`run` checked that this backend has kernels for panels"),
        }
    }
}

impl CpuWeight {
    pub fn of(weight: &PreparedWeight) -> Result<&Self> {
        weight.downcast(crate::NAME)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes the elements of one row in F32.
    ///
    /// # Panics
    /// When `row` is not below [`CpuWeight::rows`], or `out` is not as long as a row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let part = self.parts.iter().rev().find(|p| p.first_row <= row && p.rows > 0).expect("the first part with rows starts at 0");
        match &part.data {
            Rows::AsStored(data) => {
                let packed = &data.as_slice()[(row - part.first_row) * part.row_bytes..][..part.row_bytes];
                quant::dequantize(part.dtype, packed, out).expect("prepare checked dtype and row length");
            }
            #[cfg(target_arch = "x86_64")]
            Rows::Panels(panels) => panels.row(row - part.first_row, out),
        }
    }

    /// Asked after the weight was read: a file that shrinks under its mapping, or cannot be read any more, gives zeros.
    ///
    /// # Errors
    /// When some of what was read may not have been the weight `name`.
    pub fn check(&self, name: &str) -> Result<()> {
        let lost = self.parts.iter().find_map(|part| match &part.data {
            Rows::AsStored(data) => data.lost(),
            #[cfg(target_arch = "x86_64")]
            Rows::Panels(panels) => panels.lost(),
        });
        lost.map_or(Ok(()), |file| Err(gone(name, file)))
    }

    /// Whether a backend like this can compute with it.
    fn suits(&self, how: How) -> bool {
        self.parts.iter().all(|part| match &part.data {
            Rows::AsStored(_) => true,
            #[cfg(target_arch = "x86_64")]
            Rows::Panels(panels) => how.int8 && panels.lanes() == x86::lanes(how.simd),
        })
    }
}

fn gone(name: &str, file: &Path) -> Error {
    let reason = format!("a part of {} was gone when it was read; put the file back and start again", file.display());
    Error::Weight { name: name.into(), reason }
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
    /// Activations for weights that stay as stored
    #[cfg(target_arch = "x86_64")]
    packed: Vec<f32>,
    /// Of the weights
    #[cfg(target_arch = "x86_64")]
    arena: Arena,
    #[cfg(target_arch = "x86_64")]
    pace: pace::Pace,
}

impl Scratch {
    pub fn new(workers: usize) -> Self {
        Self {
            rows: vec![Vec::new(); workers],
            #[cfg(target_arch = "x86_64")]
            activations: activations::Activations::default(),
            #[cfg(target_arch = "x86_64")]
            tiles: vec![x86::Tile::ZERO; workers],
            #[cfg(target_arch = "x86_64")]
            packed: Vec::new(),
            #[cfg(target_arch = "x86_64")]
            arena: Arena::default(),
            #[cfg(target_arch = "x86_64")]
            pace: pace::Pace::default(),
        }
    }

    /// What a scratch for `workers` takes once [`prepare`] has seen weights of up to `cols` columns.
    pub fn bytes(how: How, workers: usize, cols: usize) -> usize {
        let rows = if how.simd == Simd::Portable { workers * cols * size_of::<f32>() } else { 0 };
        #[cfg(target_arch = "x86_64")]
        let rows = rows
            + workers * size_of::<x86::Tile>()
            + if how.int8 { activations::Activations::bytes(x86::roundings(how.simd), MAX_TOKENS, cols) } else { 0 }
            + if how.simd == Simd::Portable { 0 } else { x86::packed_floats(MAX_TOKENS, cols) * size_of::<f32>() };
        rows
    }

    /// Makes room for products of `tokens` and the parts.
    fn reserve(&mut self, how: How, tokens: usize, cols: usize, parts: &[Part]) {
        #[cfg(target_arch = "x86_64")]
        if how.simd != Simd::Portable {
            for rounding in parts.iter().filter_map(|part| part.rounding(how.simd)) {
                self.activations.reserve(rounding, tokens, cols);
            }
            let floats = x86::packed_floats(tokens.min(MAX_TOKENS), cols);
            if parts.iter().any(Part::is_as_stored) && self.packed.len() < floats {
                self.packed.resize(floats, 0.0);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (tokens, parts);
        if how.simd == Simd::Portable {
            self.rows.iter_mut().filter(|row| row.len() < cols).for_each(|row| row.resize(cols, 0.0));
        }
    }
}

pub(crate) fn prepare(how: How, pool: &Pool, scratch: &mut Scratch, weight: Weight) -> Result<PreparedWeight> {
    let cols = weight.cols;
    let (mut parts, mut rows, mut taken) = (Vec::new(), 0usize, 0usize);
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
        let (data, bytes) = rearrange(how, pool, scratch, &weight.name, part)?;
        taken += bytes;
        parts.push(Part { dtype: part.dtype, first_row: rows, rows: part.rows, row_bytes, data });
        rows += part.rows;
    }
    scratch.reserve(how, MAX_TOKENS, cols, &parts);
    let inner: Arc<dyn Any + Send + Sync> = Arc::new(CpuWeight { cols, rows, parts });
    Ok(PreparedWeight::new(&weight, taken, inner))
}

/// Rows as the kernels want them, and the memory that takes beside the stored ones.
#[cfg(target_arch = "x86_64")]
fn rearrange(how: How, pool: &Pool, scratch: &mut Scratch, name: &str, part: &WeightPart) -> Result<(Rows, usize)> {
    let data = &part.data;
    if !how.int8 || !part.dtype.is_block() || data.is_empty() {
        return Ok((Rows::AsStored(data.clone()), 0));
    }
    let mut panels = panels::Panels::new(x86::lanes(how.simd), part.dtype, part.rows, data, &mut scratch.arena)?;
    if data.is_of_file() {
        scratch.pace.waiting += 1;
    } else {
        while panels.is_waiting() {
            if let Some(file) = panels.arrange(pool) {
                return Err(gone(name, file));
            }
        }
        panels.drop_stored();
    }
    let bytes = panels.bytes();
    Ok((Rows::Panels(panels), bytes))
}

#[cfg(not(target_arch = "x86_64"))]
fn rearrange(_: How, _: &Pool, _: &mut Scratch, _: &str, part: &WeightPart) -> Result<(Rows, usize)> {
    Ok((Rows::AsStored(part.data.clone()), 0))
}

/// `op` has no norm and no activation.
pub(crate) fn run(how: How, pool: &Pool, scratch: &mut Scratch, op: &Linear) -> Result<()> {
    op.check()?;
    let (x, out) = (storage::Rows::<f32>::of("linear", "x", op.x)?, storage::Rows::<f32>::of("linear", "out", op.out)?);
    let bias = op.bias.map(|b| View::<f32, 1>::of("linear", "bias", b)).transpose()?;
    if x.overlaps(&out) || bias.is_some_and(|b| b.overlaps(&out)) {
        let requirement = "it must not share memory with the inputs";
        return Err(Error::Value { op: "linear", arg: "out", got: "overlapping".into(), requirement });
    }
    let weight = CpuWeight::of(op.weight)?;
    if !weight.suits(how) {
        return Err(Error::ForeignTensor { backend: crate::NAME });
    }
    if x.shape[0] == 0 || weight.rows == 0 {
        return Ok(());
    }
    // SAFETY: there are rows, so the bias has an element 0; nobody writes it during this operation.
    let bias = bias.map(|b| unsafe { b.row([0]) });
    scratch.reserve(how, x.shape[0], weight.cols, &weight.parts);
    let add = matches!(op.epilogue, Epilogue::Add);
    let job = |part| Job { part, cols: weight.cols, x, bias, add, out };
    #[cfg(target_arch = "x86_64")]
    if how.simd != Simd::Portable {
        arrange(pool, scratch, weight, x.shape[0]);
        let started = (scratch.pace.waiting > 0).then(Instant::now);
        let takes = |rounding| weight.parts.iter().any(|part| part.rounding(how.simd) == Some(rounding));
        let acts = quantize(how, pool, &mut scratch.activations, x, &takes);
        x86::run(how.simd, pool, &mut scratch.tiles, &acts, &mut scratch.packed, weight, &job);
        if let Some(started) = started {
            scratch.pace.earn(started.elapsed().as_secs_f64(), x.shape[0]);
        }
        return weight.check(op.weight.name());
    }
    weight.parts.iter().for_each(|part| portable::run(pool, &mut scratch.rows, &job(part)));
    weight.check(op.weight.name())
}

/// Gives panels to a weight as long as there is time, beginning with its second product: the first token does not wait for any.
/// Stops where a part of the file is gone, which the check after the product finds too.
#[cfg(target_arch = "x86_64")]
fn arrange(pool: &Pool, scratch: &mut Scratch, weight: &CpuWeight, tokens: usize) {
    for part in &weight.parts {
        let Rows::Panels(panels) = &part.data else { continue };
        if !panels.use_again() {
            continue;
        }
        while panels.is_waiting() && scratch.pace.may_spend(tokens) {
            let started = Instant::now();
            let lost = panels.arrange(pool).is_some();
            scratch.pace.spend(started.elapsed().as_secs_f64(), tokens);
            if lost {
                return;
            }
            scratch.pace.waiting -= usize::from(!panels.is_waiting());
        }
    }
}

/// Rounds all tokens in the ways that are taken.
#[cfg(target_arch = "x86_64")]
fn quantize(
    how: How,
    pool: &Pool,
    activations: &mut activations::Activations,
    x: storage::Rows<f32>,
    takes: &dyn Fn(Rounding) -> bool,
) -> activations::ActivationRows {
    let [tokens, cols] = x.shape;
    let rows = activations.rows(takes, tokens, cols);
    let (blocks, fours) = (takes(Rounding::Blocks), takes(Rounding::Fours));
    if blocks || fours {
        let few = tokens < x86::TILED_TOKENS;
        // SAFETY: every level with integer kernels includes AVX2 and FMA; packed weights have whole blocks of columns, and
        // `x` as many; each group of tokens belongs to one chunk.
        pool.chunks(tokens, GROUP, &|_, tokens| unsafe {
            let row = |token| x.at([token, 0]).cast_const();
            match (blocks, few) {
                (false, _) => {}
                (true, true) => activations::quantize_avx2::<Block<1>, 1>(&rows, tokens.clone(), row),
                (true, false) if how.simd == Simd::Avx2 => activations::quantize_avx2::<Woven, GROUP>(&rows, tokens.clone(), row),
                (true, false) => activations::quantize_avx2::<Block<GROUP>, GROUP>(&rows, tokens.clone(), row),
            }
            match (fours, few) {
                (false, _) => {}
                (true, true) => activations::quantize_avx2::<Fours<1>, 1>(&rows, tokens, row),
                (true, false) => activations::quantize_avx2::<Fours<GROUP>, GROUP>(&rows, tokens, row),
            }
        });
    }
    rows
}

/// One part of a weight applied to all tokens.
struct Job<'a> {
    part: &'a Part,
    cols: usize,
    /// `[tokens, cols]`
    x: storage::Rows<f32>,
    /// Of the whole weight
    bias: Option<&'a [f32]>,
    /// Whether the product is added to `out`
    add: bool,
    /// `[tokens, rows of the whole weight]`
    out: storage::Rows<f32>,
}

impl Job<'_> {
    /// What the product of a token and a row of the part is added to.
    ///
    /// # Safety
    /// Token and row exist, and no other thread writes this element of `out`.
    #[inline(always)]
    unsafe fn addend(&self, token: usize, row: usize) -> f32 {
        let row = self.part.first_row + row;
        let bias = self.bias.map_or(0.0, |b| b[row]);
        // SAFETY: promised by the caller.
        if self.add { bias + unsafe { *self.out.at([token, row]) } } else { bias }
    }
}
