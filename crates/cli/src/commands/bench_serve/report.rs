//! What the records of one measurement say together.

use std::time::Duration;

use serde::Serialize;

use super::{
    load::Arrivals,
    load::Plan,
    record::Record,
    slo::Slo,
    stats::{Estimate, Summary, percentile, rate, summarize},
};
use crate::random::Random;

/// The figures of one point of a sweep. Those of speed and latency are of requests that succeeded.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    #[serde(flatten)]
    pub arrivals: Arrivals,
    /// From the start to the last answer
    pub span_s: f64,
    pub completed: usize,
    pub failed: usize,
    pub errors: Vec<ErrorCount>,
    pub tokens: Tokens,
    pub output_tok_s: Estimate,
    /// Prompts included
    pub total_tok_s: Estimate,
    pub requests_s: Estimate,
    /// Time to first token
    pub ttft_ms: Option<Summary>,
    /// Time per output token after the first
    pub tpot_ms: Option<Summary>,
    /// Between one event and the next
    pub itl_ms: Option<Summary>,
    /// Of a whole request
    pub e2e_ms: Option<Summary>,
    pub goodput: Option<Goodput>,
    pub client: ClientCost,
    /// What a reader of the figures should know
    pub notes: Vec<String>,
    #[serde(skip)]
    pub curves: Curves,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorCount {
    pub kind: String,
    pub count: usize,
    pub example: String,
}

/// Sums over the requests that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tokens {
    pub prompt: usize,
    /// Of the prompts', those that the server had in its cache, where it says
    pub cached: Option<usize>,
    pub output: usize,
    /// Events that brought a part of an answer
    pub events: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Goodput {
    pub slo: Slo,
    pub requests_s: Estimate,
    /// Of all requests, those that failed included
    pub share: f64,
}

/// What this program took.
#[derive(Clone, Debug, Serialize)]
pub struct ClientCost {
    pub cpu_us_per_token: Option<f64>,
    /// Of one core
    pub cpu_share: Option<f64>,
    /// How late requests were begun, 99th percentile
    pub late_ms_p99: f64,
}

/// Percentiles 0 to 100, for plots
#[derive(Clone, Debug, Default)]
pub struct Curves {
    pub ttft_ms: Vec<f64>,
    pub itl_ms: Vec<f64>,
}

/// Beyond this share of one core a client may slow down what it measures.
const BUSY: f64 = 0.7;
/// Lateness that shows in a time to the first token
const LATE_MS: f64 = 5.0;

