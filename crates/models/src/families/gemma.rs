//! Gemma 2 (arXiv:2408.00118) and Gemma 3 text (arXiv:2503.19786): scaled embeddings, a norm before and after every block,
//! local layers with a sliding window between global ones. Gemma 2 bounds scores and logits by soft caps; Gemma 3 norms
//! q and k instead and rotates local and global layers with different bases.

use std::sync::Arc;

use ferrum_kernels::{
    Backend, Tensor,
    ops::{Activation, RopeLayout},
};
use serde_json::{Value, json};

use super::llama::{read_info, read_rope, read_windows};
use crate::{
    Result,
    config::Config,
    layers::{Attention, AttentionOptions, Head, Mlp, RmsNorm, Rotary},
    loader::Loader,
    model::{Model, ModelInfo, Step},
    rope::{RopeShape, RopeTable},
};

/// Norm weights are stored as their distance from 1.
const NORM_OFFSET: f32 = 1.0;

pub(super) fn load_gemma2(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    let info = read_info("gemma2", c)?;
    // Without a list, every second layer is global.
    let windows = windows(c, info.layers, 2)?;
    let rotary = Rotary::load(l, &read_rope(l, c, &info, context)?, RopeLayout::Halves)?;
    Gemma::load(l, c, Variant { info, windows, rotary: [rotary.clone(), rotary], qk_norm: false })
}

pub(super) fn load_gemma3(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    let info = read_info("gemma3", c)?;
    c.only("use_bidirectional_attention", &[json!(false)])?;
    let interval = match c.usize("sliding_window_pattern")? {
        Some(n) => n,
        None => c.usize("_sliding_window_pattern")?.unwrap_or(6),
    };
    let windows = windows(c, info.layers, interval)?;
    let by_type = c.object("rope_parameters")?;
    let tables = match &by_type {
        Some(p) if p.get("full_attention").is_some() => ["sliding_attention", "full_attention"].map(|kind| {
            let p = p.object(kind)?.unwrap_or_else(|| Config::new(serde_json::Map::new()));
            let theta = p.f32("rope_theta")?.unwrap_or(10_000.0);
            RopeTable::new(RopeShape { rotary_dim: info.head_dim, theta, max_positions: info.max_context, context }, Some(&p))
        }),
        _ => {
            let theta = c.f32("rope_local_base_freq")?.unwrap_or(10_000.0);
            let local = RopeShape { rotary_dim: info.head_dim, theta, max_positions: info.max_context, context };
            [RopeTable::new(local, None), read_rope(l, c, &info, context)]
        }
    };
    let [local, global] = tables;
    let rotary = [Rotary::load(l, &local?, RopeLayout::Halves)?, Rotary::load(l, &global?, RopeLayout::Halves)?];
    Gemma::load(l, c, Variant { info, windows, rotary, qk_norm: true })
}

/// Windows by the config's list, or every `interval`-th layer global.
fn windows(c: &Config, layers: usize, interval: usize) -> Result<Vec<Option<usize>>> {
    let listed = c.get("layer_types").is_some();
    let windows = read_windows(c, layers)?;
    if listed {
        return Ok(windows);
    }
    Ok(windows.into_iter().enumerate().map(|(i, w)| w.filter(|_| interval == 0 || !(i + 1).is_multiple_of(interval))).collect())
}

/// What Gemma 2 and 3 do not share.
struct Variant {
    info: ModelInfo,
    windows: Vec<Option<usize>>,
    /// Of local and of global layers
    rotary: [Arc<Rotary>; 2],
    qk_norm: bool,
}

#[derive(Debug)]
struct Gemma {
    info: ModelInfo,
    head: Head,
    blocks: Vec<Block>,
    norm: RmsNorm,
}

#[derive(Debug)]
struct Block {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    pre_mlp_norm: RmsNorm,
    mlp: Mlp,
    post_mlp_norm: RmsNorm,
}

