//! The bits of a token's result do not depend on how many tokens a step has, nor on where a prompt is cut into steps.

use std::sync::Arc;

use ferrum_cpu::{CpuBackend, CpuOptions, Precision, Simd};
use ferrum_kernels::{
    Backend, DType, HostBytes, Tensor, Weight,
    ops::{Attention, Epilogue, Linear},
    quant,
};

fn levels() -> impl Iterator<Item = Simd> {
    Simd::ALL.into_iter().filter(|s| s.is_available())
}

fn backend(simd: Simd, precision: Precision) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), precision, simd: Some(simd) }).unwrap())
}

/// Numbers in −1..1, every 97th twenty times as large: `linear` treats outliers on their own.
fn values(count: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9u32;
    (0..count)
        .map(|n| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let value = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            if n % 97 == 13 { 20.0 * value } else { value }
        })
        .collect()
}

fn bits(t: &Tensor, backend: &dyn Backend) -> Vec<u32> {
    let mut bytes = vec![0; 4 * t.elements()];
    backend.download(t, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn linear_gives_a_token_the_same_bits_in_any_batch() {
    for (simd, precision) in levels().flat_map(|l| [(l, Precision::Int8), (l, Precision::F32)]) {
        let backend = backend(simd, precision);
        for dtype in DType::weights() {
            linear(&backend, dtype, &format!("{simd} {precision:?} {dtype}"));
        }
    }
}

/// Tiles meet 512 tokens at most at a time.
#[test]
fn linear_gives_a_token_the_same_bits_in_a_large_batch() {
    for simd in levels() {
        let backend = backend(simd, Precision::Int8);
        for dtype in [DType::Q4_K, DType::Q8_0, DType::BF16] {
            let (tokens, rows, cols) = (1031, 9, 768);
            let packed = quant::quantize(dtype, &values(rows * cols)).unwrap();
            let weight = backend.prepare(Weight::new("w", dtype, [rows, cols], HostBytes::from_vec(packed)).unwrap()).unwrap();
            let x = values(tokens * cols);
            let run = |from: usize, count: usize| {
                let x = backend.tensor_f32(&[count, cols], &x[from * cols..][..count * cols]).unwrap();
                let out = backend.tensor_f32(&[count, rows], &vec![f32::NAN; count * rows]).unwrap();
                backend.linear(&Linear::new(&x, &weight, &out)).unwrap();
                bits(&out, &*backend)
            };
            let all = run(0, tokens);
            for from in [0, 509, 512, 1022, 1030] {
                let count = (tokens - from).min(5);
                assert!(run(from, count) == all[from * rows..][..count * rows], "{simd} {dtype}: {count} tokens from {from}");
            }
        }
    }
}

fn linear(backend: &Arc<dyn Backend>, dtype: DType, case: &str) {
    // More than a tile of columns and a part of one; no whole number of panels, and for floats of vectors.
    let (tokens, rows, cols) = (35, 37, if dtype.is_block() { 1024 } else { 797 });
    let packed = quant::quantize(dtype, &values(rows * cols)).unwrap();
    let weight = backend.prepare(Weight::new("w", dtype, [rows, cols], HostBytes::from_vec(packed)).unwrap()).unwrap();
    let (x, addend) = (values(tokens * cols), values(tokens * rows));
    let bias = backend.tensor_f32(&[rows], &values(rows)).unwrap();
    let run = |from: usize, count: usize, bias: Option<&Tensor>, add: bool| {
        let x = backend.tensor_f32(&[count, cols], &x[from * cols..][..count * cols]).unwrap();
        let out = backend.tensor_f32(&[count, rows], &addend[from * rows..][..count * rows]).unwrap();
        let epilogue = if add { Epilogue::Add } else { Epilogue::Store };
        backend.linear(&Linear { bias, epilogue, ..Linear::new(&x, &weight, &out) }).unwrap();
        bits(&out, &**backend)
    };
    for (bias, add) in [(None, false), (Some(&bias), true)] {
        let all = run(0, tokens, bias, add);
        for (from, count) in [(0, 1), (7, 1), (34, 1), (3, 2), (1, 3), (20, 4), (30, 5), (11, 6), (4, 7), (9, 16), (2, 33)] {
            assert!(run(from, count, bias, add) == all[from * rows..][..count * rows], "{case}: {count} tokens from {from}, add {add}");
        }
    }
}

#[test]
fn attention_gives_a_token_the_same_bits_wherever_its_prompt_is_cut() {
    for simd in levels() {
        let backend = backend(simd, Precision::Int8);
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            for (heads, kv_heads, head_dim) in [(6, 2, 64), (3, 3, 80), (12, 1, 16), (2, 1, 24)] {
                for (window, softcap) in [(None, None), (Some(100), Some(5.0))] {
                    let case = format!("{simd} {dtype} {heads}/{kv_heads}·{head_dim} {window:?} {softcap:?}");
                    attention(&backend, dtype, [heads, kv_heads, head_dim], window, softcap, &case);
                }
            }
        }
    }
}

fn attention(
    backend: &Arc<dyn Backend>,
    dtype: DType,
    [heads, kv_heads, head_dim]: [usize; 3],
    window: Option<usize>,
    softcap: Option<f32>,
    case: &str,
) {
    const BLOCK: usize = 32;
    let context: usize = 1111;
    let blocks = context.div_ceil(BLOCK);
    let cache = |scale: f32| {
        let t = backend.zeros(dtype, &[blocks, kv_heads, BLOCK, head_dim]).unwrap();
        let values: Vec<f32> = values(t.elements()).into_iter().map(|v| v * scale).collect();
        backend.upload(&t, &quant::quantize(dtype, &values).unwrap()).unwrap();
        t
    };
    let (k_cache, v_cache) = (cache(1.0), cache(0.5));
    let q = values(context * heads * head_dim);
    // Each sequence is the one prompt up to `end`, of which the tokens from `start` on are computed.
    let run = |parts: &[(usize, usize)]| {
        let (mut queries, mut cu_seqlens) = (Vec::new(), vec![0]);
        for &(start, end) in parts {
            queries.extend_from_slice(&q[start * heads * head_dim..end * heads * head_dim]);
            cu_seqlens.push((queries.len() / (heads * head_dim)) as i32);
        }
        let rows = queries.len() / (heads * head_dim);
        let table: Vec<i32> = (0..blocks as i32).rev().collect();
        let out = backend.tensor_f32(&[rows, heads, head_dim], &vec![f32::NAN; queries.len()]).unwrap();
        backend
            .attention(&Attention {
                q: &backend.tensor_f32(&[rows, heads, head_dim], &queries).unwrap(),
                k_cache: &k_cache,
                v_cache: &v_cache,
                block_tables: &backend.tensor_i32(&[parts.len(), blocks], &table.repeat(parts.len())).unwrap(),
                cu_seqlens: &backend.tensor_i32(&[parts.len() + 1], &cu_seqlens).unwrap(),
                context_lens: &backend.tensor_i32(&[parts.len()], &parts.iter().map(|p| p.1 as i32).collect::<Vec<_>>()).unwrap(),
                max_query_len: parts.iter().map(|p| p.1 - p.0).max().unwrap(),
                scale: 0.3,
                window,
                softcap,
                sinks: None,
                out: &out,
            })
            .unwrap();
        bits(&out, &**backend)
    };
    let row = heads * head_dim;
    let all = run(&[(0, context)]);
    for parts in
        [&[(1110, 1111)][..], &[(0, 1)], &[(640, 642)], &[(500, 505)], &[(511, 700)], &[(1000, 1111)], &[(7, 8), (900, 940), (1023, 1024)]]
    {
        let want: Vec<u32> = parts.iter().flat_map(|&(start, end)| all[start * row..end * row].iter().copied()).collect();
        assert!(run(parts) == want, "{case}: {parts:?}");
    }
}
