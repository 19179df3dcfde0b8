//! `ferrum bench`: prompt and generation speed of the engine that `ferrum run` uses.
//!
//! One repetition is one batch of requests with random prompts, greedy and going on behind the model's end tokens, each
//! for one token more than asked for: the first one belongs to the prompt. `pp` is prompt tokens by the time until every
//! sequence has its first token, `tg` the tokens after that by the rest of the time. `output` is all generated tokens by
//! the whole time. `decode` is the pure decode step: the median time of the steps that brought a token of every sequence and
//! did nothing else. The host's time of a step is what it does while the device works or waits; steps that only decode are
//! told from those with prompts, whose operations are issued one by one.

use std::{
    collections::HashSet,
    fmt::Write,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use ferrum_engine::{Engine, Event, Request, Stats};
use ferrum_models::{Model, load_dummy};
use serde_json::{Map, Value, json};

use crate::{
    args::BenchArgs,
    open::{self, Need},
    output,
    random::Random,
};

/// What one repetition took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    prompt_tok_s: f64,
    generate_tok_s: f64,
    output_tok_s: f64,
    /// NaN when there was no pure decode step
    decode_step_ms: f64,
    /// Until the first token of the first sequence
    ttft_s: f64,
}

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.prompt == 0 || args.generate == 0 || args.repetitions == 0 || args.batch.contains(&0) {
        bail!("-p, -n, -r and -b must each be at least 1");
    }
    let started = Instant::now();
    let (mut engine, model) = engine(args)?;
    let load_s = started.elapsed().as_secs_f64();
    let mut runs = Vec::new();
    for &batch in &args.batch {
        runs.push(measure(&mut engine, args, batch)?);
    }
    let device = engine.backend().device();
    let peak = peak_rss_bytes();
    if args.json {
        let of_run = |run: &Run| {
            let mut object = json!({
                "model": model,
                "backend": engine.backend().name(),
                "device": device.name,
                "threads": device.threads,
                "depth": args.depth,
                "load_s": load_s,
                "peak_rss_bytes": peak.map_or(Value::Null, Value::from),
            });
            object.as_object_mut().into_iter().for_each(|o| o.extend(run.to_json(args)));
            object
        };
        return output::json(&match &runs[..] {
            [run] => of_run(run),
            runs => runs.iter().map(of_run).collect(),
        });
    }
    let mut text = format!("{model} on {} ({}), depth {}\n", engine.backend().name(), device.name, args.depth);
    for run in &runs {
        run.write(&mut text, args)?;
    }
    let peak = peak.map_or("unknown".to_owned(), output::bytes);
    writeln!(text, "load {load_s:.2} s, peak memory {peak}")?;
    Ok(output::text(&text)?)
}

/// The repetitions of one batch size.
struct Run {
    batch: usize,
    samples: Vec<Sample>,
    /// Of the host, on average
    host_us_per_step: f64,
    host: HostTimes,
    /// Draft tokens computed, and those that were right
    drafts: (u64, u64),
}

fn measure(engine: &mut Engine, args: &BenchArgs, batch: usize) -> anyhow::Result<Run> {
    let mut random = Random::new(0x5EED);
    let mut samples = Vec::with_capacity(args.repetitions);
    let mut before = engine.stats();
    let mut host = HostTimes::default();
    for i in 0..=args.repetitions {
        if output::status_visible() {
            eprint!("\x1b[2K\r{}", if i == 0 { "warm-up".to_owned() } else { format!("repetition {i} of {}", args.repetitions) });
        }
        let sample = repetition(engine, args, batch, &mut Measured { random: &mut random, host: &mut host })?;
        if i > 0 {
            samples.push(sample);
        } else {
            before = engine.stats();
            host = HostTimes::default();
        }
    }
    if output::status_visible() {
        eprint!("\x1b[2K\r");
    }
    let after = engine.stats();
    let host_time = after.host_time - before.host_time;
    host.decode.sort_unstable();
    host.prompt.sort_unstable();
    let drafts = |stats: &Stats| (stats.counts.draft_tokens, stats.counts.accepted_tokens);
    let (drafts, drafts_before) = (drafts(&after), drafts(&before));
    Ok(Run {
        batch,
        samples,
        host_us_per_step: host_time.as_secs_f64() * 1e6 / (after.steps - before.steps).max(1) as f64,
        host,
        drafts: (drafts.0 - drafts_before.0, drafts.1 - drafts_before.1),
    })
}

impl Run {
    /// Least, median and most of the repetitions.
    fn spread(&self, value: impl Fn(&Sample) -> f64) -> [f64; 3] {
        spread(&self.samples, value)
    }