impl Gemma {
    fn load(l: &Loader, c: &Config, v: Variant) -> Result<Box<dyn Model>> {
        let info = v.info;
        let activation = Some(json!("gelu_pytorch_tanh"));
        let named = [c.get("hidden_activation").cloned(), c.get("hidden_act").cloned()];
        let activations: Vec<Value> = named.into_iter().flatten().collect();
        if activations.iter().any(|a| Some(a) != activation.as_ref() && a != "gelu") {
            return Err(crate::config::invalid("hidden_activation", activations[0].clone(), "only gelu_pytorch_tanh can be run"));
        }
        let eps = c.f32("rms_norm_eps")?.unwrap_or(1e-6);
        let bias = c.bool("attention_bias")?.unwrap_or(false);
        let tied = c.bool("tie_word_embeddings")?.unwrap_or(true);
        let scale = c.f32("query_pre_attn_scalar")?.unwrap_or(info.head_dim as f32).powf(-0.5);
        let [softcap, logit_softcap] = ["attn_logit_softcapping", "final_logit_softcapping"].map(|key| c.f32(key));
        let (softcap, logit_softcap) = (softcap?, logit_softcap?);
        c.finish()?;
        let norm = |name: String| RmsNorm::load(l, &name, info.hidden, eps, NORM_OFFSET);
        let blocks = (0..info.layers).map(|layer| {
            let prefix = format!("model.layers.{layer}");
            let options = AttentionOptions {
                heads: info.heads,
                kv_heads: info.kv_heads,
                head_dim: info.head_dim,
                scale,
                rotary: Some(Arc::clone(&v.rotary[usize::from(v.windows[layer].is_none())])),
                window: v.windows[layer],
                softcap,
                fused: false,
                qkv_bias: bias,
                output_bias: bias,
                qk_norm: v.qk_norm.then_some((eps, NORM_OFFSET)),
            };
            let gate_up = [("gate_proj", info.inner), ("up_proj", info.inner)];
            Ok(Block {
                input_norm: norm(format!("{prefix}.input_layernorm"))?,
                attention: Attention::load(l, layer, info.hidden, options)?,
                post_attention_norm: norm(format!("{prefix}.post_attention_layernorm"))?,
                pre_mlp_norm: norm(format!("{prefix}.pre_feedforward_layernorm"))?,
                mlp: Mlp::load(l, &format!("{prefix}.mlp"), &gate_up, info.hidden, Activation::GeluTanh, false)?,
                post_mlp_norm: norm(format!("{prefix}.post_feedforward_layernorm"))?,
            })
        });
        Ok(Box::new(Self {
            head: Head::load(l, [info.vocab, info.hidden], tied, (info.hidden as f32).sqrt(), logit_softcap)?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: norm("model.norm".into())?,
            info,
        }))
    }
}

impl Model for Gemma {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn forward(&self, step: &mut Step) -> Result<()> {
        let (residual, x) = (step.rows(&step.scratch.residual), step.rows(&step.scratch.hidden));
        self.head.embed(step)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            if layer == 0 {
                block.input_norm.forward(step, &residual, &x)?;
            } else {
                block.input_norm.add_forward(step, &residual, &x)?;
                step.tap(|| format!("layers.{}", layer - 1), &residual);
            }
            block.attention.forward(step, &x)?;
            block.post_attention_norm.forward(step, &x, &x)?;
            block.pre_mlp_norm.add_forward(step, &residual, &x)?;
            block.mlp.forward(step, &x)?;
            block.post_mlp_norm.forward(step, &x, &x)?;
        }
        self.norm.add_forward(step, &residual, &x)?;
        step.tap(|| format!("layers.{}", self.blocks.len() - 1), &residual);
        self.head.logits(step, &x, None)
    }

    fn states(&self, step: &Step) -> Result<Tensor> {
        // The forward pass ends with the norm, and leaves it there.
        Ok(step.rows(&step.scratch.hidden))
    }

    fn logits(&self, backend: &dyn Backend, states: &Tensor, logits: &Tensor) -> Result<()> {
        self.head.logits_of(backend, states, logits)
    }
}
