//! How much memory a model will take, before it is loaded.

use ferrum_kernels::{Backend, DType};
use ferrum_models::{KvCache, ModelInfo, Scratch};

use crate::options::{EngineOptions, Sizes};

/// The memory of one model with one set of options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights as the backend keeps them
    pub weights_bytes: u64,
    /// Keys and values of one token in all layers
    pub kv_bytes_per_token: u64,
    /// Tokens that the KV cache holds
    pub kv_tokens: u64,
    pub kv_bytes: u64,
    /// Activations, logits, index arrays, and what the backend's operations keep for themselves
    pub scratch_bytes: u64,
    pub total_bytes: u64,
    pub available_bytes: u64,
    /// The longest context for one sequence that fits beside weights and scratch; at most the model's own
    pub max_context_that_fits: u64,
}

impl MemoryPlan {
    /// Adds up what `options` need. `weights_bytes` are the tensors' bytes in the files, or what the backend packs them to.
    ///
    /// # Errors
    /// [`crate::Error::Option`] when an option is impossible by itself.
    pub fn new(info: &ModelInfo, weights_bytes: u64, backend: &dyn Backend, options: &EngineOptions) -> crate::Result<Self> {
        Self::with_drafting_model(info, weights_bytes, None, backend, options)
    }

    /// As [`MemoryPlan::new`], with a second model that makes draft tokens, and the bytes of its weights.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn with_drafting_model(
        info: &ModelInfo,
        weights_bytes: u64,
        drafting: Option<(&ModelInfo, u64)>,
        backend: &dyn Backend,
        options: &EngineOptions,
    ) -> crate::Result<Self> {
        let sizes = Sizes::new(info, backend, options)?;
        let models = [Some((info, sizes)), drafting.map(|(info, _)| (info, sizes.of_drafting_model()))];
        let models = || models.iter().flatten();
        let weights_bytes = weights_bytes + drafting.map_or(0, |(_, bytes)| bytes);
        let kv_bytes_per_token = models().map(|(info, _)| info.kv_bytes_per_token(sizes.kv_dtype) as u64).sum::<u64>();
        let kv_bytes = models().map(|(info, s)| KvCache::bytes(info, s.kv_dtype, s.blocks, s.block_tokens) as u64).sum();
        let scratch = |(info, sizes): &(&ModelInfo, Sizes)| {
            let activations = Scratch::bytes(info, backend.activation_dtype(), sizes.max_step_tokens, sizes.max_logit_rows);
            activations + sizes.index_elements() * DType::I32.block_bytes()
        };
        let workspace = backend.workspace_bytes(models().map(|(i, _)| i.hidden.max(i.inner).max(i.heads * i.head_dim)).max().unwrap_or(0));
        let scratch_bytes = (models().map(scratch).sum::<usize>() + workspace) as u64;
        let available_bytes = backend.device().memory_available_bytes;
        let left = available_bytes.saturating_sub(weights_bytes).saturating_sub(scratch_bytes);
        let whole_blocks = left / (kv_bytes_per_token * sizes.block_tokens as u64).max(1);
        Ok(Self {
            weights_bytes,
            kv_bytes_per_token,
            kv_tokens: (sizes.blocks * sizes.block_tokens) as u64,
            kv_bytes,
            scratch_bytes,
            total_bytes: weights_bytes.saturating_add(kv_bytes).saturating_add(scratch_bytes),
            available_bytes,
            max_context_that_fits: whole_blocks.saturating_mul(sizes.block_tokens as u64).min(info.max_context as u64),
        })
    }

    pub fn fits(&self) -> bool {
        self.total_bytes <= self.available_bytes
    }

    /// # Errors
    /// [`crate::Error::Memory`] with the exact numbers when the plan does not fit.
    pub fn check(&self) -> crate::Result<()> {
        if self.fits() { Ok(()) } else { Err(crate::Error::Memory(Box::new(self.clone()))) }
    }

    pub(crate) fn refusal(&self) -> String {
        let advice = match self.max_context_that_fits {
            0 => "that leaves no room for a context: take a smaller model or a smaller quantisation".to_owned(),
            context => format!("lower the context length to at most {context} for one sequence, or the number of sequences"),
        };
        format!(
            "the model needs {} bytes (weights {}, KV cache {} for {} tokens, scratch {}), but only {} are available; {advice}",
            self.total_bytes, self.weights_bytes, self.kv_bytes, self.kv_tokens, self.scratch_bytes, self.available_bytes
        )
    }
}
