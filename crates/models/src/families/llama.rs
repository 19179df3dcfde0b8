//! Llama (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783): pre-norm blocks of
//! rotary attention with grouped heads and a SwiGLU MLP. The families that differ from it by options alone build the
//! same [`Decoder`] with theirs.

use std::sync::Arc;

use ferrum_kernels::{
    Backend, Tensor,
    ops::{Activation, RopeLayout},
};
use serde_json::json;

use crate::{
    Error, Result,
    config::{Config, invalid},
    layers::{Attention, AttentionOptions, Head, Mlp, RmsNorm, Rotary},
    loader::Loader,
    model::{Model, ModelInfo, Step},
    rope::{RopeShape, RopeTable},
};

pub(super) fn load(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    c.only("pretraining_tp", &[json!(1)])?;
    let mut options = DecoderOptions::new("llama", c)?;
    options.qkv_bias = c.bool("attention_bias")?.unwrap_or(false);
    options.output_bias = options.qkv_bias && !l.is_gguf();
    options.mlp_bias = c.bool("mlp_bias")?.unwrap_or(false);
    // GGUF files hold q and k with their rows permuted for the paper's layout.
    options.layout = if l.is_gguf() { RopeLayout::Pairs } else { RopeLayout::Halves };
    Decoder::load(l, c, options, context)
}

/// Sizes that every family's config has, and what the families vary.
#[derive(Debug)]
pub(super) struct DecoderOptions {
    pub info: ModelInfo,
    pub eps: f32,
    pub tied: bool,
    /// Per layer
    pub windows: Vec<Option<usize>>,
    /// Per layer: whether it rotates q and k at all
    pub rotated: Vec<bool>,
    pub layout: RopeLayout,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    pub qk_norm: bool,
    /// Whether q, k, v and gate, up are one tensor each in the checkpoint
    pub fused: bool,
}

impl DecoderOptions {
    /// Reads the keys that all families share.
    pub fn new(family: &'static str, c: &Config) -> Result<Self> {
        c.only("hidden_act", &[json!("silu")])?;
        let info = read_info(family, c)?;
        Ok(Self {
            eps: c.f32("rms_norm_eps")?.unwrap_or(1e-6),
            tied: c.bool("tie_word_embeddings")?.unwrap_or(false),
            windows: read_windows(c, info.layers)?,
            rotated: vec![true; info.layers],
            layout: RopeLayout::Halves,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            fused: false,
            info,
        })
    }
}

/// The sizes of a config.
pub(super) fn read_info(family: &'static str, c: &Config) -> Result<ModelInfo> {
    let (hidden, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let kv_heads = c.usize("num_key_value_heads")?.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(invalid("num_key_value_heads", kv_heads, format!("it must divide num_attention_heads ({heads})")));
    }
    let head_dim = match c.usize("head_dim")? {
        Some(n) if (1..=1024).contains(&n) => n,
        Some(n) => return Err(invalid("head_dim", n, "it must be between 1 and 1024")),
        None => hidden / heads,
    };
    Ok(ModelInfo {
        family,
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.size("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        inner: c.size("intermediate_size")?,
        max_context: c.size("max_position_embeddings")?,
        parameters: 0,
    })
}

/// The sliding window of each layer.
pub(super) fn read_windows(c: &Config, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = c.usize("sliding_window")?.filter(|&w| w > 0);
    let used = c.bool("use_sliding_window")?;
    let first = c.usize("max_window_layers")?.unwrap_or(0);
    if let Some(types) = c.get("layer_types") {
        let types = types.as_array().filter(|t| t.len() == layers);
        let types = types.ok_or_else(|| invalid("layer_types", "a list of another length", format!("it must name {layers} layers")))?;
        let one = |t: &serde_json::Value| match t.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => window.map(Some).ok_or_else(|| Error::MissingKey { key: "sliding_window".into() }),
            _ => Err(invalid("layer_types", t, "known are full_attention and sliding_attention")),
        };
        return types.iter().map(one).collect();
    }
    Ok((0..layers)
        .map(|layer| match used {
            Some(false) => None,
            Some(true) if layer < first => None,
            _ => window,
        })
        .collect())
}

