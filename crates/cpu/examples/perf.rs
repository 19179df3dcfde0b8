//! Times the operations: `cargo run --release -p ferrum-cpu --example perf -- FILTER [THREADS] [portable|avx2|avx-vnni|avx512]`.

use std::{sync::Arc, time::Duration};

use ferrum_cpu::{CpuBackend, CpuOptions, Simd};
use ferrum_kernels::{Backend, testkit};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let filter = args.next().unwrap_or_default();
    let threads = args.next().map(|a| a.parse()).transpose()?;
    let simd = match args.next().as_deref() {
        None => None,
        Some("portable") => Some(Simd::Portable),
        Some("avx2") => Some(Simd::Avx2),
        Some("avx-vnni") => Some(Simd::AvxVnni),
        Some("avx512") => Some(Simd::Avx512),
        Some(other) => return Err(format!("no SIMD level `{other}`").into()),
    };
    let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(CpuOptions { threads, simd, ..CpuOptions::default() })?);
    println!("{}", backend.device().name);
    for t in testkit::perf(&backend, &filter, Duration::from_millis(200))? {
        println!("{:>10.1} µs {:>7.1} GB/s {:>7.1} GFLOP/s  {} {}", t.median.as_secs_f64() * 1e6, t.gb_per_s, t.gflop_per_s, t.op, t.name);
    }
    Ok(())
}
