//! Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a sliding window in every layer. GGUF files call it `llama`.

use super::llama::{Decoder, DecoderOptions};
use crate::{Result, config::Config, loader::Loader, model::Model};

pub(super) fn load(l: &Loader, c: &Config, context: usize) -> Result<Box<dyn Model>> {
    Decoder::load(l, c, DecoderOptions::new("mistral", c)?, context)
}
