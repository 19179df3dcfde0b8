//! Our own model store: a flat folder of complete, verified files; work in progress lives in its `.staging` folder.

use super::catalogue::Entry;
use super::download::{FileLock, has_size, sha256_file};
use super::local::gguf_sets;
use super::progress::Progress;
use super::{Catalogue, Format, HubError, LocalModel};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(crate) fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// Where the entry's file is or will be.
    pub(crate) fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(&entry.file)
    }

    /// The entry's file if it is there with the right size; a file gets its name only after its hash was verified.
    pub(crate) fn find(&self, entry: &Entry) -> Option<PathBuf> {
        let path = self.path(entry);
        has_size(&path, entry.size_bytes).then_some(path)
    }

    /// Takes the lock under which `entry` is fetched, and the folder for its unfinished files.
    ///
    /// # Errors
    /// [`HubError::Io`] when the store cannot be written.
    pub(crate) fn stage(&self, entry: &Entry, progress: &Progress) -> Result<Stage, HubError> {
        let dir = self.dir.join(".staging").join(&entry.file);
        fs::create_dir_all(&dir).map_err(HubError::io(&dir))?;
        let lock = FileLock::take(&dir.join("lock"), progress)?;
        Ok(Stage { dir, _lock: lock })
    }

    /// Moves a finished file into the store after checking size and hash.
    ///
    /// # Errors
    /// [`HubError::Corrupt`] when it is not the entry's file; it is deleted then.
    pub(crate) fn publish(&self, entry: &Entry, finished: &Path) -> Result<PathBuf, HubError> {
        if let Err(error) = verify(entry, finished) {
            // Best effort: the next attempt starts over in any case.
            let _ = fs::remove_file(finished);
            return Err(error);
        }
        let path = self.path(entry);
        fs::rename(finished, &path).map_err(HubError::io(&path))?;
        Ok(path)
    }

    /// The GGUF models in the store's folder, under their alias where size and name are those of a catalogue entry.
    pub(crate) fn list(&self, catalogue: &Catalogue) -> Vec<LocalModel> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        let mut found = Vec::new();
        for set in gguf_sets(names.iter().map(String::as_str)) {
            let path = self.dir.join(&set[0]);
            let bytes = set.iter().filter_map(|part| fs::metadata(self.dir.join(part)).ok()).map(|m| m.len()).sum();
            let alias = match catalogue.entries.iter().find(|e| e.file == set[0]) {
                Some(entry) if entry.size_bytes == bytes => Some(entry.name().to_owned()),
                // Catalogue names of the wrong size are not usable under their alias, and nothing else refers to them.
                Some(_) => continue,
                None => None,
            };
            found.push(LocalModel { id: alias.unwrap_or_else(|| path.display().to_string()), path, bytes, format: Format::Gguf });
        }
        found
    }
}

/// Checks size and sha256 of a file against its entry.
pub(crate) fn verify(entry: &Entry, path: &Path) -> Result<(), HubError> {
    let corrupt = |field, expected: String, got| Err(HubError::Corrupt { what: entry.name().to_owned(), field, expected, got });
    let bytes = fs::metadata(path).map_err(HubError::io(path))?.len();
    if bytes != entry.size_bytes {
        return corrupt("size in bytes", entry.size_bytes.to_string(), bytes.to_string());
    }
    let got = sha256_file(path)?;
    if got != entry.sha256 {
        return corrupt("sha256", entry.sha256.clone(), got);
    }
    Ok(())
}

/// The folder of one unfinished file, locked against other processes.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) dir: PathBuf,
    _lock: FileLock,
}

impl Stage {
    /// Removes the folder, once its file was published.
    pub(crate) fn clear(self) {
        // What cannot be removed is only litter: the next fetch of the same file starts by emptying it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
