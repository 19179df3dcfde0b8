//! `x = cap · tanh(x / cap)`, in place.

use ferrum_kernels::{Result, ops::Softcap};

use crate::{pool::Pool, storage::Rows};

pub(crate) fn run(pool: &Pool, op: &Softcap) -> Result<()> {
    op.check()?;
    let x = Rows::<f32>::of("softcap", "x", op.x)?;
    pool.chunks(x.shape[0], 1, &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract; each token belongs to one chunk.
            unsafe { x.row_mut([token, 0]) }.iter_mut().for_each(|v| *v = op.cap * (*v / op.cap).tanh());
        }
    });
    Ok(())
}
