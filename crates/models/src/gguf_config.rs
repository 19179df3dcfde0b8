//! GGUF metadata as the `config.json` it would have had, so that each family reads one form.

use serde_json::{Map, Value as Json, json};

use crate::{
    Error, Result,
    config::{Config, invalid},
    files::{
        Gguf, WeightFile,
        gguf::{Metadata, Value},
    },
};

/// Metadata keys without the architecture prefix, and the config keys they mean.
const KEYS: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("vocab_size", "vocab_size"),
];

/// Metadata keys that are handled one by one below or that ask for nothing.
const OTHER: &[&str] = &[
    "attention.value_length",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "rope.scale_linear",
    "tensor_data_layout",
];

/// The config of a GGUF file. `context` is what this load will serve.
///
/// # Errors
/// When a key has the wrong type, or a key is set that no family honours.
pub fn config(file: &Gguf, architecture: &str, context: usize) -> Result<Config> {
    let meta = file.metadata();
    let key = |name: &str| format!("{architecture}.{name}");
    let mut c = Map::new();
    for (from, to) in KEYS {
        if let Some(value) = meta.value(&key(from)) {
            c.insert((*to).to_owned(), number(&key(from), &value)?);
        }
    }
    let table = file.table();
    let has = |name: &str| table.info(name).is_some();
    let Some(embedding) = table.info("token_embd.weight") else {
        return Err(Error::MissingTensors { names: vec!["token_embd.weight".into()] });
    };
    c.insert("vocab_size".into(), json!(embedding.shape[0]));
    c.insert("tie_word_embeddings".into(), json!(!has("output.weight")));
    if architecture == "llama" && has("blk.0.attn_q.bias") {
        c.insert("attention_bias".into(), json!(true));
    }
    let heads = c.get("num_attention_heads").and_then(Json::as_u64).unwrap_or(1).max(1);
    let hidden = c.get("hidden_size").and_then(Json::as_u64).unwrap_or(0);
    let head_dim = c.get("head_dim").and_then(Json::as_u64).unwrap_or(hidden / heads);
    if let Some(value_dim) = meta.opt::<u64>(&key("attention.value_length"))?.filter(|&n| n != head_dim) {
        return Err(invalid(&key("attention.value_length"), value_dim, format!("it must equal the key length ({head_dim})")));
    }
    if let Some(rotary) = meta.opt::<u64>(&key("rope.dimension_count"))?.filter(|&n| n != head_dim) {
        c.insert("partial_rotary_factor".into(), json!(rotary as f64 / head_dim.max(1) as f64));
    }
    rope_scaling(meta, &key, &mut c, context, &has)?;
    by_architecture(architecture, meta, &key, &mut c)?;
    let known = |name: &str| KEYS.iter().any(|(from, _)| *from == name) || OTHER.contains(&name);
    let prefix = key("");
    let unknown = meta.keys().filter(|k| k.strip_prefix(&prefix).is_some_and(|name| !known(name)));
    let keys: Vec<String> = unknown.map(|k| format!("`{k}`")).collect();
    if keys.is_empty() { Ok(Config::new(c)) } else { Err(Error::UnhonouredKeys { keys }) }
}

fn number(key: &str, value: &Value) -> Result<Json> {
    match value {
        Value::Int(n) => Ok(json!(n)),
        Value::BigInt(n) => Ok(json!(n)),
        Value::Float(x) => Ok(json!(x)),
        Value::Array(a) => {
            // One value per layer: the same everywhere, or a model with layers of different sizes.
            let mut values = a.values().map(|v| number(key, &v));
            let first = values.next().unwrap_or_else(|| Err(invalid(key, "an empty list", "it must be a number")))?;
            if values.all(|v| v.is_ok_and(|v| v == first)) {
                return Ok(first);
            }
            Err(invalid(key, "a list of different numbers", "layers of different sizes cannot be run yet"))
        }
        _ => Err(invalid(key, "of another type", "it must be a number")),
    }
}

