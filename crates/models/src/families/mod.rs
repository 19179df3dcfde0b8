//! The model families: one file each, and the registry that names them.

mod gemma;
mod llama;
mod mistral;
mod phi3;
mod qwen;
mod smollm3;

use ferrum_kernels::DType;

use crate::{Error, Result, config::Config, loader::Loader, model::Model};

/// One row of the registry.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    /// `model_type` in `config.json`
    pub model_types: &'static [&'static str],
    /// `general.architecture` in GGUF files
    pub gguf: &'static [&'static str],
    /// For the table of supported models
    pub examples: &'static str,
    /// Builds the model for contexts of up to `context` tokens.
    pub load: fn(&Loader, &Config, context: usize) -> Result<Box<dyn Model>>,
}

/// Every family, in the order of the documentation.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "llama",
        model_types: &["llama"],
        gguf: &["llama"],
        examples: "Llama 2, 3, 3.1, 3.2, 3.3; SmolLM, SmolLM2; other models of this architecture",
        load: llama::load,
    },
    Family { name: "mistral", model_types: &["mistral"], gguf: &[], examples: "Mistral 7B, Mistral Nemo, Ministral", load: mistral::load },
    Family { name: "qwen2", model_types: &["qwen2"], gguf: &["qwen2"], examples: "Qwen2, Qwen2.5, Qwen2.5-Coder", load: qwen::load_qwen2 },
    Family { name: "qwen3", model_types: &["qwen3"], gguf: &["qwen3"], examples: "Qwen3 dense", load: qwen::load_qwen3 },
    Family { name: "gemma2", model_types: &["gemma2"], gguf: &["gemma2"], examples: "Gemma 2", load: gemma::load_gemma2 },
    Family { name: "gemma3", model_types: &["gemma3_text"], gguf: &["gemma3"], examples: "Gemma 3 (text)", load: gemma::load_gemma3 },
    Family { name: "phi3", model_types: &["phi3"], gguf: &["phi3"], examples: "Phi-3, Phi-3.5, Phi-4", load: phi3::load },
    Family { name: "smollm3", model_types: &["smollm3"], gguf: &["smollm3"], examples: "SmolLM3", load: smollm3::load },
];

/// The family of a `config.json`'s `model_type`.
///
/// # Errors
/// When no family has it.
pub fn by_model_type(model_type: &str) -> Result<&'static Family> {
    find("model type", model_type, |f| f.model_types)
}

/// The family of a GGUF file's architecture.
///
/// # Errors
/// When no family has it.
pub fn by_gguf_architecture(architecture: &str) -> Result<&'static Family> {
    find("GGUF architecture", architecture, |f| f.gguf)
}

/// The families and weight dtypes as Markdown, for the README.
pub fn support_table() -> String {
    let mut table = String::from("| family | models | `model_type` | GGUF architecture |\n|---|---|---|---|\n");
    for f in FAMILIES {
        let list = |names: &[&str]| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        table += &format!("| {} | {} | {} | {} |\n", f.name, f.examples, list(f.model_types), list(f.gguf));
    }
    let dtypes: Vec<String> = DType::weights().map(|d| format!("`{d}`")).collect();
    table + &format!("\nWeights stay packed in memory as {}.\n", dtypes.join(", "))
}

fn find(what: &'static str, name: &str, names: fn(&Family) -> &'static [&'static str]) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| names(f).contains(&name)).ok_or_else(|| {
        let known = FAMILIES.iter().flat_map(names).copied().collect::<Vec<_>>().join(", ");
        Error::UnknownArchitecture { what, name: name.to_owned(), known }
    })
}
