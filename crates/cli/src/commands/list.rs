//! `ferrum list`: models on this machine, and aliases that can be pulled.

use std::fmt::Write;

use ferrum_models::hub::{Format, LocalModel};
use serde_json::{Value, json};

use crate::{args::ListArgs, open, output};

pub fn run(args: &ListArgs) -> anyhow::Result<()> {
    let hub = open::hub(&args.hub);
    let local = hub.list();
    let entries = &hub.catalogue().entries;
    if args.json {
        let models: Vec<Value> = local
            .iter()
            .map(|m| json!({"id": m.id, "path": m.path.display().to_string(), "bytes": m.bytes, "format": format(m)}))
            .collect();
        let aliases: Vec<Value> = entries
            .iter()
            .map(|e| json!({"aliases": e.aliases, "description": e.description, "licence": e.licence, "bytes": e.size_bytes}))
            .collect();
        return output::json(&json!({"models": models, "catalogue": aliases}));
    }
    let mut text = String::new();
    if local.is_empty() {
        text += "No models on this machine yet. `ferrum pull smollm2:135m` fetches a small one.\n";
    } else {
        let width = local.iter().map(|m| m.id.chars().count()).max().unwrap_or(0);
        text += "On this machine:\n";
        for m in &local {
            writeln!(text, "  {:width$}  {:>10}  {}", m.id, output::bytes(m.bytes), format(m))?;
        }
    }
    text += "\nAliases:\n";
    let width = entries.iter().map(|e| e.name().chars().count()).max().unwrap_or(0);
    for e in entries {
        writeln!(text, "  {:width$}  {:>10}  {}", e.name(), output::bytes(e.size_bytes), e.description)?;
    }
    Ok(output::text(&text)?)
}

fn format(model: &LocalModel) -> &'static str {
    match model.format {
        Format::Gguf => "gguf",
        Format::Safetensors => "safetensors",
    }
}
