//! Packed weights in panels: the same bits as in the file, rearranged so that one vector holds the same place of many rows.
//!
//! A panel is [`Panels::lanes`] rows. Per block of the dtype it holds, one behind the other, and each for all rows side by
//! side: the f16 numbers (scale, then minimum), the scales of sub-blocks as bytes, and the codes as 32-bit words. A row
//! thus lies in one 32-bit lane of every vector of codes: dot products need no sums across lanes, and scales, minimums and
//! the rounded activations are prepared once for all rows. A panel is one stream for the prefetcher.
//!
//! Q3_K, Q4_K, Q5_K and IQ4_XS hold their 6-bit scales as bytes here, which is 1 to 4 % more memory; the others take the
//! bytes of the file. Rows beyond the last are zero.

use std::{arch::x86_64::*, ops::Range, sync::Arc};

use ferrum_kernels::{DType, HostBytes, Result, quant};

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
    bits: usize,
    from: usize,
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
    storage: Arc<CpuStorage>,
    start: usize,
    dtype: DType,
    lanes: usize,
    /// Blocks of a row
    blocks: usize,
}

impl Panels {
    /// Rearranges `rows` rows of whole blocks; `data` holds exactly these and is released.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(pool: &Pool, arena: &mut Arena, lanes: usize, dtype: DType, rows: usize, data: &HostBytes) -> Result<Self> {
        let row_bytes = data.len() / rows.max(1);
        let blocks = row_bytes / dtype.block_bytes();
        let count = rows.div_ceil(lanes);
        let (storage, start) = arena.take(count * lanes * blocks * Shape::of(dtype).block_bytes())?;
        let panels = Self { storage, start, dtype, lanes, blocks };
        // Giving pages back interrupts the other threads, so chunks are as large as keeps all threads at work.
        let chunk = (data.len() / 4).clamp(1 << 17, 1 << 21) / panels.panel_bytes().max(1);
        pool.chunks(count, chunk, &|_, range| {
            // SAFETY: the memory was taken for this matrix alone, and each panel belongs to one chunk.
            let to = unsafe { std::slice::from_raw_parts_mut(panels.panel(range.start), range.len() * panels.panel_bytes()) };
            let from = range.start * lanes * row_bytes..(range.end * lanes).min(rows) * row_bytes;
            fill(dtype, lanes, &data[from.clone()], row_bytes, to);
            data.release(from);
        });
        Ok(panels)
    }

    /// Rows of a panel.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    pub fn panel_bytes(&self) -> usize {
        self.lanes * self.blocks * Shape::of(self.dtype).block_bytes()
    }

    /// The first byte of a panel.
    pub fn panel(&self, panel: usize) -> *mut u8 {
        self.storage.as_ptr().wrapping_add(self.start + panel * self.panel_bytes())
    }

    /// Writes the elements of a row in F32.
    ///
    /// # Panics
    /// When `out` is not as long as a row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let lane = row % self.lanes;
        // SAFETY: the panel lies in the memory that was taken for this matrix, which nobody writes any more.
        let panel = unsafe { std::slice::from_raw_parts(self.panel(row / self.lanes), self.panel_bytes()) };
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

/// What of the block of one row is not plain words.
#[derive(Default)]
struct Fields {
    halves: [u16; 2],
    bytes: [u8; 16],
    /// Of Q5_0 and Q5_1; written in the order of the file, read in that of the panel
    bits: u32,
}

