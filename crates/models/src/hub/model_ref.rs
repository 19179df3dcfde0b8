//! What the user typed, understood but not yet looked for.

use super::names::{check_relative_path, check_repo_id};
use super::{Catalogue, HubError};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A model as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// The canonical alias of a catalogue entry: `smollm2:135m`.
    Alias(String),
    /// `org/name` or `org/name:select`, where `select` is a file of the repository or a quantisation such as `Q4_K_M`.
    HuggingFace { repo: String, select: Option<String> },
    /// A GGUF file, whatever its name; for a split file any of its parts.
    GgufFile(PathBuf),
    /// A folder with `config.json` and safetensors.
    Folder(PathBuf),
}

impl ModelRef {
    /// Understands `text` by the built-in catalogue.
    ///
    /// Tried in this order: a path written as one (`./x`, `/x`, `../x`, `~/x`), an alias, a file or folder that exists, a
    /// Hugging Face id.
    ///
    /// # Errors
    /// [`HubError::UnknownModel`] with the nearest aliases, [`HubError::LocalModel`] for a path that is not there,
    /// [`HubError::Io`] for one that may not be looked at.
    pub fn parse(text: &str) -> Result<ModelRef, HubError> {
        ModelRef::parse_with(text, Catalogue::builtin())
    }

    /// [`ModelRef::parse`] by another catalogue.
    ///
    /// # Errors
    /// As [`ModelRef::parse`].
    pub fn parse_with(text: &str, catalogue: &Catalogue) -> Result<ModelRef, HubError> {
        ModelRef::parse_among(text, catalogue, |path| fs::metadata(path))
    }

    /// `look` says what is at a path.
    fn parse_among(text: &str, catalogue: &Catalogue, look: impl Fn(&Path) -> io::Result<Metadata>) -> Result<ModelRef, HubError> {
        let text = text.trim();
        if let Some(path) = explicit_path(text) {
            return existing(&path, look(&path)).unwrap_or_else(|| Err(HubError::local(&path, "no such file or folder")));
        }
        if let Some(entry) = catalogue.get(text) {
            return Ok(ModelRef::Alias(entry.name().to_owned()));
        }
        let (path, id) = (Path::new(text), hugging_face(text));
        match existing(path, look(path)).filter(|_| !text.is_empty()) {
            // In a folder that may not be searched, every id would be a path that may not be looked at.
            Some(Err(HubError::Io { .. })) if id.is_some() => {}
            Some(found) => return found,
            None => {}
        }
        if let Some(id) = id {
            return Ok(id);
        }
        if text.ends_with(".gguf") && !text.contains(':') {
            return Err(HubError::local(Path::new(text), "no such file"));
        }
        Err(HubError::UnknownModel { given: text.chars().take(120).collect(), near: catalogue.near(text) })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Alias(name) => f.write_str(name),
            ModelRef::HuggingFace { repo, select: None } => f.write_str(repo),
            ModelRef::HuggingFace { repo, select: Some(select) } => write!(f, "{repo}:{select}"),
            ModelRef::GgufFile(path) | ModelRef::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

fn explicit_path(text: &str) -> Option<PathBuf> {
    if let Some(rest) = text.strip_prefix("~/") {
        return std::env::home_dir().map(|home| home.join(rest));
    }
    let explicit = matches!(text, "." | "..") || text.starts_with('/') || text.starts_with("./") || text.starts_with("../");
    (explicit || Path::new(text).is_absolute()).then(|| PathBuf::from(text))
}

fn existing(path: &Path, meta: io::Result<Metadata>) -> Option<Result<ModelRef, HubError>> {
    let meta = match meta {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Some(Err(HubError::io(path)(error))),
        Err(_) => return None,
    };
    if meta.is_dir() {
        return Some(Ok(ModelRef::Folder(path.to_owned())));
    }
    let named = |extension: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
    Some(if named("gguf") || is_gguf(path) {
        Ok(ModelRef::GgufFile(path.to_owned()))
    } else if named("safetensors") || named("json") {
        Err(HubError::local(path, "this is one file of a model; name the folder that has all of them"))
    } else {
        Err(HubError::local(path, "a model is a GGUF file or a folder with config.json and safetensors; this is neither"))
    })
}

/// Whether the file begins as GGUF does. In the stores of other tools files are named by their hashes.
fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

fn hugging_face(text: &str) -> Option<ModelRef> {
    let (repo, select) = match text.split_once(':') {
        Some((repo, select)) => (repo, Some(select)),
        None => (text, None),
    };
    if check_repo_id(repo).is_err() || select.is_some_and(|s| check_relative_path(s).is_err()) {
        return None;
    }
    Some(ModelRef::HuggingFace { repo: repo.to_owned(), select: select.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_and_ids() {
        assert_eq!(ModelRef::parse("SmolLM2").unwrap(), ModelRef::Alias("smollm2:135m".into()));
        let hf = |repo: &str, select: Option<&str>| ModelRef::HuggingFace { repo: repo.into(), select: select.map(str::to_owned) };
        assert_eq!(ModelRef::parse("org/name").unwrap(), hf("org/name", None));
        assert_eq!(ModelRef::parse(" org/name-GGUF:Q4_K_M ").unwrap(), hf("org/name-GGUF", Some("Q4_K_M")));
        assert_eq!(ModelRef::parse("org/name:sub/m.gguf").unwrap().to_string(), "org/name:sub/m.gguf");
    }

    #[test]
    fn unknown_names_say_what_is_near() {
        let err = ModelRef::parse("smolm2").unwrap_err().to_string();
        assert!(err.contains("smollm2:135m"), "{err}");
        for bad in ["", "nothing-like-it", "a/b/c", "org/name:../x", "org/na me"] {
            assert!(matches!(ModelRef::parse(bad), Err(HubError::UnknownModel { .. })), "{bad:?}");
        }
    }

    #[test]
    fn an_id_may_be_a_path_that_may_not_be_looked_at() {
        let parse = |text| ModelRef::parse_among(text, Catalogue::builtin(), |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(parse("org/name").unwrap(), ModelRef::HuggingFace { repo: "org/name".into(), select: None });
        for path in ["./org/name", "/org/name", "a/b/c", "m.gguf"] {
            assert!(matches!(parse(path), Err(HubError::Io { .. })), "{path}");
        }
    }

    #[test]
    fn paths() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.gguf");
        std::fs::write(&file, "x").unwrap();
        std::fs::write(dir.path().join("m.bin"), "x").unwrap();
        let blob = dir.path().join("sha256-1f2e");
        std::fs::write(&blob, "GGUF\u{3}").unwrap();
        assert_eq!(ModelRef::parse(blob.to_str().unwrap()).unwrap(), ModelRef::GgufFile(blob), "Ollama's files have no extension");
        let shard = dir.path().join("model.safetensors");
        std::fs::write(&shard, "x").unwrap();
        assert!(ModelRef::parse(shard.to_str().unwrap()).unwrap_err().to_string().contains("folder"));
        assert_eq!(ModelRef::parse(file.to_str().unwrap()).unwrap(), ModelRef::GgufFile(file));
        assert_eq!(ModelRef::parse(dir.path().to_str().unwrap()).unwrap(), ModelRef::Folder(dir.path().into()));
        assert!(ModelRef::parse(dir.path().join("m.bin").to_str().unwrap()).is_err());
        assert!(ModelRef::parse("./no/such.gguf").unwrap_err().to_string().contains("no such file"));
        assert!(ModelRef::parse("no-such.gguf").unwrap_err().to_string().contains("no such file"));
    }
}
