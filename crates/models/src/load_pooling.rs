//! How a checkpoint makes embeddings.

use serde_json::Value;

use crate::{Checkpoint, Pooling, Result, config::invalid, load::read_json};

/// Where `sentence-transformers` writes it.
const POOLING_FILE: &str = "1_Pooling/config.json";
const MODES: [(&str, Pooling); 2] = [("pooling_mode_lasttoken", Pooling::Last), ("pooling_mode_mean_tokens", Pooling::Mean)];

impl Checkpoint {
    /// The pooling that the files name: `ARCHITECTURE.pooling_type` of a GGUF file (1 mean, 3 last), or `1_Pooling/config.json`. Where
    /// they name none it is the last token, the only one that has seen the whole text.
    ///
    /// # Errors
    /// When they name another one.
    pub fn pooling(&self) -> Result<Pooling> {
        if let Some(gguf) = self.gguf() {
            let metadata = gguf.metadata();
            let key = format!("{}.pooling_type", metadata.get_str("general.architecture")?);
            return match metadata.opt::<u32>(&key)? {
                None | Some(0 | 3) => Ok(Pooling::Last),
                Some(1) => Ok(Pooling::Mean),
                Some(other) => Err(invalid(&key, other, "known are 0 (none), 1 (mean) and 3 (last token)")),
            };
        }
        let Some(file) = self.folder().map(|dir| dir.join(POOLING_FILE)).filter(|file| file.exists()) else { return Ok(Pooling::Last) };
        let config = read_json(&file)?;
        let on = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        let known = MODES.iter().find(|(key, _)| on(key));
        known.map(|(_, pooling)| *pooling).ok_or_else(|| invalid(POOLING_FILE, &config, "it must be the last token or the mean of all"))
    }
}
