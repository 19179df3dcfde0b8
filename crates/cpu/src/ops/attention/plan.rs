//! How one attention call is cut into units of work.
//!
//! A unit is up to [`TILE_ROWS`] packed query rows (token-major, the query heads of one KV head side by side) of one
//! sequence and KV head. When there are too few of those for the workers, each is split further by chunks of its keys,
//! and the worker that finishes the last chunk merges them. Chunks begin at multiples of [`CHUNK_TOKENS`] and are merged
//! in order, without splitting too, so that a row's result does not depend on its batch, its neighbours or the threads.

use std::sync::atomic::AtomicU32;

use super::Call;

/// Packed query rows of one unit: a multiple of all register tiles.
pub(super) const TILE_ROWS: usize = 96;
/// The most memory for unmerged chunks; without it, a unit does all its chunks.
const PARTIAL_FLOATS: usize = 4 << 20;
/// Keys per chunk.
pub(super) const CHUNK_TOKENS: usize = 512;
/// Units per worker below which they are split: so many that the last ones do not leave the others waiting for long.
const UNITS_PER_WORKER: usize = 4;

/// A call of fewer products than this is over before a second worker has joined.
const SERIAL_PRODUCTS: usize = 128 << 10;

#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub seq: usize,
    pub kv_head: usize,
    /// Packed rows `first..first + rows` of the sequence
    pub first: usize,
    pub rows: usize,
    /// Index of the split and of the chunk within it, if it does only one chunk
    pub part: Option<(usize, usize)>,
}

/// Chunks of one unit that several workers compute.
#[derive(Debug)]
pub(super) struct Split {
    /// Where the partial results begin, in floats
    pub start: usize,
    pub remaining: AtomicU32,
}

/// Reused from call to call, so that it allocates only to grow.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub units: Vec<Unit>,
    pub splits: Vec<Split>,
    pub partials: Vec<f32>,
    /// Units that a worker takes at a time
    pub batch: usize,
}

impl Plan {
    pub fn make<T>(&mut self, call: &Call<T>, workers: usize) {
        let tiles = |seq: usize| (call.seq(seq).rows * call.group).div_ceil(TILE_ROWS);
        let items = call.kv_heads * (0..call.seqs()).map(tiles).sum::<usize>();
        if workers == 1 || items >= UNITS_PER_WORKER * workers || !self.fill(call, true) {
            self.fill(call, false);
        }
        let products = |unit: &Unit| unit.rows * (call.keys(unit).1 - call.keys(unit).0) * call.head_dim;
        let few = self.units.len() <= items && self.units.iter().map(products).sum::<usize>() < SERIAL_PRODUCTS;
        self.batch = if few { self.units.len() } else { 1 };
    }

    /// False when the partial results would take too much memory.
    fn fill<T>(&mut self, call: &Call<T>, split: bool) -> bool {
        self.units.clear();
        self.splits.clear();
        let mut floats = 0;
        for seq in 0..call.seqs() {
            let packed = call.seq(seq).rows * call.group;
            // The last tile sees the most keys: first things first.
            for first in (0..packed).step_by(TILE_ROWS).rev() {
                let rows = TILE_ROWS.min(packed - first);
                for kv_head in 0..call.kv_heads {
                    let unit = Unit { seq, kv_head, first, rows, part: None };
                    let chunks = chunks(call.keys(&unit));
                    if !split || chunks.len() < 2 {
                        self.units.push(unit);
                        continue;
                    }
                    for chunk in 0..chunks.len() {
                        self.units.push(Unit { part: Some((self.splits.len(), chunk)), ..unit });
                    }
                    self.splits.push(Split { start: floats, remaining: AtomicU32::new(chunks.len() as u32) });
                    floats += chunks.len() * partial_floats(rows, call.width);
                }
            }
        }
        if floats > PARTIAL_FLOATS {
            return false;
        }
        if self.partials.len() < floats {
            self.partials.resize(floats, 0.0);
        }
        true
    }
}

/// Floats of the [`super::kernels::State`] of `rows` rows.
pub(super) fn partial_floats(rows: usize, width: usize) -> usize {
    rows * width + 2 * rows.next_multiple_of(16)
}

/// The chunks that contain the keys `start..end`.
pub(super) fn chunks((start, end): (usize, usize)) -> std::ops::Range<usize> {
    start / CHUNK_TOKENS..end.div_ceil(CHUNK_TOKENS)
}
