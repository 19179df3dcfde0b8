//! Qwen2 and 2.5 (arXiv:2407.10671, arXiv:2412.15115): Llama with biases on q, k and v. Qwen3 (arXiv:2505.09388): norms on
//! each head of q and k instead.

use serde_json::json;

use super::llama::{Decoder, DecoderOptions};
use crate::{Result, config::Config, loader::Loader, model::Model};

pub(super) fn load_qwen2(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    let options = DecoderOptions { qkv_bias: true, ..DecoderOptions::new("qwen2", c)? };
    Decoder::load(l, c, options, context)
}

pub(super) fn load_qwen3(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    c.only("attention_bias", &[json!(false)])?;
    let options = DecoderOptions { qk_norm: true, ..DecoderOptions::new("qwen3", c)? };
    Decoder::load(l, c, options, context)
}
