//! The CPU kernels against the scalar reference: every SIMD level this machine has, both precisions, 1 to 3 threads.

use std::sync::Arc;

use ferrum_cpu::{CpuBackend, CpuOptions, Precision, Simd};
use ferrum_kernels::{Backend, testkit};

fn backend(threads: usize, precision: Precision, simd: Simd) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuOptions { threads: Some(threads), precision, simd: Some(simd) }).unwrap())
}

fn levels() -> impl Iterator<Item = Simd> {
    Simd::ALL.into_iter().filter(|s| s.is_available())
}

#[test]
fn every_operation_on_every_level() {
    for simd in levels() {
        testkit::assert_all(&backend(2, Precision::Int8, simd), "");
    }
}

#[test]
fn every_thread_count() {
    for threads in [1, 3] {
        testkit::assert_all(&backend(threads, Precision::Int8, Simd::detect()), "");
    }
}

#[test]
fn linear_in_f32_on_every_level() {
    for simd in levels() {
        testkit::assert_all(&backend(2, Precision::F32, simd), "linear");
    }
}
