//! `out = x / sqrt(mean(x²) + eps) · weight`, a few tokens per chunk.
//!
//! Squares are summed in f32 over at most 1024 elements, four vectors side by side, and those sums in f64.

use ferrum_kernels::{Result, ops::RmsNorm};

use super::{
    Tail, rows_per_chunk,
    simd::{Vector, at_level},
};
use crate::{
    Simd,
    pool::Pool,
    storage::{Heads, Rows, View},
};

pub(crate) fn run(pool: &Pool, level: Simd, op: &RmsNorm) -> Result<()> {
    op.check()?;
    let weight = View::<f32, 1>::of("rms_norm", "weight", op.weight)?;
    if op.x.elements() == 0 {
        return Ok(());
    }
    // SAFETY: index 0 exists.
    let (w, n, eps) = (unsafe { weight.row([0]) }, weight.shape[0], op.eps);
    let one = |x: *const f32, out: *mut f32| {
        let norm = Norm { x, add: None, weight: w.as_ptr(), out, n, eps };
        // SAFETY: the pointers are to rows of n elements, below. The level is the backend's.
        unsafe { at_level!(level, normalize(norm: Norm)) };
    };
    if op.x.shape().len() == 3 {
        let (x, out) = (Heads::<f32>::of("rms_norm", "x", op.x)?, Heads::<f32>::of("rms_norm", "out", op.out)?);
        let heads = x.shape[1];
        pool.chunks(x.shape[0], rows_per_chunk(heads * n), &|_, tokens| {
            for (token, head) in tokens.flat_map(|t| (0..heads).map(move |h| (t, h))) {
                // SAFETY: in bounds by the contract; each token belongs to one chunk.
                unsafe { one(x.at([token, head, 0]), out.at([token, head, 0])) };
            }
        });
    } else {
        let (x, out) = (Rows::<f32>::of("rms_norm", "x", op.x)?, Rows::<f32>::of("rms_norm", "out", op.out)?);
        pool.chunks(x.shape[0], rows_per_chunk(n), &|_, tokens| {
            for token in tokens {
                // SAFETY: as above.
                unsafe { one(x.at([token, 0]), out.at([token, 0])) };
            }
        });
    }
    Ok(())
}

/// One row of `n` elements behind each pointer; `x` and `out` may be the same.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub x: *const f32,
    /// A row that is first added to `x` and keeps the sum; then `x` and `out` may be the same but neither may be this.
    pub add: Option<*mut f32>,
    pub weight: *const f32,
    pub out: *mut f32,
    pub n: usize,
    pub eps: f32,
}

/// # Safety
/// The pointers of `row` are to `n` elements that nobody else writes meanwhile.
#[inline(always)]
pub(super) unsafe fn normalize<V: Vector>(row: Norm) {
    let Norm { mut x, add, weight, out, n, eps } = row;
    // SAFETY: promised by the caller; vectors end at or before `n`, and a tail holds any vector.
    unsafe {
        if let Some(sum) = add {
            add_into::<V>(sum, x, n);
            x = sum;
        }
        let mean_square = sum_of_squares::<V>(x, n) / n as f64;
        let scale = V::splat((1.0 / (mean_square + f64::from(eps)).sqrt()) as f32);
        let mut i = 0;
        while i + V::LANES <= n {
            V::load(x.add(i)).mul(scale).mul(V::load(weight.add(i))).store(out.add(i));
            i += V::LANES;
        }
        if i < n {
            let (mut t, w) = (Tail::read(x.add(i), n - i), Tail::read(weight.add(i), n - i));
            V::load(t.0.as_ptr()).mul(scale).mul(V::load(w.0.as_ptr())).store(t.0.as_mut_ptr());
            t.write(out.add(i), n - i);
        }
    }
}

/// # Safety
/// Both pointers are to `n` elements.
#[inline(always)]
unsafe fn add_into<V: Vector>(sum: *mut f32, x: *const f32, n: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            V::load(sum.add(i)).add(V::load(x.add(i))).store(sum.add(i));
            i += V::LANES;
        }
        while i < n {
            *sum.add(i) += *x.add(i);
            i += 1;
        }
    }
}

/// # Safety
/// `x` points to `n` elements.
#[inline(always)]
unsafe fn sum_of_squares<V: Vector>(x: *const f32, n: usize) -> f64 {
    // SAFETY: promised by the caller; vectors end at or before `n`, and a tail holds any vector.
    unsafe {
        let (mut total, mut i) = (0.0, 0);
        while i < n {
            let end = (i + 1024).min(n);
            let mut sums = [V::splat(0.0); 4];
            while i + 4 * V::LANES <= end {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let v = V::load(x.add(i + lane * V::LANES));
                    *sum = v.mul_add(v, *sum);
                }
                i += 4 * V::LANES;
            }
            while i + V::LANES <= end {
                let v = V::load(x.add(i));
                sums[0] = v.mul_add(v, sums[0]);
                i += V::LANES;
            }
            if i < end {
                let t = Tail::read(x.add(i), end - i);
                let v = V::load(t.0.as_ptr());
                sums[1] = v.mul_add(v, sums[1]);
                i = end;
            }
            total += f64::from(sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum());
        }
        total
    }
}
