//! Sampling parameters: the flags over the model's `generation_config.json` over our defaults.

use std::path::Path;

use ferrum_engine::SamplingParams;
use serde_json::Value;

use crate::args::SamplingArgs;

/// What is used where neither a flag nor the model says otherwise.
pub fn ours() -> SamplingParams {
    SamplingParams { temperature: 0.7, top_k: 40, top_p: 0.95, min_p: 0.05, ..SamplingParams::default() }
}

/// The defaults of the model in `folder`, if it has any.
///
/// # Errors
/// When its `generation_config.json` is there and broken.
pub fn of_model(folder: Option<&Path>) -> anyhow::Result<SamplingParams> {
    let Some(path) = folder.map(|dir| dir.join("generation_config.json")).filter(|path| path.exists()) else { return Ok(ours()) };
    Ok(from_generation_config(&ferrum_models::read_json(&path)?))
}

/// `config` means what it means to `transformers`: greedy unless `do_sample`, and its defaults for absent keys.
fn from_generation_config(config: &Value) -> SamplingParams {
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let repetition_penalty = number("repetition_penalty").unwrap_or(1.0);
    match config.get("do_sample").and_then(Value::as_bool) {
        Some(true) => SamplingParams {
            temperature: number("temperature").unwrap_or(1.0),
            top_k: config.get("top_k").and_then(Value::as_i64).unwrap_or(50),
            top_p: number("top_p").unwrap_or(1.0),
            min_p: number("min_p").unwrap_or(0.0),
            repetition_penalty,
            ..SamplingParams::default()
        },
        Some(false) => SamplingParams { repetition_penalty, ..SamplingParams::default() },
        // Most configs that say nothing are only there for their end tokens.
        None => SamplingParams { repetition_penalty, ..ours() },
    }
}

impl SamplingArgs {
    /// These flags over `defaults`.
    pub fn over(&self, defaults: &SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repeat_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            seed: self.seed.or(defaults.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generation_config_means_what_transformers_means() {
        let sampled = from_generation_config(&json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9}));
        assert_eq!((sampled.temperature, sampled.top_k, sampled.top_p, sampled.min_p), (0.6, 50, 0.9, 0.0));
        assert_eq!(from_generation_config(&json!({"do_sample": false, "temperature": 0.6})).temperature, 0.0);
        assert_eq!(from_generation_config(&json!({"eos_token_id": 2})), ours());
    }

    #[test]
    fn flags_win() {
        let flags = SamplingArgs { temperature: Some(0.0), seed: Some(3), ..SamplingArgs::default() };
        let params = flags.over(&ours());
        assert_eq!((params.temperature, params.top_k, params.seed), (0.0, 40, Some(3)));
    }
}
