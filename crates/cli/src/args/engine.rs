//! Flags that several commands have: where models are and how they are computed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use ferrum_cpu::Simd;
use ferrum_kernels::DType;

/// Where models are found.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Models")]
pub struct HubArgs {
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
    /// Folder of downloaded models [default: ferrum/models in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
}

/// How a model is computed.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Threads of the CPU backend [default: one per core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// What computes
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub backend: BackendArg,
    /// Activations of matrix products: what is fastest, or F32
    #[arg(long, value_enum, default_value_t = PrecisionArg::Auto)]
    pub precision: PrecisionArg,
    /// Element type of the KV cache [default: bf16 on a GPU, else f16]
    #[arg(long, value_enum)]
    pub kv_type: Option<KvTypeArg>,
    /// Instruction set of the CPU backend [default: the best this processor has]
    #[arg(long, value_enum)]
    pub simd: Option<SimdArg>,
}

/// Tokens that are guessed and checked together.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Engine")]
pub struct SpeculateArgs {
    /// Guess the next tokens and check them in one step, which changes no answer: `ngram` guesses what followed the same words
    /// before, the name of a small model with the same tokens lets that one guess
    #[arg(long, value_name = "ngram|MODEL")]
    pub speculate: Option<String>,
    /// Tokens that are guessed at most, 1 to 32 [default: 5]
    #[arg(long, value_name = "N", requires = "speculate")]
    pub speculate_tokens: Option<usize>,
    /// Guess also where measured times say that it does not pay
    #[arg(long, requires = "speculate")]
    pub speculate_always: bool,
}

/// How long a context may be.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Engine")]
pub struct ContextArgs {
    /// Tokens of prompt and answer together [default: the model's maximum, at most 4096]
    #[arg(short, long, value_name = "N", visible_alias = "ctx-size")]
    pub ctx: Option<usize>,
}

/// How the next token is chosen.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Sampling (defaults: generation_config.json of the model, else those shown)")]
pub struct SamplingArgs {
    /// 0: always the likeliest token [else: 0.7]
    #[arg(long, value_name = "T", allow_negative_numbers = true, visible_alias = "temp")]
    pub temperature: Option<f64>,
    /// Draw among this many likeliest tokens; 0: all [else: 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<i64>,
    /// Draw among the fewest tokens whose probabilities reach this; 1: all [else: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Draw among tokens at least this fraction as likely as the likeliest; 0: all [else: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Divides the logits of tokens that occurred; 1: off [else: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f64>,
    /// Subtracted from the logits of tokens that were generated; 0: off [else: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,
    /// Subtracted for every time a token was generated; 0: off [else: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,
    /// The same seed gives the same answer [default: another one each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// The fastest that this machine has
    Auto,
    /// An NVIDIA GPU
    Cuda,
    /// The processor's SIMD units
    Cpu,
    /// Every operation by its definition in f64, on one thread: slow, for checking
    Reference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// What is fastest: packed weights are multiplied with activations rounded to 8 bits
    Auto,
    /// Activations stay F32
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimdArg {
    /// No more than the compiler's baseline
    Portable,
    /// AVX2, FMA and F16C
    Avx2,
    /// AVX2 with the 8-bit dot products of AVX-VNNI
    Avxvnni,
    /// AVX-512 with its 8-bit dot products
    Avx512,
}

impl SimdArg {
    pub fn level(self) -> Simd {
        match self {
            Self::Portable => Simd::Portable,
            Self::Avx2 => Simd::Avx2,
            Self::Avxvnni => Simd::AvxVnni,
            Self::Avx512 => Simd::Avx512,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvTypeArg {
    F16,
    F32,
    Bf16,
}

impl KvTypeArg {
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}
