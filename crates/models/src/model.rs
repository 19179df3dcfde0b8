//! What every model is to the engine: a forward pass over a batch of mixed prefill and decode tokens.

use ferrum_kernels::{Backend, DType, Tensor};

use crate::Result;

/// A loaded model. `forward` is called by one thread at a time.
pub trait Model: Send + Sync {
    fn info(&self) -> &ModelInfo;

    /// Runs one step: writes this step's keys and values into `step.kv` and leaves the logits of the rows that
    /// `step.batch.logit_rows` names in the first rows of `step.scratch.logits`, or their likeliest tokens in
    /// `step.batch.drawn` if it is [`Batch::greedy`].
    ///
    /// # Errors
    /// When the device fails or an operation's contract is broken.
    fn forward(&self, step: &mut Step) -> Result<()>;

    /// What the output head reads, of every token of the step that `forward` has just computed: `[tokens, hidden]`, in
    /// `step.scratch` until the next step.
    ///
    /// # Errors
    /// When the device fails.
    fn states(&self, step: &Step) -> Result<Tensor>;

    /// The output head alone: `states: [rows, hidden]` to `logits: [rows, vocab]` F32.
    ///
    /// # Errors
    /// When the device fails.
    fn logits(&self, backend: &dyn Backend, states: &Tensor, logits: &Tensor) -> Result<()>;
}

/// How the hidden states of a text become its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The state of the last token, which alone has seen all others
    Last,
    /// The mean of all
    Mean,
}

/// The facts that planning, caching and serving need.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Name of the family in the registry, e.g. `llama`
    pub family: &'static str,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width of the gated MLP
    pub inner: usize,
    /// The longest context the checkpoint was trained or scaled for
    pub max_context: usize,
    /// As counted by [`Checkpoint::inspect`](crate::Checkpoint::inspect); 0 in a model that is loaded
    pub parameters: u64,
}

impl ModelInfo {
    /// Bytes of keys and values per token, all layers.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * dtype.block_bytes()
    }
}

/// The tokens of one step and where they belong. Every tensor is I32 and cut to this step's sizes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[tokens]`: ids; `−1 − n` stands for the `n`-th of `drawn`
    pub tokens: Tensor,
    /// `[rows]`: what the step before drew, where that has not come to the host; afterwards what this one drew if it is `greedy`
    pub drawn: Tensor,
    /// `[tokens]`
    pub positions: Tensor,
    /// `[tokens]`: where each token's keys and values go
    pub slots: Tensor,
    /// `[seqs + 1]`
    pub cu_seqlens: Tensor,
    /// `[seqs]`
    pub context_lens: Tensor,
    /// `[seqs, max_blocks]`
    pub block_tables: Tensor,
    /// `[picked]`: rows whose logits are wanted, ascending; may be empty
    pub logit_rows: Tensor,
    /// The most tokens that one sequence has in this step
    pub max_query_len: usize,
    /// Whether the likeliest tokens of the wanted rows are wanted instead of their logits
    pub greedy: bool,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.tokens.elements()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The block pools of all layers. Block `b` of a sequence is block `b` in every layer.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Per layer: keys and values, each `[blocks, kv_heads, block_tokens, head_dim]`, blocks may be strided
    pub layers: Vec<(Tensor, Tensor)>,
    pub blocks: usize,
    pub block_tokens: usize,
}

impl KvCache {
    /// Bytes that [`KvCache::new`] allocates.
    pub fn bytes(info: &ModelInfo, dtype: DType, blocks: usize, block_tokens: usize) -> usize {
        info.kv_bytes_per_token(dtype) * blocks * block_tokens
    }

    /// Zeroed pools for a model.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(backend: &dyn Backend, info: &ModelInfo, dtype: DType, blocks: usize, block_tokens: usize) -> Result<Self> {
        let heads = info.kv_heads;
        let layers = if backend.kv_layers_together() {
            let all = backend.zeros(dtype, &[blocks, 2 * info.layers * heads, block_tokens, info.head_dim])?;
            (0..info.layers).map(|n| (all.narrow(1, 2 * n * heads, heads), all.narrow(1, (2 * n + 1) * heads, heads))).collect()
        } else {
            let shape = [blocks, heads, block_tokens, info.head_dim];
            (0..info.layers).map(|_| Ok((backend.zeros(dtype, &shape)?, backend.zeros(dtype, &shape)?))).collect::<Result<_>>()?
        };
        Ok(Self { layers, blocks, block_tokens })
    }
}

/// The buffers between operations, allocated once for the largest step.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// `[max_tokens, hidden]`: the residual stream
    pub residual: Tensor,
    /// `[max_tokens, hidden]`: what a block reads or leaves beside the residual stream, and normed rows
    pub hidden: Tensor,
    /// `[max_tokens, (heads + 2·kv_heads)·head_dim]`
    pub qkv: Tensor,
    /// `[max_tokens, heads·head_dim]`
    pub attention: Tensor,
    /// `[max_tokens, 2·inner]`
    pub gate_up: Tensor,
    /// `[max_tokens, inner]`
    pub inner: Tensor,
    /// `[max_picked, hidden]`
    pub picked: Tensor,
    /// `[max_picked, vocab]` F32
    pub logits: Tensor,
}

impl Scratch {
    /// Bytes that [`Scratch::new`] allocates.
    pub fn bytes(info: &ModelInfo, activations: DType, max_tokens: usize, max_picked: usize) -> usize {
        let row = 2 * info.hidden + (2 * info.heads + 2 * info.kv_heads) * info.head_dim + 3 * info.inner;
        (max_tokens * row + max_picked * info.hidden) * activations.block_bytes() + max_picked * info.vocab * 4
    }

    /// Buffers for steps of up to `max_tokens` tokens and `max_picked` rows of logits.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(backend: &dyn Backend, info: &ModelInfo, max_tokens: usize, max_picked: usize) -> Result<Self> {
        let dtype = backend.activation_dtype();
        let rows = |width: usize| backend.zeros(dtype, &[max_tokens, width]);
        Ok(Self {
            residual: rows(info.hidden)?,
            hidden: rows(info.hidden)?,
            qkv: rows((info.heads + 2 * info.kv_heads) * info.head_dim)?,
            attention: rows(info.heads * info.head_dim)?,
            gate_up: rows(2 * info.inner)?,
            inner: rows(info.inner)?,
            picked: backend.zeros(dtype, &[max_picked, info.hidden])?,
            logits: backend.zeros(DType::F32, &[max_picked, info.vocab])?,
        })
    }
}

/// Everything a forward pass works on.
pub struct Step<'a> {
    pub backend: &'a dyn Backend,
    pub batch: &'a Batch,
    pub kv: &'a KvCache,
    pub scratch: &'a Scratch,
    /// Sees intermediate tensors by name (`embed`, `layers.0`, …): for comparing with a reference layer by layer.
    pub tap: Option<Tap<'a>>,
}

/// Called with name and value of an intermediate tensor.
pub type Tap<'a> = &'a mut dyn FnMut(&str, &Tensor);

impl Step<'_> {
    /// The first rows of a scratch buffer: as many as this step has tokens.
    pub fn rows(&self, buffer: &Tensor) -> Tensor {
        buffer.narrow(0, 0, self.batch.len())
    }

    /// Shows a tensor to the tap, if there is one.
    pub fn tap(&mut self, name: impl FnOnce() -> String, tensor: &Tensor) {
        if let Some(tap) = &mut self.tap {
            tap(&name(), tensor);
        }
    }
}
