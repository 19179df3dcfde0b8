//! Scaled dot-product attention over the paged cache, a query row per chunk.

use ferrum_kernels::{DType, Error, Result, ops::Attention};
use half::{bf16, f16};

use crate::{
    pool::Pool,
    storage::{Element, Heads, Rows, View},
};

pub(crate) fn run(pool: &Pool, op: &Attention) -> Result<()> {
    op.check()?;
    match op.k_cache.dtype() {
        DType::F32 => typed::<f32>(pool, op, |v| v),
        DType::F16 => typed::<f16>(pool, op, f16::to_f32),
        DType::BF16 => typed::<bf16>(pool, op, bf16::to_f32),
        got => Err(Error::DType { op: "attention", arg: "k_cache", expected: "F32, F16 or BF16", got }),
    }
}

fn typed<T: Element>(pool: &Pool, op: &Attention, to_f32: fn(T) -> f32) -> Result<()> {
    let name = "attention";
    let (q, out) = (Heads::<f32>::of(name, "q", op.q)?, Heads::<f32>::of(name, "out", op.out)?);
    let (k, v) = (View::<T, 4>::of(name, "k_cache", op.k_cache)?, View::<T, 4>::of(name, "v_cache", op.v_cache)?);
    let tables = Rows::<i32>::of(name, "block_tables", op.block_tables)?;
    let (cu, lens) = (View::<i32, 1>::of(name, "cu_seqlens", op.cu_seqlens)?, View::<i32, 1>::of(name, "context_lens", op.context_lens)?);
    let sinks = op.sinks.map(|s| View::<f32, 1>::of(name, "sinks", s)).transpose()?;
    let [tokens, heads, head_dim] = q.shape;
    let [_, kv_heads, block_tokens, _] = k.shape;
    pool.chunks(tokens * heads, 1, &|_, items| {
        for item in items {
            let (token, head) = (item / heads, item % heads);
            // SAFETY: in bounds by the contract and, for the index tensors, by the runner; one chunk per output row.
            unsafe {
                let Some(seq) = (0..lens.shape[0]).find(|&s| (token as i32) < *cu.at([s + 1])) else { continue };
                let end = (*lens.at([seq]) as usize) - (*cu.at([seq + 1]) as usize - token - 1);
                let start = op.window.map_or(0, |w| end.saturating_sub(w));
                let at = |t: usize| [*tables.at([seq, t / block_tokens]) as usize, head / (heads / kv_heads), t % block_tokens, 0];
                let query = q.row([token, head, 0]);
                let mut scores: Vec<f32> = (start..end)
                    .map(|t| {
                        let dot: f32 = query.iter().zip(k.row(at(t))).map(|(&a, &b)| a * to_f32(b)).sum();
                        op.softcap.map_or(dot * op.scale, |cap| cap * (dot * op.scale / cap).tanh())
                    })
                    .collect();
                let sink = sinks.map(|s| *s.at([head]));
                let max = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
                scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                let total = scores.iter().sum::<f32>() + sink.map_or(0.0, |s| (s - max).exp());
                let o = &mut out.row_mut([token, head, 0])[..head_dim];
                o.fill(0.0);
                for (t, p) in (start..end).zip(scores) {
                    for (o, &value) in o.iter_mut().zip(v.row(at(t))) {
                        *o += p / total * to_f32(value);
                    }
                }
            }
        }
    });
    Ok(())
}
