//! The inner loops of attention: register-blocked products, dot products against packed keys, and the softmax.

use half::{bf16, f16};

use crate::{
    Simd,
    ops::{
        simd::{Eight, Vector, at_level},
        simd_math::{exp, tanh},
    },
    storage::Element,
};

/// `c[m, n] (+)= a[m, k] · b[k, n]`; strides in elements, `n` a multiple of 16 for the rows of `b` and `c`.
///
/// With `accumulate`, each sum goes from `c` on over `k`. Without, it is formed as [`Dots`] forms its: one sum per lane of a
/// vector along `k`, then the lanes in the order of [`Vector::sum4`].
#[derive(Clone, Copy)]
pub(super) struct Gemm<T> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: *const f32,
    pub lda: usize,
    pub b: *const T,
    pub ldb: usize,
    pub c: *mut f32,
    pub ldc: usize,
    pub accumulate: bool,
}

/// `out[row, key] = q[row] · k[key]` for packed rows of `head_dim` (a multiple of 16) elements.
#[derive(Clone, Copy)]
pub(super) struct Dots<T> {
    pub rows: usize,
    pub keys: usize,
    pub head_dim: usize,
    pub q: *const f32,
    pub k: *const T,
    pub out: *mut f32,
    pub ld_out: usize,
}

/// Packed rows of `head_dim` elements that become F32: rows of `stride` elements, or columns of a matrix whose rows have
/// `stride` elements.
#[derive(Clone, Copy)]
pub(super) struct Convert<T> {
    pub from: *const T,
    pub rows: usize,
    pub head_dim: usize,
    pub to: *mut f32,
    pub stride: usize,
}

/// An element type of the cache.
///
/// # Safety
/// The methods need the instruction set they are told, and pointers to as many elements as their arguments say.
pub(super) trait Cached: Element {
    unsafe fn load<V: Vector>(p: *const Self) -> V;
    fn to_f32(self) -> f32;
    unsafe fn gemm(level: Simd, g: Gemm<Self>);
    unsafe fn dots(level: Simd, d: Dots<Self>);
    unsafe fn to_rows(level: Simd, c: Convert<Self>);
    unsafe fn to_columns(level: Simd, c: Convert<Self>);
}

macro_rules! cached {
    ($t:ident, $p:ident => $load:expr, $v:ident => $to_f32:expr) => {
        impl Cached for $t {
            #[inline(always)]
            unsafe fn load<V: Vector>($p: *const Self) -> V {
                // SAFETY: promised by the caller.
                unsafe { $load }
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                let $v = self;
                $to_f32
            }
            unsafe fn gemm(level: Simd, g: Gemm<Self>) {
                // SAFETY: promised by the caller.
                unsafe { at_level!(level, gemm<$t>(g: Gemm<$t>)) }
            }
            unsafe fn dots(level: Simd, d: Dots<Self>) {
                // SAFETY: promised by the caller.
                unsafe { at_level!(level, dots<$t>(d: Dots<$t>)) }
            }
            unsafe fn to_rows(level: Simd, c: Convert<Self>) {
                // SAFETY: promised by the caller.
                unsafe { at_level!(level, to_rows<$t>(c: Convert<$t>)) }
            }
            unsafe fn to_columns(level: Simd, c: Convert<Self>) {
                // SAFETY: promised by the caller.
                unsafe { at_level!(level, to_columns<$t>(c: Convert<$t>)) }
            }
        }
    };
}
cached!(f32, p => V::load(p), v => v);
cached!(f16, p => V::load_f16(p.cast()), v => f16::to_f32(v));
cached!(bf16, p => V::load_bf16(p.cast()), v => bf16::to_f32(v));

/// Panels of two vectors of columns; in each, register tiles of as many rows as fit.
#[inline(always)]
unsafe fn gemm<V: Vector, T: Cached>(g: Gemm<T>) {
    // SAFETY: promised by the caller; column tiles end at or before `n`, row tiles at or before `m`.
    unsafe {
        let mut col = 0;
        while col + 2 * V::LANES <= g.n {
            panel::<V, T, 2>(&g, col);
            col += 2 * V::LANES;
        }
        while col < g.n {
            panel::<V, T, 1>(&g, col);
            col += V::LANES;
        }
    }
}

