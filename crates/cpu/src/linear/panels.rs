//! Packed weights in panels: the same bits as in the file, rearranged so that one vector holds the same place of many rows.
//!
//! A panel is [`Panels::lanes`] rows. Per block of the dtype it holds, one behind the other, and each for all rows side by
//! side: the f16 numbers (scale, then minimum), the scales of sub-blocks as bytes, and the codes as 32-bit words. A row
//! thus lies in one 32-bit lane of every vector of codes: dot products need no sums across lanes, and scales, minimums and
//! the rounded activations are prepared once for all rows. A panel is one stream for the prefetcher.
//!
//! Q3_K, Q4_K, Q5_K and IQ4_XS hold their 6-bit scales as bytes here, which is 1 to 4 % more memory; the others take the
//! bytes of the file. Rows beyond the last are zero.
//!
//! Fresh memory is slow to come by, up to a hundred times slower than reading a file that is in the system's cache. So the
//! first products take the rows from where they lie and rearrange a piece of a panel at a time, in a buffer in the L1 cache;
//! panels in memory follow bit by bit, as [`super::pace`] has time for them.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ferrum_kernels::{DType, HostBytes, Result, quant};

use super::x86;
use crate::{
    pool::Pool,
    storage::{Arena, CpuStorage},
};

/// How many f16 numbers, bytes and words a row has per block of its dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub halves: usize,
    pub bytes: usize,
    pub words: usize,
    /// Words that are other than in the block: those before the ones that lie in it from `from` on
    pub bits: usize,
    pub from: usize,
}

impl Shape {
    /// Of one row.
    pub const fn block_bytes(self) -> usize {
        2 * self.halves + self.bytes + 4 * self.words
    }

    /// Where in the block of a panel of `lanes` rows the bytes and the words begin.
    pub const fn offsets(self, lanes: usize) -> (usize, usize) {
        (2 * self.halves * lanes, (2 * self.halves + self.bytes) * lanes)
    }

    /// # Panics
    /// For a dtype that has no blocks.
    pub const fn of(dtype: DType) -> Self {
        let (halves, bytes, words, bits, from) = match dtype {
            DType::Q4_0 | DType::IQ4_NL => (1, 0, 4, 0, 2),
            DType::Q4_1 => (2, 0, 4, 0, 4),
            DType::Q5_0 => (1, 0, 5, 1, 6),
            DType::Q5_1 => (2, 0, 5, 1, 8),
            DType::Q8_0 => (1, 0, 8, 0, 2),
            DType::Q2_K => (2, 16, 16, 0, 16),
            DType::Q3_K => (1, 16, 24, 0, 0),
            DType::Q4_K => (2, 16, 32, 0, 16),
            DType::Q5_K => (2, 16, 40, 0, 16),
            DType::Q6_K => (1, 16, 48, 0, 0),
            DType::IQ4_XS => (1, 8, 32, 0, 8),
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::U8 => panic!("not a block type"),
        };
        Self { halves, bytes, words, bits, from }
    }

    /// Bytes of the block that go into the panel as they are.
    const fn words_in_block(self) -> Range<usize> {
        self.from..self.from + 4 * (self.words - self.bits)
    }
}

/// A matrix of one dtype.
#[derive(Debug)]
pub(super) struct Panels {
    /// As in the file; none once the panels of a weight that lay in memory are there
    stored: HostBytes,
    /// Of a row
    row_bytes: usize,
    rows: usize,
    /// How many panels are in memory: the first ones. Changes between operations only.
    arranged: AtomicUsize,
    /// Whether a product has taken it
    used: AtomicBool,
    /// Where the panels have their place. Taken at load, so that no step asks for memory; the system gives it as it is filled.
    room: (Arc<CpuStorage>, usize),
    dtype: DType,
    lanes: usize,
    /// Blocks of a row
    blocks: usize,
}

/// How much of a matrix is rearranged at a time: enough to keep some threads at work, little enough to stop in time.
const PIECE_BYTES: usize = 4 << 20;

impl Panels {
    /// `rows` rows of whole blocks; `data` holds exactly these.
    ///
    /// # Errors
    /// When there is no room for the panels.
    pub fn new(lanes: usize, dtype: DType, rows: usize, data: &HostBytes, arena: &mut Arena) -> Result<Self> {
        let row_bytes = data.len() / rows.max(1);
        let blocks = row_bytes / dtype.block_bytes();
        let room = arena.take(panel_bytes(dtype, lanes, blocks) * rows.div_ceil(lanes))?;
        let (arranged, used) = (AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Self { stored: data.clone(), row_bytes, rows, arranged, used, room, dtype, lanes, blocks })
    }

