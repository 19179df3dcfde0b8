//! Scaled dot-product attention over the paged cache: one call for any mix of prefill and decode.
//!
//! Flash attention (Dao et al. 2022, arXiv:2205.14135) with an online softmax. The query heads that share a KV head are
//! packed as rows beside the tokens, so keys and values are read once for all of them. Two ways through one loop:
//!
//! - up to eight packed rows (decode): 64 keys at a time, straight from the cache in its own dtype; bound by memory.
//! - more (prefill): 96 rows × 64 keys. Keys become F32 columns and values F32 rows, once per tile, then `q · kᵀ` and
//!   `p · v` are the same register-blocked product; bound by FMA. Keys beyond the causal end or before the window of all
//!   rows of a tile are skipped.
//!
//! Work is cut by `plan.rs`. Both ways give a row the same bits: scores are summed in the same order, and running maximums
//! move at the same keys, the multiples of 64.
//!
//! Rates on one core of an AMD EPYC Zen 4, F16 cache, block of 32 (2026-11-23, CPU time on a busy machine; wall times of a
//! quiet one: `cargo run --release -p ferrum-cpu --example perf -- "attention seqs=[("`):
//!
//! | heads, head_dim | decode at 4096 | 512 rows at 4096 | 512 rows at 512 |
//! |---|---|---|---|
//! | 9/3, 64, AVX-512 | 15 GB/s of cache | 82 GFLOP/s | 95 GFLOP/s |
//! | 9/3, 64, AVX2 | 13 GB/s | 71 GFLOP/s | 90 GFLOP/s |
//! | 12/2, 128, AVX-512 | 11 GB/s | 81 GFLOP/s | 82 GFLOP/s |
//! | 12/2, 128, AVX2 | 8.5 GB/s | 73 GFLOP/s | 80 GFLOP/s |

mod kernels;
mod plan;
mod unit;

use std::cell::RefCell;

use ferrum_kernels::{DType, Error, Result, ops::Attention};
use half::{bf16, f16};

use self::{
    kernels::Cached,
    plan::{Plan, Unit},
    unit::{Partials, Scratch},
};
use crate::{
    Simd,
    pool::Pool,
    storage::{Heads, Rows, View},
};

const OP: &str = "attention";

pub(crate) fn run(pool: &Pool, level: Simd, op: &Attention) -> Result<()> {
    op.check()?;
    match op.k_cache.dtype() {
        DType::F32 => typed::<f32>(pool, level, op),
        DType::F16 => typed::<f16>(pool, level, op),
        DType::BF16 => typed::<bf16>(pool, level, op),
        got => Err(Error::DType { op: OP, arg: "k_cache", expected: "F32, F16 or BF16", got }),
    }
}

