//! Speed of `linear` per dtype: GB/s of weights at decode, GOP/s at prefill, each beside the machine's own read rate.
//!
//! `cargo run --release -p ferrum-cpu --example linear_speed -- [THREADS] [FILTER] [LEVEL]`, where FILTER is part of a
//! line's label, e.g. `Q4_K m=1`, and LEVEL one of `portable avx2 avxvnni avx512`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ferrum_cpu::{CpuBackend, CpuOptions, Simd, read_bandwidth};
use ferrum_kernels::{Backend, DType, HostBytes, Result, Weight, ops::Linear, quant};

const ROWS: usize = 2048;
const COLS: usize = 4096;
/// Weights cycle through more memory than any cache holds.
const CYCLE_BYTES: usize = 128 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().and_then(|a| a.parse().ok()).unwrap_or(2);
    let filter = args.get(1).map_or("", String::as_str);
    let simd = args.get(2).map(|name| match name.as_str() {
        "portable" => Simd::Portable,
        "avx2" => Simd::Avx2,
        "avxvnni" => Simd::AvxVnni,
        _ => Simd::Avx512,
    });
    let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(CpuOptions { threads: Some(threads), simd, ..CpuOptions::default() })?);
    let bandwidth = read_bandwidth(threads, CYCLE_BYTES)? / 1e9;
    println!("{}; reads {:.1} GB/s", backend.device().name, bandwidth);
    for dtype in DType::weights() {
        for tokens in [1, 4, 8, 32, 512] {
            let label = format!("{dtype} m={tokens}");
            if label.contains(filter) {
                measure(&backend, dtype, tokens, bandwidth, &label)?;
            }
        }
    }
    Ok(())
}

fn measure(backend: &Arc<dyn Backend>, dtype: DType, tokens: usize, bandwidth: f64, label: &str) -> Result<()> {
    let values: Vec<f32> = (0..COLS).map(|n| ((n * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
    let row = quant::quantize(dtype, &values).expect("4096 columns are whole blocks");
    let bytes = row.len() * ROWS;
    let copies = if tokens == 512 { 1 } else { CYCLE_BYTES.div_ceil(bytes) };
    let all = HostBytes::from_vec(row.repeat(ROWS * copies));
    let mut weights = Vec::new();
    for n in 0..copies {
        let data = all.slice(n * bytes..(n + 1) * bytes).expect("within the copies");
        weights.push(backend.prepare(Weight::new("w", dtype, [ROWS, COLS], data)?)?);
    }
    let x = backend.tensor_f32(&[tokens, COLS], &values.repeat(tokens))?;
    let out = backend.zeros(DType::F32, &[tokens, ROWS])?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_millis(400) || times.len() < 3 {
        for weight in &weights {
            let once = Instant::now();
            backend.linear(&Linear::new(&x, weight, &out))?;
            times.push(once.elapsed().as_secs_f64());
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    // The lower quartile: other programs only ever add time.
    let time = times[times.len() / 4];
    let (rate, ops) = (bytes as f64 / time / 1e9, 2.0 * (tokens * ROWS * COLS) as f64 / time / 1e9);
    println!("{label:14} {:9.1} µs {rate:7.2} GB/s ({:3.0} %) {ops:8.1} GOP/s", time * 1e6, rate / bandwidth * 100.0);
    Ok(())
}
