//! From what the user named to an engine that answers.

use std::{path::PathBuf, sync::Arc, thread};

use anyhow::{Context, anyhow, bail};
use ferrum_cpu::{CpuBackend, CpuOptions, Precision};
use ferrum_engine::{Engine, EngineOptions, MemoryPlan, SamplingParams};
use ferrum_kernels::{Backend, DType, ReferenceBackend};
use ferrum_models::{
    Checkpoint, Inspection, ModelInfo,
    hub::{FilesKind, Hub, HubOptions, ModelRef},
    text::{EncodeOptions, Tokenizer},
};

use crate::{
    args::{BackendArg, EngineArgs, HubArgs, PrecisionArg, SimdArg, SpeculateArgs},
    cuda, output, sampling,
};

/// The context when nobody asks for one.
pub const DEFAULT_CONTEXT: usize = 4096;

/// A model ready to answer.
pub struct Session {
    pub engine: Engine,
    /// With the number of parameters, which the engine does not know
    pub info: ModelInfo,
    pub tokenizer: Arc<Tokenizer>,
    pub checkpoint: Checkpoint,
    /// What the model's files suggest
    pub sampling: SamplingParams,
}

/// What a command needs of the engine besides the flags.
#[derive(Clone, Debug, Default)]
pub struct Need {
    /// `None`: the default
    pub context: Option<usize>,
    /// `None`: 1
    pub sequences: Option<usize>,
    pub logit_rows: Option<usize>,
    /// `None`: the engine's default
    pub max_waiting: Option<usize>,
    /// Tokens of the KV cache; `None`: the context for every sequence
    pub kv_tokens: Option<usize>,
    pub speculate: SpeculateArgs,
}

/// Draft tokens when nobody says how many.
const DRAFT_TOKENS: usize = 5;

impl SpeculateArgs {
    /// The model that makes drafts, if one does.
    pub fn model(&self) -> Option<&str> {
        self.speculate.as_deref().filter(|&model| model != "ngram")
    }
}

/// The hub with the user's flags.
pub fn hub(args: &HubArgs) -> Hub {
    let mut options = HubOptions::from_env();
    options.offline = args.offline;
    if let Some(dir) = &args.models_dir {
        options.models_dir.clone_from(dir);
    }
    Hub::new(options)
}

/// Finds the model's files, downloading what is missing, and opens them.
///
/// # Errors
/// When there is no such model, or its files are broken.
pub fn checkpoint(model: &str, args: &HubArgs) -> anyhow::Result<Checkpoint> {
    let files = hub(args).resolve(&ModelRef::parse(model)?)?;
    let path = match files.kind {
        FilesKind::Gguf { paths } => paths.into_iter().next(),
        FilesKind::SafetensorsDir { dir, .. } => Some(dir),
    };
    let path: PathBuf = path.ok_or_else(|| anyhow!("`{model}` has no files; pull it again with `ferrum pull {model}`"))?;
    Checkpoint::open(&path).with_context(|| format!("cannot open the model `{model}`"))
}

/// The backend that the flags ask for.
///
/// # Errors
/// When there is no usable GPU and one was asked for, or the number of threads is impossible.
pub fn backend(args: &EngineArgs) -> anyhow::Result<Arc<dyn Backend>> {
    match args.backend {
        BackendArg::Reference => Ok(Arc::new(ReferenceBackend)),
        BackendArg::Cuda => cuda::backend(),
        BackendArg::Cpu => cpu(args),
        BackendArg::Auto => cuda::backend().or_else(|_| cpu(args)),
    }
}

fn cpu(args: &EngineArgs) -> anyhow::Result<Arc<dyn Backend>> {
    let precision = match args.precision {
        PrecisionArg::Auto => Precision::Int8,
        PrecisionArg::F32 => Precision::F32,
    };
    Ok(Arc::new(CpuBackend::new(CpuOptions { threads: args.threads, precision, simd: args.simd.map(SimdArg::level) })?))
}

/// The element type of the KV cache: what the flags say, else half precision of the kind that the activations have.
pub fn kv_dtype(args: &EngineArgs, backend: &dyn Backend) -> DType {
    match args.kv_type {
        Some(kv_type) => kv_type.dtype(),
        None if backend.activation_dtype() == DType::BF16 => DType::BF16,
        None => DType::F16,
    }
}

