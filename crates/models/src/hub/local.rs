//! Models on disk: a GGUF file with its other parts, or a folder with `config.json` and safetensors.

use super::names::check_relative_path;
use super::{FilesKind, HubError, ModelFiles};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
const SINGLE_FILE: &str = "model.safetensors";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_PARTS: u32 = 4096;

/// The GGUF model that `path` belongs to: the file itself, or all parts of a split file (`x-00001-of-00003.gguf`) in order.
///
/// # Errors
/// [`HubError::LocalModel`] when the file or a part is missing or empty.
pub(crate) fn gguf(path: &Path, id: String) -> Result<ModelFiles, HubError> {
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| HubError::local(path, "the file name is not valid UTF-8"))?;
    let paths: Vec<PathBuf> = match Split::of(name) {
        Some(split) => (1..=split.count).map(|i| path.with_file_name(split.part(i))).collect(),
        None => vec![path.to_owned()],
    };
    for part in &paths {
        match fs::metadata(part) {
            Ok(meta) if meta.is_file() && meta.len() > 0 => {}
            Ok(_) => return Err(HubError::local(part, "not a file, or empty")),
            Err(source) if paths.len() > 1 => {
                return Err(HubError::local(part, format!("a part of the split model is missing ({source})")));
            }
            Err(source) => return Err(HubError::Io { path: part.clone(), source }),
        }
    }
    Ok(ModelFiles { id, kind: FilesKind::Gguf { paths } })
}

/// The model in a folder: `config.json` with `model.safetensors`, with an index and all its shards, or with any `*.safetensors`;
/// failing that, the one GGUF model in it.
///
/// # Errors
/// [`HubError::LocalModel`] naming the missing file or the choice to make.
pub(crate) fn folder(dir: &Path, id: String) -> Result<ModelFiles, HubError> {
    let names = file_names(dir)?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let safetensors: Vec<&String> = names.iter().filter(|n| is_weight_shard(n)).collect();
    if safetensors.is_empty() {
        let sets = gguf_sets(names.iter().map(String::as_str));
        return match sets.as_slice() {
            [one] => gguf(&dir.join(&one[0]), id),
            [] => Err(HubError::local(dir, "the folder has neither *.safetensors nor a .gguf file")),
            _ => Err(HubError::local(dir, format!("the folder has several GGUF models; name one of them: {}", firsts(&sets)))),
        };
    }
    if !has("config.json") {
        return Err(HubError::local(dir, "the folder has safetensors but no config.json"));
    }
    let weights = if has(INDEX_FILE) {
        shards_of_index(&dir.join(INDEX_FILE))?.into_iter().map(|n| dir.join(n)).collect()
    } else if has(SINGLE_FILE) {
        vec![dir.join(SINGLE_FILE)]
    } else {
        safetensors.into_iter().map(|n| dir.join(n)).collect::<Vec<_>>()
    };
    if let Some(missing) = weights.iter().find(|p| !p.is_file()) {
        return Err(HubError::local(missing, format!("the shard is missing, though {INDEX_FILE} names it")));
    }
    Ok(ModelFiles { id, kind: FilesKind::SafetensorsDir { dir: dir.to_owned(), weights } })
}

/// Groups `.gguf` names into models, each a list of its parts in order; projector and importance-matrix files are left out.
/// A split model counts only when all its parts are there.
pub(crate) fn gguf_sets<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Vec<String>> {
    let all: BTreeSet<&str> = names.filter(|n| is_model_gguf(n)).collect();
    all.iter()
        .filter_map(|name| match Split::of(name) {
            None => Some(vec![(*name).to_owned()]),
            Some(split) if split.index == 1 => {
                let parts: Vec<String> = (1..=split.count).map(|i| split.part(i)).collect();
                parts.iter().all(|p| all.contains(p.as_str())).then_some(parts)
            }
            Some(_) => None,
        })
        .collect()
}

/// True for a shard of the model itself; `consolidated*` is the same model a second time in its publisher's own layout.
pub(crate) fn is_weight_shard(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains('/') && !name.starts_with("consolidated") && !name.starts_with('.')
}

/// Name without `.gguf` and without the split suffix.
pub(crate) fn gguf_stem(name: &str) -> &str {
    match Split::of(name) {
        Some(split) => split.stem,
        None => name.strip_suffix(".gguf").unwrap_or(name),
    }
}

fn is_model_gguf(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    base.ends_with(".gguf") && !base.contains("mmproj") && !base.contains("imatrix") && !base.starts_with('.')
}

