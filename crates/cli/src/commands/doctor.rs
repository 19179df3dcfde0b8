//! `ferrum doctor`: what this machine offers.

use std::fmt::Write;

use ferrum_cpu::{CpuBackend, CpuOptions, Simd, read_bandwidth};
use ferrum_kernels::Backend;
use ferrum_models::hub::HubOptions;
use serde_json::json;

use crate::{
    args::DoctorArgs,
    cuda, open,
    output::{self, bytes},
};

pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let cpu = CpuBackend::new(CpuOptions::default())?;
    let device = cpu.device();
    let simd: Vec<String> = Simd::ALL.iter().filter(|s| s.is_available()).map(ToString::to_string).collect();
    let [one, all] = [1, device.threads].map(|threads| read_bandwidth(threads, args.read_bytes));
    let (one, all) = (one?, all?);
    let mut options = HubOptions::from_env();
    if let Some(dir) = &args.hub.models_dir {
        options.models_dir.clone_from(dir);
    }
    let (models_dir, hf_cache) = (options.models_dir.display().to_string(), options.hf_cache.display().to_string());
    let models = open::hub(&args.hub).list();
    let models_bytes: u64 = models.iter().map(|m| m.bytes).sum();
    let gpu = cuda::gpu();
    let backends: Vec<&str> = gpu.is_ok().then_some("cuda").into_iter().chain(["cpu", "reference"]).collect();
    if args.json {
        let gpu = match &gpu {
            Ok(gpu) => json!({
                "name": gpu.name,
                "memory_bytes": gpu.memory_bytes,
                "compute_capability": gpu.compute_capability,
                "driver_cuda": gpu.driver,
                "cublaslt": gpu.has_cublaslt,
            }),
            Err(reason) => json!({"unusable": reason.to_string()}),
        };
        return output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": device.name,
            "simd": simd,
            "threads": device.threads,
            "memory_total_bytes": device.memory_total_bytes,
            "memory_available_bytes": device.memory_available_bytes,
            "read_bandwidth_bytes_s": {"one_thread": one, "all_threads": all},
            "gpu": gpu,
            "backends": backends,
            "models_dir": models_dir,
            "hf_cache": hf_cache,
            "models": models.len(),
            "models_bytes": models_bytes,
        }));
    }
    let gb = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
    let mut text = String::new();
    writeln!(text, "ferrum          {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(text, "processor       {}", device.name)?;
    writeln!(text, "kernels         {}", simd.join(", "))?;
    writeln!(text, "memory          {} of {} available", bytes(device.memory_available_bytes), bytes(device.memory_total_bytes))?;
    writeln!(text, "read bandwidth  {} with 1 thread, {} with {}", gb(one), gb(all), device.threads)?;
    match &gpu {
        Ok(gpu) => {
            let (memory, capability) = (bytes(gpu.memory_bytes), &gpu.compute_capability);
            writeln!(text, "GPU             {}, {memory}, compute capability {capability}, driver of CUDA {}", gpu.name, gpu.driver)?;
            if !gpu.has_cublaslt {
                writeln!(text, "                libcublasLt was not found: dense matrix products take slower kernels")?;
            }
        }
        Err(reason) => writeln!(text, "GPU             not used: {reason}")?,
    }
    writeln!(text, "backends        {}", backends.join(", "))?;
    writeln!(text, "models          {} ({})", models.len(), bytes(models_bytes))?;
    writeln!(text, "model folder    {models_dir}")?;
    writeln!(text, "Hugging Face    {hf_cache}")?;
    writeln!(text, "A model whose weights take B bytes generates at most bandwidth / B tokens per second here.")?;
    Ok(output::text(&text)?)
}
