//! `out = act(gate) · up`, a few tokens per chunk.
//!
//! One exponential and one division per element.

use ferrum_kernels::{
    Result,
    ops::{ActMul, Activation},
};

use super::{
    Tail, rows_per_chunk,
    simd::{Vector, at_level},
    simd_math::{gelu_tanh, silu},
};
use crate::{Simd, pool::Pool, storage::Rows};

pub(crate) fn run(pool: &Pool, level: Simd, op: &ActMul) -> Result<()> {
    op.check()?;
    let (gate_up, out) = (Rows::<f32>::of("act_mul", "gate_up", op.gate_up)?, Rows::<f32>::of("act_mul", "out", op.out)?);
    let (inner, activation) = (out.shape[1], op.activation);
    if op.out.elements() == 0 {
        return Ok(());
    }
    pool.chunks(out.shape[0], rows_per_chunk(inner), &|_, tokens| {
        for token in tokens {
            // SAFETY: in bounds by the contract; each token belongs to one chunk. The level is the backend's.
            unsafe {
                let (gate, out) = (gate_up.at([token, 0]).cast_const(), out.at([token, 0]));
                at_level!(level, row(activation: Activation, gate: *const f32, out: *mut f32, inner: usize));
            }
        }
    });
    Ok(())
}

/// # Safety
/// `gate` points to `2n` elements, `out` to `n`.
#[inline(always)]
unsafe fn row<V: Vector>(activation: Activation, gate: *const f32, out: *mut f32, n: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        match activation {
            Activation::Silu => gated::<V, false>(gate, out, n),
            Activation::GeluTanh => gated::<V, true>(gate, out, n),
        }
    }
}

/// # Safety
/// As [`row`].
#[inline(always)]
unsafe fn gated<V: Vector, const GELU: bool>(gate: *const f32, out: *mut f32, n: usize) {
    // SAFETY: promised by the caller; `i + LANES ≤ n` in the loop, and a tail holds any vector.
    unsafe {
        let up = gate.add(n);
        let mut i = 0;
        while i + V::LANES <= n {
            act::<V, GELU>(V::load(gate.add(i))).mul(V::load(up.add(i))).store(out.add(i));
            i += V::LANES;
        }
        if i < n {
            let (g, u) = (Tail::read(gate.add(i), n - i), Tail::read(up.add(i), n - i));
            let mut o = Tail([0.0; 16]);
            act::<V, GELU>(V::load(g.0.as_ptr())).mul(V::load(u.0.as_ptr())).store(o.0.as_mut_ptr());
            o.write(out.add(i), n - i);
        }
    }
}

#[inline(always)]
unsafe fn act<V: Vector, const GELU: bool>(x: V) -> V {
    // SAFETY: promised by the caller.
    unsafe { if GELU { gelu_tanh(x) } else { silu(x) } }
}
