//! `ferrum plan`: memory, before anything is loaded.

use std::fmt::Write;

use ferrum_engine::{EngineOptions, MemoryPlan};
use ferrum_kernels::DType;
use serde_json::{Map, Value, json};

use crate::{
    args::PlanArgs,
    open::{self, Need},
    output::{self, bytes},
};

pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let checkpoint = open::checkpoint(&args.model, &args.hub)?;
    let backend = open::backend(&args.engine)?;
    let (inspection, context) = open::inspect(&checkpoint, &*backend, args.context.ctx)?;
    let need = Need { sequences: Some(args.sequences), ..Need::default() };
    let plan_of = |kv_dtype: DType| {
        let options = EngineOptions { kv_dtype, ..open::options(&args.engine, &*backend, &need, context) };
        MemoryPlan::new(&inspection.info, inspection.weight_bytes, &*backend, &options)
    };
    let kv_dtype = open::kv_dtype(&args.engine, &*backend);
    let plan = plan_of(kv_dtype)?;
    let by_type = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
    let fits = by_type.into_iter().map(|(name, kind)| Ok((name, plan_of(kind)?))).collect::<anyhow::Result<Vec<_>>>()?;
    if args.json {
        let longest: Map<String, Value> = fits.iter().map(|(name, p)| ((*name).to_owned(), p.max_context_that_fits.into())).collect();
        return output::json(&json!({
            "model": args.model,
            "backend": backend.name(),
            "device": backend.device().name,
            "parameters": inspection.info.parameters,
            "context": context,
            "max_context": inspection.info.max_context,
            "sequences": args.sequences,
            "kv_type": kv_dtype.name().to_ascii_lowercase(),
            "weights_bytes": plan.weights_bytes,
            "kv_bytes_per_token": plan.kv_bytes_per_token,
            "kv_tokens": plan.kv_tokens,
            "kv_bytes": plan.kv_bytes,
            "scratch_bytes": plan.scratch_bytes,
            "total_bytes": plan.total_bytes,
            "available_bytes": plan.available_bytes,
            "fits": plan.fits(),
            "max_context_that_fits": plan.max_context_that_fits,
            "max_context_that_fits_by_kv_type": longest,
        }));
    }
    let mut text = format!("{} on {}\n", args.model, backend.device().name);
    let mut line = |what: &str, value: u64, note: &str| {
        let line = format!("  {what:<10} {:>10}  {note}", bytes(value));
        writeln!(text, "{}", line.trim_end())
    };
    line("weights", plan.weights_bytes, &format!("{} parameters", output::count(inspection.info.parameters)))?;
    let per_token = bytes(plan.kv_bytes_per_token);
    let sequences = if args.sequences == 1 { "1 sequence".to_owned() } else { format!("{} sequences", args.sequences) };
    line("KV cache", plan.kv_bytes, &format!("{} tokens of {per_token}: {sequences}, context {context}", plan.kv_tokens))?;
    line("scratch", plan.scratch_bytes, "")?;
    line("total", plan.total_bytes, "")?;
    line("available", plan.available_bytes, if plan.fits() { "fits" } else { "DOES NOT FIT" })?;
    text += "Longest context of one sequence that would fit, of the model's ";
    let longest: Vec<_> = fits.iter().map(|(name, plan)| format!("{} ({name} cache)", plan.max_context_that_fits)).collect();
    writeln!(text, "{}: {}", inspection.info.max_context, longest.join(", "))?;
    Ok(output::text(&text)?)
}
