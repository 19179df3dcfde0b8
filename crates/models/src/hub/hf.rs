//! The Hugging Face source, on the cache layout that the Python client uses, so that each finds the other's downloads:
//! `models--org--name/{blobs/<etag>, refs/<revision>, snapshots/<commit>/<file> → blob}` and `.locks/`.

use super::catalogue::Entry;
use super::download::{self, Remote, has_size};
use super::http::{Http, bad_reply};
use super::names::{check_relative_path, check_repo_id, is_commit, is_hex};
use super::pick::{Picked, pick};
use super::progress::Progress;
use super::{Format, HubError, LocalModel, ModelFiles, local};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const REVISION: &str = "main";
const MAX_SNAPSHOT_DEPTH: usize = 4;

/// The hub cache folder.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) fn new(root: PathBuf) -> Cache {
        Cache { root }
    }

    /// The model `repo:select` if the cache has all of it.
    pub(crate) fn find(&self, repo: &str, select: Option<&str>) -> Option<ModelFiles> {
        check_repo_id(repo).ok()?;
        let snapshot = self.current_snapshot(repo)?;
        let names = snapshot_names(&snapshot);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let id = select.map_or_else(|| repo.to_owned(), |s| format!("{repo}:{s}"));
        match pick(repo, &names, select).ok()? {
            Picked::Gguf(set) => local::gguf(&snapshot.join(&set[0]), id).ok(),
            Picked::Safetensors(_) => local::folder(&snapshot, id).ok(),
        }
    }

    /// One file at a commit, if the cache has it with this size.
    pub(crate) fn find_file(&self, repo: &str, commit: &str, file: &str, size_bytes: u64) -> Option<PathBuf> {
        let path = self.repo_dir(repo).join("snapshots").join(commit).join(file);
        has_size(&path, size_bytes).then_some(path)
    }

    /// Every complete model in the cache: one line per GGUF model, one per safetensors folder, of each repository's current snapshot.
    pub(crate) fn list(&self) -> Vec<LocalModel> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let mut repos: Vec<String> = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok()?.strip_prefix("models--").map(|n| n.replacen("--", "/", 1)))
            .filter(|repo| check_repo_id(repo).is_ok())
            .collect();
        repos.sort();
        repos.iter().flat_map(|repo| self.list_repo(repo)).collect()
    }

    fn list_repo(&self, repo: &str) -> Vec<LocalModel> {
        let Some(snapshot) = self.current_snapshot(repo) else { return Vec::new() };
        let size = |paths: &[PathBuf]| paths.iter().filter_map(|p| fs::metadata(p).ok()).map(|m| m.len()).sum();
        let mut found = Vec::new();
        for set in local::gguf_sets(snapshot_names(&snapshot).iter().map(String::as_str)) {
            let paths: Vec<PathBuf> = set.iter().map(|name| snapshot.join(name)).collect();
            found.push(LocalModel { id: format!("{repo}:{}", set[0]), bytes: size(&paths), path: paths[0].clone(), format: Format::Gguf });
        }
        if let Ok(ModelFiles { kind: super::FilesKind::SafetensorsDir { dir, weights }, .. }) = local::folder(&snapshot, repo.to_owned()) {
            found.push(LocalModel { id: repo.to_owned(), path: dir, bytes: size(&weights), format: Format::Safetensors });
        }
        found
    }

    fn repo_dir(&self, repo: &str) -> PathBuf {
        self.root.join(format!("models--{}", repo.replace('/', "--")))
    }

    fn current_snapshot(&self, repo: &str) -> Option<PathBuf> {
        let dir = self.repo_dir(repo);
        let commit = fs::read_to_string(dir.join("refs").join(REVISION)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| dir.join("snapshots").join(commit)).filter(|p| p.is_dir())
    }

    /// Fetches one file and links it into its snapshot; returns the link's path.
    fn fetch(&self, http: &Http, at: &At<'_>, blob: &Blob, label: Label<'_>) -> Result<PathBuf, HubError> {
        check_relative_path(at.file)?;
        let dir = self.repo_dir(at.repo);
        let blobs = dir.join("blobs");
        fs::create_dir_all(&blobs).map_err(HubError::io(&blobs))?;
        let dest = blobs.join(&blob.id);
        let lock = self.root.join(".locks").join(format!("models--{}", at.repo.replace('/', "--"))).join(format!("{}.lock", blob.id));
        let remote = Remote {
            url: http.url(&format!("{}/resolve/{}/{}", at.repo, at.commit, at.file)),
            size_bytes: blob.size_bytes,
            sha256: is_hex(&blob.id, 64).then(|| blob.id.clone()),
            etag: Some(blob.id.clone()),
        };
        let progress = Progress::new(label.on, label.text, blob.size_bytes);
        download::fetch(http, &remote, &dest, &lock, &progress)?;
        link(&dir.join("snapshots").join(at.commit), at.file, &blob.id)
    }
}

