//! `x = cap · tanh(x / cap)`, in place.

use ferrum_kernels::{Result, ops::Softcap};

use super::{
    CHUNK_ELEMENTS, Tail,
    simd::{Vector, at_level},
    simd_math::tanh,
};
use crate::{Simd, pool::Pool, storage::Rows};

pub(crate) fn run(pool: &Pool, level: Simd, op: &Softcap) -> Result<()> {
    op.check()?;
    let x = Rows::<f32>::of("softcap", "x", op.x)?;
    let (cap, [tokens, width]) = (op.cap, x.shape);
    // Rows of logits are long: a chunk is a part of a row.
    let parts = width.div_ceil(CHUNK_ELEMENTS).max(1);
    pool.chunks(tokens * parts, 1, &|_, items| {
        for item in items {
            let start = item % parts * CHUNK_ELEMENTS;
            let n = (width - start).min(CHUNK_ELEMENTS);
            // SAFETY: in bounds by the contract and `start < width`; each part of a row belongs to one chunk.
            unsafe {
                let x = x.at([item / parts, 0]).add(start);
                at_level!(level, cap_all(x: *mut f32, n: usize, cap: f32));
            }
        }
    });
    Ok(())
}

/// # Safety
/// `x` points to `n` elements.
#[inline(always)]
unsafe fn cap_all<V: Vector>(x: *mut f32, n: usize, cap: f32) {
    // SAFETY: promised by the caller; `i + LANES ≤ n` in the loop, and a tail holds any vector.
    unsafe {
        let (cap, inverse) = (V::splat(cap), V::splat(1.0 / cap));
        let mut i = 0;
        while i + V::LANES <= n {
            tanh(V::load(x.add(i)).mul(inverse)).mul(cap).store(x.add(i));
            i += V::LANES;
        }
        if i < n {
            let mut t = Tail::read(x.add(i), n - i);
            tanh(V::load(t.0.as_ptr()).mul(inverse)).mul(cap).store(t.0.as_mut_ptr());
            t.write(x.add(i), n - i);
        }
    }
}