impl Fields {
    #[inline(always)]
    fn write(&self, shape: Shape, lanes: usize, lane: usize, panel: &mut [u8]) {
        let (bytes, words) = shape.offsets(lanes);
        for (half, to) in self.halves[..shape.halves].iter().zip(panel[2 * lane..].chunks_mut(2 * lanes)) {
            to[..2].copy_from_slice(&half.to_le_bytes());
        }
        for (&byte, to) in self.bytes[..shape.bytes].iter().zip(panel[bytes + lane..].chunks_mut(lanes)) {
            to[0] = byte;
        }
        if shape.bits == 1 {
            panel[words + 4 * lane..][..4].copy_from_slice(&self.bits.to_le_bytes());
        }
    }

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

/// Fills whole panels from rows, of which the last panel may have fewer.
fn fill(dtype: DType, lanes: usize, rows: &[u8], row_bytes: usize, panels: &mut [u8]) {
    // One copy per dtype and width, so that the loops over fields have constant lengths.
    macro_rules! each {
        ($($dtype:ident)*) => {
            match (dtype, lanes) {
                $((DType::$dtype, 16) => fill_panels(DType::$dtype, 16, rows, row_bytes, panels),
                  (DType::$dtype, 8) => fill_panels(DType::$dtype, 8, rows, row_bytes, panels),)*
                _ => unreachable!("no kernel has panels of {lanes} {dtype} rows"),
            }
        };
    }
    each!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS);
}

