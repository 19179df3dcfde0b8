//! `ferrum bench`: prompt and generation speed of the engine that `ferrum run` uses.
//!
//! One repetition is one batch of requests with random prompts, greedy and going on behind the model's end tokens: `pp` is
//! prompt tokens by the time until every sequence has its first token, `tg` the tokens after that by the rest of the time.

use std::{fmt::Write, fs, sync::Arc, time::Instant};

use anyhow::{anyhow, bail};
use ferrum_engine::{Engine, Event, Request};
use ferrum_kernels::DType;
use ferrum_models::{Model, load_dummy};
use serde_json::{Value, json};

use crate::{
    args::BenchArgs,
    open::{self, Need},
    output,
};

/// What one repetition took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    prompt_tok_s: f64,
    generate_tok_s: f64,
    /// Until the first token of the first sequence
    ttft_s: f64,
}

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.prompt == 0 || args.generate == 0 || args.repetitions == 0 || args.batch == 0 {
        bail!("-p, -n, -r and -b must each be at least 1");
    }
    let started = Instant::now();
    let (mut engine, model) = engine(args)?;
    let load_s = started.elapsed().as_secs_f64();
    let threads = engine.backend().device().threads;
    let mut random = Random(0x5EED);
    let mut samples = Vec::with_capacity(args.repetitions);
    for i in 0..=args.repetitions {
        if output::status_visible() {
            eprint!("\x1b[2K\r{}", if i == 0 { "warm-up".to_owned() } else { format!("repetition {i} of {}", args.repetitions) });
        }
        let sample = repetition(&mut engine, args, &mut random)?;
        if i > 0 {
            samples.push(sample);
        }
    }
    if output::status_visible() {
        eprint!("\x1b[2K\r");
    }
    let [pp, tg, ttft] = [|s: &Sample| s.prompt_tok_s, |s: &Sample| s.generate_tok_s, |s: &Sample| s.ttft_s].map(|f| spread(&samples, f));
    let peak = peak_rss_bytes();
    if args.json {
        let speed = |n: usize, [min, median, max]: [f64; 3]| json!({"n": n, "tok_s": {"min": min, "median": median, "max": max}});
        return output::json(&json!({
            "model": model,
            "backend": engine.backend().name(),
            "device": engine.backend().device().name,
            "threads": threads,
            "depth": args.depth,
            "batch": args.batch,
            "repetitions": args.repetitions,
            "pp": speed(args.prompt, pp),
            "tg": speed(args.generate, tg),
            "load_s": load_s,
            "ttft_s": ttft[1],
            "peak_rss_bytes": peak.map_or(Value::Null, Value::from),
        }));
    }
    let mut text = format!(
        "{model} on {} ({}), depth {}, batch {}\n",
        engine.backend().name(),
        engine.backend().device().name,
        args.depth,
        args.batch
    );
    writeln!(text, "{:>8}  {:>10}  {:>10}  {:>10}  tok/s", "", "min", "median", "max")?;
    for (name, n, [min, median, max]) in [("pp", args.prompt, pp), ("tg", args.generate, tg)] {
        writeln!(text, "{:>8}  {min:>10.2}  {median:>10.2}  {max:>10.2}", format!("{name}{n}"))?;
    }
    let peak = peak.map_or("unknown".to_owned(), output::bytes);
    writeln!(text, "load {load_s:.2} s, first token after {:.3} s, peak memory {peak}", ttft[1])?;
    Ok(output::text(&text)?)
}

fn engine(args: &BenchArgs) -> anyhow::Result<(Engine, String)> {
    let context = args.depth + args.prompt + args.generate + 2;
    let need = Need { context: Some(context), sequences: Some(args.batch), ..Need::default() };
    if let Some(config) = &args.dummy_weights {
        let backend = open::backend(&args.engine)?;
        let (loaded, _bytes): (Arc<dyn Model>, u64) = load_dummy(config, args.quant, &*backend, context)?;
        let model = format!("{} ({})", config.display(), DType::name(args.quant).to_ascii_lowercase());
        let options = open::options(&args.engine, &*backend, &need, context);
        return Ok((Engine::new(backend, loaded, options)?, model));
    }
    let model = args.model.clone().ok_or_else(|| anyhow!("name a model, or give --dummy-weights"))?;
    Ok((open::session(&model, &args.hub, &args.engine, &need)?.engine, model))
}

fn repetition(engine: &mut Engine, args: &BenchArgs, random: &mut Random) -> anyhow::Result<Sample> {
    engine.clear_cache();
    let vocab = engine.model_info().vocab as u64;
    let mut tokens = |n: usize| (0..n).map(|_| (random.next() % vocab) as u32).collect::<Vec<u32>>();
    let before: Vec<Vec<u32>> = (0..args.batch).map(|_| tokens(args.depth)).collect();
    if args.depth > 0 {
        let fill = before.iter().map(|prompt| request(prompt.clone(), 1)).collect();
        run_all(engine, fill)?;
    }
    // One more than asked for: the first token belongs to the prompt.
    let requests = before.into_iter().map(|depth| request([depth, tokens(args.prompt)].concat(), args.generate as u64 + 1)).collect();
    run_all(engine, requests)
}

fn request(prompt: Vec<u32>, max_tokens: u64) -> Request {
    Request { max_tokens: Some(max_tokens), ignore_eos: true, ..Request::new(prompt) }
}

fn run_all(engine: &mut Engine, requests: Vec<Request>) -> anyhow::Result<Sample> {
    let count = requests.len();
    let mut prompt_tokens: usize = requests.iter().map(|r| r.prompt.len()).sum();
    let started = Instant::now();
    for request in requests {
        engine.submit(request)?;
    }
    let mut events = Vec::new();
    let mut waiting: Vec<_> = Vec::with_capacity(count);
    let (mut ttft_s, mut prompted, mut generated) = (None, None, 0usize);
    while engine.has_work() {
        engine.step_into(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Token { id, .. } => {
                    ttft_s.get_or_insert_with(|| started.elapsed().as_secs_f64());
                    if prompted.is_some() {
                        generated += 1;
                    } else if !waiting.contains(&id) {
                        waiting.push(id);
                    }
                }
                Event::Finished { finished, .. } => prompt_tokens -= finished.reused_tokens,
            }
        }
        if prompted.is_none() && waiting.len() == count {
            prompted = Some(started.elapsed().as_secs_f64());
        }
    }
    let total = started.elapsed().as_secs_f64();
    let prompt_s = prompted.ok_or_else(|| anyhow!("a request ended without a token"))?;
    Ok(Sample {
        prompt_tok_s: prompt_tokens as f64 / prompt_s,
        generate_tok_s: generated as f64 / (total - prompt_s),
        ttft_s: ttft_s.unwrap_or(prompt_s),
    })
}

/// Least, median and most.
fn spread(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> [f64; 3] {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let median = if n % 2 == 1 { values[n / 2] } else { (values[n / 2 - 1] + values[n / 2]) / 2.0 };
    [values[0], median, values[n - 1]]
}

/// The most memory this process has had, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// xorshift64 (Marsaglia 2003)
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        let samples = [4.0, 1.0, 3.0, 2.0].map(|v| Sample { prompt_tok_s: v, generate_tok_s: v, ttft_s: v });
        assert_eq!(spread(&samples, |s| s.ttft_s), [1.0, 2.5, 4.0]);
        assert_eq!(spread(&samples[..3], |s| s.ttft_s), [1.0, 3.0, 4.0]);
    }
}