    /// Rearranges the next panels and releases their rows. When a part of their file was gone, they are not counted, and its path
    /// is returned.
    pub fn arrange(&self, pool: &Pool) -> Option<&Path> {
        let first = self.arranged();
        let end = self.count().min(first + PIECE_BYTES.div_ceil(self.panel_bytes().max(1)));
        pool.chunks(end - first, (end - first).div_ceil(4 * pool.workers()), &|_, range| {
            for panel in first + range.start..first + range.end {
                // SAFETY: all levels with panels include AVX2. The memory was taken for this matrix alone, each panel belongs to
                // one chunk, and nobody reads those that are not counted as arranged.
                unsafe { self.fill(panel, 0..self.blocks, self.place(panel).cast_mut()) };
            }
        });
        let lost = self.stored.lost();
        if lost.is_some() {
            return lost;
        }
        let row = |panel: usize| (panel * self.lanes).min(self.rows) * self.row_bytes;
        self.stored.release(row(first)..row(end));
        self.arranged.store(end, Ordering::Release);
        None
    }

    /// Gives back the rows once all panels are in memory.
    pub fn drop_stored(&mut self) {
        assert!(!self.is_waiting());
        self.stored = HostBytes::from_vec(Vec::new());
    }

    /// The file's path, if products miss a part of it: panels in memory do not mind what becomes of the file.
    pub fn lost(&self) -> Option<&Path> {
        if self.is_waiting() { self.stored.lost() } else { None }
    }

    /// Whether panels are missing in memory.
    pub fn is_waiting(&self) -> bool {
        self.arranged() < self.count()
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.lanes)
    }

    /// How many of the panels are in memory.
    #[inline(always)]
    pub fn arranged(&self) -> usize {
        self.arranged.load(Ordering::Acquire)
    }

    /// Whether a product has taken it before; from now on one has.
    pub fn use_again(&self) -> bool {
        self.used.swap(true, Ordering::Relaxed)
    }

    /// Bytes of all panels.
    pub fn bytes(&self) -> usize {
        self.panel_bytes() * self.count()
    }

    fn panel_bytes(&self) -> usize {
        panel_bytes(self.dtype, self.lanes, self.blocks)
    }

    /// Where a panel has its place in memory.
    #[inline(always)]
    fn place(&self, panel: usize) -> *const u8 {
        let (storage, start) = &self.room;
        storage.as_ptr().wrapping_add(start + panel * self.panel_bytes())
    }

    /// Where `panel` begins, of which `blocks` can be read: in memory, or so that they lie in `buffer`.
    ///
    /// # Safety
    /// The processor has AVX2; the panel and the blocks exist; `buffer` has room for as many of [`Shape::block_bytes`] for each lane,
    /// and the caller alone uses it.
    #[inline(always)]
    pub unsafe fn panel(&self, panel: usize, blocks: Range<usize>, buffer: *mut u8) -> *const u8 {
        if panel < self.arranged() {
            return self.place(panel);
        }
        let before = blocks.start * self.lanes * Shape::of(self.dtype).block_bytes();
        // SAFETY: promised by the caller.
        unsafe { self.fill(panel, blocks, buffer) };
        buffer.cast_const().wrapping_sub(before)
    }

    /// Rearranges `blocks` of a panel.
    ///
    /// # Safety
    /// As [`Panels::panel`].
    unsafe fn fill(&self, panel: usize, blocks: Range<usize>, to: *mut u8) {
        let first = panel * self.lanes;
        let rows = x86::StoredRows { data: &self.stored[first * self.row_bytes..], row_bytes: self.row_bytes, count: self.rows - first };
        // SAFETY: promised by the caller; the stored rows have these blocks.
        unsafe { x86::fill_panel(self.dtype, self.lanes, &rows, blocks, to) };
    }

    /// Rows of a panel.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Writes the elements of a row in F32.
    ///
    /// # Panics
    /// When `out` is not as long as a row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let lane = row % self.lanes;
        if row / self.lanes >= self.arranged() {
            let packed = &self.stored[row * self.row_bytes..][..self.row_bytes];
            return quant::dequantize(self.dtype, packed, out).expect("prepare checked dtype and row length");
        }
        // SAFETY: the panel lies in the memory that was taken for this matrix, which nobody writes any more.
        let panel = unsafe { std::slice::from_raw_parts(self.place(row / self.lanes), self.panel_bytes()) };
        let shape = Shape::of(self.dtype);
        let first_word = shape.offsets(self.lanes).1 + 4 * shape.bits * self.lanes;
        let (mut fields, mut block) = (Fields::default(), [0; 210]);
        let block = &mut block[..self.dtype.block_bytes()];
        for (packed, out) in panel.chunks_exact(panel.len() / self.blocks).zip(out.chunks_exact_mut(self.dtype.block_len())) {
            fields.read(shape, self.lanes, lane, packed);
            join(self.dtype, &fields, block);
            for (n, word) in block[shape.words_in_block()].as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *word = word_at(packed, first_word + 4 * (n * self.lanes + lane)).to_le_bytes();
            }
            quant::dequantize(self.dtype, block, out).expect("a whole block");
        }
    }
}

