//! Causal self-attention over the paged cache.

use std::sync::Arc;

use ferrum_kernels::{
    Tensor, ops,
    ops::{Epilogue, Norm, RopeLayout},
};

use super::{Linear, RmsNorm};
use crate::{Result, loader::Loader, model::Step, rope::RopeTable};

/// Rotary embedding, on the device; shared by the layers that use the same table.
#[derive(Debug)]
pub struct Rotary {
    inv_freq: Tensor,
    scale: f32,
    layout: RopeLayout,
}

impl Rotary {
    /// # Errors
    /// When memory is short.
    pub fn load(l: &Loader, table: &RopeTable, layout: RopeLayout) -> Result<Arc<Self>> {
        let inv_freq = l.backend().tensor_f32(&[table.inv_freq.len()], &table.inv_freq)?;
        Ok(Arc::new(Self { inv_freq, scale: table.scale, layout }))
    }
}

/// What differs between families and layers.
#[derive(Clone, Debug)]
pub struct AttentionOptions {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// On the scores; usually `1 / sqrt(head_dim)`
    pub scale: f32,
    /// `None`: this layer has no positions (NoPE)
    pub rotary: Option<Arc<Rotary>>,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    /// Whether the checkpoint holds q, k and v as one tensor
    pub fused: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    /// eps and weight offset of the norms on each head of q and k
    pub qk_norm: Option<(f32, f32)>,
}

#[derive(Debug)]
pub struct Attention {
    layer: usize,
    options: AttentionOptions,
    qkv: Linear,
    output: Linear,
    qk_norm: Option<[RmsNorm; 2]>,
}

impl Attention {
    /// # Errors
    /// When a tensor is missing, misshapen or in a dtype the backend cannot read.
    pub fn load(l: &Loader, layer: usize, hidden: usize, options: AttentionOptions) -> Result<Self> {
        let o = &options;
        let prefix = format!("model.layers.{layer}.self_attn");
        let (q, kv) = (o.heads * o.head_dim, o.kv_heads * o.head_dim);
        let split = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        let fused = [("qkv_proj", q + 2 * kv)];
        let qkv = Linear::load(l, &prefix, if o.fused { &fused } else { &split }, hidden, o.qkv_bias)?;
        let output = Linear::load(l, &prefix, &[("o_proj", hidden)], q, o.output_bias)?;
        let norm = |name: &str, (eps, offset)| RmsNorm::load(l, &format!("{prefix}.{name}"), o.head_dim, eps, offset);
        let qk_norm = match o.qk_norm {
            Some(n) => Some([norm("q_norm", n)?, norm("k_norm", n)?]),
            None => None,
        };
        Ok(Self { layer, qkv, output, qk_norm, options })
    }

    /// `x = attention(x)`, for `x: [tokens, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, step: &Step, x: &Tensor) -> Result<()> {
        self.run(step, x, None, Epilogue::Store)
    }

    /// `residual += attention(norm(residual))`, for `residual: [tokens, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add_forward(&self, step: &Step, norm: &RmsNorm, residual: &Tensor) -> Result<()> {
        let normed = step.rows(&step.scratch.hidden);
        self.run(step, residual, Some(norm.before(&normed)), Epilogue::Add)
    }

    fn run(&self, step: &Step, x: &Tensor, norm: Option<Norm>, epilogue: Epilogue) -> Result<()> {
        let (o, batch) = (&self.options, step.batch);
        let (qkv, out) = (step.rows(&step.scratch.qkv), step.rows(&step.scratch.attention));
        let before_decode = batch.max_query_len == 1;
        step.backend.linear(&ops::Linear { norm, before_decode, ..self.qkv.op(x, &qkv) })?;
        let (k_cache, v_cache) = &step.kv.layers[self.layer];
        step.backend.rope_attention(&ops::RopeAttention {
            heads: ops::RopeKvWrite {
                qkv: &qkv.split_heads(o.head_dim),
                heads: o.heads,
                qk_norm: self.qk_norm.as_ref().map(|[q, k]| ops::QkNorm { q: &q.weight, k: &k.weight, eps: q.eps }),
                rotation: o.rotary.as_ref().map(|r| ops::Rotation { inv_freq: &r.inv_freq, layout: r.layout, scale: r.scale }),
                positions: &batch.positions,
                slots: &batch.slots,
                k_cache,
                v_cache,
            },
            block_tables: &batch.block_tables,
            cu_seqlens: &batch.cu_seqlens,
            context_lens: &batch.context_lens,
            max_query_len: batch.max_query_len,
            scale: o.scale,
            window: o.window,
            softcap: o.softcap,
            sinks: None,
            out: &out.split_heads(o.head_dim),
        })?;
        Ok(step.backend.linear(&ops::Linear { epilogue, ..self.output.op(&out, x) })?)
    }
}