fn firsts(sets: &[Vec<String>]) -> String {
    sets.iter().map(|s| s[0].as_str()).collect::<Vec<_>>().join(", ")
}

fn file_names(dir: &Path) -> Result<Vec<String>, HubError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(HubError::io(dir))? {
        let entry = entry.map_err(HubError::io(dir))?;
        // metadata() of the path, not of the entry: files in a hub snapshot are links.
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn shards_of_index(index: &Path) -> Result<BTreeSet<String>, HubError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    let bytes = fs::metadata(index).map_err(HubError::io(index))?.len();
    if bytes > MAX_INDEX_BYTES {
        return Err(HubError::local(index, format!("the index has {bytes} bytes, more than the {MAX_INDEX_BYTES} that are read")));
    }
    let text = fs::read(index).map_err(HubError::io(index))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| HubError::local(index, format!("not a safetensors index: {e}")))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    for shard in &shards {
        check_relative_path(shard).map_err(|e| HubError::local(index, e.to_string()))?;
    }
    if shards.is_empty() {
        return Err(HubError::local(index, "the index names no shard"));
    }
    Ok(shards)
}

/// The parts of `stem-00002-of-00005.gguf`.
struct Split<'a> {
    stem: &'a str,
    index: u32,
    count: u32,
}

impl<'a> Split<'a> {
    fn of(name: &'a str) -> Option<Split<'a>> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, index) = rest.rsplit_once('-')?;
        let number = |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u32>().ok()).flatten();
        let (index, count) = (number(index)?, number(count)?);
        (!stem.is_empty() && (1..=count).contains(&index) && count <= MAX_PARTS).then_some(Split { stem, index, count })
    }

    fn part(&self, index: u32) -> String {
        format!("{}-{index:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn weights(files: ModelFiles) -> Vec<String> {
        let (FilesKind::Gguf { paths } | FilesKind::SafetensorsDir { weights: paths, .. }) = files.kind;
        paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn split_files_are_completed_from_any_part() {
        let dir = dir_with(&[("m-00001-of-00002.gguf", "x"), ("m-00002-of-00002.gguf", "x"), ("n-00001-of-00002.gguf", "x")]);
        let found = gguf(&dir.path().join("m-00002-of-00002.gguf"), String::new()).unwrap();
        assert_eq!(weights(found), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
        let err = gguf(&dir.path().join("n-00001-of-00002.gguf"), String::new()).unwrap_err().to_string();
        assert!(err.contains("n-00002-of-00002.gguf"), "{err}");
        assert_eq!(weights(folder(dir.path(), String::new()).unwrap()).len(), 2, "the incomplete model does not count");
    }

    #[test]
    fn split_numbers_are_bounded() {
        for name in ["m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf", "-00001-of-00002.gguf", "m-00001-of-99999.gguf"] {
            assert!(Split::of(name).is_none(), "{name}");
        }
    }

    #[test]
    fn a_folder_needs_config_and_every_shard() {
        let index = r#"{"metadata":{},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
        let both = [
            ("config.json", "{}"),
            (INDEX_FILE, index),
            ("model-00001-of-00002.safetensors", "x"),
            ("model-00002-of-00002.safetensors", "x"),
        ];
        assert_eq!(weights(folder(dir_with(&both).path(), String::new()).unwrap()).len(), 2);
        let err = folder(dir_with(&both[..3]).path(), String::new()).unwrap_err().to_string();
        assert!(err.contains("model-00002-of-00002.safetensors"), "{err}");
        assert!(folder(dir_with(&both[1..]).path(), String::new()).unwrap_err().to_string().contains("no config.json"));
        let single = [("config.json", "{}"), (SINGLE_FILE, "x"), ("consolidated.safetensors", "x")];
        assert_eq!(weights(folder(dir_with(&single).path(), String::new()).unwrap()), [SINGLE_FILE]);
        assert!(folder(dir_with(&[("config.json", "{}")]).path(), String::new()).is_err());
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        for shard in ["../../etc/passwd", "/etc/passwd", ""] {
            let index = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
            let dir = dir_with(&[("config.json", "{}"), (INDEX_FILE, &index), ("model-00001-of-00002.safetensors", "x")]);
            assert!(matches!(folder(dir.path(), String::new()), Err(HubError::LocalModel { .. })), "{shard}");
        }
        let dir = dir_with(&[("config.json", "{}"), (INDEX_FILE, "[1,"), ("a.safetensors", "x")]);
        assert!(folder(dir.path(), String::new()).unwrap_err().to_string().contains("not a safetensors index"));
    }
}