fn panel_bytes(dtype: DType, lanes: usize, blocks: usize) -> usize {
    lanes * blocks * Shape::of(dtype).block_bytes()
}

/// What of the block of one row is not plain words.
#[derive(Default)]
struct Fields {
    halves: [u16; 2],
    bytes: [u8; 16],
    /// Of Q5_0 and Q5_1, in the order of the panel
    bits: u32,
}

impl Fields {
    fn read(&mut self, shape: Shape, lanes: usize, lane: usize, panel: &[u8]) {
        let (bytes, words) = shape.offsets(lanes);
        for (n, half) in self.halves[..shape.halves].iter_mut().enumerate() {
            *half = half_at(panel, 2 * (n * lanes + lane));
        }
        for (n, byte) in self.bytes[..shape.bytes].iter_mut().enumerate() {
            *byte = panel[bytes + n * lanes + lane];
        }
        if shape.bits == 1 {
            self.bits = word_at(panel, words + 4 * lane);
        }
    }
}

/// The block of a row, all but the plain words.
fn join(dtype: DType, f: &Fields, block: &mut [u8]) {
    let half = |block: &mut [u8], n: usize, at: usize| block[at..at + 2].copy_from_slice(&f.halves[n].to_le_bytes());
    block.fill(0);
    if dtype.block_len() == 32 || matches!(dtype, DType::Q4_K | DType::Q5_K | DType::IQ4_XS) {
        half(block, 0, 0);
    }
    match dtype {
        DType::Q4_1 => half(block, 1, 2),
        DType::Q5_0 => block[2..6].copy_from_slice(&bits_by_element(f.bits).to_le_bytes()),
        DType::Q5_1 => {
            half(block, 1, 2);
            block[4..8].copy_from_slice(&bits_by_element(f.bits).to_le_bytes());
        }
        DType::Q2_K => {
            half(block, 0, 80);
            half(block, 1, 82);
            block[..16].copy_from_slice(&f.bytes);
        }
        DType::Q3_K => {
            half(block, 0, 108);
            for (j, scale) in f.bytes.iter().enumerate() {
                let scale = scale.wrapping_add(32);
                block[96 + j % 8] |= (scale & 15) << (4 * (j / 8));
                block[104 + j % 4] |= (scale >> 4) << (2 * (j / 4));
            }
        }
        DType::Q4_K | DType::Q5_K => {
            half(block, 1, 2);
            for j in 0..4 {
                block[4 + j] = f.bytes[j] | f.bytes[4 + j] >> 4 << 6;
                block[8 + j] = f.bytes[8 + j] | f.bytes[12 + j] >> 4 << 6;
                block[12 + j] = f.bytes[4 + j] & 15 | f.bytes[12 + j] << 4;
            }
        }
        DType::Q6_K => {
            half(block, 0, 208);
            block[192..208].copy_from_slice(&f.bytes);
        }
        DType::IQ4_XS => {
            let mut high = 0;
            for j in 0..8 {
                let scale = f.bytes[j].wrapping_add(32);
                block[4 + j / 2] |= (scale & 15) << (4 * (j % 2));
                high |= u16::from(scale >> 4) << (2 * j);
            }
            block[2..4].copy_from_slice(&high.to_le_bytes());
        }
        _ => {}
    }
}

/// The high bits of 32 elements in the order of the file; panels have that of [`x86::bits_by_step`].
fn bits_by_element(bits: u32) -> u32 {
    (0..32).fold(0, |out, element| out | (bits >> (8 * (element % 4) + element / 4) & 1) << element)
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        let pool = Pool::new(2).unwrap();
        let mut random = 1u32;
        for dtype in DType::weights().filter(|d| d.is_block()) {
            for (lanes, rows) in [(8, 21), (16, 40)] {
                let row_bytes = 3 * dtype.block_bytes();
                let data: Vec<u8> = (0..rows * row_bytes)
                    .map(|_| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (random >> 24) as u8
                    })
                    .collect();
                let panels = Panels::new(lanes, dtype, rows, &HostBytes::from_vec(data.clone()), &mut Arena::default()).unwrap();
                assert!(panels.arrange(&pool).is_none() && !panels.is_waiting());
                for (n, row) in data.chunks_exact(row_bytes).enumerate() {
                    let (mut want, mut got) = (vec![0.0; 3 * dtype.block_len()], vec![1.0; 3 * dtype.block_len()]);
                    quant::dequantize(dtype, row, &mut want).unwrap();
                    panels.row(n, &mut got);
                    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&got), bits(&want), "{dtype}, {lanes} lanes, row {n}");
                }
            }
        }
    }
}
