//! `attention`: which kernels take which batch.

mod naive;
mod prefill_sm90;
mod rope;
mod tensor_core;
mod tiles;

use ferrum_kernels::{Result, ops::Attention};

use crate::context::Context;
pub(crate) use rope::rope_attention;
use tiles::DECODE_QUERY_ROWS;

/// Sequences of few query rows go to the kernel that splits the context, the others to a prefill kernel. Where the host
/// cannot tell that there is only one sort, both run, and each leaves to the other what is not its own.
pub(crate) fn run(cx: &Context, op: &Attention) -> Result<()> {
    op.check()?;
    let [tokens, seqs] = [op.q.shape()[0], op.context_lens.shape()[0]];
    if tokens == 0 || seqs == 0 {
        return Ok(());
    }
    if !tensor_core::takes(cx, op)? {
        return naive::run(cx, op);
    }
    let (decodes, prefills) = sorts(tokens, seqs, op.max_query_len);
    if decodes {
        tensor_core::decode(cx, op)?;
    }
    if !prefills {
        return Ok(());
    }
    if prefill_sm90::takes(cx, op)? {
        prefill_sm90::run(cx, op, DECODE_QUERY_ROWS + 1)
    } else {
        tensor_core::prefill(cx, op, DECODE_QUERY_ROWS + 1)
    }
}

/// Whether there may be sequences to decode, and sequences to prefill.
fn sorts(tokens: usize, seqs: usize, max_query_len: usize) -> (bool, bool) {
    let prefills = max_query_len > DECODE_QUERY_ROWS;
    (!prefills || tokens < seqs * max_query_len, prefills)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sort_of_sequences_takes_one_kernel() {
        assert_eq!(sorts(256, 256, 1), (true, false));
        assert_eq!(sorts(20, 4, 8), (true, false));
        assert_eq!(sorts(2048, 2, 1024), (false, true));
        assert_eq!(sorts(2049, 2, 2048), (true, true));
    }
}
