//! `/metrics`: vLLM's names and labels, so that existing dashboards, autoscalers and routers work, and a few of our own.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrum_engine::{FinishReason, Finished};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::app::App;

/// Bounds in seconds and tokens as vLLM has them.
const FIRST_TOKEN_S: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0];
const NEXT_TOKEN_S: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST_S: &[f64] =
    &[0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0];
const TOKENS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];

const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// When what happened to a request.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub submitted: Instant,
    /// Its first tokens were in a step
    pub started: Option<Instant>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
}

impl Times {
    pub fn since(submitted: Instant) -> Self {
        Self { submitted, started: None, first_token: None, last_token: None }
    }
}

/// What requests report as they go. The engine's own counts are read when somebody asks for the metrics.
#[derive(Clone)]
pub struct Metrics {
    first_token: Histogram,
    next_token: Histogram,
    mean_token: Histogram,
    request: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    computed_prompt_tokens: Histogram,
    choices: Histogram,
    max_tokens: Histogram,
    stop: Counter,
    length: Counter,
    abort: Counter,
    error: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram = |bounds: &'static [f64]| Histogram::new(bounds.iter().copied());
        Self {
            first_token: histogram(FIRST_TOKEN_S),
            next_token: histogram(NEXT_TOKEN_S),
            mean_token: histogram(NEXT_TOKEN_S),
            request: histogram(REQUEST_S),
            queue: histogram(REQUEST_S),
            prefill: histogram(REQUEST_S),
            decode: histogram(REQUEST_S),
            inference: histogram(REQUEST_S),
            prompt_tokens: histogram(TOKENS),
            generation_tokens: histogram(TOKENS),
            computed_prompt_tokens: histogram(TOKENS),
            choices: histogram(CHOICES),
            max_tokens: histogram(TOKENS),
            stop: Counter::default(),
            length: Counter::default(),
            abort: Counter::default(),
            error: Counter::default(),
        }
    }
}

impl Metrics {
    /// A request has been taken.
    pub fn asked(&self, choices: usize, max_tokens: Option<u64>) {
        self.choices.observe(choices as f64);
        if let Some(tokens) = max_tokens {
            self.max_tokens.observe(tokens as f64);
        }
    }

    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub fn next_token(&self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
    }

    /// An answer has ended.
    pub fn finished(&self, finished: &Finished, times: &Times) {
        self.request.observe(times.submitted.elapsed().as_secs_f64());
        let between = |from: Option<Instant>, to: Option<Instant>| Some(to?.saturating_duration_since(from?).as_secs_f64());
        let (started, first, last) = (times.started, times.first_token, times.last_token);
        let decode = between(first, last);
        // A request that was never computed has waited until now.
        self.queue.observe(started.unwrap_or_else(Instant::now).saturating_duration_since(times.submitted).as_secs_f64());
        for (histogram, time) in
            [(&self.prefill, between(started, first)), (&self.decode, decode), (&self.inference, between(started, last))]
        {
            time.into_iter().for_each(|seconds| histogram.observe(seconds));
        }
        if let Some(seconds) = decode.filter(|_| finished.generated_tokens > 1) {
            self.mean_token.observe(seconds / (finished.generated_tokens - 1) as f64);
        }
        self.prompt_tokens.observe(finished.prompt_tokens as f64);
        self.computed_prompt_tokens.observe(finished.prompt_tokens.saturating_sub(finished.reused_tokens) as f64);
        self.generation_tokens.observe(finished.generated_tokens as f64);
        match finished.reason {
            FinishReason::Stop => self.stop.inc(),
            FinishReason::Length | FinishReason::Context => self.length.inc(),
            FinishReason::Cancelled => self.abort.inc(),
            FinishReason::Constraint | FinishReason::Failed => self.error.inc(),
        };
    }