impl Point {
    /// `cpu`: what this process has computed meanwhile. `fresh`: no prompt shares anything with another on purpose.
    pub fn new(plan: &Plan, records: &[Record], slo: Option<Slo>, cpu: Option<Duration>, fresh: bool) -> Self {
        let random = |stream: u64| Random::of(&[plan.seed, plan.series, stream]);
        let (good, bad): (Vec<&Record>, Vec<&Record>) = records.iter().partition(|r| r.failure.is_none());
        let span_s = records.iter().map(|r| r.start_s + r.end_s).fold(0.0, f64::max);
        let in_ms = |values: Vec<Vec<f64>>, stream| summarize(&values, random(stream));
        let ttft = values_ms(&good, |r| r.ttft_s().into_iter().collect());
        let itl = values_ms(&good, |r| r.itl_s().collect());
        let curves = Curves { ttft_ms: curve(&ttft), itl_ms: curve(&itl) };
        let output: Vec<(f64, f64)> = good.iter().flat_map(|r| output_events(r)).collect();
        let prompts = good.iter().map(|r| (r.start_s + r.ttft_s().unwrap_or(r.end_s), r.prompt_tokens as f64));
        let total: Vec<(f64, f64)> = output.iter().copied().chain(prompts).collect();
        let ends = |records: &[&Record]| records.iter().map(|r| (r.start_s + r.end_s, 1.0)).collect::<Vec<_>>();
        let goodput = slo.map(|slo| {
            let met: Vec<&Record> = good.iter().copied().filter(|r| slo.met_by(r)).collect();
            Goodput { slo, requests_s: rate(&ends(&met), span_s, random(7)), share: met.len() as f64 / records.len().max(1) as f64 }
        });
        let tokens = Tokens::of(&good);
        let mut late: Vec<f64> = records.iter().map(|r| r.late_s * 1000.0).collect();
        late.sort_unstable_by(f64::total_cmp);
        let client = ClientCost {
            cpu_us_per_token: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / tokens.output.max(1) as f64),
            cpu_share: cpu.map(|cpu| cpu.as_secs_f64() / span_s),
            late_ms_p99: if late.is_empty() { 0.0 } else { percentile(&late, 0.99) },
        };
        let mut point = Self {
            arrivals: plan.arrivals,
            span_s,
            completed: good.len(),
            failed: bad.len(),
            errors: errors(&bad),
            output_tok_s: rate(&output, span_s, random(0)),
            total_tok_s: rate(&total, span_s, random(1)),
            requests_s: rate(&ends(&good), span_s, random(2)),
            ttft_ms: in_ms(ttft, 3),
            tpot_ms: in_ms(values_ms(&good, |r| r.tpot_s().into_iter().collect()), 4),
            itl_ms: in_ms(itl, 5),
            e2e_ms: in_ms(values_ms(&good, |r| vec![r.e2e_s()]), 6),
            goodput,
            tokens,
            client,
            notes: Vec::new(),
            curves,
        };
        point.notes = point.remarks(&good, fresh);
        point
    }

    /// How the point is called in tables and plots
    pub fn label(&self) -> String {
        match self.arrivals {
            Arrivals::Concurrency(n) => n.to_string(),
            Arrivals::Rate(rate) => rate.to_string(),
        }
    }

    fn remarks(&self, good: &[&Record], fresh: bool) -> Vec<String> {
        let mut notes = Vec::new();
        let mean = |values: &[usize]| values.iter().map(|&v| v as f64).sum::<f64>() / values.len() as f64;
        let uncounted = good.iter().filter(|r| !r.counted).count();
        if uncounted > 0 && uncounted < good.len() {
            notes.push(format!("{uncounted} answers came without a count of tokens: their events were counted"));
        }
        let asked = good.iter().filter_map(|r| Some((r.asked.prompt_tokens?, r.prompt_tokens))).filter(|(asked, had)| asked != had);
        let (asked, had): (Vec<usize>, Vec<usize>) = asked.unzip();
        if !asked.is_empty() {
            notes.push(format!("{} prompts had {:.1} tokens on average where {:.1} were sent", asked.len(), mean(&had), mean(&asked)));
        }
        let short = good.iter().filter_map(|r| Some((r.asked.output_tokens?, r.output_tokens))).filter(|(asked, had)| had != asked);
        let (asked, had): (Vec<usize>, Vec<usize>) = short.unzip();
        if !asked.is_empty() {
            notes.push(format!("{} answers had {:.1} tokens on average where {:.1} were asked for", asked.len(), mean(&had), mean(&asked)));
        }
        if let Some(cached) = self.tokens.cached.filter(|&cached| fresh && cached as f64 > 0.02 * self.tokens.prompt as f64) {
            let part = 100.0 * cached as f64 / self.tokens.prompt as f64;
            notes.push(format!("the server had {part:.0} % of the prompts in its cache: use another --seed for each run"));
        }
        if self.tokens.output as f64 > 1.05 * self.tokens.events as f64 {
            let tokens = self.tokens.output as f64 / self.tokens.events as f64;
            notes.push(format!("an event brought {tokens:.2} tokens on average: ITL is between events, TPOT between tokens"));
        }
        if let Some(share) = self.client.cpu_share.filter(|&share| share > BUSY) {
            notes.push(format!("this program used {:.0} % of a core and may have slowed down the figures", 100.0 * share));
        }
        if self.client.late_ms_p99 > LATE_MS {
            notes.push(format!("requests were begun up to {:.1} ms late (99th percentile)", self.client.late_ms_p99));
        }
        notes
    }
}

impl Tokens {
    fn of(records: &[&Record]) -> Self {
        // A server may count as it likes.
        let sum = |value: fn(&Record) -> usize| records.iter().fold(0, |sum: usize, r| sum.saturating_add(value(r)));
        let says = records.iter().any(|r| r.cached_tokens.is_some());
        Self {
            prompt: sum(|r| r.prompt_tokens),
            cached: says.then(|| sum(|r| r.cached_tokens.unwrap_or(0))),
            output: sum(|r| r.output_tokens),
            events: sum(|r| r.tokens_s.len()),
        }
    }
}

fn values_ms(records: &[&Record], values: impl Fn(&Record) -> Vec<f64>) -> Vec<Vec<f64>> {
    records.iter().map(|r| values(r).into_iter().map(|s| s * 1000.0).collect()).collect()
}

fn curve(groups: &[Vec<f64>]) -> Vec<f64> {
    let mut all: Vec<f64> = groups.iter().flatten().copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    if all.is_empty() { Vec::new() } else { (0..=100).map(|level| percentile(&all, f64::from(level) / 100.0)).collect() }
}

/// When the tokens of an answer came: the same number with every event.
fn output_events(record: &Record) -> impl Iterator<Item = (f64, f64)> {
    let each = record.output_tokens as f64 / record.tokens_s.len() as f64;
    record.tokens_s.iter().map(move |at| (record.start_s + at, each))
}

