//! `residual += x; out = rms_norm(residual)`, a token per chunk.

use ferrum_kernels::{Result, ops::AddRmsNorm};

use super::rms_norm::normalize;
use crate::{
    pool::Pool,
    storage::{Rows, View},
};

pub(crate) fn run(pool: &Pool, op: &AddRmsNorm) -> Result<()> {
    op.check()?;
    let name = "add_rms_norm";
    let (x, out) = (Rows::<f32>::of(name, "x", op.x)?, Rows::<f32>::of(name, "out", op.out)?);
    let (residual, weight) = (Rows::<f32>::of(name, "residual", op.residual)?, View::<f32, 1>::of(name, "weight", op.weight)?);
    if op.x.elements() == 0 {
        return Ok(());
    }
    // SAFETY: the row exists, and nobody writes the weight during this operation.
    let weight = unsafe { weight.row([0]) };
    pool.chunks(x.shape[0], 1, &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract; each token belongs to one chunk.
            unsafe {
                let (x, sum) = (x.at([token, 0]), residual.at([token, 0]));
                for i in 0..weight.len() {
                    *sum.add(i) += *x.add(i);
                }
                normalize(sum, out.at([token, 0]), weight, op.eps);
            }
        }
    });
    Ok(())
}
