//! `out = act(gate) · up`, a token per chunk.

use ferrum_kernels::{Result, ops::ActMul};

use crate::{pool::Pool, storage::Rows};

pub(crate) fn run(pool: &Pool, op: &ActMul) -> Result<()> {
    op.check()?;
    let (gate_up, out) = (Rows::<f32>::of("act_mul", "gate_up", op.gate_up)?, Rows::<f32>::of("act_mul", "out", op.out)?);
    let inner = out.shape[1];
    pool.chunks(out.shape[0], 1, &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract; each token belongs to one chunk.
            let (row, out) = unsafe { (gate_up.row([token, 0]), out.row_mut([token, 0])) };
            for (o, (&g, &u)) in out.iter_mut().zip(row[..inner].iter().zip(&row[inner..])) {
                *o = (op.activation.apply(f64::from(g)) * f64::from(u)) as f32;
            }
        }
    });
    Ok(())
}
