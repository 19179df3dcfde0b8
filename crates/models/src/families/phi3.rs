//! Phi-3 (Abdin et al. 2024, arXiv:2404.14219): Llama with fused projections, LongRoPE, and in some sizes rotation of a part
//! of each head or a sliding window.

use super::llama::{Decoder, DecoderOptions};
use crate::{Result, config::Config, loader::Loader, model::Model};

pub(super) fn load(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    c.only("attention_bias", &[false.into()])?;
    let options = DecoderOptions { fused: true, ..DecoderOptions::new("phi3", c)? };
    Decoder::load(l, c, options, context)
}