    fn to_json(&self, args: &BenchArgs) -> Map<String, Value> {
        let speed = |[min, median, max]: [f64; 3]| json!({"min": min, "median": median, "max": max});
        let step_ms = self.spread(|s| s.decode_step_ms)[1];
        let run = json!({
            "batch": self.batch,
            "repetitions": args.repetitions,
            "pp": {"n": args.prompt, "tok_s": speed(self.spread(|s| s.prompt_tok_s))},
            "tg": {"n": args.generate, "tok_s": speed(self.spread(|s| s.generate_tok_s))},
            "output": {"tok_s": speed(self.spread(|s| s.output_tok_s))},
            "decode": {"step_ms": finite(step_ms), "tok_s": finite(1000.0 * self.batch as f64 / step_ms)},
            "host_us_per_step": self.host_us_per_step,
            "host": {"decode": HostTimes::to_json(&self.host.decode), "prompt": HostTimes::to_json(&self.host.prompt)},
            "drafts": {"computed": self.drafts.0, "accepted": self.drafts.1},
            "ttft_s": self.spread(|s| s.ttft_s)[1],
        });
        run.as_object().cloned().unwrap_or_default()
    }

    fn write(&self, text: &mut String, args: &BenchArgs) -> std::fmt::Result {
        writeln!(text, "{:>10}  {:>10}  {:>10}  {:>10}  tok/s", format!("batch {}", self.batch), "min", "median", "max")?;
        let mut line = |name: String, [min, median, max]: [f64; 3], note: String| {
            writeln!(text, "{name:>10}  {min:>10.2}  {median:>10.2}  {max:>10.2}{note}")
        };
        line(
            format!("pp{}", args.prompt),
            self.spread(|s| s.prompt_tok_s),
            format!("  first token after {:.3} s", self.spread(|s| s.ttft_s)[1]),
        )?;
        line(format!("tg{}", args.generate), self.spread(|s| s.generate_tok_s), String::new())?;
        line("output".into(), self.spread(|s| s.output_tok_s), String::new())?;
        let step_ms = self.spread(|s| s.decode_step_ms);
        if step_ms[1].is_finite() {
            let [slow, median, fast] = [2, 1, 0].map(|n| 1000.0 * self.batch as f64 / step_ms[n]);
            line("decode".into(), [slow, median, fast], format!("  steps of {:.3} ms", step_ms[1]))?;
        }
        for (name, times) in [("decode", &self.host.decode), ("prompt", &self.host.prompt)] {
            if let (Some(median), Some(p99)) = (quantile_us(times, 0.5), quantile_us(times, 0.99)) {
                writeln!(text, "{:>10}  {median:.0} µs of each {name} step (median), {p99:.0} µs at most in 99 of 100", "host")?;
            }
        }
        if self.drafts.0 > 0 {
            let part = 100.0 * self.drafts.1 as f64 / self.drafts.0 as f64;
            writeln!(text, "{:>10}  {} tokens computed, {} right ({part:.0} %)", "drafts", self.drafts.0, self.drafts.1)?;
        }
        Ok(())
    }
}

/// What the host did in each step: in the end in ascending order.
#[derive(Default)]
struct HostTimes {
    /// Of steps that only decode
    decode: Vec<Duration>,
    /// Of the others
    prompt: Vec<Duration>,
}

impl HostTimes {
    fn to_json(times: &[Duration]) -> Value {
        let quantile = |part| quantile_us(times, part).map_or(Value::Null, Value::from);
        json!({"steps": times.len(), "median_us": quantile(0.5), "p99_us": quantile(0.99)})
    }
}

/// The time in µs that `part` of the times, which ascend, do not exceed; `None`: there are none.
fn quantile_us(times: &[Duration], part: f64) -> Option<f64> {
    let index = (times.len() as f64 * part) as usize;
    times.get(index.min(times.len().saturating_sub(1))).map(|time| time.as_secs_f64() * 1e6)
}

/// What goes through all repetitions.
struct Measured<'a> {
    random: &'a mut Random,
    host: &'a mut HostTimes,
}

fn engine(args: &BenchArgs) -> anyhow::Result<(Engine, String)> {
    let context = args.depth + args.prompt + args.generate + 2;
    let sequences = args.batch.iter().copied().max();
    let need = Need { context: Some(context), sequences, speculate: args.speculate.clone(), ..Need::default() };
    if let Some(config) = &args.dummy_weights {
        if let Some(model) = args.speculate.model() {
            bail!("random weights cannot be compared with drafts of `{model}`; use --speculate ngram, or a model");
        }
        let backend = open::backend(&args.engine)?;
        let (loaded, _bytes): (Arc<dyn Model>, u64) = load_dummy(config, args.quant, &*backend, context)?;
        let model = format!("{} ({})", config.display(), args.quant.name());
        let options = open::options(&args.engine, &*backend, &need, context);
        return Ok((Engine::new(backend, loaded, options)?, model));
    }
    let model = args.model.clone().ok_or_else(|| anyhow!("name a model, or give --dummy-weights"))?;
    Ok((open::session(&model, &args.hub, &args.engine, &need)?.engine, model))
}

