//! Runs one hot kernel once, so that `cargo xtask instructions` can count its instructions under callgrind.
//!
//! `instructions KERNEL`, one thread, AVX2: what the counter can emulate. Only what happens inside [`measured`] counts.

use std::sync::Arc;

use ferrum_cpu::{CpuBackend, CpuOptions, Simd};
use ferrum_kernels::{
    Backend, DType, HostBytes, Result, Tensor, Weight,
    ops::{Attention, Linear},
    quant,
};

fn main() -> Result<()> {
    let backend: Arc<dyn Backend> =
        Arc::new(CpuBackend::new(CpuOptions { threads: Some(1), simd: Some(Simd::Avx2), ..CpuOptions::default() })?);
    match std::env::args().nth(1).unwrap_or_default().as_str() {
        "linear_q4k_decode" => linear(&backend, DType::Q4_K, 1),
        "linear_q6k_decode" => linear(&backend, DType::Q6_K, 1),
        "linear_q8_0_decode" => linear(&backend, DType::Q8_0, 1),
        "linear_q4k_prefill" => linear(&backend, DType::Q4_K, 48),
        "attention_decode" => attention(&backend, 1, 1024),
        "attention_prefill" => attention(&backend, 128, 128),
        other => panic!("there is no kernel `{other}`"),
    }
}

/// `[tokens, 1024] · [256, 1024]ᵀ`
fn linear(backend: &Arc<dyn Backend>, dtype: DType, tokens: usize) -> Result<()> {
    let (rows, cols) = (256, 1024);
    let packed = quant::quantize(dtype, &values(rows * cols)).expect("whole blocks of finite numbers");
    let weight = backend.prepare(Weight::new("w", dtype, [rows, cols], HostBytes::from_vec(packed))?)?;
    let x = backend.tensor_f32(&[tokens, cols], &values(tokens * cols))?;
    let out = backend.zeros(DType::F32, &[tokens, rows])?;
    twice(&|| backend.linear(&Linear::new(&x, &weight, &out)))
}

/// 12 query heads of 128 on 2 KV heads, F16 cache in blocks of 32, the last `rows` tokens of `context`.
fn attention(backend: &Arc<dyn Backend>, rows: usize, context: usize) -> Result<()> {
    let (heads, kv_heads, head_dim, block) = (12, 2, 128, 32);
    let blocks = context.div_ceil(block);
    let q = backend.tensor_f32(&[rows, heads, head_dim], &values(rows * heads * head_dim))?;
    let cache = || -> Result<Tensor> {
        let tensor = backend.zeros(DType::F16, &[blocks, kv_heads, block, head_dim])?;
        let halves = quant::quantize(DType::F16, &values(tensor.elements())).expect("finite numbers");
        backend.upload(&tensor, &halves)?;
        Ok(tensor)
    };
    let (k_cache, v_cache) = (cache()?, cache()?);
    let block_tables = backend.tensor_i32(&[1, blocks], &(0..blocks as i32).collect::<Vec<_>>())?;
    let cu_seqlens = backend.tensor_i32(&[2], &[0, rows as i32])?;
    let context_lens = backend.tensor_i32(&[1], &[context as i32])?;
    let out = backend.zeros(DType::F32, &[rows, heads, head_dim])?;
    let op = Attention {
        q: &q,
        k_cache: &k_cache,
        v_cache: &v_cache,
        block_tables: &block_tables,
        cu_seqlens: &cu_seqlens,
        context_lens: &context_lens,
        max_query_len: rows,
        scale: 0.1,
        window: None,
        softcap: None,
        sinks: None,
        out: &out,
    };
    twice(&|| backend.attention(&op))
}

/// The first time memory grows and pages are found; the second time counts.
fn twice(run: &dyn Fn() -> Result<()>) -> Result<()> {
    run()?;
    measured(run)
}

#[inline(never)]
fn measured(run: &dyn Fn() -> Result<()>) -> Result<()> {
    std::hint::black_box(run)()
}

fn values(count: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}