/// Failures by kind with the first of each, the most frequent kind first.
fn errors(failed: &[&Record]) -> Vec<ErrorCount> {
    let mut found: Vec<ErrorCount> = Vec::new();
    for failure in failed.iter().filter_map(|r| r.failure.as_ref()) {
        match found.iter_mut().find(|error| error.kind == failure.kind) {
            Some(error) => error.count += 1,
            None => found.push(ErrorCount { kind: failure.kind.clone(), count: 1, example: failure.message.clone() }),
        }
    }
    found.sort_by_key(|error| std::cmp::Reverse(error.count));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench_serve::{failure::Failure, record::Asked};

    const PLAN: Plan = Plan { arrivals: Arrivals::Concurrency(2), requests: 2, duration: None, series: 0, seed: 0 };

    /// Begun at `start_s`; tokens after 0.1 s and then every 0.05 s.
    fn answered(start_s: f64, tokens: usize) -> Record {
        let tokens_s: Vec<f64> = (0..tokens).map(|i| 0.1 + 0.05 * i as f64).collect();
        let asked = Asked { prompt_tokens: Some(10), output_tokens: Some(tokens) };
        let end_s = tokens_s[tokens - 1];
        Record { start_s, tokens_s, end_s, prompt_tokens: 10, output_tokens: tokens, counted: true, asked, ..Record::default() }
    }

    fn failed(kind: &str, message: &str) -> Record {
        Record { end_s: 0.5, failure: Some(Failure::new(kind, message)), tokens_s: vec![0.2], ..Record::default() }
    }

    #[test]
    fn figures_are_those_of_the_records_that_succeeded() {
        // 5 tokens by 0.3 s; begun at 1.7 s: 5 more by 2 s.
        let records = [answered(0.0, 5), answered(1.7, 5), failed("http 503", "full")];
        let slo = "ttft=150".parse().ok();
        let point = Point::new(&PLAN, &records, slo, Some(Duration::from_millis(20)), true);
        assert_eq!((point.completed, point.failed, point.span_s), (2, 1, 2.0));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(point.output_tok_s.value, 5.0);
        near(point.total_tok_s.value, 15.0);
        near(point.requests_s.value, 1.0);
        near(point.ttft_ms.unwrap().mean.value, 100.0);
        near(point.tpot_ms.unwrap().p99.value, 50.0);
        near(point.itl_ms.unwrap().median.value, 50.0);
        near(point.e2e_ms.unwrap().median.value, 300.0);
        assert_eq!(point.itl_ms.unwrap().count, 8);
        let goodput = point.goodput.unwrap();
        near(goodput.requests_s.value, 1.0);
        near(goodput.share, 2.0 / 3.0);
        near(point.client.cpu_us_per_token.unwrap(), 2000.0);
        near(point.client.cpu_share.unwrap(), 0.01);
        assert_eq!(point.notes, [""; 0]);
    }

    #[test]
    fn errors_are_counted_by_kind_with_an_example_each() {
        let records = [failed("timeout", "a"), failed("http 503", "b"), failed("http 503", "c")];
        let point = Point::new(&PLAN, &records, None, None, true);
        let count = |kind: &str, count, example: &str| ErrorCount { kind: kind.into(), count, example: example.into() };
        assert_eq!(point.errors, [count("http 503", 2, "b"), count("timeout", 1, "a")]);
        assert_eq!((point.completed, point.ttft_ms, point.output_tok_s.value), (0, None, 0.0));
        // No number that JSON does not have
        assert!(serde_json::to_string(&point).is_ok());
    }

    #[test]
    fn absurd_counts_of_a_server_stay_finite() {
        let absurd = Record { prompt_tokens: usize::MAX, output_tokens: usize::MAX, cached_tokens: Some(usize::MAX), ..answered(0.0, 4) };
        let point = Point::new(&PLAN, &[absurd.clone(), absurd], None, None, true);
        assert_eq!((point.tokens.prompt, point.tokens.cached, point.tokens.output), (usize::MAX, Some(usize::MAX), usize::MAX));
        assert!(point.total_tok_s.value.is_finite() && point.notes[0].contains("2 prompts had"), "{:?}", point.notes);
    }

    #[test]
    fn what_is_not_as_asked_is_said() {
        let record = Record {
            prompt_tokens: 11,
            cached_tokens: Some(9),
            output_tokens: 8,
            asked: Asked { prompt_tokens: Some(10), output_tokens: Some(9) },
            late_s: 0.1,
            ..answered(0.0, 4)
        };
        let uncounted = Record { counted: false, ..answered(0.0, 4) };
        let notes = Point::new(&PLAN, &[record, uncounted], None, Some(Duration::from_secs(9)), true).notes.join("\n");
        for part in [
            "1 answers came without",
            "1 prompts had 11.0 tokens on average where 10.0",
            "1 answers had 8.0 tokens on average where 9.0",
            "43 % of the prompts in its cache",
            "an event brought 1.50 tokens",
            "% of a core",
            "99.0 ms late",
        ] {
            assert!(notes.contains(part), "{part} is missing from\n{notes}");
        }
    }
}