#[inline(always)]
unsafe fn panel<V: Vector, T: Cached, const COLS: usize>(g: &Gemm<T>, col: usize) {
    // SAFETY: as `gemm`.
    unsafe {
        let mut row = 0;
        while V::TILE_ROWS >= 8 && row + 8 <= g.m {
            tile::<V, T, 8, COLS>(g, row, col);
            row += 8;
        }
        while V::TILE_ROWS >= 6 && row + 6 <= g.m {
            tile::<V, T, 6, COLS>(g, row, col);
            row += 6;
        }
        while V::TILE_ROWS >= 3 && row + 3 <= g.m {
            tile::<V, T, 3, COLS>(g, row, col);
            row += 3;
        }
        while row + 2 <= g.m {
            tile::<V, T, 2, COLS>(g, row, col);
            row += 2;
        }
        if row < g.m {
            tile::<V, T, 1, COLS>(g, row, col);
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, T: Cached, const ROWS: usize, const COLS: usize>(g: &Gemm<T>, row: usize, col: usize) {
    // SAFETY: as `gemm`.
    unsafe {
        let c = g.c.add(row * g.ldc + col);
        let mut acc = [[V::splat(0.0); COLS]; ROWS];
        if g.accumulate {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = V::load(c.add(r * g.ldc + j * V::LANES));
                }
            }
            products::<V, T, ROWS, COLS>(g, (row, col), (0, 1), &mut acc);
        } else {
            // A sum is added to its neighbour as soon as both are complete, so that one of each size is waiting at most.
            let mut waiting = [acc; 5];
            for leaf in 0..V::LANES {
                acc = [[V::splat(0.0); COLS]; ROWS];
                products::<V, T, ROWS, COLS>(g, (row, col), (V::lane(leaf), V::LANES), &mut acc);
                let mut size = 0;
                while leaf >> size & 1 == 1 {
                    for (acc, waiting) in acc.iter_mut().zip(&waiting[size]) {
                        for (acc, &waiting) in acc.iter_mut().zip(waiting) {
                            *acc = waiting.add(*acc);
                        }
                    }
                    size += 1;
                }
                waiting[size] = acc;
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                acc.store(c.add(r * g.ldc + j * V::LANES));
            }
        }
    }
}

/// Adds the products of every `step`-th `k` from `first` on.
#[inline(always)]
unsafe fn products<V: Vector, T: Cached, const ROWS: usize, const COLS: usize>(
    g: &Gemm<T>,
    (row, col): (usize, usize),
    (first, step): (usize, usize),
    acc: &mut [[V; COLS]; ROWS],
) {
    // SAFETY: as `gemm`.
    unsafe {
        let (a, b) = (g.a.add(row * g.lda), g.b.add(col));
        for k in (first..g.k).step_by(step) {
            let b = b.add(k * g.ldb);
            let mut bs = [V::splat(0.0); COLS];
            for (j, bs) in bs.iter_mut().enumerate() {
                *bs = T::load(b.add(j * V::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let a = V::splat(*a.add(r * g.lda + k));
                for (acc, &b) in acc.iter_mut().zip(&bs) {
                    *acc = a.mul_add(b, *acc);
                }
            }
        }
    }
}

/// Four keys at a time against as many rows as fit, so that each key is converted once per group of rows.
#[inline(always)]
unsafe fn dots<V: Vector, T: Cached>(d: Dots<T>) {
    // SAFETY: promised by the caller; groups of rows and keys end at or before `rows` and `keys`.
    unsafe {
        for key in (0..d.keys).step_by(4) {
            let mut row = 0;
            while V::DOT_ROWS >= 4 && row + 4 <= d.rows {
                four_keys::<V, T, 4>(&d, row, key);
                row += 4;
            }
            while V::DOT_ROWS >= 3 && row + 3 <= d.rows {
                four_keys::<V, T, 3>(&d, row, key);
                row += 3;
            }
            while V::DOT_ROWS >= 2 && row + 2 <= d.rows {
                four_keys::<V, T, 2>(&d, row, key);
                row += 2;
            }
            while row < d.rows {
                four_keys::<V, T, 1>(&d, row, key);
                row += 1;
            }
        }
    }
}

/// Keys from `key` on; those that do not exist repeat the last.
#[inline(always)]
unsafe fn four_keys<V: Vector, T: Cached, const ROWS: usize>(d: &Dots<T>, row: usize, key: usize) {
    // SAFETY: as `dots`.
    unsafe {
        let q = d.q.add(row * d.head_dim);
        let mut keys = [d.k; 4];
        for (j, k) in keys.iter_mut().enumerate() {
            *k = d.k.add((key + j).min(d.keys - 1) * d.head_dim);
        }
        let mut acc = [[V::splat(0.0); 4]; ROWS];
        for i in (0..d.head_dim).step_by(V::LANES) {
            let mut qs = [V::splat(0.0); ROWS];
            for (r, qs) in qs.iter_mut().enumerate() {
                *qs = V::load(q.add(r * d.head_dim + i));
            }
            for j in 0..4 {
                let k: V = T::load(keys[j].add(i));
                for (acc, q) in acc.iter_mut().zip(qs) {
                    acc[j] = q.mul_add(k, acc[j]);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let out = d.out.add((row + r) * d.ld_out + key);
            if key + 4 <= d.keys {
                V::sum4(acc, out);
                continue;
            }
            let mut sums = [0.0; 4];
            V::sum4(acc, sums.as_mut_ptr());
            for (j, sum) in sums.into_iter().enumerate().take(d.keys - key) {
                *out.add(j) = sum;
            }
        }
    }
}

#[inline(always)]
unsafe fn to_rows<V: Vector, T: Cached>(c: Convert<T>) {
    // SAFETY: promised by the caller.
    unsafe {
        for row in 0..c.rows {
            let (from, to) = (c.from.add(row * c.head_dim), c.to.add(row * c.stride));
            let mut i = 0;
            while i + V::LANES <= c.head_dim {
                T::load::<V>(from.add(i)).store(to.add(i));
                i += V::LANES;
            }
            while i < c.head_dim {
                *to.add(i) = (*from.add(i)).to_f32();
                i += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn to_columns<V: Vector, T: Cached>(c: Convert<T>) {
    // SAFETY: promised by the caller.
    unsafe {
        let (rows, dims) = (c.rows / 8 * 8, c.head_dim / 8 * 8);
        for row in (0..rows).step_by(8) {
            for dim in (0..dims).step_by(8) {
                let from = c.from.add(row * c.head_dim + dim);
                let mut block = [V::Eight::splat(0.0); 8];
                for (j, v) in block.iter_mut().enumerate() {
                    *v = T::load(from.add(j * c.head_dim));
                }
                for (j, v) in V::Eight::transpose(block).into_iter().enumerate() {
                    v.store(c.to.add((dim + j) * c.stride + row));
                }
            }
        }
        for row in 0..c.rows {
            for dim in if row < rows { dims } else { 0 }..c.head_dim {
                *c.to.add(dim * c.stride + row) = (*c.from.add(row * c.head_dim + dim)).to_f32();
            }
        }
    }
}

/// Scores of some query rows against the keys `start..start + keys`, with the running state of their softmax.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// `[rows, ld]`: scores in, `e^(score − max)` out; room for `keys` rounded up to 16
    pub scores: *mut f32,
    pub ld: usize,
    pub rows: usize,
    pub start: usize,
    pub keys: usize,
    pub softcap: Option<f32>,
    pub mask: Mask,
    pub state: State,
}

/// Which keys a packed query row sees.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    /// Packed index of the first row
    pub first: usize,
    /// Query heads per token
    pub group: usize,
    /// Keys before the first query token of the sequence
    pub before: usize,
    pub window: usize,
}

impl Mask {
    /// The keys that packed row `first + row` sees: all before the end that are not before the start.
    #[inline(always)]
    pub fn keys(&self, row: usize) -> (usize, usize) {
        let end = self.before + (self.first + row) / self.group + 1;
        (end.saturating_sub(self.window), end)
    }
}

/// Per packed row: `Σ e^(score − max) · v`, the maximum and `Σ e^(score − max)`.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// `[rows, width]`
    pub sum: *mut f32,
    /// Multiple of 16
    pub width: usize,
    /// `[rows]`
    pub max: *mut f32,
    /// `[rows]`
    pub total: *mut f32,
}

/// # Safety
/// The pointers are to as many elements as their descriptions say, and the processor has the level.
pub(super) unsafe fn softmax(level: Simd, s: Softmax) {
    // SAFETY: promised by the caller.
    unsafe { at_level!(level, softmax_rows(s: Softmax)) }
}

#[inline(always)]
unsafe fn softmax_rows<V: Vector>(s: Softmax) {
    let padded = s.keys.next_multiple_of(V::LANES);
    for row in 0..s.rows {
        // SAFETY: promised by the caller; `padded` is at most `keys` rounded up to 16.
        unsafe {
            let scores = s.scores.add(row * s.ld);
            let (start, end) = s.mask.keys(row);
            let (low, high) = (start.saturating_sub(s.start), end.saturating_sub(s.start).min(s.keys));
            if low >= high {
                std::ptr::write_bytes(scores, 0, padded);
                continue;
            }
            if let Some(cap) = s.softcap {
                let (cap, inverse) = (V::splat(cap), V::splat(1.0 / cap));
                for i in (0..padded).step_by(V::LANES) {
                    tanh(V::load(scores.add(i)).mul(inverse)).mul(cap).store(scores.add(i));
                }
            }
            for i in (0..low).chain(high..padded) {
                *scores.add(i) = f32::NEG_INFINITY;
            }
            let mut max = V::load(scores);
            for i in (V::LANES..padded).step_by(V::LANES) {
                max = max.max(V::load(scores.add(i)));
            }
            let (before, max) = (*s.state.max.add(row), max.max_lane().max(*s.state.max.add(row)));
            if max == f32::NEG_INFINITY {
                std::ptr::write_bytes(scores, 0, padded);
                continue;
            }
            let mut total = V::splat(0.0);
            for i in (0..padded).step_by(V::LANES) {
                let p = exp(V::load(scores.add(i)).sub(V::splat(max)));
                p.store(scores.add(i));
                total = total.add(p);
            }
            if before != max {
                let shrink = (before - max).exp();
                scale_row::<V>(s.state.sum.add(row * s.state.width), s.state.width, shrink);
                *s.state.total.add(row) *= shrink;
                *s.state.max.add(row) = max;
            }
            *s.state.total.add(row) += total.sum();
        }
    }
}

#[inline(always)]
unsafe fn scale_row<V: Vector>(row: *mut f32, width: usize, factor: f32) {
    // SAFETY: promised by the caller.
    unsafe {
        for i in (0..width).step_by(V::LANES) {
            V::load(row.add(i)).mul(V::splat(factor)).store(row.add(i));
        }
    }
}

/// Adds the state of further keys to `into`, row by row (log-sum-exp).
///
/// # Safety
/// Both states have `rows` rows of the same width, and the processor has the level.
pub(super) unsafe fn merge(level: Simd, into: State, from: State, rows: usize) {
    // SAFETY: promised by the caller.
    unsafe { at_level!(level, merge_rows(into: State, from: State, rows: usize)) }
}

#[inline(always)]
unsafe fn merge_rows<V: Vector>(into: State, from: State, rows: usize) {
    for row in 0..rows {
        // SAFETY: promised by the caller.
        unsafe {
            let (a, b) = (*into.max.add(row), *from.max.add(row));
            if b == f32::NEG_INFINITY {
                continue;
            }
            let max = a.max(b);
            let (wa, wb) = ((a - max).exp(), (b - max).exp());
            *into.max.add(row) = max;
            *into.total.add(row) = *into.total.add(row) * wa + *from.total.add(row) * wb;
            let (sa, sb) = (into.sum.add(row * into.width), from.sum.add(row * from.width));
            for i in (0..into.width).step_by(V::LANES) {
                V::load(sa.add(i)).mul(V::splat(wa)).add(V::load(sb.add(i)).mul(V::splat(wb))).store(sa.add(i));
            }
        }
    }
}