fn repetition(engine: &mut Engine, args: &BenchArgs, batch: usize, Measured { random, host }: &mut Measured) -> anyhow::Result<Sample> {
    engine.clear_cache();
    let vocab = engine.model_info().vocab;
    let mut tokens = |n: usize| (0..n).map(|_| random.below(vocab) as u32).collect::<Vec<u32>>();
    let before: Vec<Vec<u32>> = (0..batch).map(|_| tokens(args.depth)).collect();
    if args.depth > 0 {
        let fill = before.iter().map(|prompt| request(prompt.clone(), 1)).collect();
        run_all(engine, fill, &mut HostTimes::default())?;
    }
    // One more than asked for: the first token belongs to the prompt.
    let requests = before.into_iter().map(|depth| request([depth, tokens(args.prompt)].concat(), args.generate as u64 + 1)).collect();
    run_all(engine, requests, host)
}

fn request(prompt: Vec<u32>, max_tokens: u64) -> Request {
    Request { max_tokens: Some(max_tokens), ignore_eos: true, ..Request::new(prompt) }
}

fn run_all(engine: &mut Engine, requests: Vec<Request>, host: &mut HostTimes) -> anyhow::Result<Sample> {
    let count = requests.len();
    let mut prompt_tokens: usize = requests.iter().map(|r| r.prompt.len()).sum();
    let started = Instant::now();
    let mut waiting = HashSet::with_capacity(count);
    for request in requests {
        waiting.insert(engine.submit(request)?);
    }
    let mut events = Vec::new();
    let mut clock = Clock::default();
    let (mut ttft_s, mut prompted, mut output, mut before) = (None, None, 0usize, 0usize);
    while engine.has_work() {
        engine.step_into(&mut events)?;
        let now = started.elapsed().as_secs_f64();
        let step = engine.stats().last_step;
        if step.tokens > 0 {
            let times = if step.is_decode { &mut host.decode } else { &mut host.prompt };
            times.push(step.host_time);
        }
        let (mut tokens, mut began) = (0, 0);
        for event in events.drain(..) {
            match event {
                Event::Token { id, .. } => {
                    tokens += 1;
                    began += usize::from(waiting.remove(&id));
                }
                Event::Prompt { .. } => {}
                Event::Finished { finished, .. } => prompt_tokens -= finished.reused_tokens,
            }
        }
        output += tokens;
        if tokens > 0 {
            ttft_s.get_or_insert(now);
        }
        if prompted.is_none() && waiting.is_empty() {
            (prompted, before) = (Some(now), output);
        }
        clock.tick(now, began == 0 && tokens == count);
    }
    let total = started.elapsed().as_secs_f64();
    let prompt_s = prompted.ok_or_else(|| anyhow!("a request ended without a token"))?;
    Ok(Sample {
        prompt_tok_s: prompt_tokens as f64 / prompt_s,
        generate_tok_s: (output - before) as f64 / (total - prompt_s),
        output_tok_s: output as f64 / total,
        decode_step_ms: clock.median_ms(),
        ttft_s: ttft_s.unwrap_or(prompt_s),
    })
}

/// Times of full decode steps.
#[derive(Default)]
struct Clock {
    /// When the last step came
    last: f64,
    times: Vec<f64>,
}

impl Clock {
    /// `full`: the step brought a second or later token of every sequence, so that it did nothing else.
    fn tick(&mut self, now: f64, full: bool) {
        if full {
            self.times.push(now - self.last);
        }
        self.last = now;
    }

    fn median_ms(&mut self) -> f64 {
        self.times.sort_by(f64::total_cmp);
        self.times.get(self.times.len() / 2).map_or(f64::NAN, |s| 1000.0 * s)
    }
}

fn finite(value: f64) -> Value {
    if value.is_finite() { value.into() } else { Value::Null }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        let sample = |v| Sample { prompt_tok_s: v, generate_tok_s: v, output_tok_s: v, decode_step_ms: v, ttft_s: v };
        let samples = [4.0, 1.0, 3.0, 2.0].map(sample);
        assert_eq!(spread(&samples, |s| s.ttft_s), [1.0, 2.5, 4.0]);
        assert_eq!(spread(&samples[..3], |s| s.ttft_s), [1.0, 3.0, 4.0]);
    }

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(quantile_us(&times, 0.5).map(f64::round), Some(101.0));
        assert_eq!(quantile_us(&times, 0.99).map(f64::round), Some(199.0));
        assert_eq!(quantile_us(&times[..1], 0.99).map(f64::round), Some(1.0));
        assert_eq!(quantile_us(&[], 0.5), None);
    }
}
