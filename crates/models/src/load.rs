//! Opening a checkpoint and building its model.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ferrum_kernels::Backend;
use serde_json::{Map, Value};

use crate::{
    Error, Result,
    config::{Config, invalid},
    dummy::{DummyFormat, DummySource},
    families::{self, Family},
    files::{FileError, Gguf, SafeTensors, TensorView, WeightFile},
    gguf_config,
    loader::{Inventory, Loader, Names, TensorSource},
    model::{Model, ModelInfo},
};

/// An opened checkpoint: files checked and mapped, nothing loaded yet.
pub struct Checkpoint {
    family: &'static Family,
    format: Format,
}

enum Format {
    Gguf { file: Gguf, architecture: String },
    HuggingFace { dir: PathBuf, file: SafeTensors, config: Map<String, Value> },
}

/// What loading will take, known before anything is loaded.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub info: ModelInfo,
    /// Name, shape and stored type of each tensor
    pub tensors: Vec<TensorSummary>,
    /// Bytes of all tensors as stored
    pub weight_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct TensorSummary {
    pub name: String,
    pub shape: Vec<usize>,
    pub type_name: &'static str,
    pub bytes: usize,
}

impl Checkpoint {
    /// Opens a `.gguf` file (the first part of a split one) or a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// When a file is missing, broken, or of a family that is not in the registry.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_folder(path);
        }
        let file = Gguf::open(path)?;
        let architecture = file.metadata().get_str("general.architecture")?.to_owned();
        let family = families::by_gguf_architecture(&architecture)?;
        Ok(Self { family, format: Format::Gguf { file, architecture } })
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let config = read_json(&dir.join("config.json"))?;
        let Value::Object(config) = config else { return Err(invalid("config.json", "not an object", "it must be an object")) };
        if let Some(q) = config.get("quantization_config").filter(|q| !q.is_null()) {
            let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("unknown").to_owned();
            return Err(invalid(
                "quantization_config.quant_method",
                method,
                "quantised safetensors cannot be run yet; use a GGUF file of the model",
            ));
        }
        let model_type = config.get("model_type").and_then(Value::as_str).ok_or_else(|| Error::MissingKey { key: "model_type".into() })?;
        let family = families::by_model_type(model_type)?;
        let file = SafeTensors::open(dir)?;
        Ok(Self { family, format: Format::HuggingFace { dir: dir.to_owned(), file, config } })
    }

    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// The files with their tensor table.
    pub fn weights(&self) -> &dyn WeightFile {
        match &self.format {
            Format::Gguf { file, .. } => file,
            Format::HuggingFace { file, .. } => file,
        }
    }

    /// The GGUF file, when this is one: tokenizer and template are in its metadata.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.format {
            Format::Gguf { file, .. } => Some(file),
            Format::HuggingFace { .. } => None,
        }
    }

    /// The folder of a Hugging Face checkpoint: tokenizer and template are in files beside the weights.
    pub fn folder(&self) -> Option<&Path> {
        match &self.format {
            Format::Gguf { .. } => None,
            Format::HuggingFace { dir, .. } => Some(dir),
        }
    }

    /// What the model asks for, checked against what the files hold.
    ///
    /// # Errors
    /// When the config cannot be honoured, or tensors are missing, left over or misshapen; all their names are listed.
    pub fn inspect(&self, backend: &dyn Backend, context: usize) -> Result<Inspection> {
        let inventory = Inventory::default();
        let model = self.build(&Loader::inventory(backend, self.names(), &inventory), context)?;
        let wanted = inventory.into_wanted();
        self.check(&wanted)?;
        let table = self.weights().table();
        let tensors: Vec<TensorSummary> = table
            .infos()
            .iter()
            .map(|t| TensorSummary { name: t.name.clone(), shape: t.shape.clone(), type_name: t.type_name, bytes: t.len_bytes })
            .collect();
        let parameters = wanted.values().map(|shape| shape.iter().product::<usize>() as u64).sum();
        let info = ModelInfo { parameters, ..model.info().clone() };
        Ok(Inspection { info, weight_bytes: tensors.iter().map(|t| t.bytes as u64).sum(), tensors })
    }

    /// Loads the model for contexts of up to `context` tokens.
    ///
    /// # Errors
    /// As [`Checkpoint::inspect`], or when the backend cannot take a weight.
    pub fn load(&self, backend: &dyn Backend, context: usize) -> Result<Arc<dyn Model>> {
        self.inspect(backend, context)?;
        let source = FileSource(self.weights());
        Ok(Arc::from(self.build(&Loader::new(backend, self.names(), &source), context)?))
    }

    fn build(&self, loader: &Loader, context: usize) -> Result<Box<dyn Model>> {
        let config = match &self.format {
            Format::Gguf { file, architecture } => gguf_config::config(file, architecture, context)?,
            Format::HuggingFace { config, .. } => Config::new(config.clone()),
        };
        (self.family.load)(loader, &config, context)
    }

    fn names(&self) -> Names {
        match &self.format {
            Format::Gguf { architecture, .. } => Names::Gguf(architecture.clone()),
            Format::HuggingFace { .. } => Names::HuggingFace,
        }
    }

    fn check(&self, wanted: &BTreeMap<String, Vec<usize>>) -> Result<()> {
        let table = self.weights().table();
        let missing: Vec<String> = wanted.keys().filter(|name| table.info(name).is_none()).cloned().collect();
        if !missing.is_empty() {
            return Err(Error::MissingTensors { names: missing });
        }
        let unused: Vec<String> = table
            .infos()
            .iter()
            .map(|t| &t.name)
            .filter(|name| !wanted.contains_key(*name) && !is_redundant(name, wanted))
            .cloned()
            .collect();
        if !unused.is_empty() {
            return Err(Error::UnusedTensors { names: unused });
        }
        for (name, expected) in wanted {
            if let Some(info) = table.info(name).filter(|info| info.shape != *expected) {
                return Err(Error::TensorShape { name: name.clone(), expected: expected.clone(), got: info.shape.clone() });
            }
        }
        Ok(())
    }
}

/// A model of a shape alone, for measuring: `config` is a `config.json`, `format` the dtypes of its matrices.
///
/// # Errors
/// When the config cannot be honoured or the backend cannot take a weight.
pub fn load_dummy(config: &Path, format: DummyFormat, backend: &dyn Backend, context: usize) -> Result<(Arc<dyn Model>, u64)> {
    let Value::Object(config) = read_json(config)? else { return Err(invalid("config.json", "not an object", "it must be an object")) };
    let model_type = config.get("model_type").and_then(Value::as_str).ok_or_else(|| Error::MissingKey { key: "model_type".into() })?;
    let family = families::by_model_type(model_type)?;
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
    let source = DummySource::new(format, layers, tied);
    let model = (family.load)(&Loader::new(backend, Names::HuggingFace, &source), &Config::new(config), context)?;
    Ok((Arc::from(model), source.bytes()))
}

/// Reads a JSON file of bounded size.
///
/// # Errors
/// When it cannot be read or parsed.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Tensors that checkpoints carry although they follow from others.
fn is_redundant(name: &str, wanted: &BTreeMap<String, Vec<usize>>) -> bool {
    let tied_head = name == "lm_head.weight" && !wanted.contains_key(name);
    tied_head
        || name.ends_with(".rotary_emb.inv_freq")
        || ["rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"].contains(&name)
}

struct FileSource<'a>(&'a dyn WeightFile);

impl TensorSource for FileSource<'_> {
    fn tensor(&self, name: &str, _shape: &[usize]) -> Result<TensorView, FileError> {
        self.0.tensor(name)
    }
}
