//! `out[n] = x[rows[n]]`, a few rows per chunk.

use ferrum_kernels::{Result, ops::GatherRows};

use super::rows_per_chunk;
use crate::{
    Simd,
    pool::Pool,
    storage::{Rows, View},
};

pub(crate) fn run(pool: &Pool, _level: Simd, op: &GatherRows) -> Result<()> {
    op.check()?;
    let (x, out) = (Rows::<f32>::of("gather_rows", "x", op.x)?, Rows::<f32>::of("gather_rows", "out", op.out)?);
    let rows = View::<i32, 1>::of("gather_rows", "rows", op.rows)?;
    if op.x.elements() == 0 || op.out.elements() == 0 {
        return Ok(());
    }
    pool.chunks(rows.shape[0], rows_per_chunk(x.shape[1]), &|_, picked| {
        for n in picked {
            // SAFETY: in bounds by the contract, the picked row clamped; `x` and `out` do not overlap by the contract.
            unsafe {
                let row = usize::try_from(*rows.at([n])).ok().filter(|&r| r < x.shape[0]).unwrap_or(0);
                out.row_mut([n, 0]).copy_from_slice(x.row([row, 0]));
            }
        }
    });
    Ok(())
}
