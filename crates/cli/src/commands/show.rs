//! `ferrum show`: what a model is.

use std::{collections::BTreeMap, fmt::Write, str};

use anyhow::Context;
use ferrum_kernels::ReferenceBackend;
use ferrum_models::{
    Checkpoint, ModelInfo,
    files::gguf::{Metadata, Value as GgufValue},
    text::Tokenizer,
};
use serde_json::{Map, Value, json};

use crate::{args::ShowArgs, open, output};

/// Longer lists and texts of the metadata are cut here; a vocabulary has a hundred thousand entries.
const LIST_SHOWN: usize = 8;
const TEXT_SHOWN: usize = 200;

/// Count, elements and bytes of the tensors of one type.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    count: u64,
    elements: u64,
    bytes: u64,
}

pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let checkpoint = open::checkpoint(&args.model, &args.hub)?;
    let table = checkpoint.weights().table();
    let mut types: BTreeMap<&str, Group> = BTreeMap::new();
    for t in table.infos() {
        let group = types.entry(t.type_name).or_default();
        group.count += 1;
        group.elements += t.shape.iter().product::<usize>() as u64;
        group.bytes += t.len_bytes as u64;
    }
    let bytes: u64 = types.values().map(|g| g.bytes).sum();
    // A model that cannot be run can still be looked at.
    let info = checkpoint.inspect(&ReferenceBackend, open::DEFAULT_CONTEXT).map(|i| i.info).context("this model cannot be run");
    let tokenizer = checkpoint.tokenizer().context("the tokenizer cannot be read");
    if args.json {
        return output::json(&as_json(args, &checkpoint, &types, bytes, &info, &tokenizer)?);
    }
    let mut text = String::new();
    for file in table.files() {
        writeln!(text, "file        {}", file.path().display())?;
    }
    writeln!(text, "family      {} ({})", checkpoint.family().name, checkpoint.family().examples)?;
    match &info {
        Ok(i) => {
            writeln!(text, "parameters  {} ({})", output::count(i.parameters), i.parameters)?;
            writeln!(text, "weights     {} ({bytes} bytes)", output::bytes(bytes))?;
            writeln!(text, "context     {}", i.max_context)?;
            writeln!(text, "layers      {}, hidden {}, inner {}", i.layers, i.hidden, i.inner)?;
            writeln!(text, "heads       {} of {}, {} for keys and values", i.heads, i.head_dim, i.kv_heads)?;
            writeln!(text, "vocabulary  {}", i.vocab)?;
        }
        Err(error) => writeln!(text, "{error:#}")?,
    }
    text += "\ntensors\n";
    for (name, g) in &types {
        writeln!(text, "  {name:<8} {:>5}  {:>10} elements  {:>10}", g.count, output::count(g.elements), output::bytes(g.bytes))?;
    }
    if args.tensors {
        text += "\n";
        for t in table.infos() {
            writeln!(text, "  {:<8} {:<40} {:?}", t.type_name, t.name, t.shape)?;
        }
    }
    text += "\nmetadata\n";
    for (key, value) in metadata(&checkpoint)?.iter().filter(|(key, _)| *key != "tokenizer.chat_template") {
        writeln!(text, "  {key} = {value}")?;
    }
    match &tokenizer {
        Ok(t) => {
            let token = |id: u32| format!("{id} {:?}", t.token_text(id).unwrap_or_default());
            let ends: Vec<String> = t.end_ids().iter().map(|&id| token(id)).collect();
            writeln!(
                text,
                "\ntokenizer   {} tokens, begins with {}",
                t.vocab_size(),
                t.bos().filter(|_| t.add_bos()).map_or("nothing".into(), token)
            )?;
            writeln!(text, "ends        {}", ends.join(", "))?;
            writeln!(text, "\nchat template\n{}", t.chat_template_source().unwrap_or("(none: use --raw)"))?;
        }
        Err(error) => writeln!(text, "\n{error:#}")?,
    }
    Ok(output::text(&text)?)
}

fn as_json(
    args: &ShowArgs,
    checkpoint: &Checkpoint,
    types: &BTreeMap<&str, Group>,
    bytes: u64,
    info: &anyhow::Result<ModelInfo>,
    tokenizer: &anyhow::Result<Tokenizer>,
) -> anyhow::Result<Value> {
    let table = checkpoint.weights().table();
    let by_type: Vec<Value> =
        types.iter().map(|(name, g)| json!({"type": name, "count": g.count, "elements": g.elements, "bytes": g.bytes})).collect();
    let mut object = json!({
        "model": args.model,
        "files": table.files().iter().map(|f| f.path().display().to_string()).collect::<Vec<_>>(),
        "format": if checkpoint.gguf().is_some() { "gguf" } else { "safetensors" },
        "family": checkpoint.family().name,
        "bytes": bytes,
        "tensors": table.infos().len(),
        "types": by_type,
        "metadata": metadata(checkpoint)?,
    });
    match info {
        Ok(i) => {
            object["parameters"] = i.parameters.into();
            object["config"] = json!({
                "context": i.max_context, "layers": i.layers, "hidden": i.hidden, "inner": i.inner, "heads": i.heads,
                "kv_heads": i.kv_heads, "head_dim": i.head_dim, "vocab": i.vocab,
            });
        }
        Err(error) => object["error"] = format!("{error:#}").into(),
    }
    match tokenizer {
        Ok(t) => {
            object["tokenizer"] =
                json!({"tokens": t.vocab_size(), "bos": t.bos(), "eos": t.eos(), "ends": t.end_ids(), "add_bos": t.add_bos()});
            object["chat_template"] = t.chat_template_source().into();
        }
        Err(error) => object["tokenizer_error"] = format!("{error:#}").into(),
    }
    if args.tensors {
        let tensor =
            |t: &ferrum_models::files::TensorInfo| json!({"name": t.name, "type": t.type_name, "shape": t.shape, "bytes": t.len_bytes});
        object["tensor_list"] = table.infos().iter().map(tensor).collect();
    }
    Ok(object)
}

/// GGUF metadata with long values cut, or `config.json`.
fn metadata(checkpoint: &Checkpoint) -> anyhow::Result<Map<String, Value>> {
    if let Some(file) = checkpoint.gguf() {
        let m: &Metadata = file.metadata();
        return Ok(m.keys().filter_map(|key| Some((key.to_owned(), plain(m.value(key)?)))).collect());
    }
    let config = checkpoint.folder().map(|dir| ferrum_models::read_json(&dir.join("config.json"))).transpose()?;
    Ok(config.and_then(|c| c.as_object().cloned()).unwrap_or_default())
}

fn plain(value: GgufValue) -> Value {
    match value {
        GgufValue::Int(n) => n.into(),
        GgufValue::BigInt(n) => n.into(),
        GgufValue::Float(x) => x.into(),
        GgufValue::Bool(b) => b.into(),
        GgufValue::Str(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let mut shown: String = text.chars().take(TEXT_SHOWN).collect();
            if shown.len() < text.len() {
                write!(shown, "… ({} bytes)", bytes.len()).unwrap_or_default();
            }
            shown.into()
        }
        GgufValue::Array(array) => {
            let mut shown: Vec<Value> = array.values().take(LIST_SHOWN).map(plain).collect();
            if shown.len() < array.len() {
                shown.push(format!("… ({} entries)", array.len()).into());
            }
            shown.into()
        }
    }
}
