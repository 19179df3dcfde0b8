//! Rotary position embedding, in place, a token per chunk.

use ferrum_kernels::{
    Result,
    ops::{Rope, RopeLayout},
};

use crate::{
    pool::Pool,
    storage::{Heads, View},
};

pub(crate) fn run(pool: &Pool, op: &Rope) -> Result<()> {
    op.check()?;
    let x = Heads::<f32>::of("rope", "x", op.x)?;
    let (positions, freq) = (View::<i32, 1>::of("rope", "positions", op.positions)?, View::<f32, 1>::of("rope", "inv_freq", op.inv_freq)?);
    let pairs = freq.shape[0];
    pool.chunks(x.shape[0], 1, &|_, tokens| {
        for token in tokens {
            for i in 0..pairs {
                // SAFETY: in bounds by the contract; each token belongs to one chunk.
                unsafe {
                    let angle = f64::from(*positions.at([token])) * f64::from(*freq.at([i]));
                    let (sin, cos) = angle.sin_cos();
                    let (sin, cos) = (sin as f32 * op.scale, cos as f32 * op.scale);
                    let (a, b) = match op.layout {
                        RopeLayout::Halves => (i, i + pairs),
                        RopeLayout::Pairs => (2 * i, 2 * i + 1),
                    };
                    for head in 0..x.shape[1] {
                        let (pa, pb) = (x.at([token, head, a]), x.at([token, head, b]));
                        (*pa, *pb) = (*pa * cos - *pb * sin, *pa * sin + *pb * cos);
                    }
                }
            }
        }
    });
    Ok(())
}
