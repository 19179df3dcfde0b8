//! Flags of `ferrum bench serve`.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, ValueEnum};

use crate::commands::bench_serve::slo::Slo;

pub const EXAMPLES: &str = "Examples:
  ferrum bench serve http://127.0.0.1:8000 --concurrency 1,4,16,64 --input-len 512 --output-len 128 --html report.html
  ferrum bench serve http://127.0.0.1:8000 --rate 2,4,8 --duration 60 --slo ttft=500,tpot=50
  ferrum bench serve https://example.org/v1 --api-key KEY --api chat --dataset sharegpt.json --num-prompts 200";

#[derive(Debug, ClapArgs)]
pub struct BenchServeArgs {
    /// The server, e.g. http://127.0.0.1:8000; `/v1` at its end is optional
    pub url: String,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub workload: WorkloadArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Goodput: requests a second that keep to these bounds, e.g. ttft=200,tpot=50,e2e=5000, in milliseconds
    #[arg(long, value_name = "METRIC=MS,…", help_heading = "Output")]
    pub slo: Option<Slo>,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Write a report with plots into this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,
}

/// Whom to ask, and how.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Server")]
pub struct TargetArgs {
    /// The model's name in requests [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Sent as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// The route to ask
    #[arg(long, value_enum, default_value_t = ApiArg::Auto)]
    pub api: ApiArg,
    /// Random token ids are below this [default: as the server says, else ids that its /tokenize gives]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub vocab: Option<u32>,
    /// Trust the certificates in this PEM file instead of the public authorities
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Wait this long for a server that is not there yet, or loads its model
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds)]
    pub wait: Duration,
    /// A request that takes longer has failed
    #[arg(long, value_name = "S", default_value = "600", value_parser = seconds)]
    pub timeout: Duration,
}

/// What is asked.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Requests")]
pub struct WorkloadArgs {
    /// Tokens of a random prompt, behind the shared beginning
    #[arg(long, value_name = "N", default_value_t = 256, conflicts_with = "dataset")]
    pub input_len: usize,
    /// Tokens of an answer; the server is told to go on behind the model's own end [default: 128; with --dataset what the record says,
    /// else until the model ends, at most 1024]
    #[arg(long, value_name = "N")]
    pub output_len: Option<usize>,
    /// Lengths are uniform between (1 - R) and (1 + R) times those asked for, 0 ≤ R < 1
    #[arg(long, value_name = "R", default_value_t = 0.0, conflicts_with = "dataset", allow_negative_numbers = true)]
    pub range_ratio: f64,
    /// Tokens of the beginning that random prompts share
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "dataset")]
    pub prefix_len: usize,
    /// Different shared beginnings
    #[arg(long, value_name = "N", default_value_t = 1, requires = "prefix_len")]
    pub prefixes: usize,
    /// Prompts from a file: ShareGPT's JSON (`conversations` of `from` and `value`), or one object a line with `prompt` and, if wanted,
    /// `output_tokens`
    #[arg(long, value_name = "FILE")]
    pub dataset: Option<PathBuf>,
    /// Sampling temperature of all requests
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Further fields of all requests, as a JSON object
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<String>,
    /// The same seed gives the same prompts, lengths and arrivals
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// When requests are sent.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Requests at the same time, each answer followed by the next request; several numbers are measured one after the other
    /// [default: 1]
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "rate")]
    pub concurrency: Vec<usize>,
    /// Requests a second, at random (Poisson) times, whether or not answers have come; `inf`: all at once
    #[arg(long, value_name = "R,…", value_delimiter = ',', allow_negative_numbers = true)]
    pub rate: Vec<f64>,
    /// Requests of each point [default: 4 for each that runs at the same time and at least 16; 100 with --rate; no limit with
    /// --duration]
    #[arg(long, value_name = "N")]
    pub num_prompts: Option<usize>,
    /// Start requests for so many seconds at each point; those that run then are waited for
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Requests before each point that do not count
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup: usize,
    /// Threads of this program that read answers; one suffices for some ten thousand tokens a second
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub client_threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ApiArg {
    /// Completions where the server has them, else chat
    Auto,
    /// /v1/completions
    Completions,
    /// /v1/chat/completions
    Chat,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value = text.parse::<f64>().map_err(|e| e.to_string())?;
    Duration::try_from_secs_f64(value).map_err(|e| e.to_string())
}