thread_local! {
    static PLAN: RefCell<Plan> = RefCell::default();
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn typed<T: Cached>(pool: &Pool, level: Simd, op: &Attention) -> Result<()> {
    let Some(call) = Call::<T>::new(level, op)? else { return Ok(()) };
    PLAN.with_borrow_mut(|plan| {
        plan.make(&call, pool.workers());
        let partials = Partials::new(&mut plan.partials);
        let (units, splits, batch) = (&plan.units[..], &plan.splits[..], plan.batch);
        pool.chunks(units.len(), batch, &|_, chunk| {
            SCRATCH.with_borrow_mut(|scratch| {
                for unit in &units[chunk] {
                    // SAFETY: the call is checked and each unit is run by one worker.
                    unsafe { unit::run(&call, unit, splits, &partials, scratch) };
                }
            });
        });
    });
    Ok(())
}

/// The arguments as the workers see them; every index in the tables is checked.
struct Call<T> {
    level: Simd,
    q: Heads<f32>,
    out: Heads<f32>,
    k: View<T, 4>,
    v: View<T, 4>,
    tables: Rows<i32>,
    cu_seqlens: View<i32, 1>,
    context_lens: View<i32, 1>,
    sinks: Option<View<f32, 1>>,
    scale: f32,
    softcap: Option<f32>,
    window: usize,
    kv_heads: usize,
    /// Query heads per KV head
    group: usize,
    block_tokens: usize,
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors
    width: usize,
}

/// The place of one sequence in the call.
#[derive(Clone, Copy)]
struct Seq {
    /// First query row
    first: usize,
    rows: usize,
    context: usize,
}

impl<T: Cached> Call<T> {
    /// `None` when there is nothing to do.
    fn new(level: Simd, op: &Attention) -> Result<Option<Self>> {
        let (q, k) = (Heads::<f32>::of(OP, "q", op.q)?, View::<T, 4>::of(OP, "k_cache", op.k_cache)?);
        let [_, heads, head_dim] = q.shape;
        let [_, kv_heads, block_tokens, _] = k.shape;
        let call = Self {
            level,
            q,
            out: Heads::of(OP, "out", op.out)?,
            k,
            v: View::of(OP, "v_cache", op.v_cache)?,
            tables: Rows::of(OP, "block_tables", op.block_tables)?,
            cu_seqlens: View::of(OP, "cu_seqlens", op.cu_seqlens)?,
            context_lens: View::of(OP, "context_lens", op.context_lens)?,
            sinks: op.sinks.map(|s| View::of(OP, "sinks", s)).transpose()?,
            scale: op.scale,
            softcap: op.softcap,
            window: op.window.unwrap_or(usize::MAX),
            kv_heads,
            group: heads / kv_heads.max(1),
            block_tokens,
            head_dim,
            width: head_dim.next_multiple_of(16),
        };
        if q.shape.contains(&0) {
            return Ok(None);
        }
        call.check_indices()?;
        Ok(Some(call))
    }

    /// Every index that a worker will follow lies within its tensor.
    fn check_indices(&self) -> Result<()> {
        let bad = |arg, got: String, requirement| Err(Error::Value { op: OP, arg, got, requirement });
        if self.k.shape.contains(&0) {
            return bad("k_cache", format!("{:?}", self.k.shape), "no axis may be empty");
        }
        for view in [&self.k, &self.v] {
            if view.stride(2) != self.head_dim {
                return bad("k_cache", format!("{}", view.stride(2)), "tokens of a block must lie side by side");
            }
        }
        let mut end = 0;
        for seq in 0..self.seqs() {
            // SAFETY: `seqs + 1` elements by the contract.
            let [first, last] = unsafe { [*self.cu_seqlens.at([seq]), *self.cu_seqlens.at([seq + 1])] };
            // SAFETY: `seqs` elements by the contract.
            let context = unsafe { *self.context_lens.at([seq]) };
            if first != end || last < first {
                return bad("cu_seqlens", format!("{first}, {last}"), "it must start with 0 and not decrease");
            }
            end = last;
            if context < last - first || context as usize > self.tables.shape[1] * self.block_tokens {
                return bad("context_lens", context.to_string(), "it must hold the query rows and fit the block table");
            }
            if last == first {
                continue;
            }
            // The first row sees the earliest key.
            let oldest = (context - (last - first) + 1) as usize;
            let blocks = oldest.saturating_sub(self.window) / self.block_tokens..(context as usize).div_ceil(self.block_tokens);
            for n in blocks {
                // SAFETY: within the table, checked above.
                let block = unsafe { *self.tables.at([seq, n]) };
                if block < 0 || block as usize >= self.k.shape[0] {
                    return bad("block_tables", block.to_string(), "it must be a block of the cache");
                }
            }
        }
        if end as usize != self.q.shape[0] {
            return bad("cu_seqlens", end.to_string(), "it must end with the number of query rows");
        }
        Ok(())
    }
}

impl<T> Call<T> {
    fn seqs(&self) -> usize {
        self.context_lens.shape[0]
    }

    fn seq(&self, seq: usize) -> Seq {
        // SAFETY: `seq` is below `seqs`; the contents are checked.
        let [first, last, context] = unsafe { [*self.cu_seqlens.at([seq]), *self.cu_seqlens.at([seq + 1]), *self.context_lens.at([seq])] };
        Seq { first: first as usize, rows: (last - first) as usize, context: context as usize }
    }

    fn mask(&self, unit: &Unit) -> kernels::Mask {
        let seq = self.seq(unit.seq);
        kernels::Mask { first: unit.first, group: self.group, before: seq.context - seq.rows, window: self.window }
    }

    /// The keys that some row of the unit sees.
    fn keys(&self, unit: &Unit) -> (usize, usize) {
        let mask = self.mask(unit);
        (mask.keys(0).0, mask.keys(unit.rows - 1).1)
    }
}