    /// The text of `/metrics`, as OpenMetrics 1.0.
    ///
    /// # Errors
    /// When it cannot be written, which does not happen.
    pub fn text(&self, app: &Arc<App>) -> Result<String, fmt::Error> {
        let name = app.model().map_or_else(|_| "loading".to_owned(), |model| model.name.clone());
        let mut registry = Registry::with_labels([("model_name".into(), name.into()), ("engine".into(), "0".into())].into_iter());
        for (metric, help, histogram) in [
            ("vllm:time_to_first_token_seconds", "Time to first token", &self.first_token),
            ("vllm:inter_token_latency_seconds", "Time between tokens", &self.next_token),
            ("vllm:time_per_output_token_seconds", "Time per output token after the first", &self.next_token),
            ("vllm:request_time_per_output_token_seconds", "Mean time per output token of a request after its first", &self.mean_token),
            ("vllm:e2e_request_latency_seconds", "Time of a whole request", &self.request),
            ("vllm:request_queue_time_seconds", "Time in which a request waited to be computed", &self.queue),
            ("vllm:request_prefill_time_seconds", "Time from there to its first token", &self.prefill),
            ("vllm:request_decode_time_seconds", "Time from its first token to its last", &self.decode),
            ("vllm:request_inference_time_seconds", "Both together", &self.inference),
            ("vllm:request_prompt_tokens", "Prompt tokens per request", &self.prompt_tokens),
            ("vllm:request_generation_tokens", "Generated tokens per request", &self.generation_tokens),
            ("vllm:request_prefill_kv_computed_tokens", "Prompt tokens per request that were not cached", &self.computed_prompt_tokens),
            ("vllm:request_params_n", "Answers wanted per request", &self.choices),
            ("vllm:request_params_max_tokens", "max_tokens per request that has it", &self.max_tokens),
        ] {
            registry.register(metric, help, histogram.clone());
        }
        let finished = Family::<[(&'static str, &'static str); 1], Counter>::default();
        for (reason, counter) in [("stop", &self.stop), ("length", &self.length), ("abort", &self.abort), ("error", &self.error)] {
            finished.get_or_create(&[("finished_reason", reason)]).inc_by(counter.get());
        }
        registry.register("vllm:request_success", "Requests that ended, by reason", finished);
        if let Ok(model) = app.model() {
            let steps = model.service.steps().clone();
            registry.register("vllm:iteration_tokens_total", "Tokens per step of the engine", steps.tokens);
            let help = "Time per step in which the engine's thread did not wait for the device, of steps that only decode and of those with prompts";
            registry.register("ferrum:engine_host_seconds", help, steps.host);
        }
        if let Some(snapshot) = app.snapshot() {
            let config = Family::<[(&'static str, String); 3], Gauge>::default();
            let labels = [
                ("block_size", snapshot.block_tokens.to_string()),
                ("num_gpu_blocks", snapshot.blocks.0.to_string()),
                ("enable_prefix_caching", "True".to_owned()),
            ];
            config.get_or_create(&labels).set(1);
            registry.register("vllm:cache_config_info", "How the KV cache is made", config);
        }
        registry.register_collector(Box::new(EngineCounts(Arc::clone(app))));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// What the engine counts itself.
struct EngineCounts(Arc<App>);

impl fmt::Debug for EngineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineCounts")
    }
}

impl Collector for EngineCounts {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(snapshot) = self.0.snapshot() else { return Ok(()) };
        let (counts, (blocks, free, cached)) = (snapshot.stats.counts, snapshot.blocks);
        let used = (blocks - free) as f64 / blocks.max(1) as f64;
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("vllm:num_requests_running", "Requests computed in the current step", snapshot.running as f64)?;
        gauge("vllm:num_requests_waiting", "Requests waiting to be computed", snapshot.waiting as f64)?;
        gauge("vllm:kv_cache_usage_perc", "Part of the KV cache in use, 1 is all", used)?;
        gauge("ferrum:kv_blocks", "Blocks of the KV cache", blocks as f64)?;
        gauge("ferrum:kv_blocks_free", "Blocks free for new tokens, those with reusable tokens included", free as f64)?;
        gauge("ferrum:kv_blocks_reusable", "Free blocks that hold reusable tokens", cached as f64)?;
        let step = snapshot.stats.last_step;
        gauge("ferrum:step_host_seconds", "Host time of the last step", step.host_time.as_secs_f64())?;
        gauge("ferrum:step_device_seconds", "Device time of the last step", step.device_time.as_secs_f64())?;
        let mut counter = |name: &str, help: &str, value: f64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("vllm:prompt_tokens", "Prompt tokens taken in, found in the prefix cache or not", counts.prompt_tokens as f64)?;
        counter("vllm:generation_tokens", "Tokens generated", counts.generated_tokens as f64)?;
        counter("vllm:num_preemptions", "Requests that lost their blocks to others", counts.preemptions as f64)?;
        counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", counts.prompt_tokens as f64)?;
        counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", counts.reused_tokens as f64)?;
        counter("vllm:prompt_tokens_cached", "Prompt tokens that were not computed", counts.reused_tokens as f64)?;
        counter("vllm:spec_decode_num_drafts", "Times a request computed draft tokens", counts.drafts as f64)?;
        counter("vllm:spec_decode_num_draft_tokens", "Draft tokens computed", counts.draft_tokens as f64)?;
        counter("vllm:spec_decode_num_accepted_tokens", "Draft tokens that were right", counts.accepted_tokens as f64)?;
        counter("ferrum:steps", "Steps computed", snapshot.stats.steps as f64)?;
        counter("ferrum:host_seconds", "Host time of all steps", snapshot.stats.host_time.as_secs_f64())?;
        counter("ferrum:device_seconds", "Device time of all steps", snapshot.stats.device_time.as_secs_f64())
    }
}

/// The same in Prometheus' text format 0.0.4, whose counters have `_total` in all their lines.
pub fn prometheus_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(rest)) => help = Some((name, rest)),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                if let Some((_, help)) = help.take_if(|(of, _)| *of == name) {
                    text += &format!("# HELP {name}{suffix} {help}\n");
                }
                text += &format!("# TYPE {name}{suffix} {kind}\n");
            }
            (Some("#"), ..) => {}
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}