/// The rotary table of a config that has one for all layers.
pub(super) fn read_rope(l: &Loader, c: &Config, info: &ModelInfo, context: usize) -> Result<RopeTable> {
    let parameters = match c.object("rope_parameters")? {
        Some(p) => Some(p),
        None => c.object("rope_scaling")?,
    };
    let nested = |key: &str| parameters.as_ref().map_or(Ok(None), |p| p.f32(key));
    let theta = nested("rope_theta")?.or(c.f32("rope_theta")?).unwrap_or(10_000.0);
    let factor = nested("partial_rotary_factor")?.or(c.f32("partial_rotary_factor")?).unwrap_or(1.0);
    let rotary_dim = (info.head_dim as f32 * factor) as usize;
    if rotary_dim < 2 || rotary_dim > info.head_dim || theta <= 0.0 {
        return Err(invalid(
            "partial_rotary_factor",
            factor,
            "it must rotate at least 2 and at most head_dim elements, with a positive theta",
        ));
    }
    let max_positions = info.max_context;
    let original = c.usize("original_max_position_embeddings")?;
    let parameters = match (parameters, original) {
        (Some(p), Some(n)) => Some(p.with_default("original_max_position_embeddings", n)),
        (p, _) => p,
    };
    let mut table = RopeTable::new(RopeShape { rotary_dim, theta, max_positions, context }, parameters.as_ref())?;
    // GGUF files hold the factors of Llama 3's and Phi 3's rules instead of their parameters.
    if let Some(name) = c.string("gguf_rope_factors")? {
        let factors = l.values(&[(name, rotary_dim / 2)])?;
        table.inv_freq.iter_mut().zip(factors).for_each(|(freq, by)| *freq /= by);
        table.scale = c.f32("gguf_rope_scale")?.unwrap_or(table.scale);
    }
    Ok(table)
}

/// Pre-norm decoder with options.
#[derive(Debug)]
pub(super) struct Decoder {
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
    mlp: Mlp,
}

impl Decoder {
    pub fn load(l: &Loader, c: &Config, o: DecoderOptions, context: usize) -> Result<Box<dyn Model>> {
        let info = o.info;
        let rotary = Rotary::load(l, &read_rope(l, c, &info, context)?, o.layout)?;
        c.finish()?;
        let norm = |name: String| RmsNorm::load(l, &name, info.hidden, o.eps, 0.0);
        let split = [("gate_proj", info.inner), ("up_proj", info.inner)];
        let gate_up: &[(&str, usize)] = if o.fused { &[("gate_up_proj", 2 * info.inner)] } else { &split };
        let blocks = (0..info.layers).map(|layer| {
            let prefix = format!("model.layers.{layer}");
            let attention = AttentionOptions {
                heads: info.heads,
                kv_heads: info.kv_heads,
                head_dim: info.head_dim,
                scale: (info.head_dim as f32).powf(-0.5),
                rotary: o.rotated[layer].then(|| Arc::clone(&rotary)),
                window: o.windows[layer],
                softcap: None,
                fused: o.fused,
                qkv_bias: o.qkv_bias,
                output_bias: o.output_bias,
                qk_norm: o.qk_norm.then_some((o.eps, 0.0)),
            };
            Ok(Block {
                input_norm: norm(format!("{prefix}.input_layernorm"))?,
                attention: Attention::load(l, layer, info.hidden, attention)?,
                post_attention_norm: norm(format!("{prefix}.post_attention_layernorm"))?,
                mlp: Mlp::load(l, &format!("{prefix}.mlp"), gate_up, info.hidden, Activation::Silu, o.mlp_bias)?,
            })
        });
        Ok(Box::new(Self {
            head: Head::load(l, [info.vocab, info.hidden], o.tied, 1.0, None)?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: norm("model.norm".into())?,
            info,
        }))
    }
}

impl Model for Decoder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn forward(&self, step: &mut Step) -> Result<()> {
        let residual = step.rows(&step.scratch.residual);
        self.head.embed(step)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            block.attention.add_forward(step, &block.input_norm, &residual)?;
            block.mlp.add_forward(step, &block.post_attention_norm, &residual)?;
            step.tap(|| format!("layers.{layer}"), &residual);
        }
        self.head.logits(step, &residual, Some(&self.norm))
    }

    fn states(&self, step: &Step) -> Result<Tensor> {
        let states = step.rows(&step.scratch.hidden);
        self.norm.forward(step, &step.rows(&step.scratch.residual), &states)?;
        Ok(states)
    }

    fn logits(&self, backend: &dyn Backend, states: &Tensor, logits: &Tensor) -> Result<()> {
        self.head.logits_of(backend, states, logits)
    }
}
