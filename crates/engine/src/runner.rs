//! Carries plans to the device. Owns the KV cache and every buffer; nothing is allocated after [`Runner::new`].

use std::sync::Arc;

use ferrum_kernels::{
    Backend, DType, Tensor,
    ops::{Sample, SampleParams},
};
use ferrum_models::{Batch, KvCache, Model, Scratch, Step};

use crate::{
    error::Result,
    options::{INDEX_ALIGN, Sizes},
    plan::Plan,
};

/// See the module's documentation.
pub(crate) struct Runner {
    backend: Arc<dyn Backend>,
    model: Arc<dyn Model>,
    kv: KvCache,
    scratch: Scratch,
    /// `[index_elements]` I32: all arrays of a step, one behind the other, so that one copy brings them
    index: Tensor,
    staging: Vec<i32>,
    /// `[max_seqs, size_of::<SampleParams>()]` U8
    params: Tensor,
    /// as `params`, each row [`SampleParams::GREEDY`]
    greedy: Tensor,
    /// `[max_seqs]` I32
    drawn: Tensor,
    host_drawn: Vec<i32>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

impl Runner {
    /// # Errors
    /// When memory is short.
    pub fn new(backend: Arc<dyn Backend>, model: Arc<dyn Model>, sizes: &Sizes, kv_dtype: DType) -> Result<Self> {
        let info = model.info();
        let params_shape = [sizes.max_seqs, size_of::<SampleParams>()];
        let greedy = backend.zeros(DType::U8, &params_shape)?;
        backend.upload(&greedy, bytemuck::cast_slice(&vec![SampleParams::GREEDY; sizes.max_seqs]))?;
        Ok(Self {
            kv: KvCache::new(&*backend, info, kv_dtype, sizes.blocks, sizes.block_tokens)?,
            scratch: Scratch::new(&*backend, info, sizes.max_step_tokens, sizes.max_logit_rows)?,
            index: backend.zeros(DType::I32, &[sizes.index_elements()])?,
            staging: Vec::with_capacity(sizes.index_elements()),
            params: backend.zeros(DType::U8, &params_shape)?,
            greedy,
            drawn: backend.zeros(DType::I32, &[sizes.max_seqs])?,
            host_drawn: Vec::with_capacity(sizes.max_seqs),
            tokens: Vec::with_capacity(sizes.max_seqs),
            logits: vec![0.0; info.vocab],
            backend,
            model,
        })
    }

    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// Computes a step. The logits that the plan asks for are in the first rows of the logits buffer afterwards.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&mut self, plan: &Plan) -> Result<()> {
        let batch = self.upload(plan)?;
        let (kv, scratch) = (&self.kv, &self.scratch);
        self.model.forward(&mut Step { backend: &*self.backend, batch: &batch, kv, scratch, tap: None })?;
        Ok(())
    }

    /// Draws one token from each of the first `params.len()` rows of logits.
    ///
    /// # Errors
    /// When the device fails.
    pub fn sample(&mut self, params: &[SampleParams], counts: Option<&Tensor>) -> Result<()> {
        let rows = params.len();
        self.tokens.clear();
        if rows == 0 {
            return Ok(());
        }
        let plain = params.iter().all(|p| p.temperature == 0.0 && p.counts_row < 0);
        let device_params = if plain { &self.greedy } else { &self.params }.narrow(0, 0, rows);
        if !plain {
            self.backend.upload(&device_params, bytemuck::cast_slice(params))?;
        }
        let out = self.drawn.narrow(0, 0, rows);
        let logits = self.scratch.logits.narrow(0, 0, rows);
        self.backend.sample(&Sample { logits: &logits, params: &device_params, counts: counts.filter(|_| !plain), out: &out })?;
        self.host_drawn.resize(rows, 0);
        self.backend.download(&out, bytemuck::cast_slice_mut(&mut self.host_drawn))?;
        let vocab = self.logits.len();
        for &token in &self.host_drawn {
            let valid = u32::try_from(token).ok().filter(|&t| (t as usize) < vocab);
            self.tokens.push(valid.ok_or_else(|| ferrum_kernels::Error::Device {
                backend: self.backend.name(),
                reason: format!("token {token} was drawn from a vocabulary of {vocab}"),
            })?);
        }
        Ok(())
    }

    /// The tokens that the last call of [`Runner::sample`] drew.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// One row of the last step's logits, `[vocab]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_logits(&mut self, row: usize) -> Result<&[f32]> {
        self.backend.download(&self.scratch.logits.narrow(0, row, 1), bytemuck::cast_slice_mut(&mut self.logits))?;
        Ok(&self.logits)
    }

    fn upload(&mut self, plan: &Plan) -> Result<Batch> {
        let staging = &mut self.staging;
        staging.clear();
        let mut place = |array: &[i32]| {
            let start = staging.len();
            staging.extend_from_slice(array);
            staging.resize(staging.len().next_multiple_of(INDEX_ALIGN), 0);
            self.index.narrow(0, start, array.len())
        };
        let batch = Batch {
            tokens: place(&plan.tokens),
            positions: place(&plan.positions),
            slots: place(&plan.slots),
            cu_seqlens: place(&plan.cu_seqlens),
            context_lens: place(&plan.context_lens),
            block_tables: place(&plan.block_tables).reshape(&[plan.context_lens.len(), plan.table_width]),
            logit_rows: place(&plan.logit_rows),
            max_query_len: plan.max_query_len,
        };
        self.backend.upload(&self.index.narrow(0, 0, self.staging.len()), bytemuck::cast_slice(&self.staging))?;
        Ok(batch)
    }
}
