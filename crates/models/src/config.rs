//! Reading `config.json`: typed, with every key accounted for.
//!
//! A key that nobody reads and that could change the result makes the load fail by name, so that a model never runs with
//! half of its config ignored. GGUF metadata is brought into the same form by [`crate::gguf_config`].

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A config under inspection.
#[derive(Debug)]
pub struct Config {
    values: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

/// Keys that do not change what a forward pass computes: training, bookkeeping, generation defaults.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "classifier_dropout",
    "decoder_start_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "eoi_token_index",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_window_layers",
    "model_type",
    "pad_token_id",
    "problem_type",
    "resid_pdrop",
    "rope_interleaved",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "vocab_size",
    "task_specific_params",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "use_return_dict",
    "chunk_size_feed_forward",
    "is_decoder",
    "is_encoder_decoder",
    "add_cross_attention",
];

impl Config {
    pub fn new(values: Map<String, Value>) -> Self {
        Self { values, read: RefCell::default() }
    }

    /// The value of `key`, unless it is absent or null. Marks the key as honoured.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// # Errors
    /// When the key is there and not a whole number of 0 or more.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        let convert = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.typed(key, convert, "it must be a whole number")
    }

    /// # Errors
    /// When the key is there and not a finite number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, |v| v.as_f64().map(|n| n as f32).filter(|n| n.is_finite()), "it must be a finite number")
    }

    /// # Errors
    /// When the key is there and not true or false.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, Value::as_bool, "it must be true or false")
    }

    /// # Errors
    /// When the key is there and not a string.
    pub fn string(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, |v| v.as_str().map(str::to_owned), "it must be a string")
    }

    /// A size that must be there and at least 1.
    ///
    /// # Errors
    /// When it is missing, not a whole number, 0, or beyond any real model.
    pub fn size(&self, key: &str) -> Result<usize> {
        let size = self.usize(key)?.ok_or_else(|| Error::MissingKey { key: key.to_owned() })?;
        if (1..=1 << 28).contains(&size) { Ok(size) } else { Err(invalid(key, size, "it must be between 1 and 268435456")) }
    }

    /// A key whose other values we cannot compute.
    ///
    /// # Errors
    /// When the key is there and is none of `allowed`.
    pub fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(v) if !allowed.contains(v) => Err(invalid(key, v, format!("only {allowed:?} can be run"))),
            _ => Ok(()),
        }
    }

    /// A nested object as a config of its own; its unread keys are the caller's to check.
    ///
    /// # Errors
    /// When the key is there and not an object.
    pub fn object(&self, key: &str) -> Result<Option<Config>> {
        let object = self.typed(key, |v| v.as_object().cloned(), "it must be an object")?;
        Ok(object.map(Config::new))
    }

    /// This config with `key` set where it is absent.
    #[must_use]
    pub fn with_default(mut self, key: &str, value: usize) -> Self {
        self.values.entry(key).or_insert_with(|| value.into());
        self
    }

    /// # Errors
    /// When keys are left that nobody read and that are not known to be harmless. Values of null, false and empty lists
    /// pass: they ask for nothing.
    pub fn finish(&self) -> Result<()> {
        let read = self.read.borrow();
        let asks = |v: &Value| match v {
            Value::Null | Value::Bool(false) => false,
            Value::Array(a) => !a.is_empty(),
            Value::Object(o) => !o.is_empty(),
            _ => true,
        };
        let keys: Vec<String> = self
            .values
            .iter()
            .filter(|(k, v)| !read.contains(*k) && !k.starts_with('_') && !HARMLESS.contains(&k.as_str()) && asks(v))
            .map(|(k, v)| format!("`{k}` = {v}"))
            .collect();
        if keys.is_empty() { Ok(()) } else { Err(Error::UnhonouredKeys { keys }) }
    }

    fn typed<T>(&self, key: &str, convert: impl Fn(&Value) -> Option<T>, requirement: &str) -> Result<Option<T>> {
        self.get(key).map(|v| convert(v).ok_or_else(|| invalid(key, v, requirement))).transpose()
    }
}

/// The error of a key with a value that cannot be used.
pub fn invalid(key: &str, got: impl ToString, requirement: impl Into<String>) -> Error {
    Error::ConfigValue { key: key.to_owned(), got: got.to_string(), requirement: requirement.into() }
}
