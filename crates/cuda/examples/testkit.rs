//! The cases of every operation on the GPU: `cargo run --release -p ferrum-cuda --example testkit -- [test|perf] [FILTER]`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use ferrum_cuda::CudaBackend;
use ferrum_kernels::{Backend, testkit};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (mode, filter) = (args.next().unwrap_or_else(|| "test".to_owned()), args.next().unwrap_or_default());
    let backend: Arc<dyn Backend> = Arc::new(CudaBackend::new(0)?);
    println!("{}", backend.device().name);
    match mode.as_str() {
        "test" => Ok(test(&backend, &filter)),
        "perf" => {
            for t in testkit::perf(&backend, &filter, Duration::from_millis(50))? {
                println!(
                    "{:>9.1} µs {:>7.1} GB/s {:>8.1} GFLOP/s  {} {}",
                    t.median.as_secs_f64() * 1e6,
                    t.gb_per_s,
                    t.gflop_per_s,
                    t.op,
                    t.name
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        other => Err(format!("`{other}` is neither test nor perf").into()),
    }
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
