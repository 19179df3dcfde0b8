//! Stores keys and values of new tokens into their slots, a token per chunk.

use ferrum_kernels::{DType, Error, Result, Tensor, ops::KvWrite};
use half::{bf16, f16};

use crate::{
    pool::Pool,
    storage::{Element, Heads, View},
};

pub(crate) fn run(pool: &Pool, op: &KvWrite) -> Result<()> {
    op.check()?;
    for (arg, new, cache) in [("k", op.k, op.k_cache), ("v", op.v, op.v_cache)] {
        match cache.dtype() {
            DType::F32 => copy::<f32>(pool, arg, new, op.slots, cache, |v| v)?,
            DType::F16 => copy::<f16>(pool, arg, new, op.slots, cache, f16::from_f32)?,
            DType::BF16 => copy::<bf16>(pool, arg, new, op.slots, cache, bf16::from_f32)?,
            got => return Err(Error::DType { op: "kv_write", arg: "k_cache", expected: "F32, F16 or BF16", got }),
        }
    }
    Ok(())
}

fn copy<T: Element>(pool: &Pool, arg: &'static str, new: &Tensor, slots: &Tensor, cache: &Tensor, to: fn(f32) -> T) -> Result<()> {
    let (new, slots) = (Heads::<f32>::of("kv_write", arg, new)?, View::<i32, 1>::of("kv_write", "slots", slots)?);
    let cache = View::<T, 4>::of("kv_write", "cache", cache)?;
    let [blocks, heads, block_tokens, _] = cache.shape;
    pool.chunks(new.shape[0], 4, &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract, the block checked; slots of one step differ.
            unsafe {
                let Some(slot) = usize::try_from(*slots.at([token])).ok().filter(|s| s / block_tokens < blocks) else { continue };
                for head in 0..heads {
                    let to_row = cache.row_mut([slot / block_tokens, head, slot % block_tokens, 0]);
                    to_row.iter_mut().zip(new.row([token, head, 0])).for_each(|(o, &v)| *o = to(v));
                }
            }
        }
    });
    Ok(())
}
