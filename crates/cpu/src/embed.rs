//! `out[t] = table[ids[t]] · scale`. One row per token is read, so it is bound by the latency of memory.

use ferrum_kernels::{Error, Result, ops::Embed};

use crate::{
    linear::CpuWeight,
    pool::Pool,
    storage::{Rows, View},
};

pub(crate) fn run(pool: &Pool, op: &Embed) -> Result<()> {
    op.check()?;
    let (ids, out) = (View::<i32, 1>::of("embed", "ids", op.ids)?, Rows::<f32>::of("embed", "out", op.out)?);
    let table = CpuWeight::of(op.table)?;
    if ids.shape[0] == 0 {
        return Ok(());
    }
    if table.rows() == 0 {
        return Err(Error::Value { op: "embed", arg: "table", got: "0 rows".into(), requirement: "it must have rows" });
    }
    // SAFETY: index 0 exists; nobody writes the ids during this operation.
    let ids = unsafe { ids.row([0]) };
    let drawn = op.drawn.map(|d| View::<i32, 1>::of("embed", "drawn", d)).transpose()?.filter(|d| d.shape[0] > 0);
    // SAFETY: as above.
    let drawn = drawn.map_or(&[][..], |d| unsafe { d.row([0]) });
    pool.chunks(ids.len(), 4, &|_, tokens| {
        for token in tokens {
            // SAFETY: `token` is below the token count that the contract gives to ids and out; each is one chunk's.
            let row = unsafe { out.row_mut([token, 0]) };
            let id = usize::try_from(-1 - i64::from(ids[token])).ok().and_then(|n| drawn.get(n)).unwrap_or(&ids[token]);
            let id = usize::try_from(*id).ok().filter(|&id| id < table.rows()).unwrap_or(0);
            table.row(id, row);
            row.iter_mut().for_each(|v| *v *= op.scale);
        }
    });
    table.check(op.table.name())
}
