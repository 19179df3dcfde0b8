//! The cases of every operation on the GPU: `cargo run --release -p ferrum-cuda --example testkit -- [test|perf] [FILTER]`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use ferrum_cuda::{
    CudaBackend,
    driver::{Device, DeviceBuffer, Event, Stream},
};
use ferrum_kernels::{Backend, Result as KernelResult, testkit};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (mode, filter) = (args.next().unwrap_or_else(|| "test".to_owned()), args.next().unwrap_or_default());
    let backend: Arc<dyn Backend> = Arc::new(CudaBackend::new(0)?);
    println!("{}", backend.device().name);
    match mode.as_str() {
        "test" => Ok(test(&backend, &filter)),
        "perf" => {
            let limit = copy_bandwidth()?;
            println!("limit: {limit:.0} GB/s of a copy within the device, read and written");
            for t in testkit::perf(&backend, &filter, Duration::from_millis(50))? {
                let (us, percent) = (t.median.as_secs_f64() * 1e6, t.gb_per_s / limit * 100.0);
                let tflops = t.gflop_per_s / 1e3;
                println!("{us:>9.1} µs {:>7.1} GB/s {percent:>4.0} % {tflops:>6.1} TFLOP/s  {} {}", t.gb_per_s, t.op, t.name);
            }
            Ok(ExitCode::SUCCESS)
        }
        other => Err(format!("`{other}` is neither test nor perf").into()),
    }
}

/// GB/s, the best of a few copies of 1 GiB.
fn copy_bandwidth() -> KernelResult<f64> {
    const BYTES: usize = 1 << 30;
    let device = Device::open(0)?;
    let stream = Stream::new(&device)?;
    let (from, to) = (DeviceBuffer::zeroed(&stream, BYTES)?, DeviceBuffer::zeroed(&stream, BYTES)?);
    let (start, end) = (Event::timed(&device)?, Event::timed(&device)?);
    let mut best = 0.0f64;
    for _ in 0..5 {
        stream.record(&start)?;
        // SAFETY: two buffers of this size.
        unsafe { stream.copy_on_device(to.ptr(), from.ptr(), BYTES)? };
        stream.record(&end)?;
        end.synchronize()?;
        best = best.max(2.0 * BYTES as f64 / 1e6 / f64::from(end.ms_since(&start)?));
    }
    Ok(best)
}

/// Failures first, then a count per operation.
fn test(backend: &Arc<dyn Backend>, filter: &str) -> ExitCode {
    let outcomes = testkit::test(backend, filter);
    for outcome in &outcomes {
        if let Err(reason) = &outcome.result {
            println!("FAILED {} [{}]: {reason}", outcome.op, outcome.name);
        }
    }
    let mut failed = 0;
    for of_op in outcomes.chunk_by(|a, b| a.op == b.op) {
        let bad = of_op.iter().filter(|o| o.result.is_err()).count();
        println!("{:14} {:4} passed {bad:4} failed", of_op[0].op, of_op.len() - bad);
        failed += bad;
    }
    if failed == 0 && !outcomes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
