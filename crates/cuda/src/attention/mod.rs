//! `attention`: which kernel takes which shape.

mod naive;
mod prefill_sm90;

use ferrum_kernels::{Result, ops::Attention};

use crate::context::Context;

/// Steps in which some sequence has at least as many query rows are the prefill kernel's.
const PREFILL_QUERY_LEN: usize = 9;

pub(crate) fn run(cx: &Context, op: &Attention) -> Result<()> {
    op.check()?;
    if op.max_query_len >= PREFILL_QUERY_LEN && prefill_sm90::takes(cx, op)? {
        return prefill_sm90::run(cx, op, 1);
    }
    naive::run(cx, op)
}
