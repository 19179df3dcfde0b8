//! `out = x / sqrt(mean(x²) + eps) · weight`, a token per chunk.

use ferrum_kernels::{Result, ops::RmsNorm};

use crate::{
    pool::Pool,
    storage::{Heads, Rows, View},
};

pub(crate) fn run(pool: &Pool, op: &RmsNorm) -> Result<()> {
    op.check()?;
    let weight = View::<f32, 1>::of("rms_norm", "weight", op.weight)?;
    if op.x.elements() == 0 {
        return Ok(());
    }
    // SAFETY: the row exists, and nobody writes the weight during this operation.
    let weight = unsafe { weight.row([0]) };
    if op.x.shape().len() == 3 {
        let (x, out) = (Heads::<f32>::of("rms_norm", "x", op.x)?, Heads::<f32>::of("rms_norm", "out", op.out)?);
        let heads = x.shape[1];
        pool.chunks(x.shape[0], 1, &|_, tokens| {
            for (token, head) in tokens.flat_map(|t| (0..heads).map(move |h| (t, h))) {
                // SAFETY: in bounds by the contract; each token belongs to one chunk.
                unsafe { normalize(x.at([token, head, 0]), out.at([token, head, 0]), weight, op.eps) };
            }
        });
    } else {
        let (x, out) = (Rows::<f32>::of("rms_norm", "x", op.x)?, Rows::<f32>::of("rms_norm", "out", op.out)?);
        pool.chunks(x.shape[0], 1, &|_, tokens| {
            for token in tokens {
                // SAFETY: as above.
                unsafe { normalize(x.at([token, 0]), out.at([token, 0]), weight, op.eps) };
            }
        });
    }
    Ok(())
}

/// Normalises one row; `x` and `out` may be the same.
///
/// # Safety
/// Both point to `weight.len()` elements that nobody else uses meanwhile.
pub(super) unsafe fn normalize(x: *const f32, out: *mut f32, weight: &[f32], eps: f32) {
    let n = weight.len();
    // SAFETY: promised by the caller.
    unsafe {
        let square: f64 = (0..n).map(|i| f64::from(*x.add(i)).powi(2)).sum();
        let scale = (1.0 / (square / n as f64 + f64::from(eps)).sqrt()) as f32;
        for (i, w) in weight.iter().enumerate() {
            *out.add(i) = *x.add(i) * scale * w;
        }
    }
}
