//! A single sequence through a model, step by step, as the engine would run it.

use std::sync::Arc;

use ferrum_kernels::{Backend, DType, Tensor};
use ferrum_models::{Batch, KvCache, Model, Scratch, Step};

pub struct Session {
    backend: Arc<dyn Backend>,
    model: Arc<dyn Model>,
    kv: KvCache,
    scratch: Scratch,
    length: usize,
    block_table: Tensor,
    blocks: usize,
}

impl Session {
    /// A session of up to `context` tokens, and up to `rows` rows of logits a step.
    pub fn new(backend: Arc<dyn Backend>, model: Arc<dyn Model>, kv_dtype: DType, context: usize, rows: usize) -> Self {
        let block_tokens = backend.kv_block_tokens();
        let blocks = context.div_ceil(block_tokens);
        let kv = KvCache::new(&*backend, model.info(), kv_dtype, blocks, block_tokens).unwrap();
        let scratch = Scratch::new(&*backend, model.info(), context, rows).unwrap();
        // Blocks in reverse, so that a model that ignores the table fails.
        let table: Vec<i32> = (0..blocks as i32).rev().collect();
        let block_table = backend.tensor_i32(&[1, blocks], &table).unwrap();
        Self { backend, model, kv, scratch, length: 0, block_table, blocks }
    }

    /// Appends tokens; the logits of the last one.
    #[allow(dead_code, reason = "not every test binary uses every helper")]
    pub fn last(&mut self, tokens: &[u32]) -> Vec<f32> {
        let (mut logits, _) = self.step(tokens, tokens.len() - 1);
        logits.pop().unwrap()
    }

    /// Appends tokens; the logits of those from `first_row` on, and what the tap saw.
    pub fn step(&mut self, tokens: &[u32], first_row: usize) -> (Vec<Vec<f32>>, Vec<Tapped>) {
        let (start, count) = (self.length, tokens.len());
        self.length += count;
        let ints = |values: Vec<i32>| self.backend.tensor_i32(&[values.len()], &values).unwrap();
        let positions: Vec<i32> = (start as i32..self.length as i32).collect();
        let block_tokens = self.kv.block_tokens as i32;
        let slot = |&p: &i32| (self.blocks as i32 - 1 - p / block_tokens) * block_tokens + p % block_tokens;
        let batch = Batch {
            greedy: false,
            drawn: ints(vec![0]),
            tokens: ints(tokens.iter().map(|&t| t as i32).collect()),
            slots: ints(positions.iter().map(slot).collect()),
            positions: ints(positions),
            cu_seqlens: ints(vec![0, count as i32]),
            context_lens: ints(vec![self.length as i32]),
            block_tables: self.block_table.clone(),
            logit_rows: ints((first_row as i32..count as i32).collect()),
            max_query_len: count,
        };
        let mut seen = Vec::new();
        let backend = self.backend.clone();
        let mut tap = |name: &str, t: &Tensor| seen.push((name.to_owned(), backend.read_f32(t).unwrap()));
        let mut step = Step { backend: &*self.backend, batch: &batch, kv: &self.kv, scratch: &self.scratch, tap: Some(&mut tap) };
        self.model.forward(&mut step).unwrap();
        let logits = self.backend.read_f32(&self.scratch.logits.narrow(0, 0, count - first_row)).unwrap();
        (logits.chunks(self.model.info().vocab).map(<[f32]>::to_vec).collect(), seen)
    }
}

/// Name and values of an intermediate tensor.
pub type Tapped = (String, Vec<f32>);

#[allow(dead_code, reason = "not every test binary uses every helper")]
pub fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}
