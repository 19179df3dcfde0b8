//! One unit of attention: packed query rows of a sequence against the keys and values of one KV head.

use std::sync::atomic::Ordering;

use super::{
    Call,
    kernels::{self, Cached, Convert, Dots, Gemm, Softmax, State},
    plan::{CHUNK_TOKENS, Split, TILE_ROWS, Unit, chunks, partial_floats},
};

/// Up to so many packed rows read the cache directly.
const DIRECT_ROWS: usize = 8;
/// Keys per step of either way. Steps begin at its multiples.
const TILE_KEYS: usize = 64;

/// Memory for the results of chunks that are still to be merged.
pub(super) struct Partials {
    start: *mut f32,
}

// SAFETY: each chunk's part is written by one worker, and read by the one that merges after all have finished.
unsafe impl Sync for Partials {}

impl Partials {
    pub fn new(memory: &mut [f32]) -> Self {
        Self { start: memory.as_mut_ptr() }
    }
}

/// What one worker computes in; grows to the largest head it has seen.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<f32>);

#[derive(Clone, Copy)]
struct Buffers {
    /// `[rows, head_dim]`, scaled
    q: *mut f32,
    /// `[rows, TILE_KEYS]`
    scores: *mut f32,
    /// `[head_dim, TILE_KEYS]`
    keys: *mut f32,
    /// `[TILE_KEYS, width]`
    values: *mut f32,
    result: State,
    /// One further chunk
    chunk: State,
}

impl Scratch {
    fn buffers(&mut self, rows: usize, width: usize) -> Buffers {
        let state = partial_floats(TILE_ROWS, width);
        let sizes = [TILE_ROWS * width, TILE_ROWS * TILE_KEYS, width * TILE_KEYS, TILE_KEYS * width, state, state];
        let needed = sizes.iter().sum::<usize>() + 16;
        if self.0.len() < needed {
            self.0.resize(needed, 0.0);
        }
        // To the next cache line, so that no vector lies across two.
        let mut at = self.0.as_mut_ptr();
        // SAFETY: all parts lie within `needed`, which leaves 16 floats for the alignment.
        unsafe {
            at = at.add((at as usize).next_multiple_of(64).wrapping_sub(at as usize) / 4);
            let parts = sizes.map(|size| {
                let part = at;
                at = at.add(size);
                part
            });
            let [q, scores, keys, values, result, chunk] = parts;
            Buffers { q, scores, keys, values, result: state_at(result, rows, width), chunk: state_at(chunk, rows, width) }
        }
    }
}

/// # Safety
/// `at` points to `partial_floats(rows, width)` floats.
unsafe fn state_at(at: *mut f32, rows: usize, width: usize) -> State {
    // SAFETY: promised by the caller.
    unsafe {
        let max = at.add(rows * width);
        State { sum: at, width, max, total: max.add(rows.next_multiple_of(16)) }
    }
}

/// Computes a unit, and writes its output rows unless other chunks of it are still to come.
///
/// # Safety
/// `unit`, `splits` and `partials` are of this call's plan, and no one else runs this unit.
pub(super) unsafe fn run<T: Cached>(call: &Call<T>, unit: &Unit, splits: &[Split], partials: &Partials, scratch: &mut Scratch) {
    let b = scratch.buffers(unit.rows, call.width);
    let keys = call.keys(unit);
    let chunks = chunks(keys);
    let clip = |chunk: usize| ((chunk * CHUNK_TOKENS).max(keys.0), ((chunk + 1) * CHUNK_TOKENS).min(keys.1));
    // SAFETY: buffers hold a unit; chunks are clipped to the keys of the unit; parts of partials are as planned.
    unsafe {
        pack_queries(call, unit, b.q);
        if let Some((split, chunk)) = unit.part {
            let size = partial_floats(unit.rows, call.width);
            let part = |n: usize| state_at(partials.start.add(splits[split].start + n * size), unit.rows, call.width);
            attend(call, unit, clip(chunks.start + chunk), &b, part(chunk));
            if splits[split].remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
                for n in 1..chunks.len() {
                    kernels::merge(call.level, part(0), part(n), unit.rows);
                }
                write_output(call, unit, part(0));
            }
            return;
        }
        attend(call, unit, clip(chunks.start), &b, b.result);
        for chunk in chunks.skip(1) {
            attend(call, unit, clip(chunk), &b, b.chunk);
            kernels::merge(call.level, b.result, b.chunk, unit.rows);
        }
        write_output(call, unit, b.result);
    }
}

