//! Stores keys and values of new tokens into their slots, a few tokens per chunk.

use ferrum_kernels::{DType, Error, Result, Tensor, ops::KvWrite};
use half::{bf16, f16};

use super::{
    Tail, rows_per_chunk,
    simd::{Vector, at_level},
};
use crate::{
    Simd,
    pool::Pool,
    storage::{Element, Heads, View},
};

pub(crate) fn run(pool: &Pool, level: Simd, op: &KvWrite) -> Result<()> {
    op.check()?;
    for (arg, new, cache) in [("k", op.k, op.k_cache), ("v", op.v, op.v_cache)] {
        match cache.dtype() {
            DType::F32 => write::<f32>(pool, level, arg, new, op.slots, cache)?,
            DType::F16 => write::<f16>(pool, level, arg, new, op.slots, cache)?,
            DType::BF16 => write::<bf16>(pool, level, arg, new, op.slots, cache)?,
            got => return Err(Error::DType { op: "kv_write", arg: "k_cache", expected: "F32, F16 or BF16", got }),
        }
    }
    Ok(())
}

fn write<T: Rounded>(pool: &Pool, level: Simd, arg: &'static str, new: &Tensor, slots: &Tensor, cache: &Tensor) -> Result<()> {
    let (new, slots) = (Heads::<f32>::of("kv_write", arg, new)?, View::<i32, 1>::of("kv_write", "slots", slots)?);
    let cache = View::<T, 4>::of("kv_write", "cache", cache)?;
    let [blocks, heads, block_tokens, head_dim] = cache.shape;
    if cache.shape.contains(&0) {
        return Ok(());
    }
    pool.chunks(new.shape[0], rows_per_chunk(heads * head_dim), &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract, the block checked; slots of one step differ. The level is the backend's.
            unsafe {
                let Some(slot) = usize::try_from(*slots.at([token])).ok().filter(|s| s / block_tokens < blocks) else { continue };
                for head in 0..heads {
                    let to = cache.at([slot / block_tokens, head, slot % block_tokens, 0]);
                    T::convert(level, new.at([token, head, 0]), to, head_dim);
                }
            }
        }
    });
    Ok(())
}

/// An element of the cache that F32 is rounded to.
trait Rounded: Element {
    /// # Safety
    /// Both pointers are to `n` elements, and the processor has the level.
    unsafe fn convert(level: Simd, from: *const f32, to: *mut Self, n: usize);

    /// # Safety
    /// `to` points to `LANES` elements.
    unsafe fn store<V: Vector>(v: V, to: *mut Self);
}

impl Rounded for f32 {
    #[inline(always)]
    unsafe fn convert(_: Simd, from: *const f32, to: *mut Self, n: usize) {
        // SAFETY: promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(from, to, n) };
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, to: *mut Self) {
        // SAFETY: promised by the caller.
        unsafe { v.store(to) };
    }
}

impl Rounded for f16 {
    unsafe fn convert(level: Simd, from: *const f32, to: *mut Self, n: usize) {
        // SAFETY: promised by the caller.
        unsafe { at_level!(level, round_row<f16>(from: *const f32, to: *mut f16, n: usize)) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, to: *mut Self) {
        // SAFETY: promised by the caller.
        unsafe { v.store_f16(to.cast()) };
    }
}

impl Rounded for bf16 {
    unsafe fn convert(level: Simd, from: *const f32, to: *mut Self, n: usize) {
        // SAFETY: promised by the caller.
        unsafe { at_level!(level, round_row<bf16>(from: *const f32, to: *mut bf16, n: usize)) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, to: *mut Self) {
        // SAFETY: promised by the caller.
        unsafe { v.store_bf16(to.cast()) };
    }
}

/// # Safety
/// Both pointers are to `n` elements.
#[inline(always)]
unsafe fn round_row<V: Vector, T: Rounded>(from: *const f32, to: *mut T, n: usize) {
    // SAFETY: promised by the caller; vectors end at or before `n`, and a tail holds any vector.
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            T::store(V::load(from.add(i)), to.add(i));
            i += V::LANES;
        }
        if i < n {
            let t = Tail::read(from.add(i), n - i);
            let mut rounded: [T; 16] = bytemuck::Zeroable::zeroed();
            T::store(V::load(t.0.as_ptr()), rounded.as_mut_ptr());
            std::ptr::copy_nonoverlapping(rounded.as_ptr(), to.add(i), n - i);
        }
    }
}
