//! Every flag. The texts here are also the man page and the shell completions.

pub mod bench_serve;
mod engine;
mod http;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
pub use engine::{BackendArg, ContextArgs, EngineArgs, HubArgs, PrecisionArg, SamplingArgs, SimdArg, SpeculateArgs};
use ferrum_kernels::DType;
use ferrum_models::DummyFormat;
pub use http::{HttpArgs, LogFormat};

/// Runs language models on this machine.
#[derive(Debug, Parser)]
#[command(name = "ferrum", version, about, max_term_width = 100, infer_subcommands = false)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
    /// Options from this TOML file; flags win over it [default: ferrum/ferrum.toml in the user's configuration folder, if there]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Print every option of the command, what it means, its value and where that is from, and do nothing else
    #[arg(long, global = true, help_heading = "Configuration")]
    pub print_config: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer a prompt, or chat when there is none and this is a terminal
    Run(RunArgs),
    /// Answer requests over HTTP as OpenAI's and Anthropic's servers do
    Serve(ServeArgs),
    /// Download a model
    Pull(PullArgs),
    /// List the models on this machine and the known aliases
    List(ListArgs),
    /// Show what a model is: metadata, tensors by type, template, parameters, bytes
    Show(ShowArgs),
    /// Show how much memory a model will take, before it is loaded
    Plan(PlanArgs),
    /// Measure prompt and generation speed, or with `serve` what users of a server feel
    Bench(BenchArgs),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArgs),
    /// Show what this machine offers: processor, memory, folders, backends
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man(ManArgs),
}

#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Alias (see `ferrum list`), Hugging Face id (org/name or org/name:Q4_K_M), GGUF file, or folder with config.json and
    /// safetensors
    pub model: String,
    /// The prompt; several words are joined by spaces. `-`, or nothing and no terminal: standard input; `-` behind other words:
    /// standard input below them
    pub prompt: Vec<String>,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Tokens to generate at most [default: until the model ends its answer or the context is full]
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// No chat template: continue the prompt as plain text and print only the continuation
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,
    /// When the context is full, drop the older half of it and go on
    #[arg(long)]
    pub context_shift: bool,
    /// Go on behind the model's own end of the answer
    #[arg(long)]
    pub ignore_eos: bool,
    /// Print one JSON object: text, prompt_tokens, tokens, finish_reason, timings (`load_s` and `ttft_s` count from the start of
    /// the program)
    #[arg(long)]
    pub json: bool,
    /// Log-probability of each token with the N likeliest, as `logprobs` in the JSON object
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// Print tokens per second on standard error
    #[arg(long)]
    pub stats: bool,
    #[command(flatten)]
    pub grammar: GrammarArgs,
    #[command(flatten)]
    pub speculate: SpeculateArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// What one answer must look like.
#[derive(Debug, ClapArgs)]
#[group(multiple = false)]
pub struct GrammarArgs {
    /// The answer is JSON that is valid under the schema in this file
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// The answer is a text that this regular expression matches as a whole
    #[arg(long, value_name = "PATTERN")]
    pub regex: Option<String>,
    /// The answer follows the grammar in this file, in llguidance's form of Lark
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct ServeArgs {
    /// Alias, Hugging Face id, GGUF file or folder
    pub model: String,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0: any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// The model's name in requests and answers [default: as given]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,
    /// Requests computed at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_seqs: usize,
    /// Requests that may wait; more are refused with status 503
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_waiting: usize,
    /// Tokens that the KV cache holds for all requests together [default: the context for every one of --max-seqs]
    #[arg(long, value_name = "N")]
    pub kv_tokens: Option<usize>,
    /// Seconds without a finished step after which /health calls the engine stuck; an idle one gives a sign once a second
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..))]
    pub stuck_after_s: u64,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub speculate: SpeculateArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, ClapArgs)]
pub struct PullArgs {
    /// Alias or Hugging Face id (org/name or org/name:Q4_K_M)
    pub model: String,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, ClapArgs)]
pub struct ListArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, ClapArgs)]
pub struct ShowArgs {
    /// Alias, Hugging Face id, GGUF file or folder
    pub model: String,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// Alias, Hugging Face id, GGUF file or folder
    pub model: String,
    /// Sequences computed at the same time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub sequences: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// Alias, Hugging Face id, GGUF file or folder
    #[arg(required_unless_present = "dummy_weights")]
    pub model: Option<String>,
    /// Tokens of the prompt
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens to generate behind the prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub generate: usize,
    /// Repetitions, after one warm-up that does not count
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    /// Tokens in the context before the prompt
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// Sequences at the same time; several numbers, separated by commas, are measured one after the other
    #[arg(short = 'b', long, value_name = "N,…", default_value = "1", value_delimiter = ',')]
    pub batch: Vec<usize>,
    /// Measure random weights of this shape instead of a model
    #[arg(long, value_name = "CONFIG.json", conflicts_with = "model")]
    pub dummy_weights: Option<PathBuf>,
    /// Type of the random weights: q4_k_m, q8_0, bf16 or any weight type
    #[arg(long, value_name = "TYPE", default_value = "q4_k_m", value_parser = parse_quant, requires = "dummy_weights")]
    pub quant: DummyFormat,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub speculate: SpeculateArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Send requests to a server and measure its throughput and latencies
    #[command(after_help = bench_serve::EXAMPLES)]
    Serve(Box<bench_serve::BenchServeArgs>),
}

#[derive(Debug, ClapArgs)]
pub struct PerplexityArgs {
    /// Alias, Hugging Face id, GGUF file or folder
    pub model: String,
    /// The text, UTF-8
    pub file: PathBuf,
    /// Tokens per chunk; the second half of each is scored
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub ctx: usize,
    /// Score only the first chunks
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, ClapArgs)]
pub struct DoctorArgs {
    /// Bytes of memory whose reading is timed; caches may hold less than a model's weights [default: 256 MiB]
    #[arg(long, value_name = "N", default_value_t = 256 << 20, hide_default_value = true)]
    pub read_bytes: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Debug, ClapArgs)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Debug, ClapArgs)]
pub struct ManArgs {
    /// Write one page per command into this folder instead of the main page to standard output
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `q4_k_m`, or a weight dtype for all matrices.
fn parse_quant(text: &str) -> Result<DummyFormat, String> {
    if text.eq_ignore_ascii_case("q4_k_m") {
        return Ok(DummyFormat::Q4KM);
    }
    let dtype = DType::weights().find(|d| d.name().eq_ignore_ascii_case(text));
    dtype.map(DummyFormat::Uniform).ok_or_else(|| {
        let known: Vec<_> = DType::weights().map(|d| d.name().to_ascii_lowercase()).collect();
        format!("it must be q4_k_m or one of {}", known.join(", "))
    })
}
