//! `residual += x; out = rms_norm(residual)`, a few tokens per chunk.

use ferrum_kernels::{Result, ops::AddRmsNorm};

use super::{
    rms_norm::{Norm, normalize},
    rows_per_chunk,
    simd::at_level,
};
use crate::{
    Simd,
    pool::Pool,
    storage::{Rows, View},
};

pub(crate) fn run(pool: &Pool, level: Simd, op: &AddRmsNorm) -> Result<()> {
    op.check()?;
    let name = "add_rms_norm";
    let (x, out) = (Rows::<f32>::of(name, "x", op.x)?, Rows::<f32>::of(name, "out", op.out)?);
    let (residual, weight) = (Rows::<f32>::of(name, "residual", op.residual)?, View::<f32, 1>::of(name, "weight", op.weight)?);
    if op.x.elements() == 0 {
        return Ok(());
    }
    // SAFETY: index 0 exists.
    let (w, n, eps) = (unsafe { weight.row([0]) }, weight.shape[0], op.eps);
    pool.chunks(x.shape[0], rows_per_chunk(n), &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract; each token belongs to one chunk. The level is the backend's.
            unsafe {
                let (x, sum, out) = (x.at([token, 0]), residual.at([token, 0]), out.at([token, 0]));
                let row = Norm { x, add: Some(sum), weight: w.as_ptr(), out, n, eps };
                at_level!(level, normalize(row: Norm));
            }
        }
    });
    Ok(())
}