/// Fetches `repo:select` at its current commit.
///
/// # Errors
/// Those of [`Http`] and of the downloads, [`HubError::NoMatch`], [`HubError::BadName`] for a listing with names that leave the
/// repository.
pub(crate) fn fetch_repo(cache: &Cache, http: &Http, repo: &str, select: Option<&str>, progress: bool) -> Result<ModelFiles, HubError> {
    check_repo_id(repo)?;
    let url = format!("{}?blobs=true", http.url(&format!("api/models/{repo}/revision/{REVISION}")));
    let info: RepoInfo = http.json(&url)?;
    if !is_commit(&info.sha) {
        return Err(bad_reply(&url, "the commit is not 40 hexadecimal digits"));
    }
    for sibling in &info.siblings {
        check_relative_path(&sibling.rfilename)?;
    }
    let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let by_name: HashMap<&str, &Sibling> = info.siblings.iter().map(|s| (s.rfilename.as_str(), s)).collect();
    let picked = pick(repo, &names, select)?;
    let (Picked::Gguf(files) | Picked::Safetensors(files)) = &picked;
    let mut first = None;
    for (i, file) in files.iter().enumerate() {
        let blob = by_name[file.as_str()].blob().ok_or_else(|| bad_reply(&url, &format!("no usable size and blob id for {file}")))?;
        let text = format!("{file} ({} of {})", i + 1, files.len());
        let at = At { repo, commit: &info.sha, file };
        let path = cache.fetch(http, &at, &blob, Label { on: progress, text: &text })?;
        first.get_or_insert(path);
    }
    let refs = cache.repo_dir(repo).join("refs");
    fs::create_dir_all(&refs).map_err(HubError::io(&refs))?;
    let fresh = refs.join(format!(".{REVISION}{}", fresh_suffix()));
    fs::write(&fresh, &info.sha).and_then(|()| fs::rename(&fresh, refs.join(REVISION))).map_err(HubError::io(&refs))?;

    let id = select.map_or_else(|| repo.to_owned(), |s| format!("{repo}:{s}"));
    match (picked, first) {
        (Picked::Gguf(_), Some(first)) => local::gguf(&first, id),
        _ => local::folder(&cache.repo_dir(repo).join("snapshots").join(&info.sha), id),
    }
}

/// Fetches the file of a catalogue entry from a fixed commit.
///
/// # Errors
/// Those of the download.
pub(crate) fn fetch_entry(cache: &Cache, http: &Http, entry: &Entry, at: &At<'_>, progress: bool) -> Result<PathBuf, HubError> {
    let blob = Blob { id: entry.sha256.clone(), size_bytes: entry.size_bytes };
    cache.fetch(http, at, &blob, Label { on: progress, text: at.file })
}

/// A file's address: all three parts have been checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) file: &'a str,
}

#[derive(Clone, Copy)]
struct Label<'a> {
    on: bool,
    text: &'a str,
}

/// A file's content: its name in `blobs/` is the sha256 for large files, the git blob id for small ones.
struct Blob {
    id: String,
    size_bytes: u64,
}

#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Sibling {
    fn blob(&self) -> Option<Blob> {
        let blob = match &self.lfs {
            Some(lfs) => Blob { id: lfs.sha256.clone(), size_bytes: lfs.size },
            None => Blob { id: self.blob_id.clone()?, size_bytes: self.size? },
        };
        let digits = if self.lfs.is_some() { 64 } else { 40 };
        is_hex(&blob.id, digits).then_some(blob)
    }
}

/// Makes `snapshot/file` point to the blob.
fn link(snapshot: &Path, file: &str, blob: &str) -> Result<PathBuf, HubError> {
    let path = snapshot.join(file);
    let dir = path.parent().unwrap_or(snapshot);
    fs::create_dir_all(dir).map_err(HubError::io(dir))?;
    // A folder of the snapshot that is itself a link out of the cache must not be written through.
    let inside = |p: &Path| p.canonicalize().map_err(HubError::io(p));
    if !inside(dir)?.starts_with(inside(snapshot)?) {
        return Err(HubError::BadName { what: "file name", name: file.to_owned(), why: "its folder leads out of the cache" });
    }
    let up = "../".repeat(2 + file.matches('/').count());
    let fresh = download::with_suffix(&path, &fresh_suffix());
    // Left over from an interrupted run, if at all.
    let _ = fs::remove_file(&fresh);
    point(&format!("{up}blobs/{blob}"), &snapshot.join("../../blobs").join(blob), &fresh)
        .and_then(|()| fs::rename(&fresh, &path))
        .map_err(HubError::io(&path))?;
    Ok(path)
}

/// For a file that will be renamed: two fetches of the same file each make their own, and the last to rename wins.
fn fresh_suffix() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(".{}-{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(unix)]
fn point(target: &str, _blob: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need a privilege on Windows; a hard link serves as well within one volume.
#[cfg(not(unix))]
fn point(_target: &str, blob: &Path, link: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, link)
}

/// Names of all files of a snapshot, relative to it, with links followed.
fn snapshot_names(snapshot: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            // Only files are followed through links: a link to a folder could lead round in a circle.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if depth > 0 {
                    walk(&entry.path(), &format!("{name}/"), depth - 1, names);
                }
            } else if entry.path().is_file() {
                names.push(name);
            }
        }
    }
    let mut names = Vec::new();
    walk(snapshot, "", MAX_SNAPSHOT_DEPTH, &mut names);
    names.sort();
    names
}
