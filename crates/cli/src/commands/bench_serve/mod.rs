//! `ferrum bench serve`: load for any server that speaks OpenAI's API, and what its users would feel.
//!
//! Prompts are random token ids, so that their lengths are exact and no cache knows them; answers are streamed, and go on behind
//! the model's own end. `probe` finds out what the server understands, `load` sends requests, `report` sums up what `client` has
//! seen of each.

mod api;
mod client;
mod dataset;
mod failure;
mod html;
mod http;
mod load;
mod plot;
mod probe;
mod record;
mod report;
pub mod slo;
mod sse;
mod stats;
mod table;
mod workload;

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::runtime;

use self::{
    api::Api,
    load::{Arrivals, Plan},
    probe::Found,
    report::Point,
    workload::Workload,
};
use crate::{
    args::bench_serve::{BenchServeArgs, LoadArgs},
    output,
};

/// Requests of a point with a rate
const REQUESTS_WITH_RATE: usize = 100;
/// Requests of a point with a concurrency: this many for each stream, and at least so many
const REQUESTS_PER_STREAM: usize = 4;
const LEAST_REQUESTS: usize = 16;

/// # Errors
/// When an argument is wrong, the server cannot be asked, or no request at all succeeded.
pub fn run(args: &BenchServeArgs) -> anyhow::Result<()> {
    check(args)?;
    more_connections();
    let mut builder = match args.load.client_threads {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(args.load.client_threads).enable_all().build().context("cannot start the I/O threads")?;
    runtime.block_on(measure(args))
}

fn check(args: &BenchServeArgs) -> anyhow::Result<()> {
    let (workload, load) = (&args.workload, &args.load);
    if workload.input_len == 0 || workload.output_len == Some(0) || workload.prefixes == 0 {
        bail!("--input-len, --output-len and --prefixes must each be at least 1");
    }
    if !(0.0..1.0).contains(&workload.range_ratio) {
        bail!("--range-ratio must be at least 0 and below 1");
    }
    if load.concurrency.contains(&0) || load.num_prompts == Some(0) || load.client_threads == 0 {
        bail!("--concurrency, --num-prompts and --client-threads must each be at least 1");
    }
    if load.rate.iter().any(|&rate| rate.is_nan() || rate <= 0.0) {
        bail!("--rate must be above 0, or inf");
    }
    if load.rate.contains(&f64::INFINITY) && load.duration.is_some() && load.num_prompts.is_none() {
        bail!("with --rate inf, --num-prompts must say how many requests there are");
    }
    Ok(())
}

/// What is measured, one point after the other.
fn plans(load: &LoadArgs, seed: u64) -> Vec<Plan> {
    let streams = if load.concurrency.is_empty() { &[1][..] } else { &load.concurrency };
    let closed = |&n| (Arrivals::Concurrency(n), LEAST_REQUESTS.max(REQUESTS_PER_STREAM * n));
    let open = |&rate| (Arrivals::Rate(rate), REQUESTS_WITH_RATE);
    let points: Vec<_> = if load.rate.is_empty() { streams.iter().map(closed).collect() } else { load.rate.iter().map(open).collect() };
    let plan = |(i, (arrivals, default)): (usize, _)| {
        let default = if load.duration.is_some() { usize::MAX } else { default };
        // Odd series are measured, even ones warm up.
        Plan { arrivals, requests: load.num_prompts.unwrap_or(default), duration: load.duration, series: 2 * i as u64 + 1, seed }
    };
    points.into_iter().enumerate().map(plan).collect()
}

async fn measure(args: &BenchServeArgs) -> anyhow::Result<()> {
    let plans = plans(&args.load, args.workload.seed);
    let needed = plans.iter().fold(0usize, |sum, plan| sum.saturating_add(plan.requests).saturating_add(args.load.warmup));
    let Found { client, workload, notes } = probe::probe(args, needed).await?;
    let (client, mut workload) = (Arc::new(client), Arc::new(workload));
    let facts = facts(args, &client, &workload);
    if !args.json {
        let facts: String = facts.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect();
        let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
        output::text(&format!("{facts}{notes}\n{}", table::head(plans[0].arrivals, args.slo.is_some())))?;
    }
    // The words of a chat template are the same in every prompt, and files may repeat themselves.
    let fresh = client.dialect.ids && args.workload.prefix_len == 0;
    let mut points: Vec<Point> = Vec::with_capacity(plans.len());
    for plan in &plans {
        if args.load.warmup > 0 {
            let streams = match plan.arrivals {
                Arrivals::Concurrency(n) => n,
                Arrivals::Rate(_) => args.load.warmup,
            };
            let arrivals = Arrivals::Concurrency(streams);
            let warm_up = Plan { arrivals, requests: args.load.warmup, duration: None, series: plan.series - 1, ..plan.clone() };
            let used = load::run(&client, &workload, &warm_up, |_| ()).await.len();
            advance(&mut workload, used);
        }
        let bar = progress(plan);
        let done = {
            let bar = bar.clone();
            move |_: &record::Record| bar.inc(1)
        };
        let before = cpu_time();
        let records = load::run(&client, &workload, plan, done).await;
        let cpu = cpu_time().zip(before).map(|(after, before)| after.saturating_sub(before));
        bar.finish_and_clear();
        advance(&mut workload, records.len());
        let point = Point::new(plan, &records, args.slo, cpu, fresh);
        if !args.json {
            output::text(&table::line(&point))?;
        }
        points.push(point);
    }
    if args.json {
        output::json(&json!({
            "url": args.url,
            "model": client.common.model,
            "route": client.dialect.path(),
            "token_ids": client.dialect.ids,
            "ignore_eos": client.dialect.ignore_eos,
            "seed": args.workload.seed,
            "notes": notes,
            "points": points,
        }))?;
    } else {
        output::text(&points.iter().map(table::details).collect::<String>())?;
    }
    if let Some(file) = &args.html {
        let title = format!("{} under load", client.common.model);
        fs::write(file, html::page(&title, &facts, &notes, &points)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if points.iter().all(|point| point.completed == 0) {
        let errors: Vec<String> = points.iter().flat_map(|p| &p.errors).map(|e| format!("{}: {}", e.kind, e.example)).collect();
        bail!("no request succeeded: {}", errors.first().map_or("none was sent", |error| error));
    }
    Ok(())
}

fn advance(workload: &mut Arc<Workload>, used: usize) {
    // All tasks that had a share of it have ended.
    if let Some(workload) = Arc::get_mut(workload) {
        workload.advance(used);
    }
}

fn facts(args: &BenchServeArgs, client: &client::Client, workload: &Workload) -> html::Facts {
    let prompts = match (client.dialect.ids, client.dialect.api) {
        (true, _) => "token ids",
        (false, Api::Completions) => "texts",
        (false, Api::Chat) => "chat messages",
    };
    let asked = &args.workload;
    let requests = match workload {
        Workload::Random(_) => {
            let output = asked.output_len.unwrap_or(workload::DEFAULT_OUTPUT_TOKENS);
            let mut text = format!("random {prompts} of {} tokens, answers of {output}", asked.input_len);
            if asked.range_ratio > 0.0 {
                text += &format!(", each ± {:.0} %", 100.0 * asked.range_ratio);
            }
            if asked.prefix_len > 0 {
                text += &format!(", behind one of {} beginnings of {} tokens", asked.prefixes, asked.prefix_len);
            }
            text
        }
        Workload::Dataset { prompts, .. } => {
            format!("{} prompts of {}", prompts.len(), asked.dataset.as_deref().unwrap_or("".as_ref()).display())
        }
    };
    vec![
        ("server", format!("{} ({})", args.url, client.dialect.path())),
        ("model", failure::printable(&client.common.model)),
        ("requests", requests),
        ("sampling", format!("temperature {}, seed of the prompts {}", asked.temperature, asked.seed)),
    ]
}

fn progress(plan: &Plan) -> ProgressBar {
    if !output::status_visible() {
        return ProgressBar::hidden();
    }
    // Of a measurement that time ends, nobody knows how far it is.
    let (bar, template) = match plan.requests {
        usize::MAX => (ProgressBar::no_length(), "{prefix} {spinner} {pos} requests, {elapsed}"),
        requests => (ProgressBar::new(requests as u64), "{prefix} [{wide_bar}] {pos}/{len} requests, {elapsed} "),
    };
    // The template is right; without it the bar is only plainer.
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    let name = table::varied(plan.arrivals);
    bar.set_style(style);
    bar.set_prefix(match plan.arrivals {
        Arrivals::Concurrency(n) => format!("{name} {n}"),
        Arrivals::Rate(rate) => format!("{name} {rate}"),
    });
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Processor time of this process so far, where the system tells.
fn cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        use nix::sys::{
            resource::{UsageWho, getrusage},
            time::TimeValLike,
        };
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        u64::try_from(us).ok().map(Duration::from_micros)
    }
    #[cfg(not(unix))]
    None
}

/// Every stream is a connection, and systems allow few open files until asked.
fn more_connections() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // Where it is refused, what is too much fails with the system's own error.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
}