/// Query row, head and the like of packed row `row`.
fn place<T>(call: &Call<T>, unit: &Unit, row: usize) -> [usize; 3] {
    let packed = unit.first + row;
    [call.seq(unit.seq).first + packed / call.group, unit.kv_head * call.group + packed % call.group, 0]
}

unsafe fn pack_queries<T: Cached>(call: &Call<T>, unit: &Unit, q: *mut f32) {
    for row in 0..unit.rows {
        // SAFETY: the place is in bounds; `q` holds the rows.
        unsafe {
            let (from, to) = (call.q.at(place(call, unit, row)), q.add(row * call.head_dim));
            for i in 0..call.head_dim {
                *to.add(i) = *from.add(i) * call.scale;
            }
        }
    }
}

/// The state of the softmax over the keys `start..end` alone.
unsafe fn attend<T: Cached>(call: &Call<T>, unit: &Unit, (start, end): (usize, usize), b: &Buffers, state: State) {
    let direct = unit.rows <= DIRECT_ROWS && call.head_dim.is_multiple_of(16);
    // SAFETY: the state and the buffers hold the unit's rows; steps lie within the keys of the unit.
    unsafe {
        std::ptr::write_bytes(state.sum, 0, unit.rows * state.width);
        std::slice::from_raw_parts_mut(state.max, unit.rows).fill(f32::NEG_INFINITY);
        std::slice::from_raw_parts_mut(state.total, unit.rows).fill(0.0);
        let mut at = start;
        while at < end {
            let base = at / TILE_KEYS * TILE_KEYS;
            let step = Step { base, from: at - base, to: (end - base).min(TILE_KEYS) };
            if direct {
                direct_step(call, unit, step, b, state)
            } else {
                tile_step(call, unit, step, b, state)
            }
            at = base + TILE_KEYS;
        }
    }
}

/// The keys `base + from..base + to`; the scores of `base + n` stand in column `n`, whichever rows share the unit.
#[derive(Clone, Copy)]
struct Step {
    /// A multiple of `TILE_KEYS`
    base: usize,
    from: usize,
    to: usize,
}

/// Scores and sums read the cache as it is.
unsafe fn direct_step<T: Cached>(call: &Call<T>, unit: &Unit, step: Step, b: &Buffers, state: State) {
    let (rows, head_dim) = (unit.rows, call.head_dim);
    // SAFETY: runs are of tokens of the sequence, whose blocks are checked; `scores` holds DIRECT_ROWS × TILE_KEYS.
    unsafe {
        for run in Runs::new(call, unit, step) {
            let (k, out) = (call.k.at(run.index), b.scores.add(run.column));
            T::dots(call.level, Dots { rows, keys: run.tokens, head_dim, q: b.q, k, out, ld_out: TILE_KEYS });
        }
        softmax(call, unit, step, b.scores, state);
        for run in Runs::new(call, unit, step) {
            T::gemm(
                call.level,
                Gemm {
                    m: rows,
                    n: head_dim,
                    k: run.tokens,
                    a: b.scores.add(run.column),
                    lda: TILE_KEYS,
                    b: call.v.at(run.index),
                    ldb: head_dim,
                    c: state.sum,
                    ldc: state.width,
                    accumulate: true,
                },
            );
        }
    }
}