#[inline(always)]
fn fill_panels(dtype: DType, lanes: usize, rows: &[u8], row_bytes: usize, panels: &mut [u8]) {
    let (shape, block_bytes) = (Shape::of(dtype), dtype.block_bytes());
    let first_word = shape.offsets(lanes).1 + 4 * shape.bits * lanes;
    let mut fields = Fields::default();
    for (start, panel) in
        (0..).step_by(lanes * row_bytes).zip(panels.chunks_exact_mut(lanes * row_bytes / block_bytes * shape.block_bytes()))
    {
        let (rows, after) = rows[start..].split_at(rows[start..].len().min(lanes * row_bytes));
        for (n, to) in panel.chunks_exact_mut(lanes * shape.block_bytes()).enumerate() {
            // The next rows come in while these are rearranged: as many streams as lanes are more than the prefetcher follows.
            after.chunks(64).skip(n * lanes * block_bytes / 64).take((lanes * block_bytes).div_ceil(64)).for_each(prefetch);
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                split(dtype, &row[n * block_bytes..][..block_bytes], &mut fields);
                fields.write(shape, lanes, lane, to);
            }
            if shape.bits == 1 {
                for bits in to[shape.offsets(lanes).1..first_word].as_chunks_mut::<4>().0 {
                    *bits = bits_by_step(u32::from_le_bytes(*bits)).to_le_bytes();
                }
            }
            let words = &mut to[first_word..];
            let from = n * block_bytes + shape.from;
            for (four, rows) in rows.chunks(4 * row_bytes).enumerate() {
                let row = |r: usize| &rows[r * row_bytes + from..][..4 * (shape.words - shape.bits)];
                if rows.len() == 4 * row_bytes {
                    fill_words_of_four([row(0), row(1), row(2), row(3)], lanes, &mut words[16 * four..]);
                } else {
                    for r in 0..rows.len() / row_bytes {
                        let lanes_of_row = words[16 * four + 4 * r..].chunks_mut(4 * lanes);
                        row(r).as_chunks::<4>().0.iter().zip(lanes_of_row).for_each(|(word, to)| to[..4].copy_from_slice(word));
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn prefetch(line: &[u8]) {
    // SAFETY: SSE is part of x86-64, for which alone there are panels, and a prefetch reads nothing.
    unsafe { _mm_prefetch::<{ _MM_HINT_T0 }>(line.as_ptr().cast()) };
}

/// The words of four rows side by side: word `w` of row `r` goes to `to[4 * (w * lanes + r)..]`. Rows hold a multiple of four words.
#[inline(always)]
fn fill_words_of_four(rows: [&[u8]; 4], lanes: usize, to: &mut [u8]) {
    let steps = rows[0].len() / 16;
    assert!(rows.iter().all(|r| r.len() == rows[0].len()) && (steps == 0 || to.len() >= 4 * (4 * steps - 1) * lanes + 16));
    for step in 0..steps {
        // SAFETY: SSE2 is part of x86-64. The loads end at byte `16 * steps` of a row, the stores at `16` of the last word's
        // lanes; the lengths were checked above.
        unsafe {
            let [a, b, c, d] = rows.map(|r| _mm_loadu_si128(r.as_ptr().add(16 * step).cast()));
            let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
            let to: *mut u8 = to.as_mut_ptr().add(16 * step * lanes);
            _mm_storeu_si128(to.cast(), _mm_unpacklo_epi64(ab, cd));
            _mm_storeu_si128(to.add(4 * lanes).cast(), _mm_unpackhi_epi64(ab, cd));
            _mm_storeu_si128(to.add(8 * lanes).cast(), _mm_unpacklo_epi64(ab_high, cd_high));
            _mm_storeu_si128(to.add(12 * lanes).cast(), _mm_unpackhi_epi64(ab_high, cd_high));
        }
    }
}

/// Takes all but the plain words; [`Fields::bits`] stay in the file's order.
#[inline(always)]
fn split(dtype: DType, block: &[u8], f: &mut Fields) {
    let half = |f: &mut Fields, n: usize, at: usize| f.halves[n] = half_at(block, at);
    if dtype.block_len() == 32 || matches!(dtype, DType::Q4_K | DType::Q5_K | DType::IQ4_XS) {
        half(f, 0, 0);
    }
    match dtype {
        DType::Q4_1 => half(f, 1, 2),
        DType::Q5_0 => f.bits = word_at(block, 2),
        DType::Q5_1 => {
            half(f, 1, 2);
            f.bits = word_at(block, 4);
        }
        DType::Q2_K => {
            half(f, 0, 80);
            half(f, 1, 82);
            f.bytes.copy_from_slice(&block[..16]);
        }
        DType::Q3_K => {
            half(f, 0, 108);
            for (j, scale) in f.bytes.iter_mut().enumerate() {
                let (low, high) = (block[96 + j % 8] >> (4 * (j / 8)) & 15, block[104 + j % 4] >> (2 * (j / 4)) & 3);
                *scale = (low | high << 4).wrapping_sub(32);
            }
        }
        DType::Q4_K | DType::Q5_K => {
            half(f, 1, 2);
            let b = &block[4..16];
            for j in 0..4 {
                (f.bytes[j], f.bytes[8 + j]) = (b[j] & 63, b[4 + j] & 63);
                f.bytes[4 + j] = b[8 + j] & 15 | b[j] >> 6 << 4;
                f.bytes[12 + j] = b[8 + j] >> 4 | b[4 + j] >> 6 << 4;
            }
        }
        DType::Q6_K => {
            half(f, 0, 208);
            f.bytes.copy_from_slice(&block[192..208]);
        }
        DType::IQ4_XS => {
            let high = half_at(block, 2);
            for j in 0..8 {
                let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
                f.bytes[j] = (low | ((high >> (2 * j)) as u8 & 3) << 4).wrapping_sub(32);
            }
        }
        _ => {}
    }
}

/// The inverse of [`split`], with the bits in the panel's order; leaves the plain words out.
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

/// The high bits of 32 elements, from bit `4k + j` for element `4k + j` to bit `k` of byte `j`: where step `k` of a dot
/// product finds those of its four elements at the same place of the four bytes.
#[inline(always)]
fn bits_by_step(bits: u32) -> u32 {
    let mut out = 0;
    for j in 0..4 {
        // Bits 0, 4, 8 … come together in the low byte.
        let mut b = bits >> j & 0x1111_1111;
        b = (b | b >> 3) & 0x0303_0303;
        b = (b | b >> 6) & 0x000f_000f;
        out |= ((b | b >> 12) & 0xff) << (8 * j);
    }
    out
}

/// The inverse of [`bits_by_step`].
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
                let panels = Panels::new(&pool, &mut Arena::default(), lanes, dtype, rows, &HostBytes::from_vec(data.clone())).unwrap();
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