fn rope_scaling(
    meta: &Metadata,
    key: &impl Fn(&str) -> String,
    c: &mut Map<String, Json>,
    context: usize,
    has: &impl Fn(&str) -> bool,
) -> Result<()> {
    let float = |name: &str| meta.opt::<f32>(&key(name));
    let original = meta.opt::<u64>(&key("rope.scaling.original_context_length"))?;
    let max = c.get("max_position_embeddings").and_then(Json::as_u64).unwrap_or(0);
    let mut scaling = Map::new();
    let mut put = |name: &str, value: Option<f32>| {
        if let Some(v) = value {
            scaling.insert(name.to_owned(), json!(v));
        }
    };
    let kind = meta.opt::<&str>(&key("rope.scaling.type"))?.unwrap_or("none");
    let factor = match float("rope.scaling.factor")? {
        Some(f) => Some(f),
        None => float("rope.scale_linear")?,
    };
    match kind {
        "none" if float("rope.scale_linear")?.is_none_or(|f| f == 1.0) => {}
        "none" | "linear" => put("factor", factor),
        "yarn" => {
            put("factor", factor);
            put("beta_fast", float("rope.scaling.yarn_beta_fast")?);
            put("beta_slow", float("rope.scaling.yarn_beta_slow")?);
            // The file's factor multiplies the one that the rule derives.
            let derived = 1.0 + 0.1 * factor.unwrap_or(1.0).max(1.0).ln();
            put("attention_factor", float("rope.scaling.attn_factor")?.map(|f| f * derived));
        }
        "longrope" => {}
        other => return Err(invalid(&key("rope.scaling.type"), other, "known are none, linear, yarn and longrope")),
    }
    if !scaling.is_empty() {
        scaling.insert("rope_type".into(), json!(if kind == "none" { "linear" } else { kind }));
        if let Some(n) = original {
            scaling.insert("original_max_position_embeddings".into(), json!(n));
        }
        c.insert("rope_scaling".into(), Json::Object(scaling));
    }
    let long = original.is_some_and(|n| context as u64 > n);
    for name in ["rope_freqs.weight", if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" }] {
        if has(name) {
            c.insert("gguf_rope_factors".into(), json!(name));
        }
    }
    if has("rope_factors_long.weight") {
        let original = original.unwrap_or(max).max(2) as f32;
        let factor = max as f32 / original;
        let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        c.insert("gguf_rope_scale".into(), json!(float("rope.scaling.attn_factor")?.unwrap_or(derived)));
    }
    Ok(())
}

/// What llama.cpp's loader derives from the architecture instead of reading it.
fn by_architecture(architecture: &str, meta: &Metadata, key: &impl Fn(&str) -> String, c: &mut Map<String, Json>) -> Result<()> {
    let int = |c: &Map<String, Json>, name: &str| c.get(name).and_then(Json::as_u64).unwrap_or(0);
    let (layers, heads, hidden) = (int(c, "num_hidden_layers"), int(c, "num_attention_heads").max(1), int(c, "hidden_size"));
    match architecture {
        "gemma2" | "gemma3" => {
            if let Some(Value::Int(pattern)) = meta.value(&key("attention.sliding_window_pattern")) {
                c.insert("sliding_window_pattern".into(), json!(pattern));
            }
            // The 27B models scale scores by the hidden size per head, the others by the head size.
            let largest = if architecture == "gemma2" { 46 } else { 62 };
            let scalar = if layers == largest { hidden / heads } else { int(c, "head_dim") };
            if scalar > 0 {
                c.insert("query_pre_attn_scalar".into(), json!(scalar));
            }
            if architecture == "gemma2" {
                c.entry("attn_logit_softcapping").or_insert(json!(50.0));
                c.entry("final_logit_softcapping").or_insert(json!(30.0));
                c.entry("sliding_window").or_insert(json!(4096));
            }
        }
        _ => {}
    }
    Ok(())
}