/// What loading will take, and the context it is for: `context`, or the default for this model.
///
/// # Errors
/// When the model cannot be run, or cannot have such a context.
pub fn inspect(checkpoint: &Checkpoint, backend: &dyn Backend, context: Option<usize>) -> anyhow::Result<(Inspection, usize)> {
    let inspection = checkpoint.inspect(backend, context.unwrap_or(DEFAULT_CONTEXT))?;
    let longest = inspection.info.max_context;
    match context {
        Some(n) if !(2..=longest).contains(&n) => Err(anyhow!("a context of {n} tokens is not possible: this model takes 2 to {longest}")),
        Some(n) => Ok((inspection, n)),
        None => Ok((inspection, DEFAULT_CONTEXT.min(longest))),
    }
}

/// Loads the model, its tokenizer beside it, and makes the engine.
///
/// # Errors
/// When the model cannot be found, opened or run, or does not fit into memory.
pub fn session(model: &str, hub: &HubArgs, engine: &EngineArgs, need: &Need) -> anyhow::Result<Session> {
    let checkpoint = checkpoint(model, hub)?;
    let backend = backend(engine)?;
    let (inspection, context) = inspect(&checkpoint, &*backend, need.context)?;
    let mut options = options(engine, &*backend, need, context);
    let drafting = match need.speculate.model() {
        None => None,
        Some(model) => {
            let checkpoint = self::checkpoint(model, hub)?;
            Some((
                inspect(&checkpoint, &*backend, Some(context)).with_context(|| format!("the model for drafts, `{model}`"))?.0,
                checkpoint,
            ))
        }
    };
    let drafting_bytes = drafting.as_ref().map(|(inspection, _)| (&inspection.info, inspection.weight_bytes));
    let memory = MemoryPlan::with_drafting_model(&inspection.info, inspection.weight_bytes, drafting_bytes, &*backend, &options)?;
    memory.check()?;
    for file in checkpoint.weights().table().files() {
        file.prefetch();
    }
    if output::status_visible() {
        eprint!("loading {model} …\r");
    }
    let (tokenizer, loaded) = thread::scope(|scope| {
        let tokenizer = scope.spawn(|| checkpoint.tokenizer());
        let loaded = checkpoint.load(&*backend, context);
        (tokenizer.join(), loaded)
    });
    if output::status_visible() {
        eprint!("\x1b[2K\r");
    }
    let tokenizer = tokenizer.map_err(|_| anyhow!("reading the tokenizer of `{model}` failed"))?;
    let tokenizer = Arc::new(tokenizer.with_context(|| format!("cannot read the tokenizer of `{model}`"))?);
    let loaded = loaded?;
    let vocab = loaded.info().vocab;
    options.end_tokens = tokenizer.end_ids().iter().copied().filter(|&id| (id as usize) < vocab).collect();
    let sampling = sampling::of_model(checkpoint.folder())?;
    let drafting = match drafting {
        None => None,
        Some((_, drafting)) => {
            same_tokens(&tokenizer, &drafting)?;
            Some(drafting.load(&*backend, context)?)
        }
    };
    let engine = Engine::with_drafting_model(backend, loaded, drafting, options)?;
    checkpoint.weights().check()?;
    Ok(Session { engine, info: inspection.info, tokenizer, checkpoint, sampling })
}

/// # Errors
/// When the model for drafts writes text in other tokens.
fn same_tokens(tokenizer: &Tokenizer, drafting: &Checkpoint) -> anyhow::Result<()> {
    let other = drafting.tokenizer().context("cannot read the tokenizer of the model for drafts")?;
    let text = "The quick brown fox: 3.14159, naïve Ünïcödé 日本語 🙂\n\tfn main() { println!(\"{}\", a[0] + 1); }";
    let options = EncodeOptions { add_special: false, parse_special: false };
    if tokenizer.encode(text, options)? != other.encode(text, options)? {
        bail!("the model for drafts has other tokens than the model; choose one of the same family with --speculate");
    }
    Ok(())
}

/// The engine's options for these flags.
pub fn options(engine: &EngineArgs, backend: &dyn Backend, need: &Need, context: usize) -> EngineOptions {
    EngineOptions {
        max_context: Some(context),
        max_seqs: need.sequences.unwrap_or(1),
        max_logit_rows: need.logit_rows,
        max_waiting: need.max_waiting.unwrap_or(EngineOptions::default().max_waiting),
        kv_blocks: need.kv_tokens.map(|tokens| tokens.div_ceil(backend.kv_block_tokens())),
        kv_dtype: kv_dtype(engine, backend),
        draft_tokens: need.speculate.speculate.as_ref().map_or(0, |_| need.speculate.speculate_tokens.unwrap_or(DRAFT_TOKENS)),
        draft_always: need.speculate.speculate_always,
        ..EngineOptions::default()
    }
}
