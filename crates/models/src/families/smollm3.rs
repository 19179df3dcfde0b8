//! SmolLM3: Llama where every fourth layer has no positions (NoPE, Yang et al. 2025, arXiv:2501.18795).

use ferrum_kernels::ops::RopeLayout;
use serde_json::json;

use super::llama::{Decoder, DecoderOptions};
use crate::{
    Result,
    config::{Config, invalid},
    loader::Loader,
    model::Model,
};

pub(super) fn load(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    c.only("attention_bias", &[json!(false)])?;
    c.only("mlp_bias", &[json!(false)])?;
    c.only("pretraining_tp", &[json!(1), json!(2)])?;
    let mut options = DecoderOptions::new("smollm3", c)?;
    options.layout = if l.is_gguf() { RopeLayout::Pairs } else { RopeLayout::Halves };
    let interval = c.usize("no_rope_layer_interval")?.unwrap_or(4);
    let layers = options.info.layers;
    options.rotated = match c.get("no_rope_layers") {
        // The list says 1 where a layer rotates.
        Some(list) => {
            let flags = list.as_array().filter(|l| l.len() == layers).map(|l| l.iter().map(|v| v != &json!(0)).collect());
            flags.ok_or_else(|| invalid("no_rope_layers", list, format!("it must be a list of {layers} numbers")))?
        }
        None => (0..layers).map(|layer| interval == 0 || !(layer + 1).is_multiple_of(interval)).collect(),
    };
    Decoder::load(l, c, options, context)
}