/// Keys are transposed and values copied as F32 first.
unsafe fn tile_step<T: Cached>(call: &Call<T>, unit: &Unit, step: Step, b: &Buffers, state: State) {
    let (m, head_dim, width) = (unit.rows, call.head_dim, call.width);
    // SAFETY: as in `direct_step`; `keys` and `values` hold TILE_KEYS tokens.
    unsafe {
        for run in Runs::new(call, unit, step) {
            let from = call.k.at(run.index);
            T::to_columns(call.level, Convert { from, rows: run.tokens, head_dim, to: b.keys.add(run.column), stride: TILE_KEYS });
            let from = call.v.at(run.index);
            T::to_rows(call.level, Convert { from, rows: run.tokens, head_dim, to: b.values.add(run.column * width), stride: width });
        }
        // Columns without a key hold what an earlier step left there; the softmax overwrites their scores.
        f32::gemm(
            call.level,
            Gemm {
                m,
                n: step.to.next_multiple_of(16),
                k: head_dim,
                a: b.q,
                lda: head_dim,
                b: b.keys,
                ldb: TILE_KEYS,
                c: b.scores,
                ldc: TILE_KEYS,
                accumulate: false,
            },
        );
        softmax(call, unit, step, b.scores, state);
        f32::gemm(
            call.level,
            Gemm {
                m,
                n: width,
                k: step.to - step.from,
                a: b.scores.add(step.from),
                lda: TILE_KEYS,
                b: b.values.add(step.from * width),
                ldb: width,
                c: state.sum,
                ldc: width,
                accumulate: true,
            },
        );
    }
}

unsafe fn softmax<T>(call: &Call<T>, unit: &Unit, step: Step, scores: *mut f32, state: State) {
    let (rows, softcap, mask) = (unit.rows, call.softcap, call.mask(unit));
    let softmax = Softmax { scores, ld: TILE_KEYS, rows, start: step.base, keys: step.to, softcap, mask, state };
    // SAFETY: `scores` holds `rows` rows of `TILE_KEYS` elements, a multiple of 16.
    unsafe { kernels::softmax(call.level, softmax) };
}

/// Divides by the total, in which the sink of the head takes its part.
unsafe fn write_output<T: Cached>(call: &Call<T>, unit: &Unit, state: State) {
    for row in 0..unit.rows {
        let place = place(call, unit, row);
        // SAFETY: the place is in bounds and belongs to this unit alone.
        unsafe {
            let (mut total, max) = (*state.total.add(row), *state.max.add(row));
            let mut factor = 1.0;
            if let Some(sinks) = &call.sinks {
                let sink = *sinks.at([place[1]]);
                let top = max.max(sink);
                factor = (max - top).exp();
                total = total * factor + (sink - top).exp();
            }
            let (factor, from, to) = (factor / total, state.sum.add(row * state.width), call.out.at(place));
            for i in 0..call.head_dim {
                *to.add(i) = *from.add(i) * factor;
            }
        }
    }
}

/// Tokens that lie side by side in one block.
struct Run {
    /// Of the first token in the cache
    index: [usize; 4],
    /// Of the first token in the scores of the step
    column: usize,
    tokens: usize,
}

/// The runs of the tokens of a step.
struct Runs<'a, T> {
    call: &'a Call<T>,
    seq: usize,
    kv_head: usize,
    /// What is left
    step: Step,
}

impl<'a, T> Runs<'a, T> {
    fn new(call: &'a Call<T>, unit: &Unit, step: Step) -> Self {
        Self { call, seq: unit.seq, kv_head: unit.kv_head, step }
    }
}

impl<T> Iterator for Runs<'_, T> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let Step { base, from: column, to } = self.step;
        if column == to {
            return None;
        }
        let at = base + column;
        let within = at % self.call.block_tokens;
        let tokens = (self.call.block_tokens - within).min(to - column);
        self.step.from += tokens;
        // SAFETY: the token is one of the context, which fits the table; the entry is checked.
        let block = unsafe { *self.call.tables.at([self.seq, at / self.call.block_tokens]) };
        Some(Run { index: [block as usize, self.kv_head, within, 0], column, tokens })
    }
}
