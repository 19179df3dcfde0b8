//! The engine's options, and the sizes that follow from them.

use ferrum_kernels::{Backend, DType, ops::SampleParams};
use ferrum_models::ModelInfo;

use crate::{
    error::{Error, Result},
    speculate::MAX_STEP_DRAFTS,
};

/// The context when nobody asks for one: what most chats need, and little memory.
const DEFAULT_CONTEXT: usize = 4096;
const MAX_SEQS: usize = 4096;
const MAX_STEP_TOKENS: usize = 1 << 16;
/// Draft tokens of one sequence in one step
const MAX_DRAFTS: usize = 32;

/// What an engine is made for. The default is one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens of prompt and answer together; `None`: the model's own limit, at most 4096
    pub max_context: Option<usize>,
    /// Requests computed at the same time
    pub max_seqs: usize,
    /// Requests that may wait
    pub max_waiting: usize,
    /// Tokens of one step; `None`: what the backend likes
    pub max_step_tokens: Option<usize>,
    /// Rows of logits of one step; `None`: one per sequence. More makes [`crate::Engine::score`] faster
    pub max_logit_rows: Option<usize>,
    /// F32, F16 or BF16
    pub kv_dtype: DType,
    /// Blocks of the KV cache; `None`: `max_context` for every sequence
    pub kv_blocks: Option<usize>,
    /// Whether requests reuse what others computed for the same tokens
    pub prefix_cache: bool,
    /// The model's own end tokens
    pub end_tokens: Vec<u32>,
    /// Draft tokens of one sequence in one step, at most 32; 0: no speculation. Without a model for drafts they are looked
    /// up in the text itself
    pub draft_tokens: usize,
    /// Whether to compute draft tokens also where the measured times of steps say that it does not pay
    pub draft_always: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_context: None,
            max_seqs: 1,
            max_waiting: 1024,
            max_step_tokens: None,
            max_logit_rows: None,
            kv_dtype: DType::F16,
            kv_blocks: None,
            prefix_cache: true,
            end_tokens: Vec::new(),
            draft_tokens: 0,
            draft_always: false,
        }
    }
}

/// The sizes of all buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub max_context: usize,
    pub max_seqs: usize,
    pub max_step_tokens: usize,
    pub max_logit_rows: usize,
    /// Draft tokens: of one sequence in one step, and of one step
    pub max_drafts: usize,
    pub max_step_drafts: usize,
    pub block_tokens: usize,
    pub blocks: usize,
    pub kv_dtype: DType,
}

impl Sizes {
    /// # Errors
    /// [`Error::Option`], naming the option.
    pub fn new(info: &ModelInfo, backend: &dyn Backend, options: &EngineOptions) -> Result<Self> {
        let block_tokens = backend.kv_block_tokens().max(1);
        let max_context = options.max_context.unwrap_or(info.max_context.min(DEFAULT_CONTEXT));
        let max_seqs = options.max_seqs;
        between("max_context", max_context, 2, info.max_context)?;
        between("max_seqs", max_seqs, 1, MAX_SEQS)?;
        let max_step_tokens = options.max_step_tokens.unwrap_or_else(|| {
            let all = max_context.saturating_mul(max_seqs);
            backend.max_step_tokens().min(all).max(max_seqs)
        });
        between("max_step_tokens", max_step_tokens, max_seqs, MAX_STEP_TOKENS)?;
        let max_drafts = options.draft_tokens;
        between("draft_tokens", max_drafts, 0, MAX_DRAFTS)?;
        let max_step_drafts = (max_drafts * max_seqs).min(MAX_STEP_DRAFTS).min(max_step_tokens - 1);
        let max_logit_rows = options.max_logit_rows.unwrap_or(max_seqs);
        between("max_logit_rows", max_logit_rows, max_seqs, MAX_STEP_TOKENS)?;
        let max_logit_rows = max_logit_rows.max(max_seqs + max_step_drafts);
        let table = max_context.div_ceil(block_tokens);
        let blocks = options.kv_blocks.unwrap_or(max_seqs.saturating_mul(table));
        // Slots are 32-bit on the device.
        between("kv_blocks", blocks, table, i32::MAX as usize / block_tokens)?;
        let kv_dtype = options.kv_dtype;
        if !kv_dtype.is_float() {
            return Err(option("kv_dtype", kv_dtype, "it must be F32, F16 or BF16"));
        }
        if let Some(id) = options.end_tokens.iter().find(|&&id| id as usize >= info.vocab) {
            return Err(option("end_tokens", format!("token id {id}"), format!("ids must be below the vocabulary of {}", info.vocab)));
        }
        Ok(Self { max_context, max_seqs, max_step_tokens, max_logit_rows, max_drafts, max_step_drafts, block_tokens, blocks, kv_dtype })
    }

    /// The sizes for the model that makes drafts: in the same blocks, one token of each sequence at a time.
    pub fn of_drafting_model(&self) -> Self {
        Self { max_drafts: 0, max_step_drafts: 0, max_logit_rows: self.max_seqs, ..*self }
    }

    /// Tokens that one step samples.
    pub fn max_samples(&self) -> usize {
        self.max_seqs + self.max_step_drafts
    }

    /// Blocks of the longest sequence.
    pub fn table_width(&self) -> usize {
        self.max_context.div_ceil(self.block_tokens)
    }

    /// I32 elements of the arrays that one step uploads.
    pub fn index_elements(&self) -> usize {
        let table = self.max_seqs * self.table_width();
        let arrays = [self.max_step_tokens; 3].into_iter().chain([self.max_seqs + 1, self.max_seqs, table, self.max_logit_rows]);
        let params = (self.max_samples() + 1) * size_of::<SampleParams>() / size_of::<i32>();
        arrays.map(|len| len.next_multiple_of(INDEX_ALIGN)).sum::<usize>() + params
    }
}

/// Elements between the starts of uploaded arrays are a multiple of this: 16 bytes.
pub(crate) const INDEX_ALIGN: usize = 4;

fn between(field: &'static str, got: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(option(field, got, format!("it must be between {least} and {most} for this model and these options")))
}

fn option(field: &'static str, got: impl ToString, requirement: impl Into<String>) -> Error {
    Error::Option { field, got: got.to_string(), requirement: requirement.into() }
}
